"""A split Llama or Mistral as a Mixtral, Qwen3 as Qwen3-MoE, OLMo 2 as FlexOlmo: models that transformers has itself.

All weigh the k chosen of E experts by a softmax over their logits, which adds up to 1; a split feed-forward weighs
them so that the mean is 1. So the down projections are written k times as large. m channels an expert, H hidden.

Grouped products on the other side take rows of whole 16 bytes only: experts are filled up with channels of zeros,
which add nothing, to a multiple of 8.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from umcompress.checkpoint.fill import part_of
from umcompress.checkpoint.layout import tied_names
from umcompress.checkpoint.parts import joined
from umcompress.checkpoint.writer import TensorToWrite, in_memory
from umcompress.graph.model_graph import ModelFamily
from umcompress.models.hf.export import ordinary
from umcompress.models.hf.export.old_fields import with_old_fields
from umcompress.models.hf.load.skeleton import BASE_CONFIG, CONFIG_ERRORS, parameters_on_meta
from umcompress.models.hf.names import CONFIG, WEIGHTS
from umcompress.models.plain_folder import Plain
from umcompress.rewrite.nn.experts import ExpertShape, SparseFeedForward

WHOLE = 8
_PLACE = re.compile(r"model\.layers\.(\d+)\.mlp")


@dataclass(frozen=True)
class Mixture:
    """A model of transformers with experts. On disk they lie under `home`, their linears are called `linears`."""

    architecture: str
    model_type: str
    home: str
    linears: Mapping[str, str]
    count_field: str
    width_field: str
    # Layers that are not split are listed in this field; None: there may be none.
    dense_field: str | None
    fixed: Mapping[str, object]

    def config(self, dense: Mapping[str, Any], shape: ExpertShape, layers: set[int]) -> dict[str, Any]:
        """`dense`: all fields of the dense model's configuration; `layers`: those that are split."""
        cls = getattr(transformers, self.architecture).config_class
        known = {field.name for field in dataclasses.fields(cls)} | {"head_dim", "dtype"}
        content = {name: value for name, value in dense.items() if name in known}
        content |= {"model_type": self.model_type, "architectures": [self.architecture], **self.fixed}
        content |= {self.count_field: shape.experts, "num_experts_per_tok": shape.active}
        content[self.width_field] = filled(shape.width)
        if self.dense_field is not None:
            content[self.dense_field] = sorted(set(range(dense["num_hidden_layers"])) - layers)
        return content

    def tensors(self, ours: Mapping[str, TensorToWrite], splits: Mapping[int, ExpertShape]) -> dict[str, TensorToWrite]:
        """`ours` by names in the module -> by names on disk."""
        written = {}
        for name, source in ours.items():
            match = re.fullmatch(r"(model\.layers\.(\d+))\.mlp\.(.+)", name)
            if match is None or int(match[2]) not in splits:
                written[name] = source
                continue
            home, shape = f"{match[1]}.{self.home}", splits[int(match[2])]
            if (stack := re.fullmatch(r"experts\.(\w+)\.weight", match[3])) is None:
                written[f"{home}.{match[3]}"] = source
                continue
            last = stack[1] == shape.consumer
            for expert in range(shape.experts):
                part = _filled(part_of(source, expert), *((1, shape.active) if last else (0, 1)))
                written[f"{home}.experts.{expert}.{self.linears[stack[1]]}.weight"] = part
        return written


LINEARS = ("gate_proj", "up_proj", "down_proj")
MIXTRAL = Mixture(
    "MixtralForCausalLM", "mixtral", "block_sparse_moe", dict(zip(LINEARS, ("w1", "w3", "w2"), strict=True)),
    "num_local_experts", "intermediate_size", None, {},
)  # fmt: skip
QWEN3_MOE = Mixture(
    "Qwen3MoeForCausalLM", "qwen3_moe", "mlp", dict(zip(LINEARS, LINEARS, strict=True)), "num_experts",
    "moe_intermediate_size", "mlp_only_layers", {"norm_topk_prob": True, "decoder_sparse_step": 1},
)  # fmt: skip
FLEX_OLMO = Mixture(
    "FlexOlmoForCausalLM", "flex_olmo", "mlp", dict(zip(LINEARS, LINEARS, strict=True)), "num_experts",
    "intermediate_size", None, {"norm_topk_prob": True},
)  # fmt: skip
MIXTURES = {
    # A Llama has no sliding window, whatever its configuration says.
    "LlamaForCausalLM": dataclasses.replace(MIXTRAL, fixed={"sliding_window": None}),
    "MistralForCausalLM": MIXTRAL,
    "Qwen3ForCausalLM": QWEN3_MOE,
    "Olmo2ForCausalLM": FLEX_OLMO,
}


def is_split(model: PreTrainedModel) -> bool:
    """Whether feed-forwards of the model were split into experts."""
    return any(isinstance(module, SparseFeedForward) for module in model.modules())


