"""`plan` and `inspect`: what they say from shapes alone, against the models that the edits really give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from tiny_bagel import DECODER, VISION_TOWER, write_recipe, write_tiny_bagel

from umcompress.cli.main import main
from umcompress.documents.plan import CompressionRecord, DropBlock, DropBranch, KeepChannels, KeepHeads, Plan
from umcompress.errors import PlanError, UmcompressError, UsageError
from umcompress.extend.registry import find_pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.measure import weigh
from umcompress.models.save import save_compressed
from umcompress.models.source import open_source
from umcompress.plan.command import plan as plan_command
from umcompress.plan.inspect import inspect_model
from umcompress.plan.walk import propose
from umcompress.report.plan_view import by_layers
from umcompress.rewrite.apply import rewrite

UND: Final = "understanding"
GEN: Final = "generation"
STEPS: tuple[dict[str, Any], ...] = (
    {"pass": "layer_drop", "component": UND, "unit": "attention", "drop_count": 1},
    {"pass": "head_prune", "component": GEN, "keep_ratio": 0.5},
    {"pass": "channel_prune", "component": UND, "keep_ratio": 0.5, "repair": "bias"},
)


@pytest.fixture
def planned(tiny_bagel: Path, tmp_path: Path) -> Callable[..., Any]:
    def plan(*steps: dict[str, Any], model: Path = tiny_bagel, **keys: Any) -> Any:
        return plan_command(str(write_recipe(tmp_path, model, *steps, **keys)))

    return plan


def test_sizes_are_those_of_the_edited_model(tiny_bagel: Path, planned: Callable[..., Any]) -> None:
    """Parameters, bytes and work of every step: planned on shapes == counted on the rewritten weights."""
    source = open_source(str(tiny_bagel))
    model = source.load()
    weight = weigh(model, source.family, source.runner(model))
    for step, options in zip(planned(*STEPS).steps, STEPS, strict=True):
        assert (step.before, step.bytes_before) == (weight.parameters, weight.bytes.total)
        assert step.macs_before == weight.macs_per_token
        given = {key: value for key, value in options.items() if key != "pass"}
        planner = find_pass(options["pass"])(**given)
        rewrite(model, source.family, [propose(planner, trace_model(model, source.family), UND)])
        weight = weigh(model, source.family, source.runner(model))
        assert (step.after, step.bytes_after) == (weight.parameters, weight.bytes.total)
        assert step.macs_after == weight.macs_per_token
        assert step.problem is None


def test_sites_and_tensors(planned: Callable[..., Any]) -> None:
    drop, heads, channels = planned(*STEPS).steps
    assert [(s.site, s.component, s.unit, s.before, s.after) for s in drop.sites] == [
        (f"{DECODER}.2", UND, "attention", 1, 0)
    ]
    assert drop.sites[0].note == "for example: measuring decides which"
    gone = {change.name.removeprefix(f"{DECODER}.2.") for change in drop.tensors}
    assert gone >= {"self_attn.q_proj.weight", "self_attn.k_norm.weight", "input_layernorm.weight"}
    assert all(change.after is None and "_moe_gen" not in change.name for change in drop.tensors)

    assert [(s.site, s.unit, s.before, s.after) for s in heads.sites] == [
        (f"{DECODER}.{n}.self_attn", "key-value groups", 4, 2) for n in range(3)
    ]
    shapes = {change.name: (change.before, change.after) for change in heads.tensors}
    assert shapes[f"{DECODER}.0.self_attn.q_proj_moe_gen.weight"] == ((64, 64), (32, 64))
    assert shapes[f"{DECODER}.0.self_attn.k_proj_moe_gen.bias"] == ((32,), (16,))
    assert shapes[f"{DECODER}.0.self_attn.o_proj_moe_gen.weight"] == ((64, 64), (64, 32))

    assert [(s.before, s.after, s.note) for s in channels.sites] == [(96, 48, "its consumer has a bias")] * 3
    shapes = {change.name: (change.before, change.after) for change in channels.tensors}
    assert shapes[f"{DECODER}.1.mlp.down_proj.weight"] == ((64, 96), (64, 48))
    assert shapes[f"{DECODER}.1.mlp.down_proj.bias"] == (None, (64,))
    assert len(shapes) == 3 * 4


PRUNE_BLOCKS = '''
from typing import ClassVar
from umcompress.extend import DropBlock, DropBranch, KeepChannels, Pass, Plan, Proposal, SetTensors


class Blocks(Pass):
    name: ClassVar[str] = "blocks"

    def plan(self, graph, statistics):
        first, second, third = graph.blocks()
        mlp = f"{third.path}.mlp.down_proj.weight"
        edits = (
            KeepChannels(site=f"{third.path}.mlp", keep=tuple(range(40))),
            KeepChannels(site=f"{third.path}.mlp", keep=tuple(range(7))),
            SetTensors(names=(mlp,)),
            DropBlock(block=first.path),
        )
        return Proposal(Plan(pass_name=self.name, edits=edits))


class Norms(Pass):
    name: ClassVar[str] = "norms"

    def plan(self, graph, statistics):
        site = graph.feed_forwards("generation")[0]
        norms = [float(x) for x in graph.weight(f"{site.consumer}.weight").norm(dim=0)]
        return Proposal(Plan(pass_name=self.name, edits=(KeepChannels(site=site.path, keep=(0,)),)))


class Copies(Norms):
    name: ClassVar[str] = "copies"

    def plan(self, graph, statistics):
        return graph.weight(graph.feed_forwards("generation")[0].consumer + ".weight").numpy()


class Measures(Pass):
    name: ClassVar[str] = "measures"

    def needs(self):
        from umcompress.extend import ChannelActivation, Scope

        return [ChannelActivation(Scope("understanding"))]

    def plan(self, graph, statistics):
        return statistics[self.needs()[0]][graph.feed_forwards("understanding")[0]]


class Wrong(Measures):
    name: ClassVar[str] = "wrong"

    def plan(self, graph, statistics):
        return len(3)
'''


def test_several_edits_of_a_site_and_blocks_that_move_up(planned: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PRUNE_BLOCKS, encoding="utf-8")
    (step,) = planned({"pass": "own.py:Blocks"}).steps
    assert step.problem is None
    assert [(s.site, s.component, s.unit, s.before, s.after) for s in step.sites] == [
        (f"{DECODER}.2.mlp", UND, "channels", 96, 40),
        (f"{DECODER}.2.mlp", UND, "channels", 40, 7),
        (f"{DECODER}.0", GEN, "block", 1, 0),
        (f"{DECODER}.0", UND, "block", 1, 0),
    ]
    changed = {change.name: change for change in step.tensors}
    assert changed[f"{DECODER}.2.mlp.down_proj.weight"].after == (64, 7)
    assert all(change.after is None for name, change in changed.items() if name.startswith(f"{DECODER}.0."))
    assert not any(name.startswith(f"{DECODER}.1.") for name in changed)
    assert len(step.tensors) == 3 + 28


@pytest.mark.parametrize(
    ("name", "found"),
    [("Norms", "it reads values of weights"), ("Copies", "reads values"), ("Measures", "what was measured")],
)
def test_a_pass_that_wants_values_is_told_so(
    planned: Callable[..., Any], tmp_path: Path, name: str, found: str
) -> None:
    (tmp_path / "own.py").write_text(PRUNE_BLOCKS, encoding="utf-8")
    bad, good = planned({"pass": f"own.py:{name}"}, STEPS[1]).steps
    assert found in bad.problem
    assert "statistics.dry" in bad.problem
    assert bad.after == bad.before == good.before
    assert good.problem is None
    assert good.after.total < good.before.total


def test_an_error_of_the_pass_itself_is_told_with_its_line(planned: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PRUNE_BLOCKS, encoding="utf-8")
    with pytest.raises(UmcompressError, match=r"TypeError: .*has no len[^$]*own\.py, line") as caught:
        planned({"pass": "own.py:Wrong"})
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_step_that_cannot_be_planned_leaves_the_state_before(planned: Callable[..., Any]) -> None:
    wide, gone, fine = planned(
        {"pass": "head_prune", "component": GEN, "keep_ratio": 0.9},
        {"pass": "layer_drop", "component": GEN, "unit": "block", "drop": [7]},
        STEPS[1],
    ).steps
    assert "keep_ratio 0.9 of 4 key_value_groups rounds to all of them" in wide.problem
    assert "of 4 key_value_groups, 1 to 3 can stay: keep_ratio below 0.875" in wide.problem
    assert "layers [7]" in gone.problem
    assert (wide.edits, wide.sites, wide.tensors) == (0, (), ())
    assert wide.before == wide.after == gone.after == fine.before
    assert fine.problem is None


@pytest.mark.parametrize(
    ("step", "legal"),
    [
        ({"pass": "head_prune", "unit": "query_head", "keep_ratio": 0.8}, "of 2 query_heads in each group"),
        ({"pass": "channel_prune", "keep_ratio": 0.9, "multiple_of": 64}, None),
        ({"pass": "channel_prune", "keep_ratio": 0.9, "multiple_of": 32}, "32 to 64 in steps of 32 can stay"),
        ({"pass": "channel_prune", "keep_ratio": 0.5, "multiple_of": 96}, "multiple_of: at most 95"),
        ({"pass": "layer_drop", "unit": "attention", "keep_ratio": 0.9}, "keep_ratio at most 0.8333"),
        ({"pass": "layer_drop", "unit": "attention", "keep_ratio": 0.1}, "nothing would stay"),
        ({"pass": "head_prune", "keep_ratio": 0.5, "stack": "vison"}, "did you mean 'vision'?"),
        ({"pass": "head_prune", "keep_ratio": 0.5, "layers": "2-5"}, "no layer 3, 4, 5 of 0 to 2"),
        ({"pass": "head_prune", "keep_ratio": 0.5, "stack": "vision", "component": "shared"}, "belong to under"),
    ],
)
def test_what_is_legal_is_said(tiny_bagel: Path, step: dict[str, Any], legal: str | None) -> None:
    source = open_source(str(tiny_bagel))
    graph = trace_model(source.skeleton(), source.family)
    options = {"component": UND} | {key: value for key, value in step.items() if key != "pass"}
    planner = find_pass(step["pass"])(**options)
    if legal is None:
        assert propose(planner, graph, UND).edits
        return
    with pytest.raises(PlanError) as refused:
        propose(planner, graph, UND)
    assert legal in str(refused.value)


def test_no_weight_file_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_bagel(tmp_path / "shapes", weights=False)
    assert not list(folder.glob("*.safetensors"))
    recipe = write_recipe(tmp_path, folder, STEPS[2])
    assert main(["plan", str(recipe), "--dtype", "bfloat16", "--device", "cuda", "--format", "json"]) == 0
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    skeleton = open_source(str(folder)).skeleton()
    stays = sum(p.numel() for name, p in skeleton.named_parameters() if name.startswith("vae."))
    # The autoencoder stays float32.
    assert step["bytes_before"] == 2 * step["before"]["total"] + 2 * stays
    assert step["pass"] == "channel_prune"
    assert step["options"]["repair"] == "bias"


def test_plan_in_the_terminal(tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"pass": "head_prune", "component": GEN, "keep_ratio": 0.9}
    assert main(["plan", str(write_recipe(tmp_path, tiny_bagel, STEPS[2], bad))]) == 2
    out, err = capsys.readouterr()
    assert "02-head_prune CANNOT be done" in out
    assert "language_model" in out
    assert err == ""


def test_the_shipped_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "quickstart", "--format", "json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [step["pass"] for step in steps] == ["channel_prune", "channel_prune", "channel_prune", "moe_split"]
    assert all(step["after"]["total"] < steps[0]["before"]["total"] for step in steps)
    assert all(step["sites"] and step["tensors"] and step["problem"] is None for step in steps)


# -- inspect ----------------------------------------------------------------------------------------------


def test_inspect(tiny_bagel: Path) -> None:
    found = inspect_model(str(tiny_bagel), None)
    assert (found.family, found.stacks, found.graph) == ("bagel", {"decoder": 3, "vision": 2}, None)
    counted = sum(p.numel() for p in open_source(str(tiny_bagel)).skeleton().parameters())
    assert found.parameters.total == sum(found.parameters.by_component.values()) == counted
    assert found.bytes.total == 4 * counted
    assert set(found.macs_per_token) == {UND, GEN}
    sites = {(site.path, site.kind, site.component): site.shape for site in found.sites}
    assert sites[f"{DECODER}.1", "block", GEN] == "attention + feed_forward"
    assert sites[f"{DECODER}.1.self_attn", "attention", GEN] == "8 heads of 8, 4 groups"
    assert sites[f"{DECODER}.1.mlp_moe_gen", "feed_forward", GEN] == "96 channels, gated silu"
    assert sites[f"{DECODER}.1.mlp", "feed_forward", UND] == "96 channels, gated silu"
    assert sites[f"{DECODER}.2.mlp", "feed_forward", UND] == "96 channels, gated silu, not read in generation"
    assert sites[f"{VISION_TOWER}.0.mlp", "feed_forward", UND] == "64 channels, gelu"
    assert len(found.sites) == 3 * 6 + 2 * 3


def test_inspect_a_compressed_model(tiny_bagel: Path, tmp_path: Path) -> None:
    source = open_source(str(tiny_bagel))
    plan = Plan(
        pass_name="test",
        edits=(
            DropBlock(block=f"{DECODER}.0"),
            DropBranch(block=f"{DECODER}.1", branch="attention", component=UND),
            KeepHeads(site=f"{DECODER}.2.self_attn", component=GEN, query_heads=(0, 2, 4, 6)),
            KeepChannels(site=f"{DECODER}.2.mlp", keep=(1, 5)),
        ),
    )
    model = rewrite(source.load(), source.family, [plan])
    record = CompressionRecord(base="tiny", family="bagel", plans=(plan,))
    save_compressed(model, source.family, tmp_path / "model", record, tiny_bagel)
    found = inspect_model(str(tmp_path), f"{DECODER}.0")
    assert found.stacks == {"decoder": 2, "vision": 2}
    assert found.parameters.total == sum(p.numel() for p in model.parameters())
    sites = {(site.path, site.component): site.shape for site in found.sites if site.stack == "decoder"}
    assert sites[f"{DECODER}.0", UND] == "feed_forward"
    assert (f"{DECODER}.0.self_attn", UND) not in sites
    assert sites[f"{DECODER}.1.self_attn", GEN] == "4 heads of 8, 4 groups"
    assert sites[f"{DECODER}.1.mlp", UND] == "2 channels, gated silu, not read in generation"
    assert found.graph is not None
    assert "self.self_attn(None, input_layernorm_moe_gen, context)" in found.graph


def test_inspect_prints_what_runs(tiny_bagel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_bagel), "--graph", f"{DECODER}.0"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("def forward(self, und, gen, context):")
    assert "self.mlp_moe_gen.up_proj(post_attention_layernorm_moe_gen)" in out
    with pytest.raises(UsageError, match=rf"did you mean '{DECODER}.0'"):
        inspect_model(str(tiny_bagel), "language_model.model.layer.0")


def test_rows_of_equal_layers_are_one() -> None:
    rows = [(f"a.layers.{n}.mlp", "8" if n != 3 else "4") for n in (0, 1, 2, 3, 7)] + [("norm", "8")]
    assert by_layers(rows) == (("a.layers.0-2,7.mlp", "8"), ("a.layers.3.mlp", "4"), ("norm", "8"))


@pytest.mark.slow
def test_the_released_size_is_planned_in_seconds(tmp_path: Path) -> None:
    text = {
        "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "intermediate_size": 18944, "vocab_size": 152064,
    }  # fmt: skip
    vision = {
        "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16,
        "num_hidden_layers": 27, "patch_size": 14,
    }  # fmt: skip
    (tmp_path / "llm_config.json").write_text(json.dumps(text), encoding="utf-8")
    (tmp_path / "vit_config.json").write_text(json.dumps(vision), encoding="utf-8")
    found = inspect_model(str(tmp_path), None)
    assert found.parameters.total == 14_607_260_128 + 83_819_683
    assert found.parameters.active[UND] < found.parameters.active[GEN] < found.parameters.total
