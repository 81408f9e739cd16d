"""BAGEL-MoE folders: read, written from a split model, edited further, and refused when they are not whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bagel import write_tiny_bagel
from torch import Tensor, nn
from torch.nn import functional

from umcompress.documents.plan import (
    CompressionRecord,
    DropBlock,
    DropBranch,
    Edit,
    KeepHeads,
    Plan,
    SetTensors,
    SplitExperts,
)
from umcompress.errors import ModelError
from umcompress.graph.model_graph import trace_model
from umcompress.models.bagel.config import BagelConfig, ExpertLayer
from umcompress.models.bagel.experts import BagelExperts
from umcompress.models.bagel.family import BagelFamily
from umcompress.models.bagel.model import Bagel
from umcompress.models.plain_folder import Plain
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import open_source
from umcompress.rewrite.apply import rewrite

FAMILY = BagelFamily()
LAYERS = "language_model.model.layers"
WIDTH, HIDDEN = 96, 64


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("tiny"))


def split(site: str, experts: int = 4, active: int = 2, shared: int = 0, **options: Any) -> SplitExperts:
    each = (WIDTH - shared) // experts
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(3)).tolist()
    dealt = tuple(tuple(order[shared + e * each : shared + (e + 1) * each]) for e in range(experts))
    return SplitExperts(site=site, experts=dealt, shared=tuple(order[:shared]), active=active, **options)


def routers(model: nn.Module, *sites: str, seed: int = 5) -> tuple[SetTensors, dict[str, Tensor]]:
    """Router values that make a difference."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for site in sites:
        name = f"{site}.gate.weight"
        values[name] = torch.randn(model.get_parameter(name).shape, generator=generator) / 8
    return SetTensors(names=tuple(values)), values


def split_model(dense: Path, *edits: Edit) -> tuple[nn.Module, list[Plan]]:
    """The model after these edits, with routers that are not zero, and the plans."""
    model, plans = FAMILY.load(dense), [Plan(pass_name="moe_split", edits=edits)]
    rewrite(model, FAMILY, plans)
    sites = [edit.site for edit in edits if isinstance(edit, SplitExperts)]
    if sites:
        edit, values = routers(model, *sites)
        plans.append(Plan(pass_name="router_train", edits=(edit,)))
        rewrite(model, FAMILY, plans[1:], [values])
    return model, plans


