"""What training leaves in a configuration, and what does not belong to the model.

Which kernel computed its attentions on another machine, and what the class of the configuration computes itself.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

_KERNELS = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
# These every machine has.
_EVERYWHERE = (None, "eager", "sdpa")
# Outputs are read by name here.
_FORMS = ("return_dict", "use_return_dict")


def config_of(file: Path, content: Any) -> PreTrainedConfig:
    """The configuration that a file says, `content`, without what does not belong to the model."""
    kept = without_leftovers(content)
    if kept == content:
        found: PreTrainedConfig = AutoConfig.from_pretrained(file, trust_remote_code=False)
        return found
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / file.name
        other.write_text(json.dumps(kept), encoding="utf-8")
        found = AutoConfig.from_pretrained(other, trust_remote_code=False)
    found.name_or_path = str(file)
    return found


def without_leftovers(content: Any) -> Any:
    """The same without the kernels of another machine and what is computed, in each part of a configuration."""
    if not isinstance(content, dict):
        return content
    kinds = {name: getattr(PreTrainedConfig, name, None) for name in content}
    computed = {name for name, kind in kinds.items() if isinstance(kind, property) and kind.fset is None}
    kept = {name: value for name, value in content.items() if name not in computed and name not in _FORMS}
    for name in _KERNELS:
        if name in kept and (isinstance(kept[name], dict) or kept[name] not in _EVERYWHERE):
            del kept[name]
    return {name: without_leftovers(value) if name.endswith("_config") else value for name, value in kept.items()}
