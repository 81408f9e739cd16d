"""A recipe that splits, from the command line to the reloaded folder, on a tiny BAGEL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_bagel import DECODER, write_recipe, write_tiny_bagel

from umcompress.cli.main import main
from umcompress.documents.plan import CompressionRecord, SplitExperts
from umcompress.models.items import GenerationItem, UnderstandingItem
from umcompress.models.source import open_source
from umcompress.rewrite.nn.experts import SparseFeedForward

SITE = f"{DECODER}.1.mlp_moe_gen"
SPLIT = {"pass": "moe_split", "component": "generation", "experts": 8, "active": 4, "shared": 1 / 3}


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moe")
    model = write_tiny_bagel(folder / "model")
    recipe = write_recipe(
        folder, model, SPLIT, calibration={"task": "generation", "samples": 4},
        evaluate=[{"scenes": {"prompts": 6, "questions": 5}}],
    )  # fmt: skip
    assert main(["apply", str(recipe), "-o", str(folder / "out")]) == 0
    return folder / "out"


def test_the_inner_layer_is_split_and_the_folder_loads(applied: Path) -> None:
    source = open_source(str(applied / "model"))
    model = source.load()
    experts = model.get_submodule(SITE)
    assert isinstance(experts, SparseFeedForward)
    assert (experts.shape.experts, experts.shape.active, experts.shape.width) == (8, 4, 8)
    assert experts.shape.shared_width == 32 and experts.shape.selector
    assert not isinstance(model.get_submodule(f"{DECODER}.0.mlp_moe_gen"), SparseFeedForward)
    assert not isinstance(model.get_submodule(f"{DECODER}.2.mlp_moe_gen"), SparseFeedForward)
    assert not bool(experts.gate.weight.any()) and bool(experts.selector.weight.any())
    chosen = experts.route(torch.randn(200, 64, generator=torch.Generator().manual_seed(0)))[1]
    assert len(chosen.unique()) == 8
    source.runner(model).feed(_items())


def _items() -> list[UnderstandingItem | GenerationItem]:
    from umcompress.evals.scenes.evaluation import Scenes

    return Scenes().calibration_items("generation", 2, 1)


def test_the_record_holds_the_plan_and_says_how_well_it_fits(applied: Path) -> None:
    record = CompressionRecord.model_validate_json((applied / "model" / "umcompress.json").read_text())
    (plan,) = record.plans
    edit = plan.edits[0]
    assert isinstance(edit, SplitExperts) and edit.site == SITE and len(edit.shared) == 32
    (evidence,) = plan.evidence
    assert sum(evidence.scores) == pytest.approx(4)
    assert "64 of 96 at work" in evidence.note and "router explains" in evidence.note
    before, after = (float(word) for word in evidence.note.split() if word.startswith("0.") and len(word) == 6)
    assert 0 < after < before < 1


def test_fewer_parameters_work_for_a_token(applied: Path) -> None:
    steps = json.loads((applied / "report.json").read_text())["steps"]
    dense, split = (step["parameters"]["active"]["generation"] for step in steps)
    # A third of the channels of one feed-forward rest; gate and selector have 8 rows each, and 8 biases.
    assert dense - split == 32 * 3 * 64 - (2 * 8 * 64 + 8)
