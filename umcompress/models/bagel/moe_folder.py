"""A split BAGEL as a plain BAGEL-MoE folder, in the layout of the sparse fork, where that layout can say it.

E experts of m channels, k of them active, S more that are always on, in units of m; H hidden.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from umcompress.checkpoint.fill import sources
from umcompress.checkpoint.writer import TensorToWrite, in_memory
from umcompress.documents.plan import Plan
from umcompress.models.bagel.expert_layout import MODULES, NOTES
from umcompress.models.bagel.experts import BagelExperts
from umcompress.models.bagel.load import disk_names
from umcompress.models.plain_folder import Plain
from umcompress.rewrite.nn.experts import ExpertShape, SparseFeedForward

CONFIG = "llm_config.json"
_PLACE = re.compile(r"language_model\.model\.layers\.(\d+)\.(mlp|mlp_moe_gen)")
NOTE = "model/ is a plain BAGEL-MoE folder, in the layout of the sparse fork"
_SAYS = ("split_experts", "set_tensors")


def has_experts(model: nn.Module) -> bool:
    return any(isinstance(module, SparseFeedForward) for module in model.modules())


def plain_folder(
    model: nn.Module, folder: Path, plans: Sequence[Plan], values: Mapping[str, TensorToWrite] | None = None
) -> Plain | str:
    """The plain folder of a model with experts, or why there is none."""
    modules = {path: m for path, m in model.named_modules() if isinstance(m, SparseFeedForward)}
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if reasons := [*_edits(plans), *_modules(modules, config["intermediate_size"])]:
        return f"model/ needs umcompress: no plain BAGEL-MoE folder can hold it, since {'; '.join(reasons)}"
    given = values if values is not None else {name: in_memory(t) for name, t in model.state_dict().items()}
    weights = sources(model, disk_names(model, SparseFeedForward), given)
    for path, module in modules.items():
        if not isinstance(module, BagelExperts):
            weights["ema.safetensors"] |= _further_routers(path, given[f"{path}.gate.weight"])
    text = json.dumps(config | _fields(modules), indent=2) + "\n"
    return Plain(weights, {CONFIG: text}, frozenset({NOTES}), sharded=False, note=NOTE)


def _edits(plans: Sequence[Plan]) -> Iterator[str]:
    for plan in plans:
        for kind in dict.fromkeys(edit.kind for edit in plan.edits if edit.kind not in _SAYS):
            yield f"{plan.pass_name} changed more than feed-forwards into experts ({kind})"


def _reason(path: str, shape: ExpertShape, width: int) -> str:
    """Why the fork cannot build this one; nothing where it can."""
    if not _PLACE.fullmatch(path):
        return "no feed-forward of the decoder"
    if shape.selector:
        return "experts chosen by a selector of their own (set router: zero)"
    if shape.weighting != "one_plus_logit":
        return f"experts weighed by {shape.weighting} (set weighting: one_plus_logit)"
    if shape.shared_width % shape.width or shape.experts * shape.width + shape.shared_width != width:
        return f"{shape.shared_width} shared channels, no multiple of an expert's {shape.width} (set shared: 0)"
    return ""


def _modules(modules: Mapping[str, SparseFeedForward], width: int) -> Iterator[str]:
    """All that differs from what the fork builds from its three numbers; alike reasons once."""
    found: dict[str, list[str]] = {}
    for path, module in modules.items():
        if reason := _reason(path, module.shape, width):
            found.setdefault(reason, []).append(path)
    for reason, paths in found.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield f"{paths[0]}{more}: {reason}"
    counts = {(m.shape.experts, m.shape.active, m.shape.shared_width) for m in modules.values()}
    if len(counts) > 1:
        listed = ", ".join(f"{active} of {experts}" for experts, active, _ in sorted(counts))
        yield f"layers differ in their experts ({listed}), and the configuration has one number for all"
    if len({m.layer.rule if isinstance(m, BagelExperts) else "live" for m in modules.values()}) > 1:
        yield "some experts follow the legacy rule and others do not"


def _fields(modules: Mapping[str, SparseFeedForward]) -> dict[str, Any]:
    shape = next(iter(modules.values())).shape
    places = [match for path in modules if (match := _PLACE.fullmatch(path))]
    layers = {
        component: sorted(int(match[1]) for match in places if match[2] == name)
        for component, name in MODULES.items()
    }
    return {
        "num_experts": shape.experts, "num_shared_experts": shape.shared_width // shape.width,
        "top_k": shape.active, "transformed_gen": layers["generation"] or False,
        "transformed_und": layers["understanding"] or False,
    }  # fmt: skip


def _further_routers(path: str, gate: TensorToWrite) -> dict[str, TensorToWrite]:
    """What the fork has beside the router: a shared expert's scale, zero for 1, and vision rows' own router."""
    shape = (1, gate.shape[1])
    scale = TensorToWrite(gate.dtype, shape, lambda: torch.zeros(shape, dtype=gate.dtype))
    further = {f"{path}.gate_shared.weight": scale}
    return further if path.endswith("_moe_gen") else further | {f"{path}.gate_img.weight": gate}
