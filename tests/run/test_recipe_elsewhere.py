"""A recipe with its model, texts and code in one folder is run from others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers as hf
from hf_models import write_folder
from hf_zoo import TEXT

from umcompress.cli.main import main
from umcompress.run.committed import read_step

MINE = '''
from pathlib import Path
from typing import ClassVar

from umcompress.extend import Evaluation, UsageError, score_of_grades


class Mine(Evaluation):
    """Asks nothing."""

    name: ClassVar[str] = "mine"
    tasks: ClassVar = ("understanding",)
    notes: Path

    def check(self):
        if not self.notes.is_file():
            raise UsageError(f"mine: {self.notes}", "not there", "put it there")

    def run(self, runner, out, progress):
        self.check()
        (out / "seen.txt").write_text("its folder is there")
        return {"understanding": score_of_grades({"all": [1.0, 1.0, 1.0, 0.0]}, "four")}
'''


def test_a_run_from_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project, here, there = tmp_path / "project", tmp_path / "here", tmp_path / "there"
    for folder in (project, here, there):
        folder.mkdir()
    write_folder(hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)), project / "model")
    (project / "mine.py").write_text(MINE, encoding="utf-8")
    (project / "notes").write_text("x", encoding="utf-8")
    for name in ("texts.txt", "others.txt"):
        (project / name).write_text("some words of a text\n" * 4, encoding="utf-8")
    step = {"pass": "channel_prune", "keep_ratio": 0.5}
    recipe = {
        "model": "model", "calibration": {"data": "texts.txt", "samples": 2}, "steps": [step], "output": "run",
        "evaluate": [{"mine.py:Mine": {"notes": "notes"}}], "measure": {"speed": False},
        "sweep": {"calibration.data": ["texts.txt", "others.txt"]},
    }  # fmt: skip
    (project / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    monkeypatch.chdir(here)
    assert main(["apply", "../project/r.yaml"]) == 0
    run = project / "run"
    assert not list(here.iterdir()) and (run / "model").is_dir()
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert (report["recipe"]["model"], report["recipe_folder"]) == ("model", "..")
    # The same from another folder, and as the run has written it down.
    monkeypatch.chdir(there)
    capsys.readouterr()
    assert main(["apply", str(project / "r.yaml")]) == 0
    assert "nothing is left to do" in capsys.readouterr().err
    assert main(["plan", str(run / "recipe.resolved.yaml"), "--set", "sweep=null"]) == 0
    capsys.readouterr()
    assert main(["plan", "../project/r.yaml", "--format", "json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [cell["problem"] for cell in cells] == [None, None]
    # The run's own evaluation, with what it reads, is found again.
    assert main(["evaluate", "../project/run", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["scores"]["understanding"]["value"] == 0.75
    # What a finished run is exported to changes nothing of where its report says that paths begin.
    (project / "r.yaml").write_text(json.dumps(recipe | {"export": {"to": "transformers"}}), encoding="utf-8")
    assert main(["apply", "../project/r.yaml"]) == 0
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert (report["recipe"]["model"], report["recipe"]["export"]["to"]) == ("model", "transformers")
    # Out of core, into a folder that the command names.
    assert main(["apply", "../project/r.yaml", "--out-of-core", "--skip-evaluations", "-o", "mine"]) == 0
    (step_folder,) = (there / "mine" / "steps").glob("*channel_prune")
    assert read_step(step_folder) is not None
