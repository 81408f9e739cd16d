"""Weights are written in the dtype that they were stored in, though the model computes in another.

Values that come from the files stand that without loss. What a pass sets is rounded before it is scored, so that
what is scored is what the folder holds, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from umcompress.checkpoint.index import read_header
from umcompress.documents.plan import Plan
from umcompress.errors import ModelError
from umcompress.models.parts_of_folder import files_of
from umcompress.models.source import Source, as_stored, located
from umcompress.recipe.recipe import Recipe
from umcompress.rewrite.apply import shapes_only
from umcompress.rewrite.tensors import Expression, StackGroups, StoredValue, Take, Transpose

HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtypes(source: Source, recipe: Recipe, plans: Sequence[Plan]) -> dict[str, torch.dtype]:
    """Tensors of the model that `plans` leave, by name, which are stored in less than the model computes in.

    None of them where the recipe names a dtype, which is then written, or where only transformers can read the files.
    """
    return _followed(source, recipe, plans)[0]


def rounded(
    source: Source, recipe: Recipe, plans: Sequence[Plan], values: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """What is left of the values that the last of `plans` sets, once they have been written."""
    if not values:
        return values
    dtypes, tensors = _followed(source, recipe, plans)
    # A plan names tensors as they are called before it renumbers blocks.
    wanted = {
        blob.name: dtypes[name] for name, expression in tensors.items()
        if (blob := _blob_of(expression)) is not None and blob.plan == len(plans) - 1 and name in dtypes
    }  # fmt: skip
    if not wanted:
        return values
    return {
        name: value.to(wanted[name]).to(value.dtype) if name in wanted else value for name, value in values.items()
    }


def _followed(
    source: Source, recipe: Recipe, plans: Sequence[Plan]
) -> tuple[dict[str, torch.dtype], dict[str, Expression]]:
    """The dtypes, and where each tensor of the model comes from."""
    if recipe.dtype is not None or not _holds_halves(source):
        return {}, {}
    try:
        model, disk = located(source)
    except ModelError:
        return {}, {}
    as_stored(model, disk)
    tensors = shapes_only(model, source.family, plans).entries
    state = model.state_dict(keep_vars=True)
    return {name: tensor.dtype for name, tensor in state.items() if tensor.dtype in HALVES.values()}, tensors


def _blob_of(expression: Expression) -> StoredValue | None:
    while isinstance(expression, Take | StackGroups | Transpose):
        expression = expression.source
    return expression if isinstance(expression, StoredValue) else None


def _holds_halves(source: Source) -> bool:
    """A look at the files' headers, before a skeleton is built for nothing."""
    files = (path for path in files_of(source.folder) if path.suffix == ".safetensors")
    return any(entry.dtype in HALVES for file in files for entry in read_header(file).values())


@contextmanager
def held_as(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> Iterator[set[torch.dtype]]:
    """Within, the tensors of a model have these dtypes; gives those that were taken. No value is changed: a tensor
    that would not come back the same keeps its own."""
    changed: list[tuple[Tensor, torch.dtype]] = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        own, wanted = tensor.dtype, dtypes.get(name, tensor.dtype)
        # Of tied names the second finds its tensor changed already.
        if own is wanted or not tensor.is_floating_point():
            continue
        less = tensor.data.to(wanted)
        if torch.equal(less.to(own), tensor.data):
            tensor.data = less
            changed.append((tensor, own))
    try:
        yield {tensor.dtype for tensor, _ in changed}
    finally:
        for tensor, own in changed:
            tensor.data = tensor.data.to(own)
