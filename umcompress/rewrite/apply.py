"""Apply plans: to a live model in memory, or to a skeleton for its shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from umcompress.documents.plan import Plan
from umcompress.errors import CheckError, PlanError
from umcompress.graph.model_graph import ModelFamily
from umcompress.rewrite.structure import reshape
from umcompress.rewrite.tensors import Blobs, Expression, TensorMap, Unchanged, evaluate, source_of


def rewrite(model: nn.Module, family: ModelFamily, plans: Sequence[Plan], blobs: Blobs = ()) -> nn.Module:
    """Apply plans to the live model, one after the other; returns the same model. Arguments: `rewrite_tensors`."""
    rewrite_tensors(model, family, plans, blobs)
    return model


def rewrite_tensors(model: nn.Module, family: ModelFamily, plans: Sequence[Plan], blobs: Blobs = ()) -> TensorMap:
    """Apply plans to the live model, one after the other; returns where each tensor comes from.

    `blobs` holds, for each plan, the values that its SetTensors edits name; leave it out if there are none.
    Raises PlanError when a plan does not fit: the model is then as the plans before it left it. CheckError
    when a tensor would not get a value of its own shape and dtype.
    """
    blobs = _check_blobs(plans, blobs)
    source = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
    tensors = TensorMap(source)
    try:
        for number, plan in enumerate(plans):
            reshape(model, family, plan, number, tensors)
    except PlanError:
        _set_values(model, tensors, source, blobs)
        raise
    _set_values(model, tensors, source, blobs)
    return tensors


def shapes_only(skeleton: nn.Module, family: ModelFamily, plans: Sequence[Plan]) -> TensorMap:
    """Apply the structure half of plans; returns where each tensor comes from. Reads no weight."""
    tensors = TensorMap(skeleton.state_dict(keep_vars=True))
    for number, plan in enumerate(plans):
        reshape(skeleton, family, plan, number, tensors)
    return tensors


def _check_blobs(plans: Sequence[Plan], blobs: Blobs) -> Blobs:
    if not blobs:
        blobs = [{} for _ in plans]
    if len(blobs) != len(plans):
        raise CheckError("pass along the tensors of each plan", f"{len(blobs)} sets for {len(plans)} plans")
    for plan, given in zip(plans, blobs, strict=True):
        if missing := [name for name in plan.tensor_names() if name not in given]:
            raise CheckError(
                f"apply the plan of {plan.pass_name}", f"no values given for {', '.join(missing[:5])}"
            )
    return blobs


def _set_values(model: nn.Module, tensors: TensorMap, source: Mapping[str, Tensor], blobs: Blobs) -> None:
    """Give every changed tensor of the model its value."""
    old = dict(source)
    readers = Counter(source_of(expression) for expression in tensors.entries.values())
    for name, now in model.state_dict(keep_vars=True).items():
        expression = tensors.entries[name]
        if isinstance(expression, Unchanged):
            # Unchanged tensors are never copied: they are still the model's own.
            if not _shares_memory(now, source[expression.name]):
                raise CheckError(f"keep the tensor {name} as it is", f"it is no longer {expression.name}")
            continue
        value = evaluate(expression, old.__getitem__, blobs)
        _check_value(name, expression, value, now)
        _assign(model, name, value, now, _main_device(source))
        # Old tensors may be large: let go of each as soon as its last successor exists.
        read = source_of(expression)
        readers[read] -= 1
        if read is not None and readers[read] == 0:
            del old[read]


def _shares_memory(now: Tensor, before: Tensor) -> bool:
    return now.is_meta == before.is_meta and (now.is_meta or now.data_ptr() == before.data_ptr())


def _main_device(source: Mapping[str, Tensor]) -> torch.device:
    return next((t.device for t in source.values() if not t.is_meta), torch.device("cpu"))


def _check_value(name: str, expression: Expression, value: Tensor, now: Tensor) -> None:
    if value.shape != now.shape or value.dtype != now.dtype:
        raise CheckError(
            f"give the tensor {name} its new value ({type(expression).__name__.lower()})",
            f"{tuple(value.shape)} {value.dtype}, the model has {tuple(now.shape)} {now.dtype}",
        )


def _assign(model: nn.Module, name: str, value: Tensor, now: Tensor, home: torch.device) -> None:
    value = value.to(home if now.is_meta else now.device)
    if not now.is_meta:
        # In place of the data, not of the object: tied weights stay tied.
        now.data = value
        return
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    setattr(owner, leaf, nn.Parameter(value, now.requires_grad) if isinstance(now, nn.Parameter) else value)
