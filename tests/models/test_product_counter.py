"""Work counted on shapes: as torch counts it, also where a result is known from an earlier call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from umcompress.models.product_counter import ProductCounter


class Attends(nn.Module):
    """Rows (1, T, 8) through products of several kinds."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.mixed, self.norm, self.out = nn.Linear(8, 3 * inner), nn.RMSNorm(inner), nn.Linear(inner, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.mixed(x).chunk(3, -1)]
        mixed = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        return x + self.out(nn.functional.silu(self.norm(mixed.transpose(1, 2).flatten(2))))


def counted(model: nn.Module, *shape: int) -> tuple[int, Tensor]:
    counter = ProductCounter({})
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        given = model(torch.empty(shape, device="meta"))
    return counter.operations, given


@pytest.mark.parametrize(("inner", "rows"), [(4, 5), (6, 5), (4, 9), (4, 5)])
def test_as_torch_counts_the_first_time_and_later(inner: int, rows: int) -> None:
    model = Attends(inner).to("meta")
    theirs = FlopCounterMode(display=False)
    with torch.no_grad(), theirs, sdpa_kernel(SDPBackend.MATH):
        expected = model(torch.empty(1, rows, 8, device="meta"))
    for _ in range(2):
        found, given = counted(model, 1, rows, 8)
        assert found == theirs.get_total_flops() > 0
        assert (given.shape, given.stride(), given.dtype) == (expected.shape, expected.stride(), expected.dtype)


def test_numbers_of_another_type_are_other_calls() -> None:
    whole = torch.ones(3, dtype=torch.int64, device="meta")
    factors: list[Any] = [2, 2.0, True, 1]
    with ProductCounter({}):
        found = [(whole * factor).dtype for factor in factors]
    assert found == [torch.int64, torch.float32, torch.int64, torch.int64]


def test_what_depends_on_values_is_computed() -> None:
    with ProductCounter({}):
        first, second = torch.tensor([1.0, 0.0]).nonzero(), torch.tensor([1.0, 1.0]).nonzero()
        written = torch.zeros(2).add_(1)
    assert (len(first), len(second)) == (1, 2) and written.sum() == 2
