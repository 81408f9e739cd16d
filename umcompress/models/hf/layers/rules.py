"""Which blocks of a model of transformers may go, and what is renumbered when they have gone.

A rule is a module of this folder with two functions: `check` refuses blocks that others depend on, before anything
changes; `renumber` lets what is left mean the same layers as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel

from umcompress.models.hf.layers import lent_layers, listed_layers, read_layers
from umcompress.models.hf.layers.cache_slots import number_slots, repeat_widths
from umcompress.models.hf.layers.config_fields import owner_of
from umcompress.models.hf.layers.removal import Removal

# In this order: what is lent may be listed by layer, too, and is told from other lists by its old numbers.
RULES = (lent_layers, listed_layers, read_layers)


def check_removable(model: PreTrainedModel, stacks: Mapping[str, str], removed: Mapping[str, Sequence[int]]) -> None:
    """PlanError where one of the blocks at these positions has to stay."""
    for removal in _removals(model, stacks, removed, done=False):
        # The last rule says it most exactly where several refuse.
        for rule in reversed(RULES):
            rule.check(removal)


def update_block_counts(
    model: PreTrainedModel, stacks: Mapping[str, str], removed: Mapping[str, Sequence[int]]
) -> None:
    """Make numbers right that are kept by layer.  Blocks at the positions `removed` have been taken out already."""
    removals = {removal.stack: removal for removal in _removals(model, stacks, removed, done=True)}
    for stack, path in stacks.items():
        for rule in RULES if stack in removals else ():
            rule.renumber(removals[stack])
        blocks = model.get_submodule(path)
        assert isinstance(blocks, nn.ModuleList)
        # Also where no block has gone: attentions and channels may have.
        number_slots(owner_of(model, path)[1], blocks)
        repeat_widths(blocks)


def _removals(
    model: PreTrainedModel, stacks: Mapping[str, str], removed: Mapping[str, Sequence[int]], done: bool
) -> Iterator[Removal]:
    """One for each stack that blocks go from. done: whether they have been taken out."""
    for stack, path in stacks.items():
        if gone := set(removed.get(stack, ())):
            blocks = model.get_submodule(path)
            assert isinstance(blocks, nn.ModuleList)
            yield Removal(model, stack, path, len(blocks) + (len(gone) if done else 0), stacks, removed)
