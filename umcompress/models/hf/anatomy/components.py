"""What the parts of a model are for: by the names that transformers gives them, or as a recipe says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from umcompress.documents.base import Component
from umcompress.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

# First match wins. A tokenizer of pictures reads with its encoder and paints with its decoder.
_RULES: tuple[tuple[str, Component], ...] = (
    (r"(^|\.)(vqmodel|vq_model)\.(decoder|post_quant_conv)\b", "generation"),
    (r"(^|\.)(vqmodel|vq_model)\.quantize\b", "shared"),
    (r"(^|\.)(vqmodel|vq_model)\b", "understanding"),
    (r"(^|\.)generation_(embeddings|aligner|head)\b", "generation"),
    # What an omni model says and paints it with; it hears as it sees.
    (r"(^|\.)(talker|token2wav|code2wav)\b", "generation"),
    (r"(^|\.)(vision_model|vision_tower|visual|vision_encoder|image_encoder|audio_tower)\b", "understanding"),
    (r"(^|\.)(aligner|multi_modal_projector|connector|visual_projection|embed_vision)\b", "understanding"),
)
_COMPILED = tuple((re.compile(pattern), component) for pattern, component in _RULES)


def component_of(path: str, given: Mapping[str, Component] | None = None) -> Component:
    """The component of the module or parameter at `path`.

    given: globs, each for itself and all below. The longest that matches says it; what none matches is shared.
    """
    if not given:
        return next((component for pattern, component in _COMPILED if pattern.search(path)), "shared")
    matching = [glob for glob in given if matches(path, glob)]
    return given[max(matching, key=len)] if matching else "shared"


def matches(path: str, glob: str) -> bool:
    """Whether the glob means the module or parameter at `path`, or something that it lies in."""
    return fnmatchcase(path, glob) or fnmatchcase(path, f"{glob.removesuffix('.*')}.*")


def check_globs(given: Mapping[str, Component], model: nn.Module) -> None:
    """UsageError for the globs that mean no part of the model: a misspelt one would make its part shared unnoticed."""
    paths = [path for path, _ in (*model.named_modules(), *model.named_parameters()) if path]
    unknown = [glob for glob in given if not any(matches(path, glob) for path in paths)]
    if unknown:
        hints = (did_you_mean(glob.removesuffix(".*"), paths) for glob in unknown)
        raise UsageError(
            f"components: {', '.join(unknown)}", f"no module or parameter of this {type(model).__name__} matches",
            "; ".join(dict.fromkeys(hints)),
        )
