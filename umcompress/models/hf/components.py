"""What the parts of a model are for: by the names that transformers gives them, or as a recipe says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from umcompress.documents import Component

# First match wins. A tokenizer of pictures reads with its encoder and paints with its decoder.
_RULES: tuple[tuple[str, Component], ...] = (
    (r"(^|\.)(vqmodel|vq_model)\.(decoder|post_quant_conv)\b", "generation"),
    (r"(^|\.)(vqmodel|vq_model)\.quantize\b", "shared"),
    (r"(^|\.)(vqmodel|vq_model)\b", "understanding"),
    (r"(^|\.)generation_(embeddings|aligner|head)\b", "generation"),
    (r"(^|\.)(vision_model|vision_tower|visual|vision_encoder|image_encoder)\b", "understanding"),
    (r"(^|\.)(aligner|multi_modal_projector|connector|visual_projection|embed_vision)\b", "understanding"),
)
_COMPILED = tuple((re.compile(pattern), component) for pattern, component in _RULES)


def component_of(path: str, given: Mapping[str, Component] | None = None) -> Component:
    """The component of the module or parameter at `path`. `given`: globs, each for itself and all below."""
    for pattern, component in (given or {}).items():
        if fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern.removesuffix('.*')}.*"):
            return component
    if given:
        return "shared"
    return next((component for pattern, component in _COMPILED if pattern.search(path)), "shared")
