"""Every architecture of the support table: traced, edited, cached, trained, copied, saved.

All references know nothing of graphs: weights set to zero, models run without a cache, transformers' own loading.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checks import chunks_differ, dead, folders, learn, padded_differ, same
from hf_subject import FAMILY, Subject, differ, passes, run, subject, zeroed
from hf_zoo import ZOO

from umcompress.documents.plan import CompressionRecord, DropBlock, DropBranch, Edit, KeepChannels, KeepHeads, Plan
from umcompress.errors import PlanError
from umcompress.graph.lower import lower
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import open_source
from umcompress.rewrite.apply import rewrite

STACKS = [(name, stack) for name, entry in ZOO.items() for stack in entry.stacks]
SPEAKING = [name for name, entry in ZOO.items() if entry.speaks]
# What a stack has nothing for, and why: the table says the same in words.
WITHOUT = {
    ("mixtral", "channel_prune"), ("olmo2", "head_prune"), ("olmo2", "head_prune query_head"),
    ("deepseek_v3", "head_prune"), ("deepseek_v3", "head_prune query_head"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "stack"), STACKS)
def test_a_lowered_model_computes_the_same_bits(name: str, stack: str) -> None:
    one = subject(name)
    assert set(one.graph.stacks) == set(one.entry.stacks)
    twin = copy.deepcopy(one.model)
    for path in one.stack(stack):
        lower(twin.get_submodule(path), one.graph.block_graph(path))
    for key, value in run(twin).items():
        assert torch.equal(value.nan_to_num(0), one.outputs[key].nan_to_num(0)), key


@pytest.mark.parametrize(("name", "stack"), STACKS)
def test_each_pass_does_what_zeros_in_the_weights_would(name: str, stack: str) -> None:
    one = subject(name)
    for title, make in passes(stack).items():
        try:
            plan = one.plan(make())
        except PlanError as error:
            grouped = one.graph.attentions(stack=stack)
            single = title.endswith("query_head") and grouped and grouped[0].query_heads_per_group == 1
            assert single or (name, title) in WITHOUT, (title, str(error))
            continue
        assert (name, title) not in WITHOUT
        edited = rewrite(copy.deepcopy(one.model), FAMILY, [plan])
        ours = run(edited)
        assert differ(ours, run(zeroed(one, plan.edits))) < 1e-5, title
        assert differ(ours, one.outputs) > 1e-4, title
        count = sum(parameter.numel() for parameter in edited.parameters())
        assert count < sum(parameter.numel() for parameter in one.model.parameters()), title


@pytest.mark.parametrize("name", SPEAKING)
def test_a_cache_changes_nothing(name: str) -> None:
    """Whole blocks, first attentions of each type, attentions at the end; and the model as it was."""
    one = subject(name)
    blocks = one.stack("main")
    cuts: dict[str, list[Edit]] = {
        "whole": [], "blocks": [DropBlock(block=blocks[0]), DropBlock(block=blocks[2])],
        "first": [without(blocks[0])], "two": [without(blocks[0]), without(blocks[1])],
        "last": [without(blocks[-1]), without(blocks[1])], "heads": half_heads(one, "main"),
    }  # fmt: skip
    for title, edits in cuts.items():
        # In float64 some of transformers' masks overflow on padding.
        model = one.edited(*edits).float()
        assert chunks_differ(model) < 1e-5, title
        assert padded_differ(model) < 1e-5, title


def without(block: str) -> DropBranch:
    """That block without its attention."""
    return DropBranch(block=block, branch="attention", component="shared")


@pytest.mark.parametrize("name", sorted(ZOO))
def test_edited_models_train_and_copy(name: str) -> None:
    one = subject(name)
    for stack in one.entry.stacks:
        model = one.edited(*mixed(one, stack))
        learn(model)
        path = one.graph.stacks[stack]
        before, after = set(dead(one, stack)), set()
        for key, parameter in model.get_submodule(path).named_parameters():
            if parameter.grad is None or not parameter.grad.abs().max() > 0:
                after.add(key.split(".", 1)[1])
        assert after <= before, (stack, after - before)
        twin = copy.deepcopy(model)
        same = run(model)
        for key, value in run(twin).items():
            assert torch.equal(value.nan_to_num(0), same[key].nan_to_num(0))


def mixed(one: Subject, stack: str) -> list[Edit]:
    """A block less, an attention less, a feed-forward narrowed."""
    blocks = one.stack(stack)
    component = one.graph.branches(stack=stack)[0].component
    edits: list[Edit] = [
        DropBlock(block=blocks[1]), DropBranch(block=blocks[0], branch="attention", component=component)  # type: ignore[arg-type]
    ]  # fmt: skip
    sites = [site for site in one.graph.feed_forwards(stack=stack) if site.block == blocks[-1]]
    return edits + [KeepChannels(site=site.path, keep=tuple(range(0, site.width, 3))) for site in sites]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return folders(tmp_path_factory.mktemp)


@pytest.mark.parametrize(("name", "stack"), STACKS)
def test_saved_models_load_anywhere_or_say_why_not(name: str, stack: str, sources: Any, tmp_path: Path) -> None:
    one, folder = subject(name), sources(name)
    source = open_source(str(folder))
    theirs = type(one.model).from_pretrained(folder, dtype=torch.float32).eval()
    # Not the same bits: transformers' own files leave tensors where kernels sum in another order.
    assert differ(run(source.load()), run(theirs)) < 1e-6
    plain = [DropBlock(block=one.stack(stack)[1]), *narrowed(one, stack)]
    for edits, title in ((plain, "plain"), (mixed(one, stack), "mixed"), (half_heads(one, stack), "heads")):
        plan = Plan(pass_name="test", edits=tuple(edits))
        model = rewrite(source.load(), source.family, [plan])
        found = source.family.plain(model, folder, [plan])
        out = tmp_path / title
        if isinstance(found, str):
            assert (name, stack, title) in NOT_PLAIN or title in ("mixed", "heads"), found
            record = CompressionRecord(base=str(folder), family="transformers", plans=(plan,))
            save_compressed(model, source.family, out, record, folder)
            with pytest.raises((RuntimeError, ValueError, AttributeError)):
                type(one.model).from_pretrained(out)
        else:
            assert title in ("plain", "heads") and (name, stack, title) not in NOT_PLAIN
            save_plain(found, out, folder)
            there, info = type(one.model).from_pretrained(out, output_loading_info=True)
            assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
            same(run(there.eval()), run(model))
        same(run(open_source(str(out)).load()), run(model))


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if len(entry.stacks) > 1])
@pytest.mark.parametrize("branch", ["attention", "feed_forward"])
def test_transformers_refuses_a_tower_that_lacks_a_branch(name: str, branch: Any, sources: Any, tmp_path: Path) -> None:
    """All other shapes are as before: it would fill in the missing weights at random."""
    one, folder = subject(name), sources(name)
    source, stack = open_source(str(folder)), one.entry.stacks[1]
    component = one.graph.branches(branch, stack=stack)[0].component
    drop = DropBranch(block=one.stack(stack)[0], branch=branch, component=component)  # type: ignore[arg-type]
    plan = Plan(pass_name="test", edits=(drop,))
    record = CompressionRecord(base=str(folder), family="transformers", plans=(plan,))
    save_compressed(rewrite(source.load(), source.family, [plan]), source.family, tmp_path / "model", record, folder)
    with pytest.raises((RuntimeError, ValueError, AttributeError)):
        type(one.model).from_pretrained(tmp_path / "model")


NOT_PLAIN = {("siglip", "main", "plain")}


def narrowed(one: Subject, stack: str) -> list[Edit]:
    """Every feed-forward of a stack to half, all alike."""
    found: list[Edit] = []
    gone = one.stack(stack)[1]
    for site in one.graph.feed_forwards(stack=stack):
        if site.block != gone:
            found.append(KeepChannels(site=site.path, keep=tuple(range(1, site.width, 2))))
    return found


def half_heads(one: Subject, stack: str) -> list[Edit]:
    """Every second key-value group of each attention whose heads are known."""
    return [
        KeepHeads(site=s.path, component=s.component, key_value_groups=tuple(range(1, s.key_value_groups, 2)))  # type: ignore[arg-type]
        for s in one.graph.attentions(stack=stack)
    ]
