"""What stands where a specialized model has nothing left."""

from __future__ import annotations

import pytest
import torch

from umcompress.errors import ModelError
from umcompress.rewrite.nn.absent import Absent


def test_a_stream_without_rows_passes_and_a_token_does_not() -> None:
    gone = Absent("layers.0.mlp_moe_gen", "understanding")
    assert gone(torch.zeros(0, 4)).shape == (0, 4)
    with pytest.raises(ModelError, match=r"run layers\.0\.mlp_moe_gen"):
        gone(torch.zeros(1, 4))


def test_what_runs_in_vain_gives_nothing_that_could_be_taken_for_an_answer() -> None:
    head = Absent("text_encoder.lm_head", "generation", runs=True)
    assert head(torch.ones(2, 3, 4)).shape == (2, 3, 0)
