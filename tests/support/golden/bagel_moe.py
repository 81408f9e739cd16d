"""The golden folder of BAGEL-MoE: single blocks of experts, and a whole model with some layers converted.

The whole model shares its vision tower, autoencoder, prompt and noise with the golden folder of BAGEL, which is
the folder above (or the same one).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from golden.bagel import _guidance, _size
from golden.checker import Checker, Golden
from umcompress.documents.plan import Plan, SplitExperts
from umcompress.errors import ModelError
from umcompress.models.bagel.config import ExpertLayer
from umcompress.models.bagel.experts import BagelExperts
from umcompress.models.bagel.layers import GatedMLP
from umcompress.models.bagel.load import disk_names, load_bagel
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.sampling import Contexts, denoise
from umcompress.passes._partition import importance_partition
from umcompress.rewrite.apply import rewrite
from umcompress.rewrite.nn.experts import SparseFeedForward

COMMON, FULL = "block_common.safetensors", "full_t2i.safetensors"
LINEARS = ("gate_proj", "up_proj", "down_proj")
COMPONENTS = {"gen": "generation", "und": "understanding"}


def check(folder: Path, checker: Checker) -> None:
    """Every block of `block_meta.json`, then the whole model; a file that is neither is a failure."""
    folder = folder.absolute()
    cases = json.loads((folder / "block_meta.json").read_text())["cases"]
    known = [COMMON, FULL, *(f"block_{name}.safetensors" for name in cases)]
    checker.all_files_seen(folder, known)
    common = checker.open(COMMON)
    check_dense(common, checker)
    for name, case in cases.items():
        Block(common, checker.open(f"block_{name}.safetensors"), case, checker).check()
    if (folder / FULL).exists():
        check_full(folder, checker)


def dense_block(common: Golden) -> GatedMLP:
    hidden, width = common["dense.down_proj.weight"].shape
    mlp = GatedMLP(hidden, width)
    mlp.load_state_dict({name.removeprefix("dense."): common[name] for name in common.names("dense.")})
    return mlp


@torch.no_grad()
def check_dense(common: Golden, checker: Checker) -> None:
    checker.close(common, "dense_out", dense_block(common)(common["x"]))


class _Residual(nn.Module):
    """A block that is nothing but its feed-forward."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(x)
        return out


class _Family:
    """A stack of such blocks."""

    main_stack = "decoder"

    def stacks(self, model: nn.Module) -> dict[str, str]:
        return {"decoder": "0"}

    def component_of(self, path: str) -> str:
        return "generation"


