"""The stages in which the built-in model is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from umcompress.errors import ModelError
from umcompress.evals.scenes.make_model.train_model import Stage, run_stage
from umcompress.evals.scenes.make_model.training import Log, Settings


def test_a_stage_goes_on_with_the_frozen_weights_that_it_was_begun_with(tmp_path: Path) -> None:
    def trained(seed: int, steps: int) -> Any:
        torch.manual_seed(0)
        model: Any = nn.ModuleDict({"frozen": nn.Linear(2, 2), "learns": nn.Linear(2, 2)})
        torch.manual_seed(seed)
        nn.init.normal_(model["frozen"].weight)
        model["frozen"].requires_grad_(False)
        stage = Stage("generation", 1, steps, 1e-2, 0.9)
        return run_stage(
            model, stage, lambda rng: model["learns"](model["frozen"](torch.ones(1, 2))).square().sum(),
            Settings(), tmp_path, Log(tmp_path / "log.jsonl"),
        )

    trained(0, 1)
    assert trained(0, 2)["learns"].weight.isfinite().all()
    with pytest.raises(ModelError, match=r"frozen\.weight"):
        trained(1, 3)