def outputs(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    return FAMILY.runner(model, folder).probe()


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


def test_a_split_model_becomes_a_plain_folder_and_back(dense: Path, tmp_path: Path) -> None:
    sites = [f"{LAYERS}.1.mlp_moe_gen", f"{LAYERS}.2.mlp_moe_gen"]
    model, plans = split_model(dense, *(split(site, 8, 4) for site in sites))
    plain = FAMILY.plain(model, dense, plans)
    assert isinstance(plain, Plain)
    save_plain(plain, tmp_path / "model", dense)
    config = json.loads((tmp_path / "model" / "llm_config.json").read_text())
    assert {key: config[key] for key in ("num_experts", "num_shared_experts", "top_k")} == {
        "num_experts": 8, "num_shared_experts": 0, "top_k": 4,
    }
    assert config["transformed_gen"] == [1, 2] and config["transformed_und"] is False
    assert not (tmp_path / "model" / "umcompress.json").exists()
    stored = load_file(tmp_path / "model" / "ema.safetensors")
    path = f"{LAYERS}.1.mlp_moe_gen"
    names = {name.removeprefix(f"{path}.") for name in stored if name.startswith(f"{path}.")}
    parts = {f"experts.{e}.{linear}.weight" for e in range(8) for linear in ("gate_proj", "up_proj", "down_proj")}
    assert names == parts | {"gate.weight", "gate_shared.weight"}
    assert stored[f"{path}.gate_shared.weight"].shape == (1, HIDDEN)
    assert stored[f"{path}.experts.7.down_proj.weight"].shape == (HIDDEN, WIDTH // 8)
    again = open_source(str(tmp_path / "model"))
    assert same(outputs(again.load(), tmp_path / "model"), outputs(model, dense))


def test_understanding_gets_a_router_for_vision_rows(dense: Path, tmp_path: Path) -> None:
    site = f"{LAYERS}.0.mlp"
    model, plans = split_model(dense, split(site, 4, 3))
    plain = FAMILY.plain(model, dense, plans)
    assert isinstance(plain, Plain)
    save_plain(plain, tmp_path / "model", dense)
    loaded = FAMILY.load(tmp_path / "model")
    assert torch.equal(loaded.get_parameter(f"{site}.gate_img.weight"), loaded.get_parameter(f"{site}.gate.weight"))
    assert same(outputs(loaded, dense), outputs(model, dense))
    # Vision rows do go by it: with another one the answer changes, the picture (which has no such rows) does not.
    loaded.get_parameter(f"{site}.gate_img.weight").data.mul_(-1)
    other, before = outputs(loaded, dense), outputs(model, dense)
    assert not torch.equal(other["logits"], before["logits"])
    assert torch.equal(other["latents"], before["latents"])


def test_a_shared_expert_of_whole_expert_widths_is_kept(dense: Path, tmp_path: Path) -> None:
    model, plans = split_model(dense, split(f"{LAYERS}.1.mlp_moe_gen", 5, 2, shared=16))
    plain = FAMILY.plain(model, dense, plans)
    assert isinstance(plain, Plain)
    save_plain(plain, tmp_path / "model", dense)
    assert json.loads((tmp_path / "model" / "llm_config.json").read_text())["num_shared_experts"] == 1
    loaded = FAMILY.load(tmp_path / "model")
    assert same(outputs(loaded, dense), outputs(model, dense))
    # Its scale is a parameter now, 1 to start with.
    loaded.get_parameter(f"{LAYERS}.1.mlp_moe_gen.gate_shared.weight").data.fill_(0.1)
    assert not same(outputs(loaded, dense), outputs(model, dense))


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ([split(f"{LAYERS}.1.mlp_moe_gen", selector=True)], "selector of their own (set router: zero)"),
        ([split(f"{LAYERS}.1.mlp_moe_gen", weighting="softmax")], "set weighting: one_plus_logit"),
        ([split(f"{LAYERS}.1.mlp_moe_gen"), split(f"{LAYERS}.2.mlp_moe_gen", 8)], "2 of 4, 2 of 8"),
        ([split(f"{LAYERS}.1.mlp_moe_gen", 4, 2, shared=12)], "no multiple of an expert's 21"),
        ([split(f"{LAYERS}.1.mlp_moe_gen"), DropBlock(block=f"{LAYERS}.0")], "drop_block"),
    ],
)
def test_what_the_layout_cannot_say_stays_ours(
    dense: Path, tmp_path: Path, edits: list[Edit], says: str
) -> None:
    model, plans = FAMILY.load(dense), [Plan(pass_name="moe_split", edits=tuple(edits))]
    rewrite(model, FAMILY, plans)
    reason = FAMILY.plain(model, dense, plans)
    assert isinstance(reason, str)
    assert says in reason
    record = CompressionRecord(base="tiny", family="bagel", plans=tuple(plans))
    save_compressed(model, FAMILY, tmp_path / "model", record, dense)
    loaded = open_source(str(tmp_path / "model")).load()
    assert same(outputs(loaded, dense), outputs(model, dense))


def test_of_a_model_without_experts_there_is_nothing_to_say(dense: Path) -> None:
    assert FAMILY.plain(FAMILY.load(dense), dense, ()) == ""


