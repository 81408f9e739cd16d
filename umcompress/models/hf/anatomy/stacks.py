"""Stacks of a model: its lists of repeated blocks, and which of them is the language model's."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from umcompress.graph.guards import GIVEN
from umcompress.graph.lower import original_class
from umcompress.graph.trace import ATTENTION, is_attention, is_leaf
from umcompress.models.hf.anatomy.components import component_of
from umcompress.models.hf.inputs import needs_picture
from umcompress.models.hf.names import MAIN_STACK

_FROM_ENCODER = ("encoder_hidden_states",)
# Lists of these stand side by side: each reads the tower, none the one before it.
_CONNECTORS = re.compile(r"(projector|connector|merger)s?$")
_LANGUAGE = ("language_model", "text_model", "decoder", "transformer")


def find_stacks(model: PreTrainedModel) -> dict[str, str]:
    """`main` and its path; every other stack goes by its path."""
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    paths = [path for path, module in lists if _is_stack_of_blocks(module)]
    outer = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    outer = [path for path in outer if not _CONNECTORS.search(path)]
    if not outer:
        return {}
    main = max(outer, key=lambda path: _language_rank(model, path))
    return {MAIN_STACK: main} | {path: path for path in outer if path != main}


def mark_encoder_states(model: PreTrainedModel, stacks: Iterable[str]) -> None:
    """Blocks of a decoder beside an encoder get its states: without them they would have no attention to them.

    So do the blocks of a model that does not go without a picture (BLIP), which it reads as an encoder's.
    """
    always = needs_picture(model)
    for stack in stacks:
        parts = stack.split(".")
        owners = (model.get_submodule(".".join(parts[:end])) for end in range(len(parts)))
        if always or any(getattr(getattr(owner, "config", None), "is_encoder_decoder", False) for owner in owners):
            for block in model.get_submodule(stack).children():
                setattr(block, GIVEN, _FROM_ENCODER)


def _is_stack_of_blocks(blocks: nn.ModuleList) -> bool:
    """Whether these are blocks of one kind, or of kinds that take turns, that mix tokens and multiply."""
    kinds = {original_class(block) for block in blocks}
    alike = len(kinds) == 1 or all(issubclass(kind, GradientCheckpointingLayer) for kind in kinds)
    if not kinds or not alike or nn.Module in kinds or _is_whole_attention(blocks[0]):
        return False
    inside = [module for block in blocks for module in block.modules()]
    linears = sum(isinstance(module, (nn.Linear, Conv1D)) for module in inside)
    return linears >= 2 * len(blocks) and any(is_attention(module) for module in inside)


def _is_whole_attention(module: nn.Module) -> bool:
    """By name only: a block may take a cache for what is inside it, and be named after that."""
    return ATTENTION.search(original_class(module).__name__) is not None and is_leaf(module)


def _language_rank(model: PreTrainedModel, path: str) -> tuple[int, int, int, int]:
    """Rank of a stack as the language model's: near the token embedding, beside it, by name, by size."""
    embedding = _embedding_path(model)
    shared = 0
    for ours, theirs in zip(path.split("."), embedding.split("."), strict=False):
        if ours != theirs:
            break
        shared += 1
    beside = int(path.rpartition(".")[0] == embedding.rpartition(".")[0])
    named = 2 * int(component_of(path) == "shared") + int(any(part in path.split(".") for part in _LANGUAGE))
    return shared, beside, named, sum(parameter.numel() for parameter in model.get_submodule(path).parameters())


def _embedding_path(model: PreTrainedModel) -> str:
    try:
        embedding = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return ""
    return next((path for path, module in model.named_modules() if module is embedding), "")
