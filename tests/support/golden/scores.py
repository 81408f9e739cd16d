"""The benchmarks' scorers against recorded results of the official programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from golden.lines import Lines, read
from umcompress.evals.answers import mmbench_rules, mme_rules, mmmu_rules
from umcompress.evals.pictures import geneval_rules, wise_rules


def geneval(path: Path) -> int:
    """GenEval's verdicts: correct, the reason, what counted as found."""
    lines = Lines(path)
    for number, case in enumerate(read(path)):
        name = f"{number} {case.get('id', '')}"
        options = case.get("options", {})
        known = {key: options[key] for key in asdict(geneval_rules.Options()) if key in options}
        lines.expect(case["expected"], name)
        lines.nothing_else(_rest(options, *known), name, "options")
        lines.nothing_else(_rest(case, "id", "metadata", "detections", "options", "expected"), name)
        found = [
            geneval_rules.Detection(d["class"], tuple(d["box"]), d["score"], d.get("color"))
            for d in case["detections"]
        ]
        verdict = geneval_rules.judge(case["metadata"], found, geneval_rules.Options(**known))
        kept = {label: [[*thing.box, thing.score] for thing in things] for label, things in verdict.kept.items()}
        lines.same({"correct": verdict.correct, "reason": verdict.reason, "kept": kept}, name)
    return lines.finish()


def mme(path: Path) -> int:
    """MME: cleaning of answers, every count of every task, the totals."""
    lines, content = Lines(path), read(path)
    lines.expect(content["groups"], "groups")
    lines.same({"Perception": list(mme_rules.PERCEPTION), "Cognition": list(mme_rules.COGNITION)}, "groups")
    lines.nothing_else(_rest(content, "note", "groups", "cases"), lines.name)
    for case in content["cases"]:
        name = case["id"]
        lines.expect(case["expected"], name)
        lines.nothing_else(_rest(case, "id", "columns", "tasks", "expected"), name)
        scores: dict[str, float] = {}
        for task, table in case["tasks"].items():
            rows = [dict(zip(case["columns"], row, strict=True)) for row in table]
            lines.expect([row["post_processed"] for row in rows], name, task, "post_processed")
            lines.same([mme_rules.clean(row["raw_answer"]) for row in rows], name, task, "post_processed")
            score = mme_rules.score_task(
                [mme_rules.Line(row["image"], row["gt"], mme_rules.clean(row["raw_answer"])) for row in rows]
            )
            scores[task] = score.score
            lines.same({
                "score": score.score, "acc": score.acc, "acc_plus": score.acc_plus, "other": score.other,
                "TP": score.true_yes, "FN": score.missed_yes, "TN": score.true_no, "FP": score.missed_no,
                "parsed": list(score.parsed),
            }, name, "per_task", task)  # fmt: skip
        lines.same(mme_rules.totals(scores), name, "totals")
    return lines.finish()


def misc(path: Path) -> int:
    """MMMU, MMBench and WISE."""
    lines, content = Lines(path), read(path)
    checks: dict[str, Callable[[Lines, Any], None]] = {
        "mmmu": _mmmu, "mmbench_post_process": _mmbench_post_process, "mmbench_tables": _mmbench_tables,
        "wise": _wise, "wise_judge_text": _wise_judge_text,
    }  # fmt: skip
    for name, part in content.items():
        if name in checks:
            checks[name](lines, part)
        else:
            lines.line(False, name, "no check knows this part")
    return lines.finish()


def _rest(case: dict[str, Any], *known: str) -> dict[str, Any]:
    """What a case expects: all but the inputs."""
    return {key: value for key, value in case.items() if key not in known}


def _mmmu(lines: Lines, cases: list[dict[str, Any]]) -> None:
    for number, case in enumerate(cases):
        name = f"mmmu {number}"
        lines.expect(_rest(case, "kind", "options", "answer", "response"), name)
        if case["kind"] == "open":
            parsed = mmmu_rules.parse_open(case["response"])
            good = mmmu_rules.judge_open(case["answer"], parsed)
            lines.same({"parsed": [str(value) for value in parsed], "correct": good}, name)
            continue
        letter = mmmu_rules.parse_choice(case["response"], case["options"])
        right = None if letter is None else letter == case["answer"]
        lines.same({"parsed": letter, "random_fallback": letter is None, "correct": right}, name)


def _mmbench_post_process(lines: Lines, cases: list[dict[str, Any]]) -> None:
    for number, case in enumerate(cases):
        name = f"mmbench_post_process {number}"
        lines.expect(_rest(case, "options", "response"), name)
        lines.same({"parsed": mmbench_rules.parse(case["response"], case["options"])}, name)


def _mmbench_tables(lines: Lines, tables: list[dict[str, Any]]) -> None:
    for number, table in enumerate(tables):
        name = f"mmbench_tables {number}"
        lines.expect(_rest(table, "rows"), name)
        counts = mmbench_rules.count(
            [mmbench_rules.Marked(row["index"], row["prediction"] == row["answer"]) for row in table["rows"]]
        )
        lines.same({"expected": {
            "per_row_accuracy": counts.all_rows[0] / counts.all_rows[1],
            "vanilla_accuracy": counts.vanilla[0] / counts.vanilla[1],
            "circular_accuracy": counts.circular[0] / counts.circular[1],
        }}, name)  # fmt: skip


def _wise(lines: Lines, part: dict[str, Any]) -> None:
    lines.expect(_rest(part, "rows"), "wise")
    scores = wise_rules.scores_by_category(wise_rules.Graded(*row) for row in part["rows"])
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    lines.same({"expected": {**means, "Overall": sum(means.values()) / len(wise_rules.CATEGORIES)}}, "wise")


def _wise_judge_text(lines: Lines, cases: list[dict[str, Any]]) -> None:
    for number, case in enumerate(cases):
        name = f"wise_judge_text {number}"
        lines.expect(_rest(case, "text"), name)
        lines.same({"scores": wise_rules.read_judge(case["text"])}, name)
