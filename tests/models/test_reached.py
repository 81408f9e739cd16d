"""Which parameters results depend on: found by following a run, against what is known of small models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from umcompress.models.reached import read_in_run, without_values


class Odd(nn.Module):
    """Reads weights in ways that hooks on modules do not see, and runs a head in vain."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(6, 4)
        self.words = nn.Embedding(6, 4)
        self.body = nn.Linear(4, 4)
        self.norm = nn.Linear(4, 4)
        self.head, self.spare = nn.Linear(4, 9), nn.Linear(4, 4)
        self.tied = nn.Linear(4, 6, bias=False)
        self.tied.weight = self.words.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 4) -> (B, 4), (B, 9): nearest codes are words, which an operation that returns nothing writes."""
        nearest = (self.norm(x) @ self.codes.weight.t()).argmax(-1)
        place = torch.zeros_like(x)
        torch._foreach_add_([place], [self.words(nearest)])
        hidden = self.body(place)
        return hidden, self.head(hidden)


def reads(which: slice) -> tuple[frozenset[str], frozenset[str]]:
    def run(shapes: nn.Module) -> Iterable[Tensor]:
        results: tuple[Tensor, ...] = shapes(torch.zeros(2, 4, device="meta"))
        return results[which]

    return read_in_run(Odd(), run)


def test_weights_read_without_their_module_and_through_choices_and_places() -> None:
    """The codes' own module is never called; words depend on them by a choice alone, and are written in place."""
    reached, called = reads(slice(0, 1))
    assert "codes.weight" in reached and "codes.weight" not in called
    assert {"norm.weight", "words.weight", "body.bias"} <= reached & called


def test_what_runs_in_vain_is_called_and_not_reached() -> None:
    reached, called = reads(slice(0, 1))
    assert "head.weight" in called and not {"head.weight", "spare.weight"} & reached
    assert "head.weight" in reads(slice(0, 2))[0]


def test_all_names_of_a_tied_weight_are_reached() -> None:
    assert "tied.weight" in reads(slice(0, 1))[0]


def test_a_copy_without_values_stays_tied_and_leaves_the_model_alone() -> None:
    model: Any = Odd()
    shapes: Any = without_values(model)
    assert all(parameter.is_meta for parameter in shapes.parameters())
    assert shapes.tied.weight is shapes.words.weight
    assert not any(parameter.is_meta for parameter in model.parameters())
