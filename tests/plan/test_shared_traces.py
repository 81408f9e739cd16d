"""Planning traces and weighs blocks of one structure once, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import write_recipe
from pipeline_models import qwen_image
from torch import Tensor, nn

from umcompress.cli.main import main
from umcompress.documents.plan import DropBranch, Plan, SplitExperts
from umcompress.graph import trace
from umcompress.graph.model_graph import trace_model
from umcompress.graph.shared_traces import traces_shared
from umcompress.graph.trace import trace_block
from umcompress.models.equal_blocks import equal_blocks
from umcompress.models.measure import weigh
from umcompress.models.source import open_source
from umcompress.rewrite.apply import shapes_only


class Block(nn.Module):
    """Adds or multiplies, by an attribute."""

    def __init__(self, adds: bool, scale: Tensor | None = None) -> None:
        super().__init__()
        self.adds, self.scale, self.linear = adds, scale, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) if self.adds else x * self.linear(x)


class Told(nn.Module):
    """Reads its own place in the stack."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx, self.linear = layer_idx, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) if self.layer_idx else self.linear(x)


def test_what_is_found_in_equal_blocks_is_what_is_found_in_each(tmp_path: Path) -> None:
    """Their paths and places, and nothing else, differ; edits of one leave the others alone."""
    source = open_source(str(qwen_image(tmp_path / "qwen")))
    alone = trace_model(source.skeleton(), source.family)
    with traces_shared():
        model = source.skeleton()
        graph = trace_model(model, source.family)
        blocks = [graph.block(site.path) for site in graph.blocks(stack="transformer")]
        assert blocks[0].graph is blocks[1].graph
        drop = DropBranch(block=blocks[0].site.path, branch="attention", component="generation", part="attn")
        shapes_only(model, source.family, [Plan(pass_name="test", edits=(drop,))])
        after = trace_model(model, source.family)
    for name in ("blocks", "branches", "attentions", "feed_forwards", "gaps"):
        assert getattr(graph, name)(stack="all") == getattr(alone, name)(stack="all")
    changed = {site.block for site in graph.branches(stack="all") if site not in after.branches(stack="all")}
    assert changed == {drop.block}


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was traced anew."""
    found: list[str] = []
    anew = trace._traced_anew

    def noted(block: nn.Module, path: str) -> torch.fx.Graph:
        found.append(path)
        return anew(block, path)

    monkeypatch.setattr(trace, "_traced_anew", noted)
    return found


def test_blocks_of_one_structure_are_traced_once(traced: list[str]) -> None:
    blocks: list[nn.Module] = [Block(True), Block(True), Block(False), Told(0), Told(1)]
    scale = torch.ones(1)
    blocks += [Block(True, scale), Block(True, scale), Block(True, torch.ones(1))]
    with traces_shared():
        graphs = [trace_block(block, str(place)) for place, block in enumerate(blocks)]
    # A tensor that is no parameter is the same only where it is the same object.
    assert traced == ["0", "2", "3", "4", "5", "7"]
    code = [str(graph) for graph in graphs]
    assert code[0] == code[1] != code[2] and code[3] != code[4]
    assert graphs[0] is not graphs[1]
    x = torch.randn(3, 2)
    for block, graph in zip(blocks, graphs, strict=True):
        assert torch.equal(torch.fx.GraphModule(block, graph)(x), block(x))
    del traced[:]
    trace_block(blocks[0], "a"), trace_block(blocks[1], "b")
    assert traced == ["a", "b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    return qwen_image(tmp_path_factory.mktemp("pipelines") / "qwen-image", blocks=4)


def test_a_plan_is_the_same_as_with_every_block_by_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    traced: list[str],
) -> None:  # fmt: skip
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    steps: list[dict[str, Any]] = [
        {"pass": "layer_drop", "component": "generation", "unit": "feed_forward", "part": "txt_mlp", "drop_count": 1},
        {"pass": "moe_split", "component": "generation", "layers": "1", "experts": 4, "active": 2},
        {"pass": "moe_split", "component": "generation", "layers": "2", "experts": 4, "active": 1},
    ]
    recipe = write_recipe(tmp_path, folder, *steps, calibration={
        "task": "generation", "samples": 2, "data": "prompts.txt",
    })  # fmt: skip
    assert main(["plan", str(recipe), "--format", "json"]) == 0
    shared, count = json.loads(capsys.readouterr().out), len(traced)
    with monkeypatch.context() as patch:
        patch.setattr("umcompress.graph.trace.shared", lambda block, is_leaf, anew: anew())
        patch.setattr("umcompress.graph.block_graph.made_once", lambda block, is_leaf, what, anew: anew())
        patch.setattr("umcompress.models.measure.equal_blocks", lambda _: {})
        assert main(["plan", str(recipe), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == shared
    assert 0 < count < (len(traced) - count) / 3


def test_rewritten_blocks_of_one_structure_are_weighed_once(folder: Path) -> None:
    """Two blocks of four experts of which two are active, and one of which one is: the counts of each by itself."""
    source = open_source(str(folder))
    model = source.skeleton()
    sites = trace_model(model, source.family).feed_forwards(stack="transformer")
    experts = tuple(tuple(range(start, 192, 4)) for start in range(4))
    edits = tuple(
        SplitExperts(site=site.path, experts=experts, active=1 if site.index == 2 else 2) for site in sites
        if site.index < 3
    )  # fmt: skip
    shapes_only(model, source.family, [Plan(pass_name="test", edits=edits)])
    equal = equal_blocks(model)
    assert {path: one for path, one in equal.items() if path.startswith("transformer.")} == {
        "transformer.transformer_blocks.1": "transformer.transformer_blocks.0",
    }
    found = weigh(model, source.family, source.runner(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("umcompress.models.measure.equal_blocks", lambda _: {})
        assert weigh(model, source.family, source.runner(model)) == found
