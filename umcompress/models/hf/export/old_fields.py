"""Fields in which transformers 4 and the tools on it look, kept where the source had them.

Version 5 says the same in other places (`rope_parameters`, `dtype`). Version 4 does not look there: it would take its
defaults instead, without an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from umcompress.models.hf.load.skeleton import config_file

# Of rotary positions; no edit changes what they say.
_ROPE = (
    "rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_emb_base", "rope_local_base_freq",
    "global_rope_theta", "local_rope_theta",
)  # fmt: skip
_DTYPE = "torch_dtype"


def with_old_fields(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A configuration with what the source in `folder` said in the form of transformers 4, part by part."""
    try:
        before = json.loads(config_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return content
    return _with(content, before)


def _with(content: dict[str, Any], before: Any) -> dict[str, Any]:
    if not isinstance(before, dict):
        return content
    parts = {name: _with(value, before.get(name)) for name, value in content.items() if isinstance(value, dict)}
    found = content | parts
    found |= {name: before[name] for name in _ROPE if name in before and name not in content}
    if _DTYPE in before and _DTYPE not in content:
        found[_DTYPE] = content.get("dtype", before[_DTYPE])
    return found
