"""GenEval's files: the prompts with what they ask for, and what was found in pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umcompress.evals.pictures.geneval_rules import COLORS, TAGS, Detection, Verdict, judge
from umcompress.extend import UsageError, files, lines_of, text_of

Row = dict[str, Any]
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Prompt:
    """One line of the metadata; `index` counts lines from 0 and names the folder of its pictures."""

    index: int
    line: str
    metadata: Mapping[str, Any]

    @property
    def tag(self) -> str:
        return str(self.metadata["tag"])

    @property
    def text(self) -> str:
        return str(self.metadata["prompt"])


def read_prompts(path: Path) -> list[Prompt]:
    """The metadata file.  UsageError names the line that is not one of GenEval's."""
    prompts: list[Prompt] = []
    for number, line, row in _lines(path, "the prompts of geneval"):
        if (wrong := _wrong(row)) is not None:
            raise UsageError(f"the prompts of geneval: {path}", f"line {number}: {wrong}",
                             "take the file as its authors publish it")
        prompts.append(Prompt(len(prompts), line, row))
    if not prompts:
        raise UsageError(f"the prompts of geneval: {path}", "it is empty", "take the file as its authors publish it")
    return prompts


def _lines(path: Path, asked: str) -> Iterable[tuple[int, str, Row]]:
    """Number, text and object of each line."""
    try:
        text = text_of(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{asked}: {path}", f"not readable: {error}", "name a file of JSON lines") from error
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            continue
        try:
            row = files.parse_json(line)
        except ValueError as error:
            raise UsageError(f"{asked}: {path}", f"line {number} is not JSON: {error}",
                             "name a file of JSON lines") from error
        if not isinstance(row, dict):
            raise UsageError(f"{asked}: {path}", f"line {number} is no object", "name a file of JSON lines")
        yield number, line, row


def _wrong(row: Row) -> str | None:
    """What keeps a row from being a prompt with its requirements."""
    if row.get("tag") not in TAGS:
        return f"tag {row.get('tag')!r}; GenEval has {', '.join(TAGS)}"
    if not isinstance(row.get("prompt"), str):
        return "no prompt"
    clauses = row.get("include")
    if not isinstance(clauses, list) or not clauses:
        return "no list `include`"
    for place, clause in enumerate([*clauses, *(row.get("exclude") or [])]):
        if not isinstance(clause, dict) or not isinstance(clause.get("class"), str):
            return f"clause {place} names no class"
        if not isinstance(clause.get("count"), int) or clause["count"] < 1:
            return f"clause {place} has no count"
        if clause.get("color", COLORS[0]) not in COLORS:
            return f"colour {clause['color']!r}; GenEval has {', '.join(COLORS)}"
        if "position" in clause and not _is_position(clause["position"], place):
            return f"position {clause['position']!r}; it is [one of {', '.join(RELATIONS)}; an earlier clause]"
    return None


def _is_position(value: Any, place: int) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and value[0] in RELATIONS
        and isinstance(value[1], int) and 0 <= value[1] < place
    )


def as_row(prompt: Prompt, name: str, verdict: Verdict, found: Sequence[tuple[Detection, str | None]]) -> Row:
    """One picture: the columns of the official results, then all detections, with the colours that were asked for."""
    details = {label: [[*thing.box, thing.score] for thing in things] for label, things in verdict.kept.items()}
    return {
        "id": name, "filename": name, "tag": prompt.tag, "prompt": prompt.text, "correct": verdict.correct,
        "reason": verdict.reason, "metadata": json.dumps(prompt.metadata), "details": json.dumps(details),
        "detections": [_detection(thing, color) for thing, color in found],
    }


def _detection(thing: Detection, color: str | None) -> Row:
    known = {} if color is None else {"color": color}
    return {"class": thing.label, "box": list(thing.box), "score": thing.score, **known}


class Precomputed:
    """What a file says about pictures: detections, which are judged here, or the official program's verdicts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[int, dict[int, Row]] = {}

    @classmethod
    def read(cls, path: Path, prompts: Sequence[Prompt]) -> Precomputed:
        """Read and judge.  UsageError for lines that are about other prompts, or say nothing about a picture."""
        asked = "geneval: detections"
        known = cls(path)
        for number, _, row in _lines(path, asked):
            name = str(row.get("filename", row.get("id", "")))
            found = re.search(r"(?:^|/)(\d+)/(?:samples/)?(\d+)(?:\.png)?$", name)
            if found is None or int(found[1]) >= len(prompts):
                raise UsageError(f"{asked} {path}", f"line {number} is about {name!r}",
                                 "filename: NNNNN/samples/NNNN.png, NNNNN the line of the prompt from 0")
            prompt = prompts[int(found[1])]
            if row.get("prompt", prompt.text) != prompt.text:
                raise UsageError(f"{asked} {path}", f"line {number}: prompt {row['prompt']!r}, not {prompt.text!r}",
                                 "name the file of prompts that the pictures were painted for")
            correct = _correct(prompt, row, f"{asked} {path}", number)
            known._rows.setdefault(prompt.index, {})[int(found[2])] = {"id": name, "correct": correct}
        return known

    def rows(self, prompt: Prompt) -> list[Row]:
        """The verdicts on the pictures of one prompt, in their order."""
        return [row for _, row in sorted(self._rows.get(prompt.index, {}).items())]


def _correct(prompt: Prompt, row: Row, asked: str, number: int) -> bool:
    if "detections" in row:
        try:
            things = [
                Detection(str(one["class"]), _box(one["box"]), float(one["score"]), one.get("color"))
                for one in row["detections"]
            ]
            return judge(prompt.metadata, things).correct
        except (KeyError, TypeError, ValueError) as error:
            found = f"line {number}: {f'no {error}' if isinstance(error, KeyError) else error}"
            do = "each detection has class, box (x1, y1, x2, y2), score, and color where the prompt asks for one"
            raise UsageError(asked, found, do) from error
    if isinstance(row.get("correct"), bool):
        return bool(row["correct"])
    raise UsageError(asked, f"line {number} has neither `detections` nor `correct`",
                     "take results.jsonl of an evaluation, or of the official program")


def _box(values: Sequence[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(value) for value in values[:4])
    return x1, y1, x2, y2
