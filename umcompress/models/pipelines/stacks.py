"""Stacks of a pipeline and what its parts are for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from umcompress.documents.base import Component
from umcompress.graph.guards import ABSENT, GIVEN
from umcompress.graph.lower import original_class
from umcompress.graph.trace import ATTENTION, is_attention, is_leaf
from umcompress.models.hf.names import MAIN_STACK
from umcompress.models.pipelines.index import Part, PipelineIndex
from umcompress.models.pipelines.parts import text_family

# The part that paints, and the one that reads the prompt: their stacks are those that steps mean by default.
PAINTS, READS = "transformer", "text_encoder"
# Blocks that get text and picture as one stream, and no text beside it.
JOINED_BEFORE = ("Flux2SingleTransformerBlock",)
# Blocks whose pipeline always says which tokens of the text count.
MASKED = ("ChromaTransformerBlock", "ChromaSingleTransformerBlock")
_READING = re.compile(r"^(text|image|audio|vision)\w*encoder|^vision_language|^vae\.(encoder|quant_conv)")


def component_of(path: str) -> Component:
    """Encoders read, and so does that of the autoencoder; everything else paints."""
    return "understanding" if _READING.search(path) else "generation"


def find_stacks(index: PipelineIndex, parts: Mapping[str, nn.Module]) -> dict[str, str]:
    """The largest stack of a part goes by the part's name, every other one by its path."""
    found: dict[str, str] = {}
    for part in index.parts:
        for name, path in _stacks_of(part, parts[part.name]).items():
            found[part.name if name == MAIN_STACK else f"{part.name}.{path}"] = f"{part.name}.{path}"
    return found


def _stacks_of(part: Part, module: nn.Module) -> dict[str, str]:
    if part.library == "transformers":
        return text_family(component_of(part.name)).stacks(module)
    if part.name.startswith("vae"):
        return {}
    lists = [(path, inner) for path, inner in module.named_modules() if isinstance(inner, nn.ModuleList)]
    paths = [path for path, blocks in lists if is_stack_of_blocks(blocks)]
    outer = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    if not outer:
        return {}
    main = max(outer, key=lambda path: sum(p.numel() for p in module.get_submodule(path).parameters()))
    # Of two kinds of blocks those of two streams come first.
    main = next((path for path in outer if path == "transformer_blocks"), main)
    return {MAIN_STACK: main} | {path: path for path in outer if path != main}


def is_stack_of_blocks(blocks: nn.ModuleList) -> bool:
    """Whether these are blocks of one kind that mix tokens and multiply."""
    kinds = {original_class(block) for block in blocks}
    if len(kinds) != 1 or nn.Module in kinds or (ATTENTION.search(next(iter(kinds)).__name__) and is_leaf(blocks[0])):
        return False
    inside = [module for block in blocks for module in block.modules()]
    linears = sum(isinstance(module, nn.Linear) for module in inside)
    return linears >= 2 * len(blocks) and any(is_attention(module) for module in inside)


def mark_given_arguments(blocks: nn.ModuleList) -> None:
    """Tell tracing of arguments that these blocks are always called with, or never, whatever their defaults."""
    for block in blocks:
        if getattr(block, "zero_cond_t", False):
            setattr(block, GIVEN, ("modulate_index",))
        if original_class(block).__name__ in MASKED:
            setattr(block, GIVEN, ("attention_mask",))
        if original_class(block).__name__ in JOINED_BEFORE:
            setattr(block, ABSENT, ("encoder_hidden_states",))