class Block:
    """One case: the same experts dealt, converted, routed by the live rule, and by the legacy one."""

    def __init__(self, common: Golden, golden: Golden, case: dict[str, Any], checker: Checker) -> None:
        self.common, self.golden, self.case, self.checker = common, golden, case, checker
        self.x = common["x"]

    def check(self) -> None:
        self.check_deal()
        self.check_split()
        self.check_zero_router()
        self.check_router()
        if self.case["mode"] == "und":
            self.check_vision()
        self.check_legacy()

    def label(self, text: str) -> str:
        return f"{self.golden.name}: {text}"

    def module(self, active: int, rule: str = "live", router: bool = True) -> BagelExperts:
        """Our block with the golden's weights; every one of them must have its place."""
        stored = {n.removeprefix("zero_init."): self.golden[n] for n in self.golden.names("zero_init.")}
        if router:
            stored |= {n.removeprefix("router."): self.golden[n] for n in self.golden.names("router.")}
        if rule == "legacy":
            stored = {n: t for n, t in stored.items() if n not in ("gate_shared.weight", "gate_img.weight")}
            stored["shared_expert_gate.weight"] = self.golden["router.gate_shared.weight"]
        experts = range(self.case["E"])
        for linear in LINEARS:
            parts = [stored.pop(f"experts.{e}.{linear}.weight") for e in experts]
            stored[f"experts.{linear}.weight"] = torch.stack(parts)
        layer = ExpertLayer.model_validate({
            "component": COMPONENTS[self.case["mode"]], "layer": 0, "experts": len(experts), "active": active,
            "width": self.case["moe_intermediate_size"], "rule": rule,
            "shared_width": self.case["shared_expert_intermediate_size"],
        })
        block = BagelExperts(self.x.shape[-1], layer)
        block.load_state_dict(stored)
        return block

    def deal(self) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        scores = self.common["importance_scores"].tolist()
        return importance_partition(scores, self.case["E"], int(len(scores) * self.case["shared_ratio"]))

    def check_deal(self) -> None:
        shared, experts = self.deal()
        if "shared_indices" in self.golden:
            self.checker.same(self.golden, "shared_indices", torch.tensor(shared))
        else:
            self.checker.equal(self.label("shared channels"), len(shared), 0)
        for number, expert in enumerate(experts):
            self.checker.same(self.golden, f"expert_indices.{number}", torch.tensor(expert))

    def split(self, selected: list[int] | None) -> SparseFeedForward:
        """The dense block through our own edit; with `selected`, these experts and no others."""
        shared, experts = self.deal()
        model = nn.Sequential(nn.ModuleList([_Residual(dense_block(self.common))]))
        edit = SplitExperts(
            site="0.0.mlp", experts=experts, shared=shared, selector=selected is not None,
            active=len(experts) if selected is None else len(selected),
        )
        rewrite(model, _Family(), [Plan(pass_name="golden", edits=(edit,))])
        module = model.get_submodule("0.0.mlp")
        assert isinstance(module, SparseFeedForward)
        if selected is not None:
            module.get_parameter("selector.bias").data[selected] = 1.0
        return module

    @torch.no_grad()
    def check_split(self) -> None:
        """Our edit makes the tensors that the conversion made, and they compute the same."""
        ours = self.split(None).state_dict()
        for name in self.golden.names("zero_init."):
            place = name.removeprefix("zero_init.").split(".")
            if place[0] in ("gate_shared", "gate_img"):
                self.checker.equal(self.label(f"{name} is zero"), bool(self.golden[name].any()), False)
                continue
            expert = int(place.pop(1)) if place[0] == "experts" else None
            tensor = ours[".".join(place)]
            self.checker.close(self.golden, name, tensor if expert is None else tensor[expert])
        selected = self.golden["out.zero_router_selected"].tolist()
        self.checker.equal(self.label("experts of the zero router"), len(set(selected)), self.case["k"])
        # Which experts win a tie is the backend's choice: given in the golden, and followed here.
        self.golden.checked.add("out.zero_router_selected")
        self.checker.close(self.golden, "out.zero_router", self.split(selected)(self.x))

    @torch.no_grad()
    def check_zero_router(self) -> None:
        everything = self.module(self.case["E"], router=False)(self.x)
        self.checker.close(self.golden, "out.zero_router_all_experts", everything)
        error = float((everything - self.common["dense_out"]).abs().max())
        self.checker.number(self.label("all experts against dense"), error, 0.0)

    def check_router(self) -> None:
        block, x = self.module(self.case["k"]), self.x.clone().requires_grad_()
        _, chosen, logits = block.route(x.detach())
        self.checker.close(self.golden, "out.router_logits", logits.detach())
        self.checker.same(self.golden, "out.router_selected_sorted", chosen.sort(dim=-1).values)
        out = block(x)
        self.checker.close(self.golden, "out.router", out.detach())
        out.square().mean().backward()
        for name in self.golden.names("grad."):
            ours = x.grad if name == "grad.x" else self.gradient(block, name.removeprefix("grad."))
            assert ours is not None
            self.checker.close(self.golden, name, ours)
            self.checker.norm(self.label(f"norm of {name}"), float(ours.norm()), float(self.golden[name].norm()))

    @staticmethod
    def gradient(block: BagelExperts, name: str) -> Tensor | None:
        """Of one tensor on disk."""
        place = name.split(".")
        expert = int(place.pop(1)) if place[0] == "experts" else None
        grad = block.get_parameter(".".join(place)).grad
        return grad if expert is None or grad is None else grad[expert]

    @torch.no_grad()
    def check_vision(self) -> None:
        """Rows of an image have a router of their own."""
        block, rows = self.module(self.case["k"]), len(self.x)
        vision = torch.ones(rows, dtype=torch.bool)
        self.checker.close(self.golden, "out.img_only", self.run(block, vision))
        vision[self.golden["mixed.text_indexes"]] = False
        seen = sorted([*self.golden["mixed.text_indexes"].tolist(), *self.golden["mixed.vit_indexes"].tolist()])
        self.checker.equal(self.label("every row is text or vision"), seen, list(range(rows)))
        self.checker.close(self.golden, "out.mixed_router_logits", block.route(self.x, vision)[2])
        self.checker.close(self.golden, "out.mixed_text_vit", self.run(block, vision))

    def run(self, block: BagelExperts, vision: Tensor) -> Tensor:
        class Rows:
            vision_rows = vision

        out: Tensor = block(self.x, Rows())
        return out

    @torch.no_grad()
    def check_legacy(self) -> None:
        if "legacy.out" in self.golden:
            self.checker.close(self.golden, "legacy.out", self.module(self.case["k"], "legacy")(self.x))


