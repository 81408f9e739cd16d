"""Lines of users' files end where a line feed is, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from umcompress.data.calibration_file import CalibrationFile
from umcompress.data.training_file import TrainingFile
from umcompress.documents.lines import lines_of, text_of
from umcompress.evals.pictures._prompts import read_prompts

# Each ends a line for `str.splitlines`.
ODD = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


@pytest.mark.parametrize("odd", ODD, ids=[f"U+{ord(odd):04X}" for odd in ODD])
def test_a_character_inside_a_line_does_not_end_it(odd: str, tmp_path: Path) -> None:
    text = f"one{odd}two"
    rows = [{"text": text}, {"prompt": text}]
    json_file, plain = tmp_path / "data.jsonl", tmp_path / "data.txt"
    json_file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    plain.write_text(f"{text}\nthree\n", encoding="utf-8")
    assert [row.text for row in CalibrationFile(data=plain).calibration_items("understanding", 2, 0)] in (
        [text, "three"], ["three", text],
    )  # fmt: skip
    (item,) = TrainingFile(data=json_file).training_items("understanding", 1, 0)
    assert item.text == text  # type: ignore[union-attr]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\r\n", encoding="utf-8", newline="")
    assert read_prompts(prompts, "prompts") == [text]
    assert read_prompts(plain, "prompts") == [text, "three"]


def test_lines_end_with_or_without_a_carriage_return(tmp_path: Path) -> None:
    assert lines_of("a\r\nb\n\nc\rd") == ["a", "b", "", "c\rd"]
    assert lines_of("a\n") == ["a"] and lines_of("") == []
    file = tmp_path / "marked.txt"
    file.write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert text_of(file) == "a\r\nb"
