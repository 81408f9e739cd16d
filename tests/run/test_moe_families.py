"""Split, routers trained, experts adapted, by `umcompress apply`, where nothing but umcompress can hold the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hf_models import write_folder, write_recipe
from hf_zoo import ZOO

from umcompress.documents.report import Report
from umcompress.models.source import open_source
from umcompress.rewrite.nn.experts import SparseFeedForward
from umcompress.run.apply import apply

# Conv1D with biases; one fused linear; a language model that sees.
FAMILIES = ("gpt2", "phi3", "internvl")
TRAINING = {"steps": 12, "batch_size": 4, "warm_up": 0, "learning_rate": 2e-3, "losses": {"balance": 0}}


@pytest.fixture(scope="module", params=FAMILIES)
def applied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    home = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    folder = write_folder(ZOO[request.param].build().eval(), home / "dense")
    text = home / "text.txt"
    text.write_text("".join(f"{i}: the cat sat on a mat and the dog ran far away\n" for i in range(60)))
    split = {
        "pass": "moe_split", "experts": 4, "active": 2, "shared": 1 / 6, "layers": "all", "partition": "random",
        "router": "zero", "repair": "none",
    }  # fmt: skip
    recipe = write_recipe(
        home, folder, split, {"pass": "router_train", **TRAINING}, {"pass": "adapt", **TRAINING},
        evaluate=[{"perplexity": {"data": str(text), "window": 16, "limit": 2, "sample_characters": 40}}],
        calibration={"task": "understanding", "samples": 2, "source": "perplexity"},
    )  # fmt: skip
    return apply(str(recipe), str(home / "run"))


def test_the_loss_falls_and_a_fresh_process_gets_the_same_bits(applied: tuple[Report, Path]) -> None:
    report, folder = applied
    for step in report.steps[2:]:
        assert step.training is not None
        for loss in ("loss", "blocks"):
            assert step.training.last[loss] < step.training.first[loss], (step.name, loss, step.training)
    assert report.checkpoint is not None and report.checkpoint.reload_equal
    assert report.checkpoint.loads_with == "umcompress"
    model = open_source(str(folder)).load()
    split = [module for module in model.modules() if isinstance(module, SparseFeedForward)]
    assert len(split) == 4 and all(bool(module.gate.weight.any()) for module in split)