# -- the whole model ------------------------------------------------------------------------------------


def check_full(folder: Path, checker: Checker) -> None:
    """Velocity and latents of the converted model; how its experts came from the dense one."""
    golden, meta = checker.open(FULL), json.loads((folder / "full_meta.json").read_text())
    home = next((home for home in (folder, folder.parent) if (home / "t2i.safetensors").exists()), None)
    if home is None:
        checker.line(False, FULL, "no t2i.safetensors with prompt and noise, here or in the folder above")
        return
    with tempfile.TemporaryDirectory() as temporary:
        try:
            model = load_bagel(assembled(folder / "model", folder.parent / "model", Path(temporary)))
        except ModelError as error:
            checker.line(False, "model", str(error))
            return
    check_layout(model, meta, folder / "model", checker)
    if "importance_scores" in golden and (folder.parent / "model" / "ema.safetensors").exists():
        check_conversion(golden["importance_scores"], model, folder, checker)
    settings = json.loads((home / "meta.json").read_text())["t2i"] | meta
    inputs = load_file(home / "t2i.safetensors")
    check_painting(model, checker, golden, inputs, settings)


def assembled(moe: Path, base: Path, into: Path) -> Path:
    """The converted model's files, and from the dense one those that it does not repeat."""
    for source in (base, moe):
        for path in sorted(source.iterdir()) if source.is_dir() else ():
            shutil.copyfile(path, into / path.name)
    return into


def check_layout(model: Bagel, meta: dict[str, Any], folder: Path, checker: Checker) -> None:
    found = model.config.experts
    checker.equal("model: converted layers", sorted({e.layer for e in found}), sorted(meta["converted_layers"]))
    checker.equal("model: experts", {e.experts for e in found}, {meta["num_experts"]})
    checker.equal("model: active experts", {e.active for e in found}, {meta["top_k"]})
    listed = folder / "keys_mlp_moe_gen.json"
    if listed.exists():
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        ours = {
            disk: shapes[target] if isinstance(target, str) else shapes[target.name][1:]
            for disk, target in disk_names(model)["ema.safetensors"].items() if ".mlp_moe_gen." in disk
        }
        checker.equal("model: names and shapes on disk", ours, json.loads(listed.read_text()))


def check_conversion(scores: Tensor, model: Bagel, folder: Path, checker: Checker) -> None:
    """Experts of the converted model are the channels of the dense one, dealt by these scores."""
    dense = load_file(folder.parent / "model" / "ema.safetensors")
    sparse = load_file(folder / "model" / "ema.safetensors")
    for layer in (layer for layer in model.config.experts if layer.component == "generation"):
        path = f"language_model.model.layers.{layer.layer}.mlp_moe_gen"
        shared, experts = importance_partition(scores[layer.layer].tolist(), layer.experts, layer.shared_width)
        parts = {f"experts.{e}": expert for e, expert in enumerate(experts)}
        if shared:
            parts["shared_expert"] = shared
        for linear in LINEARS:
            whole, axis = dense[f"{path}.{linear}.weight"], 1 if linear == "down_proj" else 0
            same = all(
                torch.equal(whole.index_select(axis, torch.tensor(part)), sparse[f"{path}.{name}.{linear}.weight"])
                for name, part in parts.items()
            )
            checker.equal(f"model: layer {layer.layer} {linear} dealt by importance", same, True)


@torch.no_grad()
def check_painting(
    model: Bagel, checker: Checker, golden: Golden, inputs: dict[str, Tensor], meta: dict[str, Any]
) -> None:
    size, noise = _size(model, meta), inputs["in.init_noise"]
    contexts = Contexts.empty(1)
    contexts.add_text(model, [inputs["in.prompt_ids"]])
    velocity = model.velocity(contexts.full, noise, meta["velocity_t"], [size])
    checker.close(golden, "out.velocity_nocfg", velocity)
    settings = meta["num_timesteps"], meta["timestep_shift"]
    plain = denoise(model, contexts, noise, [size], *settings, _guidance(meta, text_scale=1.0))
    checker.close(golden, "out.latents_nocfg", plain)
    checker.close(golden, "out.latents_cfg4", denoise(model, contexts, noise, [size], *settings, _guidance(meta)))
