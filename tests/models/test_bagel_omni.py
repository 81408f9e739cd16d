"""BAGELs with lists of layers: what vLLM's and vLLM-Omni's plug-ins build from a folder computes what ours does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_bagel import DECODER, decoder_tensors
from torch import Tensor, nn

from umcompress.documents.plan import DropBlock, DropBranch, Edit, KeepChannels, KeepHeads, Plan, SplitExperts
from umcompress.extend import Statistics, find_pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.bagel.family import BagelFamily
from umcompress.models.bagel.layer_list import MODULES
from umcompress.models.bagel.load import load_bagel
from umcompress.models.bagel.served_experts import ServedExperts
from umcompress.models.plain_folder import Plain
from umcompress.models.save import save_plain
from umcompress.rewrite.apply import rewrite
from umcompress.rewrite.nn.experts import SparseFeedForward

FAMILY = BagelFamily()
WIDTH = 96


def split(site: str, shared: int = 0, experts: int = 4, **options: Any) -> SplitExperts:
    each = (WIDTH - shared) // experts
    dealt = tuple(tuple(range(shared + e * each, shared + (e + 1) * each)) for e in range(experts))
    return SplitExperts(site=site, experts=dealt, shared=tuple(range(shared)), active=2, **options)


def edited(folder: Path, *edits: Edit) -> nn.Module:
    """Routers, and whatever else experts begin with as zeros, get values that make a difference."""
    model = rewrite(FAMILY.load(folder), FAMILY, [Plan(pass_name="cut", edits=edits)])
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, SparseFeedForward):
            for name, parameter in module.named_parameters():
                if name.split(".")[0] in ("gate", "selector", "gate_shared", "bias"):
                    parameter.data.normal_(generator=draw)
    return model


def written(model: nn.Module, layout: str, source: Path, out: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`llm_config.json` and the weights of a folder in a layout."""
    plain = FAMILY.laid_out(layout, model, source)
    assert isinstance(plain, Plain), plain
    save_plain(plain, out, source)
    return json.loads((out / "llm_config.json").read_text()), load_file(out / "ema.safetensors")


def built(said: dict[str, Any], path: str, tensors: dict[str, Tensor]) -> Any:
    """Experts as a plug-in builds and fills them, strictly."""
    module = ServedExperts(64, said)
    own = {name.removeprefix(f"{path}."): value for name, value in tensors.items() if name.startswith(f"{path}.")}
    module.load_state_dict(own)
    return module


