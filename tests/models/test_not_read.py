"""What a task does not read: said in inspect and in reports, and exactly so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tiny_bagel import DECODER, write_tiny_bagel

from umcompress.models.source import open_source
from umcompress.run.provenance import _not_read


def test_what_is_not_read_in_generation_changes_no_picture(tmp_path: Path) -> None:
    """And what is read does: the last block's understanding feed-forward alone is beyond the picture's reach."""
    source = open_source(str(write_tiny_bagel(tmp_path / "model")))
    model = source.load()
    runner = source.runner(model)
    assert source.family.not_read(model) == {f"{DECODER}.2.mlp": "generation"}
    assert _not_read(source) == (f"not read in generation: {DECODER}.2.mlp",)
    whole = runner.generate(["a striped red star"], 3)[0]
    for layer, same in ((2, True), (1, False)):
        weight = model.get_parameter(f"{DECODER}.{layer}.mlp.down_proj.weight")
        before = weight.detach().clone()
        with torch.no_grad():
            weight.normal_(std=5.0)
            changed = runner.generate(["a striped red star"], 3)[0]
            weight.copy_(before)
        assert np.array_equal(whole, changed) == same
