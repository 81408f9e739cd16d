"""Parts that leave something out of what they return: nothing is assumed of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from umcompress.errors import ModelError
from umcompress.graph.lower import lower
from umcompress.graph.may_be_none import may_be_none
from umcompress.graph.trace import trace_block


class BiasAttention(nn.Module):
    """As in GPT-NeoX-Japanese: the last layer alone has a bias, which its block adds."""

    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.ones(8)) if biased else None

    def forward(self, x: Tensor) -> Any:
        return self.dense(x), None, self.bias


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Any:
        y, _, bias = self.attention(x)
        if bias is not None:
            y = y + bias
        return x + y


class NamesAttention(nn.Module):
    """As in XLNet: what is returned has a name, to which None may have been given."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)

    def forward(self, x: Tensor, other: Any = None) -> Any:
        more = None
        if other is not None:
            more = self.dense(other)
        outputs: tuple[Any, ...] = (self.dense(x), more)
        if self.training:
            outputs = (*outputs, x if other is None else None)
        return outputs


class ElseAttention(NamesAttention):
    def forward(self, x: Tensor, other: Any = None) -> Any:
        more: Any = self.dense(other) if other is not None else None
        return self.dense(x), more


class Taking(Block):
    def forward(self, x: Tensor) -> Any:
        y, bias = self.attention(x)[:2]
        if bias is not None:
            y = y + bias
        return x + y


def test_what_a_forward_may_leave_out() -> None:
    assert [may_be_none(BiasAttention(True), place) for place in range(3)] == [False, True, False]
    assert [may_be_none(BiasAttention(False), place) for place in range(3)] == [False, True, True]
    assert [may_be_none(NamesAttention(), place) for place in range(2)] == [False, True]
    assert may_be_none(ElseAttention(), 1)


def test_what_is_there_is_used() -> None:
    block, x = Block(BiasAttention(True)), torch.randn(2, 3, 8)
    before = block(x)
    lower(block, trace_block(block))
    assert torch.equal(block(x), before)


@pytest.mark.parametrize("block", [Block(BiasAttention(False)), Taking(NamesAttention())])
def test_what_may_be_missing_is_not_taken_to_be_there(block: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"asks whether part \d of what attention returns is None"):
        trace_block(block)
