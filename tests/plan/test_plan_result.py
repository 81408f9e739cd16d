"""What loads the result is said by `plan`, before anything is run, and is what `apply` then finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hf_models import write_folder, write_recipe
from hf_zoo import ZOO

from umcompress.cli.main import main
from umcompress.documents.report import read_report
from umcompress.plan.command import plan as plan_command

BLOCK = {"pass": "layer_drop", "unit": "block", "drop": [1]}
ATTENTION = {"pass": "layer_drop", "unit": "attention", "drop": [1]}
SPLIT = {
    "pass": "moe_split", "experts": 6, "active": 3, "router": "zero", "layers": "all", "partition": "random",
    "repair": "none",
}  # fmt: skip
OWN = SPLIT | {"weighting": "one_plus_logit"}
MIXTRAL = SPLIT | {"weighting": "softmax"}


@pytest.mark.parametrize(("steps", "loads_with", "why", "advice"), [
    ([BLOCK], "transformers", "", ""),
    ([BLOCK, ATTENTION], "umcompress", "layers 1 of the stack main have no attention", "as much of every layer"),
    ([MIXTRAL], "transformers", "", ""),
    ([OWN], "umcompress", "set weighting: softmax", "set weighting: softmax"),
])  # fmt: skip
def test_plan_says_what_will_load_the_result(
    steps: list[dict[str, Any]], loads_with: str, why: str, advice: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = write_folder(ZOO["llama"].build(), tmp_path / "model")
    recipe = write_recipe(tmp_path, model, *steps, evaluate=[])
    planned = plan_command(str(recipe))
    assert planned.loads_with == loads_with and why in planned.why
    assert main(["plan", str(recipe)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"loads with {loads_with}" in said and advice in said
    assert ("whole blocks" in said) is (advice == "as much of every layer")
    if steps[-1] in (ATTENTION, MIXTRAL):
        assert main(["apply", str(recipe), "-o", str(tmp_path / "out")]) == 0
        checkpoint = read_report(tmp_path / "out").checkpoint
        assert checkpoint is not None and checkpoint.loads_with == loads_with


def test_of_a_step_that_cannot_be_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_folder(ZOO["llama"].build(), tmp_path / "model")
    recipe = write_recipe(tmp_path, model, {"pass": "layer_drop", "unit": "block", "drop": [17]}, evaluate=[])
    assert main(["plan", str(recipe)]) == 2
    assert "loads with" not in capsys.readouterr().out