@pytest.fixture(scope="module")
def sparse(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain BAGEL-MoE folder with experts on both sides."""
    model, plans = split_model(dense, split(f"{LAYERS}.1.mlp_moe_gen"), split(f"{LAYERS}.2.mlp"))
    plain = FAMILY.plain(model, dense, plans)
    assert isinstance(plain, Plain)
    folder = tmp_path_factory.mktemp("sparse") / "model"
    save_plain(plain, folder, dense)
    return folder


def test_its_sites_are_found_in_the_graph(sparse: Path) -> None:
    graph = trace_model(FAMILY.load(sparse), FAMILY)
    found = graph.experts()
    assert [(s.path, s.component, s.experts, s.active, s.width) for s in found] == [
        (f"{LAYERS}.1.mlp_moe_gen", "generation", 4, 2, 24), (f"{LAYERS}.2.mlp", "understanding", 4, 2, 24),
    ]  # fmt: skip
    assert len(graph.feed_forwards()) == 4
    assert len(graph.branches("feed_forward")) == 6


def test_it_can_be_compressed_further_and_loaded_again(sparse: Path, dense: Path, tmp_path: Path) -> None:
    """Blocks move up and branches go: the stored weights alone would not tell what the original was."""
    edits = (
        DropBlock(block=f"{LAYERS}.0"),
        DropBranch(block=f"{LAYERS}.2", branch="feed_forward", component="understanding"),
        KeepHeads(site=f"{LAYERS}.1.self_attn", component="generation", key_value_groups=(0, 2)),
        split(f"{LAYERS}.1.mlp", 6, 3, selector=True),
    )
    model, plans = FAMILY.load(sparse), [Plan(pass_name="some", edits=edits)]
    rewrite(model, FAMILY, plans)
    record = CompressionRecord(base="tiny", family="bagel", plans=tuple(plans))
    save_compressed(model, FAMILY, tmp_path / "once", record, sparse)
    loaded = open_source(str(tmp_path / "once"))
    assert same(outputs(loaded.load(), dense), outputs(model, dense))
    save_compressed(model, FAMILY, tmp_path / "twice", record, tmp_path / "once")
    assert same(outputs(open_source(str(tmp_path / "twice")).load(), dense), outputs(model, dense))


def test_trained_routers_of_a_plain_folder_make_a_plain_folder(sparse: Path, dense: Path, tmp_path: Path) -> None:
    model = FAMILY.load(sparse)
    edit, values = routers(model, f"{LAYERS}.1.mlp_moe_gen", seed=9)
    plans = [Plan(pass_name="router_train", edits=(edit,))]
    rewrite(model, FAMILY, plans, [values])
    plain = FAMILY.plain(model, sparse, plans)
    assert isinstance(plain, Plain)
    save_plain(plain, tmp_path / "model", sparse)
    assert same(outputs(FAMILY.load(tmp_path / "model"), dense), outputs(model, dense))
    assert not same(outputs(model, dense), outputs(FAMILY.load(sparse), dense))


# -- folders that others wrote --------------------------------------------------------------------------


def changed(sparse: Path, folder: Path, config: dict[str, Any] | None = None, **renamed: str) -> Path:
    """A copy with other configuration values (None: gone) and other names of tensors."""
    shutil.copytree(sparse, folder)
    values = json.loads((folder / "llm_config.json").read_text()) | (config or {})
    values = {key: value for key, value in values.items() if value is not None}
    (folder / "llm_config.json").write_text(json.dumps(values))
    tensors = load_file(folder / "ema.safetensors")
    for old, new in renamed.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "ema.safetensors")
    return folder


def test_only_the_number_of_active_experts_comes_from_the_configuration(sparse: Path, tmp_path: Path) -> None:
    gone = dict.fromkeys(("num_experts", "num_shared_experts", "transformed_gen", "transformed_und", "top_k"))
    bare = BagelConfig.from_folder(changed(sparse, tmp_path / "bare", gone))
    assert [(e.layer, e.experts, e.active, e.width) for e in bare.experts] == [(1, 4, 2, 24), (2, 4, 2, 24)]
    three = BagelConfig.from_folder(changed(sparse, tmp_path / "three", {"top_k": 3}))
    assert [e.active for e in three.experts] == [3, 3]
    with pytest.raises(ModelError, match="top_k is 5, and there are 4 experts"):
        BagelConfig.from_folder(changed(sparse, tmp_path / "five", {"top_k": 5}))


def test_all_that_is_missing_is_listed(sparse: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sparse, folder)
    tensors = load_file(folder / "ema.safetensors")
    names = ("gate_shared", "experts.2.up_proj", "experts.3.down_proj")
    lost = [f"{LAYERS}.1.mlp_moe_gen.{name}.weight" for name in names]
    lost += [f"{LAYERS}.2.mlp.gate_img.weight", f"{LAYERS}.2.mlp.gate.weight"]
    for name in lost:
        del tensors[name]
    tensors[f"{LAYERS}.1.mlp_moe_gen.experts.4.up_proj.weight"] = torch.zeros(24, HIDDEN)
    tensors[f"{LAYERS}.2.mlp.experts.0.up_proj.weight"] = torch.zeros(23, HIDDEN)
    save_file(tensors, folder / "ema.safetensors")
    with pytest.raises(ModelError) as caught:
        FAMILY.load(folder)
    message = str(caught.value)
    for name in lost:
        assert f"missing {name}" in message
    assert f"unexpected {LAYERS}.1.mlp_moe_gen.experts.4.up_proj.weight" in message
    assert f"{LAYERS}.2.mlp.experts.0.up_proj.weight is [23, 64], expected [24, 64]" in message


def test_the_name_of_the_scale_tells_the_legacy_rule(sparse: Path, tmp_path: Path) -> None:
    """Only generation: the legacy block has no router for vision rows."""
    folder = changed(sparse, tmp_path / "model", {"num_experts_per_tok": 3, "norm_topk_prob": True})
    tensors = load_file(folder / "ema.safetensors")
    scale = f"{LAYERS}.1.mlp_moe_gen.gate_shared.weight"
    tensors[scale.replace("gate_shared", "shared_expert_gate")] = tensors.pop(scale)
    save_file(tensors, folder / "ema.safetensors")
    model = FAMILY.load(folder)
    assert isinstance(model, Bagel)
    assert [(e.rule, e.active) for e in model.config.experts] == [("legacy", 3), ("live", 2)]


def test_the_legacy_rule_sums_and_sends_gradients_to_probabilities() -> None:
    layer = ExpertLayer(
        component="generation", layer=0, experts=4, active=2, width=6, shared_width=3, rule="legacy", normalised=True
    )
    torch.manual_seed(0)
    block = BagelExperts(8, layer).double()
    block.gate.weight.data.normal_()
    x = torch.randn(5, 8, dtype=torch.float64)
    weights = {name: p.detach() for name, p in block.named_parameters()}

    def feed(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return functional.linear(functional.silu(functional.linear(x, gate)) * functional.linear(x, up), down)

    linears = ("gate_proj", "up_proj", "down_proj")
    every = torch.stack([feed(x, *(weights[f"experts.{n}.weight"][e] for n in linears)) for e in range(4)], 1)
    gate = weights["gate.weight"].clone().requires_grad_()
    probabilities = functional.softmax(functional.linear(x, gate), dim=-1)
    picked, chosen = probabilities.topk(2, dim=-1)
    picked = picked / picked.sum(-1, keepdim=True)
    outs = every.gather(1, chosen[..., None].expand(-1, -1, 8))
    shared = feed(x, *(weights[f"shared_expert.{n}.weight"] for n in linears))
    out = block(x)
    assert torch.allclose(out, outs.sum(1) + shared, atol=1e-12)
    seed = torch.randn(5, 8, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(((outs * picked[..., None]).sum(1) * seed).sum(), gate)
    (out * seed).sum().backward()
    assert block.gate.weight.grad is not None
    assert torch.allclose(block.gate.weight.grad, wanted, atol=1e-6)
    assert wanted.abs().max() > 1e-3
