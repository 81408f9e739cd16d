"""`evaluate` on what a run wrote: what it is, the run's own items, its baseline beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_bagel import write_recipe

from umcompress.cli.main import main

CUT = {"pass": "channel_prune", "component": "generation", "score": "magnitude", "keep_ratio": 0.5}


def test_a_compressed_model_is_scored_as_its_run_was(
    tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bagel, CUT, evaluate=[{"scenes": {"prompts": 6, "questions": 10}}], seed=3)
    run = tmp_path / "run"
    assert main(["apply", str(recipe), "-o", str(run), "--format", "json"]) == 0
    ran = json.loads(capsys.readouterr().out)

    def evaluated(*arguments: str) -> dict[str, Any]:
        assert main(["evaluate", str(run), *arguments, "--format", "json"]) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    report = evaluated()
    assert report["seed"] == 3 and report["evaluations"] == ran["evaluations"]
    assert report["beside"]["scores"] == ran["steps"][0]["scores"]
    assert report["steps"][0]["scores"] == ran["steps"][1]["scores"]
    assert report["steps"][0]["changes"] == ran["steps"][1]["changes"]
    assert report["steps"][0]["changes"]["understanding"]["paired"]
    whole = ran["steps"][0]["parameters"]["total"]
    assert "by channel_prune" in report["notes"][0] and f"of {whole:,} parameters" in report["notes"][0]
    # Other items: nothing to stand beside.
    other = evaluated("--seed", "4", "--limit", "5")
    assert other["beside"] is None and other["seed"] == 4 and other["steps"][0]["changes"] == {}
    assert any("other items" in note for note in other["notes"])
    assert main(["evaluate", str(run / "model"), "--limit", "5"]) == 0
    assert "made from" in capsys.readouterr().out
