"""A compressed BAGEL whose two streams are still alike, written as a plain smaller BAGEL.

vLLM-Omni, NeMo and the official code build a BAGEL from one number of blocks and one feed-forward width for both
streams.  A model that is just that, with other numbers, needs no plans: its folder says the numbers everywhere that
some reader looks for them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from umcompress.checkpoint.fill import sources
from umcompress.checkpoint.writer import TensorToWrite, in_memory
from umcompress.graph.model_graph import ModelFamily
from umcompress.models.bagel.attention import SUFFIX, BagelAttention
from umcompress.models.bagel.config import BagelConfig
from umcompress.models.bagel.load import disk_names, skeleton
from umcompress.models.padded import NOTE as FILLED
from umcompress.models.padded import padded_weights
from umcompress.models.plain_folder import Plain

TEXT_CONFIG, VISION_CONFIG, CONFIG = "llm_config.json", "vit_config.json", "config.json"
INDEX = "model.safetensors.index.json"
STREAMS = {"understanding": "mlp", "generation": "mlp_moe_gen"}
NOTE = (
    "a plain BAGEL, {layers} blocks with {width} channels in both streams: the layout that vLLM-Omni, NeMo AutoModel "
    "and BAGEL's own code read"
)


def ordinary_folder(
    model: nn.Module, folder: Path, values: Mapping[str, TensorToWrite] | None = None, unchanged: bool = False
) -> Plain | str:
    """The plain folder of `model`, or the reason why its layout cannot hold it.

    folder: the source, whose JSON files are taken over with corrected numbers.
    values: where the tensors of a skeleton come from; a live model has its own.
    unchanged: also of a model that has its first numbers still, for which there is nothing to say otherwise.
    """
    before = BagelConfig.from_folder(folder)
    layers, widths = _sizes(model)
    if reasons := list(_differences(model, before, layers, widths)):
        return f"model/ needs umcompress: it is no plain BAGEL, since {'; '.join(reasons)}"
    width = widths["understanding"][0]
    if not unchanged and (layers, width) == (before.text.num_hidden_layers, before.text.intermediate_size):
        return ""
    given = values if values is not None else {name: in_memory(t) for name, t in model.state_dict().items()}
    return _folder(model, folder, given, NOTE.format(layers=layers, width=width))


def filled_folder(
    model: nn.Module, family: ModelFamily, folder: Path, values: Mapping[str, TensorToWrite] | None = None
) -> Plain | str:
    """A plain BAGEL of blocks or streams that differ in width: the narrower ones are filled up with zeros."""
    before = BagelConfig.from_folder(folder)
    layers, widths = _sizes(model)
    width = max(max(found) for found in widths.values())
    gone = [i for i in range(layers) for stream in SUFFIX if _attention(model, i).stream(stream) is None]
    if gone:
        return f"block {gone[0]} lost a stream's attention: the other would look at its keys, were they zeros"
    built = skeleton(_resized(before, layers, width))
    weights = padded_weights(model, built, family, values)
    if isinstance(weights, str):
        return weights
    note = f"{NOTE.format(layers=layers, width=width)}; {FILLED.format(width=width)}"
    return dataclasses.replace(_folder(built, folder, weights, note), exact=False)


def _folder(model: nn.Module, folder: Path, values: Mapping[str, TensorToWrite], note: str) -> Plain:
    """A plain folder of a model whose blocks are alike in number and width."""
    layers, widths = _sizes(model)
    weights = sources(model, disk_names(model), values)
    texts = config_texts(folder, BagelConfig.from_folder(folder), layers, widths["understanding"][0])
    if (folder / INDEX).is_file():
        texts[INDEX] = _index(weights)
    return Plain(weights, texts, sharded=False, note=note)


def _attention(model: nn.Module, layer: int) -> BagelAttention:
    found = model.get_submodule(f"language_model.model.layers.{layer}.self_attn")
    assert isinstance(found, BagelAttention)
    return found


def _resized(config: BagelConfig, layers: int, width: int) -> BagelConfig:
    text = config.text.model_copy(update={"num_hidden_layers": layers, "intermediate_size": width})
    return config.model_copy(update={"text": text})


def _sizes(model: nn.Module) -> tuple[int, dict[str, list[int]]]:
    """How many decoder blocks there are, and the feed-forward width of each by stream; 0 where there is none."""
    blocks = list(model.get_submodule("language_model.model.layers").children())
    widths: dict[str, list[int]] = {stream: [] for stream in STREAMS}
    for block in blocks:
        for stream, name in STREAMS.items():
            gate = getattr(getattr(block, name, None), "gate_proj", None)
            widths[stream].append(gate.weight.shape[0] if isinstance(gate, nn.Linear) else 0)
    return len(blocks), widths


def _differences(
    model: nn.Module, before: BagelConfig, layers: int, widths: Mapping[str, list[int]]
) -> Iterator[str]:
    """What an ordinary BAGEL cannot be: one reason a kind, with what would make it ordinary."""
    if before.experts:
        yield "its source has experts"
        return
    for stream, found in widths.items():
        if 0 in found:
            yield f"block {found.index(0)} has no {stream} feed-forward: drop whole blocks (component: shared)"
        elif len(set(found)) > 1:
            yield f"{stream} widths differ by block ({min(found)} to {max(found)}): cut all layers to one keep_ratio"
    if any(0 in found or len(set(found)) > 1 for found in widths.values()):
        return
    (understanding,), (generation,) = (set(found) for found in widths.values())
    if understanding != generation:
        yield (
            f"the streams differ in width ({understanding} in understanding, {generation} in generation): "
            "cut both alike (component: shared)"
        )
        return
    wanted = _shapes(skeleton(_resized(before, layers, understanding)))
    found_shapes = _shapes(model)
    odd = sorted(name for name in wanted.keys() | found_shapes.keys() if wanted.get(name) != found_shapes.get(name))
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        yield f"{_why_not(odd)} ({odd[0]}{more})"


def _why_not(odd: list[str]) -> str:
    """What the tensors that differ from the layout are part of, and what would leave it plain."""
    if all(name.startswith("vit_model") for name in odd):
        return "the vision tower was cut, whose depth its readers take from different places: leave the tower whole"
    if all(name.endswith("mlp.down_proj.bias") or name.endswith("mlp_moe_gen.down_proj.bias") for name in odd):
        return "feed-forwards have a bias, which the layout has no place for: use another repair than bias"
    return (
        "heads or branches of the decoder were cut, which its configuration has no number for: cut whole blocks and "
        "channels of both streams (component: shared)"
    )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}


def config_texts(folder: Path, before: BagelConfig, layers: int, width: int) -> dict[str, str]:
    """`llm_config.json` with the new numbers, and `config.json` with all that servers read of a BAGEL in one place."""
    text = _json(folder / TEXT_CONFIG) | {"num_hidden_layers": layers, "intermediate_size": width}
    if isinstance(kinds := text.get("layer_types"), list):
        text["layer_types"] = kinds[:layers]
    if isinstance(last := text.get("max_window_layers"), int):
        text["max_window_layers"] = min(last, layers)
    vae = before.autoencoder
    overall = _json(folder / CONFIG) | {
        "model_type": "bagel",
        "architectures": ["BagelForConditionalGeneration"],
        "llm_config": text | {"qk_norm": True},
        "vit_config": _json(folder / VISION_CONFIG),
        "vae_config": {"z_channels": vae.z_channels, "downsample": vae.downsample},
        "latent_patch_size": before.latent_patch_size,
        "max_latent_size": before.max_latent_size,
        "vit_max_num_patch_per_side": before.vit_max_num_patch_per_side,
    }
    return {TEXT_CONFIG: _text(text), CONFIG: _text(overall)}


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none or none that parses, as in one public copy of BAGEL."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _index(weights: Mapping[str, Mapping[str, TensorToWrite]]) -> str:
    """Tensor name -> weight file, over both files."""
    names = {name: file for file, tensors in weights.items() for name in tensors}
    return _text({"metadata": {}, "weight_map": dict(sorted(names.items()))})
