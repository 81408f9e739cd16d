"""What goes on from token to token is passed by the name that the model has for it, in either range of versions."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from hf_zoo import ZOO

from umcompress.models.hf.ask.carried_state import carried_state


def model(*names: str) -> Any:
    arguments = ", ".join(f"{name}=None" for name in names)
    return SimpleNamespace(forward=eval(f"lambda input_ids, {arguments}: None"))


@pytest.mark.parametrize(
    ("takes", "gives", "expected"),
    [
        (("cache",), {"cache": 1}, {"cache": 1}),
        (("past_key_values",), {"past_key_values": 1}, {"past_key_values": 1}),
        (("cache",), {"past_key_values": 1}, {"cache": 1}),
        (("past_key_values",), {"cache": 1, "past_key_values": 1}, {"past_key_values": 1}),
        (("cache_params",), {"cache_params": 1}, {"cache_params": 1}),
        (("state",), {"state": 1}, {"state": 1}),
        (("cache",), {"logits": 1}, {}),
    ],
)
def test_the_name(takes: tuple[str, ...], gives: dict[str, int], expected: dict[str, int]) -> None:
    assert carried_state(model(*takes), SimpleNamespace(**gives)) == expected


def test_nothing_is_said_to_go_away() -> None:
    llama = ZOO["llama"].build().eval()
    assert isinstance(llama, hf.LlamaForCausalLM)
    ids = torch.tensor([[3, 5, 7]])
    whole = llama(input_ids=ids).logits[:, -1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = llama(input_ids=ids[:, :2], use_cache=True)
        last = llama(input_ids=ids[:, 2:], **carried_state(llama, first), use_cache=True)
    torch.testing.assert_close(last.logits[:, -1], whole, rtol=1e-4, atol=1e-5)
