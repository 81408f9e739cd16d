"""Any text file calibrates a language model: what one has at hand where nothing is evaluated, out of core above all."""

from __future__ import annotations

import json
from pathlib import Path

from hf_models import write_folder, write_recipe
from hf_zoo import ZOO

from umcompress.cli.main import main
from umcompress.data.calibration_file import CalibrationFile

LINES = [f"line {number} of some text\n" for number in range(6)]
PRUNE = {"pass": "channel_prune", "keep_ratio": 0.5}


def test_lines_are_texts_for_understanding_and_prompts_for_generation(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    source = CalibrationFile(data=tmp_path / "text.txt")
    texts = [item.text for item in source.calibration_items("understanding", 6, 0)]
    assert sorted(texts) == [line.strip() for line in LINES]
    assert {item.prompt for item in source.calibration_items("generation", 6, 0)} == set(texts)


def test_a_text_file_and_the_same_as_json_lines_keep_the_same(tmp_path: Path) -> None:
    model = write_folder(ZOO["llama"].build(), tmp_path / "model")
    (tmp_path / "text.txt").write_text("".join(LINES))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line.strip()}) + "\n" for line in LINES))
    plans = []
    for name, more in (("text.txt", ["--out-of-core"]), ("text.jsonl", [])):
        calibration = {"samples": 4, "data": str(tmp_path / name)}
        recipe = write_recipe(tmp_path, model, PRUNE, evaluate=[], calibration=calibration)
        assert main(["apply", str(recipe), "-o", str(tmp_path / name[5:]), *more]) == 0
        plans.append(json.loads((tmp_path / name[5:] / "plan.json").read_text())["01-channel_prune"]["edits"])
    assert plans[0] == plans[1]
