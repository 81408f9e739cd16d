"""Tensors in weight files that a class of transformers has no use for, and the fields that announce them.

Buffers that are computed now were once stored. Layers that predict further tokens (multi-token prediction) are there
for servers; transformers loads none of them. A result without them says in its configuration that there are none:
a server would look for them in vain, or speculate with nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

_COMPUTED = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"(^|\.)masked_bias$")
_PREDICTORS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
_PREDICTING = re.compile(r"(^|\.)(mtp|nextn)")
_LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")


def unused(model: Any, name: str) -> bool:
    """Whether a tensor that is no part of the model is none that it could miss."""
    patterns = (*(model._keys_to_ignore_on_load_unexpected or ()), *_COMPUTED)
    return any(re.search(pattern, name) for pattern in patterns) or _predicts(model, name) or _computed(model, name)


def _computed(model: nn.Module, name: str) -> bool:
    """Whether the class computes a buffer of that name when it is built; files may lack what all names begin with."""
    return any(own == name or own.endswith(f".{name}") for own, _ in model.named_buffers())


def _predicts(model: Any, name: str) -> bool:
    """Whether a tensor is of a layer that predicts further tokens: those behind the last of the model's own."""
    found = _LAYER.search(name)
    config = model.config.get_text_config()
    layers, more = getattr(config, "num_hidden_layers", None), sum(count for _, _, count in _announced(config))
    if found is None or not isinstance(layers, int):
        return False
    return layers <= int(found[2]) < layers + more


def _announced(config: Any) -> Iterator[tuple[Any, str, int]]:
    """(configuration, field, layers) of what announces layers that predict further tokens."""
    for name in _PREDICTORS:
        count = getattr(config, name, None)
        if isinstance(count, int) and count > 0:
            yield config, name, count


def forget_predictors(model: nn.Module, config: Any) -> None:
    """Let `config` announce no layers that the model does not have."""
    if any(_PREDICTING.search(name) for name, _ in model.named_parameters()):
        return
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for owner, name, _ in list(_announced(part)):
            setattr(owner, name, 0)


def in_words(model: Any, names: Sequence[str]) -> list[str]:
    """A line for each kind of tensor that was left aside."""
    own = [name for name in names if _predicts(model, name) or _PREDICTING.search(name) or _after(model, name)]
    rest = [name for name in names if name not in own]
    lines = []
    if own:
        layers = sorted({name[: found.end() - 1] for name in own if (found := _LAYER.search(name))})
        where = ", ".join(layers) or own[0].partition(".")[0]
        lines.append(
            f"the weights hold layers that predict further tokens ({where}: {len(own)} tensors), which transformers "
            "does not load: the result has none, and its configuration announces none"
        )
    if rest:
        more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
        lines.append(f"the weights hold tensors that the model has no use for, left aside: {rest[0]}{more}")
    return lines


def _after(model: Any, name: str) -> bool:
    """Whether a tensor is of a layer behind the model's last, which nothing announces."""
    found, layers = _LAYER.search(name), getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return found is not None and isinstance(layers, int) and int(found[2]) >= layers