@pytest.mark.parametrize("options", [
    {}, {"shared": 32}, {"weighting": "softmax", "selector": True}, {"shared": 32, "weighting": "softmax"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("layout", ["vllm", "vllm-omni"])
def test_experts_are_built_from_the_list_and_compute_the_same_bits(
    layout: str, options: dict[str, Any], tiny_bagel: Path, tmp_path: Path
) -> None:
    stream = "understanding" if layout == "vllm" else "generation"
    path = f"{DECODER}.1.{MODULES[stream]}"
    model = edited(tiny_bagel, split(path, **options))
    config, tensors = written(model, layout, tiny_bagel, tmp_path / "out")
    entry = config["umcompress_layers"][1]
    said = (entry if layout == "vllm" else entry["generation"])["experts"]
    rows = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made, ours = built(said, path, tensors)(rows), model.get_submodule(path)(rows)
    assert torch.equal(made, ours) and ours.std() > 0.01
    # No name that vLLM would take for a part of a dense feed-forward.
    assert not any("_proj" in name for name in tensors if name.startswith(f"{path}."))


def test_experts_of_a_bagel_moe_folder_scale_what_is_shared(tiny_bagel: Path, tmp_path: Path) -> None:
    path = f"{DECODER}.2.mlp_moe_gen"
    edit = split(path, shared=32, experts=2)
    model = edited(tiny_bagel, edit)
    plain = FAMILY.plain(model, tiny_bagel, [Plan(pass_name="cut", edits=(edit,))])
    assert isinstance(plain, Plain)
    save_plain(plain, tmp_path / "moe", tiny_bagel)
    again = load_bagel(tmp_path / "moe")
    scale: Any = again.get_submodule(f"{path}.gate_shared")
    nn.init.normal_(scale.weight, generator=torch.Generator().manual_seed(2))
    config, tensors = written(again, "vllm-omni", tmp_path / "moe", tmp_path / "out")
    rows = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = built(config["umcompress_layers"][2]["generation"]["experts"], path, tensors)(rows)
        assert torch.equal(made, again.get_submodule(path)(rows))
        assert not torch.allclose(made, model.get_submodule(path)(rows), atol=1e-3)


def shapes_wanted(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The decoder's tensors that vLLM-Omni builds, the feed-forwards of each layer by its list."""
    wanted = {}
    for index, layer in enumerate(config["umcompress_layers"]):
        for stream, entry in (("", layer), ("_moe_gen", layer["generation"])):
            one = decoder_tensors(config | {"num_hidden_layers": index + 1, "intermediate_size": entry["channels"]})
            for name, shape in one.items():
                of_stream = ("_moe_gen" in name) == (stream == "_moe_gen")
                gone = f".mlp{stream}." in name and not entry["channels"]
                if name.startswith(f"{DECODER}.{index}.") and of_stream and not gone:
                    wanted[name] = shape
    return wanted


def test_layers_that_differ_by_stream_are_listed_for_vllm_omni(tiny_bagel: Path, tmp_path: Path) -> None:
    model = edited(
        tiny_bagel, KeepChannels(site=f"{DECODER}.1.mlp", keep=(1, 2)), DropBlock(block=f"{DECODER}.0"),
        DropBranch(block=f"{DECODER}.2", branch="feed_forward", component="generation"),
    )  # fmt: skip
    config, tensors = written(model, "vllm-omni", tiny_bagel, tmp_path / "out")
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(f"{DECODER}.")}
    assert found == shapes_wanted(config)
    overall = json.loads((tmp_path / "out" / "config.json").read_text())
    assert overall["llm_config"]["umcompress_layers"] == config["umcompress_layers"]
    assert len(load_file(tmp_path / "out" / "ae.safetensors")) > 0
    rest = {name.split(".")[0] for name in tensors if not name.startswith(f"{DECODER}.")}
    assert rest >= {"language_model", "vit_model", "connector", "time_embedder", "vae2llm", "llm2vae"}


def test_streams_that_are_alike_need_no_list(tiny_bagel: Path, tmp_path: Path) -> None:
    config, _ = written(edited(tiny_bagel, DropBlock(block=f"{DECODER}.1")), "vllm-omni", tiny_bagel, tmp_path / "out")
    assert "umcompress_layers" not in config and config["num_hidden_layers"] == 2


@pytest.mark.parametrize(("edit", "says"), [
    (DropBranch(block=f"{DECODER}.0", branch="attention", component="generation"), "keep attentions"),
    (KeepHeads(site=f"{DECODER}.1.self_attn", component="generation", key_value_groups=(1,)), "leave heads"),
    (DropBlock(block="vit_model.vision_model.encoder.layers.1"), "leave the tower whole"),
    (KeepChannels(site=f"{DECODER}.1.mlp", keep=(1, 2), bias=True), "another repair than bias"),
])  # fmt: skip
def test_what_vllm_omni_has_no_place_for_is_refused(tiny_bagel: Path, edit: Edit, says: str) -> None:
    reason = FAMILY.laid_out("vllm-omni", edited(tiny_bagel, edit), tiny_bagel)
    assert isinstance(reason, str) and says in reason


def test_a_bias_is_not_left_out_for_vllm_either(tiny_bagel: Path) -> None:
    """It would load without it, and answer otherwise."""
    edit = KeepChannels(site=f"{DECODER}.1.mlp", keep=(1, 2), bias=True)
    reason = FAMILY.laid_out("vllm", edited(tiny_bagel, edit), tiny_bagel)
    assert isinstance(reason, str) and "bias" in reason


def test_one_task_alone_and_routers_of_pictures_are_refused(tiny_bagel: Path, tmp_path: Path) -> None:
    model = edited(tiny_bagel)
    chosen = find_pass("specialize").model_validate({"task": "understanding"})
    rewrite(model, FAMILY, [chosen.plan(trace_model(model, FAMILY), Statistics()).plan])
    assert "specialized" in str(FAMILY.laid_out("vllm-omni", model, tiny_bagel))
    edit = split(f"{DECODER}.0.mlp")
    plain = FAMILY.plain(edited(tiny_bagel, edit), tiny_bagel, [Plan(pass_name="cut", edits=(edit,))])
    assert isinstance(plain, Plain)
    save_plain(plain, tmp_path / "moe", tiny_bagel)
    for layout in ("vllm", "vllm-omni"):
        assert "router of their own" in str(FAMILY.laid_out(layout, load_bagel(tmp_path / "moe"), tmp_path / "moe"))
