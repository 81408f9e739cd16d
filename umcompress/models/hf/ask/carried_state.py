"""What a model hands on from token to token (keys and values, or a state), by the name that it has for it.

transformers calls it `cache` where it used to say `past_key_values`; other models say `cache_params` or `state`.
"""

from __future__ import annotations

import inspect
from typing import Any

_NEW = "cache"
_OLDER = ("past_key_values", "cache_params", "state")


def carried_state(model: Any, out: Any) -> dict[str, Any]:
    """The argument that goes on from a call's result; empty where a model hands nothing on."""
    takes = set(inspect.signature(model.forward).parameters)
    found = {name: value for name in (_NEW, *_OLDER) if (value := getattr(out, name, None)) is not None}
    if _NEW in found:
        return {next((name for name in (_NEW, *_OLDER) if name in takes), _OLDER[0]): found[_NEW]}
    return {_NEW if _NEW in takes and name not in takes else name: value for name, value in found.items()}