def plain_folder(
    model: PreTrainedModel, family: ModelFamily, source: Path, values: Mapping[str, TensorToWrite] | None = None
) -> Plain | str:
    """A folder that AutoModelForCausalLM loads, or why there is none.

    source: the folder that the model came from. values: the tensors of a skeleton.
    """
    name = type(model).__name__
    if type(model).is_custom_code():
        return f"model/ needs umcompress: {name} is code that came with the model, and no class of transformers"
    if name not in MIXTURES:
        return f"model/ needs umcompress: of experts, transformers can load those of {', '.join(MIXTURES)} ({name})"
    mixture = MIXTURES[name]
    modules = {path: module for path, module in model.named_modules() if isinstance(module, SparseFeedForward)}
    places = {path: match for path in modules if (match := _PLACE.fullmatch(path))}
    splits = {int(match[1]): modules[path].shape for path, match in places.items()}
    config, reasons = ordinary.sized_config(model, family)
    reasons += [f"{path} is no feed-forward of a layer" for path in modules if path not in places]
    reasons += _rules(splits, config.num_hidden_layers, mixture)
    if not reasons:
        content = mixture.config(config.to_dict(), next(iter(splits.values())), set(splits))
        built, reasons = _built(content, mixture)
        reasons += list(_differences(model, built, splits)) if built is not None else []
    if reasons:
        return f"model/ needs umcompress: no {mixture.architecture} can hold it, since {'; '.join(reasons)}"
    assert built is not None
    given = values if values is not None else {name: in_memory(tensor) for name, tensor in model.state_dict().items()}
    ours = {name: source for name, source in given.items() if name not in tied_names(model)}
    text = ordinary.as_text(with_old_fields(built.config.to_diff_dict(), source))
    return Plain(
        {WEIGHTS: mixture.tensors(ours, splits)}, {CONFIG: text},
        frozenset({BASE_CONFIG}), exact=False, loads_with="transformers",
        note=_note(mixture, next(iter(splits.values())).width),
    )  # fmt: skip


def _note(mixture: Mixture, width: int) -> str:
    more = "" if filled(width) == width else f"; experts of {width} channels filled up with zeros to {filled(width)}"
    return f"model/ is a plain {mixture.architecture}{more}"


def _rules(splits: Mapping[int, ExpertShape], layers: int, mixture: Mixture) -> Iterator[str]:
    """Each rule of the split that the mixture does not have, and what to set in the recipe instead."""
    shapes = list(splits.values())
    if any(shape.weighting != "softmax" for shape in shapes):
        yield "its experts are weighed by 1 + logit, not by a softmax over the chosen (set weighting: softmax)"
    if any(shape.selector for shape in shapes):
        yield "its experts are chosen by other scores than weigh them (set router: zero, and train it)"
    if any(shape.shared_width for shape in shapes):
        yield "some channels are always on (set shared: 0)"
    if any(shape.consumer_bias or any(shape.producer_bias) for shape in shapes):
        yield "its feed-forwards have biases"
    counts = sorted({(shape.active, shape.experts, shape.width) for shape in shapes})
    if len(counts) > 1:
        listed = ", ".join(f"{active} of {experts} experts of {width}" for active, experts, width in counts)
        yield f"layers differ in their experts ({listed}): set the same experts and active for all"
    if mixture.dense_field is None and (dense := sorted(set(range(layers)) - set(splits))):
        yield f"layers {', '.join(map(str, dense))} are not split (set layers: all)"


def _built(content: dict[str, Any], mixture: Mixture) -> tuple[PreTrainedModel | None, list[str]]:
    cls = getattr(transformers, mixture.architecture)
    try:
        with parameters_on_meta():
            return cls(cls.config_class(**copy.deepcopy(content))), []
    except CONFIG_ERRORS as error:
        return None, [f"transformers does not build it: {(str(error).splitlines() or [''])[0][:120]}"]


def _differences(model: PreTrainedModel, built: PreTrainedModel, splits: Mapping[int, ExpertShape]) -> Iterator[str]:
    """What the model of transformers has otherwise than ours, beside the experts' layout."""
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    for layer, shape in splits.items():
        path = f"model.layers.{layer}.mlp.experts"
        for linear in (*shape.producers, shape.consumer):
            del ours[f"{path}.{linear}.weight"]
        ours[f"{path}.gate_up_proj"] = (shape.experts, 2 * filled(shape.width), shape.hidden)
        ours[f"{path}.down_proj"] = (shape.experts, shape.hidden, filled(shape.width))
    theirs = {name: tuple(tensor.shape) for name, tensor in built.state_dict(keep_vars=True).items()}
    if odd := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        name = odd[0]
        sides = [str(list(shapes[name])) if name in shapes else "nothing" for shapes in (theirs, ours)]
        more = f", and {len(odd) - 1} more such" if len(odd) > 1 else ""
        yield f"{name} would be {sides[0]}, and is {sides[1]}{more}"
    built.train(model.training)
    modules = dict(model.named_modules())
    for path, module in built.named_modules():
        if not re.search(r"self_attn|norm|rotary|embed_tokens", path) or path not in modules:
            continue
        if (setting := ordinary.differing_setting(modules[path], module)) is not None:
            values = getattr(module, setting, None), getattr(modules[path], setting, None)
            yield f"{path}.{setting} would be {values[0]}, and is {values[1]}"
            return


def filled(width: int) -> int:
    """Channels of an expert on the other side."""
    return -(-width // WHOLE) * WHOLE


def _filled(source: TensorToWrite, axis: int, factor: int) -> TensorToWrite:
    """The tensor times `factor`, with zeros after its channels, which lie along `axis`."""
    shape = list(source.shape)
    missing = filled(shape[axis]) - shape[axis]
    shape[axis] += missing
    columns = missing if axis == 1 else 0

    def pieces() -> Iterator[Tensor]:
        for piece in source.pieces() if source.pieces is not None else (source.make(),):
            yield functional.pad(piece * factor, [0, columns])
        if axis == 0 and missing:
            yield torch.zeros(missing, *shape[1:], dtype=source.dtype)

    return TensorToWrite(source.dtype, tuple(shape), lambda: joined(pieces()), pieces)
