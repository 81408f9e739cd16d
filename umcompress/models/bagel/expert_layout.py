"""Which feed-forwards of a BAGEL folder are experts: read from the headers of its weights, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from umcompress.checkpoint.index import open_folder, shards_of
from umcompress.documents.file_names import RECORD
from umcompress.documents.files import read_json
from umcompress.errors import ModelError

WEIGHTS = "ema.safetensors"
# What the original of a compressed model had, as its own weights no longer tell.
NOTES = "experts.json"
MODULES = {"understanding": "mlp", "generation": "mlp_moe_gen"}
_KEY = re.compile(r"language_model\.model\.layers\.(\d+)\.(mlp|mlp_moe_gen)\.(.+)")
Shapes = dict[str, tuple[int, ...]]


def stored_shapes(folder: Path) -> Shapes:
    """Shapes of the tensors in the main weight file (or its shards); empty where there is none."""
    if not shards_of(folder, WEIGHTS)[0].is_file():
        return {}
    return {name: entry.shape for name, entry in open_folder(folder, WEIGHTS).entries.items()}


def expert_layers(folder: Path, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fields of an ExpertLayer for each feed-forward of experts; `config` is `llm_config.json`."""
    if (folder / RECORD).is_file():
        return _noted(folder / NOTES)
    found: dict[tuple[int, str], Shapes] = {}
    for name, shape in stored_shapes(folder).items():
        if match := _KEY.fullmatch(name):
            found.setdefault((int(match[1]), match[2]), {})[match[3]] = shape
    return [
        _layer(layer, module, shapes, config)
        for (layer, module), shapes in sorted(found.items())
        if _rows(shapes, "gate.weight") or any(name.startswith("experts.") for name in shapes)
    ]


def _noted(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        noted = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"JSON in {path}", str(error), "get the file again") from error
    if not isinstance(noted, list):
        raise ModelError(f"a list of layers in {path}", f"a {type(noted).__name__}", "get the file again")
    return noted


def _layer(layer: int, module: str, shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is missing counts as it should be: filling the model with weights lists it then."""
    indices = {int(match[1]) for name in shapes if (match := re.match(r"experts\.(\d+)\.", name))}
    experts = _rows(shapes, "gate.weight") or 1 + max(indices, default=0)
    shared = _width(shapes, "shared_expert.")
    width = next((width for e in sorted(indices) if (width := _width(shapes, f"experts.{e}."))), 0)
    legacy = "shared_expert_gate.weight" in shapes and "gate_shared.weight" not in shapes
    active = config.get("num_experts_per_tok") if legacy else None
    if active is None:
        active = config.get("top_k")
    component = next(component for component, name in MODULES.items() if name == module)
    return {
        "component": component, "layer": layer, "experts": experts, "shared_width": shared,
        "active": max(1, experts // 2) if active is None else active,
        "width": width or max(1, (config["intermediate_size"] - shared) // experts),
        "rule": "legacy" if legacy else "live", "normalised": bool(config.get("norm_topk_prob", False)),
    }  # fmt: skip


def _rows(shapes: Shapes, name: str, axis: int = 0) -> int:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) == 2 else 0


def _width(shapes: Shapes, prefix: str) -> int:
    """Channels of one feed-forward, by whichever of its linears is there; 0 where none is."""
    names = (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1))
    return next((rows for name, axis in names if (rows := _rows(shapes, f"{prefix}{name}.weight", axis))), 0)
