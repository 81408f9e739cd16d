"""T5 and its kin: feed-forwards that ask for types, positions made by one block, a decoder that reads an encoder.

The reference is the model itself with zeros in its last linears; transformers alone loads what it can.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hf_models import randomise, write_folder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from umcompress.cli.main import main
from umcompress.documents.plan import CompressionRecord, DropBlock, DropBranch, Edit, KeepChannels, KeepHeads, Plan
from umcompress.errors import PlanError
from umcompress.extend import Statistics
from umcompress.graph.asked_casts import cast_as
from umcompress.graph.block_graph import read_block
from umcompress.graph.lower import lower
from umcompress.graph.model_graph import trace_model
from umcompress.models.hf.family import TransformersFamily
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import open_source
from umcompress.passes.channel_prune import ChannelPrune
from umcompress.passes.head_prune import HeadPrune
from umcompress.passes.layer_drop import LayerDrop
from umcompress.rewrite.apply import rewrite
from umcompress.run.out_of_core import open_on_disk

FAMILY = TransformersFamily()
IDS = torch.arange(5, 17).view(2, 6)
SIZES: dict[str, Any] = {
    "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
PLAIN, GATED = {"feed_forward_proj": "relu"}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def t5(kind: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = hf.T5ForConditionalGeneration(hf.T5Config(**SIZES, **kind)).eval()
    randomise(model)
    return FAMILY.adopt(model)


def bart() -> Any:
    sizes: dict[str, Any] = {
        f"{part}_{name}": value for part in ("encoder", "decoder")
        for name, value in (("layers", 3), ("attention_heads", 4), ("ffn_dim", 48))
    }  # fmt: skip
    torch.manual_seed(0)
    config = hf.BartConfig(vocab_size=96, d_model=32, max_position_embeddings=64, **sizes)
    model = hf.BartForConditionalGeneration(config).eval()
    randomise(model)
    return FAMILY.adopt(model)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS, decoder_input_ids=IDS.flip(1)).logits
    return found


def edited(model: Any, *edits: Edit) -> Any:
    return rewrite(copy.deepcopy(model), FAMILY, [Plan(pass_name="test", edits=edits)])


def silent(model: Any, path: str, *endings: str) -> Any:
    """With zeros for the parameters of a block that end so."""
    twin = copy.deepcopy(model)
    for name, parameter in twin.get_submodule(path).named_parameters():
        if name.endswith(endings):
            parameter.data.zero_()
    return twin


def off(ours: Any, theirs: Any) -> float:
    return float((logits(ours) - logits(theirs)).abs().max())


@pytest.mark.parametrize("kind", [PLAIN, GATED])
def test_feed_forwards_are_found_and_cut_as_zeros_would(kind: dict[str, Any], tmp_path: Path) -> None:
    """In both stacks alike, which the configuration can say, and in one, which it cannot."""
    model = t5(kind)
    graph = trace_model(model, FAMILY)
    sites = graph.feed_forwards(stack="all")
    assert [site.gated for site in sites] == [kind is GATED] * 6 and {site.width for site in sites} == {48}
    folder = write_folder(model, tmp_path / "m")
    source = open_source(str(folder))
    for stack, plain in (("all", True), ("encoder.block", False)):
        plan = ChannelPrune(keep_ratio=0.5, score="magnitude", repair="none", stack=stack).plan(
            graph, Statistics(task="understanding")
        )
        reference = copy.deepcopy(model)
        for edit in plan.plan.edits:
            assert isinstance(edit, KeepChannels)
            gone = sorted(set(range(48)) - set(edit.keep))
            reference.get_submodule(f"{edit.site}.wo").weight.data[:, gone] = 0
        ours = rewrite(source.load(), source.family, [plan.plan])
        assert off(ours, reference) < 1e-5 < 1e-3 < off(ours, model)
        found, out = source.family.plain(ours, folder, [plan.plan]), tmp_path / stack
        assert isinstance(found, str) is not plain
        if isinstance(found, str):
            record = CompressionRecord(base=str(folder), family="transformers", plans=(plan.plan,))
            save_compressed(ours, source.family, out, record, folder)
            with pytest.raises((RuntimeError, ValueError, AttributeError)):
                hf.T5ForConditionalGeneration.from_pretrained(out)
        else:
            save_plain(found, out, folder)
            theirs = hf.T5ForConditionalGeneration.from_pretrained(out).eval()
            assert theirs.config.d_ff == 24 and off(theirs, ours) == 0
        assert off(open_source(str(out)).load(), ours) == 0


@pytest.mark.parametrize("kind", [PLAIN, GATED])
def test_blocks_and_branches_go_as_zeros_would(kind: dict[str, Any]) -> None:
    """And lowered blocks compute the same bits, a decoder's attention to its encoder among them."""
    model = t5(kind)
    graph = trace_model(model, FAMILY)
    twin = copy.deepcopy(model)
    for block in graph.blocks(stack="all"):
        lower(twin.get_submodule(block.path), graph.block_graph(block.path))
    assert off(twin, model) == 0
    for path in ("encoder.block.1", "decoder.block.2"):
        assert off(edited(model, DropBlock(block=path)), silent(model, path, ".o.weight", ".wo.weight")) < 1e-5
    for path in ("encoder.block.0", "decoder.block.0"):
        ours = edited(model, DropBranch(block=path, branch="feed_forward", component="shared"))
        assert off(ours, silent(model, path, ".wo.weight")) < 1e-5 < 1e-3 < off(ours, model)
    without = DropBranch(block="encoder.block.0", branch="attention", component="shared")
    assert off(edited(model, without), silent(model, "encoder.block.0", ".o.weight")) < 1e-5


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_block_less_is_said_by_the_configuration(stack: str, tmp_path: Path) -> None:
    """Each stack of T5 reads a copy; in the file, `num_layers` is the encoder's."""
    folder = write_folder(t5(GATED), tmp_path / "m")
    source = open_source(str(folder))
    plan = Plan(pass_name="test", edits=(DropBlock(block=f"{stack}.block.1"),))
    ours = rewrite(source.load(), source.family, [plan])
    found = source.family.plain(ours, folder, [plan])
    assert not isinstance(found, str), found
    save_plain(found, tmp_path / "out", folder)
    theirs = hf.T5ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    layers = (theirs.config.num_layers, theirs.config.num_decoder_layers)
    assert layers == ((2, 3) if stack == "encoder" else (3, 2)) and off(theirs, ours) == 0
    assert off(open_source(str(tmp_path / "out")).load(), ours) == 0


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_transformers_refuses_what_lacks_a_branch(stack: str, tmp_path: Path) -> None:
    """What one stack lacks is told beside what the other does; UMT5's was loaded with weights at random."""
    folder = write_folder(hf.UMT5ForConditionalGeneration(hf.UMT5Config(**SIZES)), tmp_path / "m")
    source = open_source(str(folder))
    drop = DropBranch(block=f"{stack}.block.1", branch="feed_forward", component="shared")
    plan = Plan(pass_name="test", edits=(drop,))
    ours = rewrite(source.load(), source.family, [plan])
    record = CompressionRecord(base=str(folder), family="transformers", plans=(plan,))
    save_compressed(ours, source.family, tmp_path / "out", record, folder)
    with pytest.raises((RuntimeError, ValueError, AttributeError)):
        hf.UMT5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert off(open_source(str(tmp_path / "out")).load(), ours) == 0


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_the_block_that_makes_positions_stays(stack: str) -> None:
    """The others would compute without any; of UMT5 every block has its own."""
    with pytest.raises(PlanError, match="biases of positions"):
        edited(t5(PLAIN), DropBlock(block=f"{stack}.block.0"))
    other = hf.UMT5ForConditionalGeneration(hf.UMT5Config(**SIZES)).eval()
    randomise(other)
    FAMILY.adopt(other)
    path = f"{stack}.block.0"
    assert off(edited(other, DropBlock(block=path)), silent(other, path, ".o.weight", ".wo.weight")) < 1e-5


def test_a_decoder_has_its_attention_to_the_encoder() -> None:
    """Of BART too: its lowered blocks run, and a feed-forward goes; run alone, a decoder has one attention a block."""
    model = bart()
    graph = trace_model(model, FAMILY)
    assert [branch.kind for branch in graph.blocks()[0].branches] == ["attention", "attention", "feed_forward"]
    path = graph.blocks()[1].path
    ours = edited(model, DropBranch(block=path, branch="feed_forward", component="shared"))
    assert off(ours, silent(model, path, "fc2.weight", "fc2.bias")) < 1e-5 < 1e-3 < off(ours, model)
    alone = FAMILY.adopt(hf.BartForCausalLM(model.config))
    blocks = trace_model(alone, FAMILY).blocks()
    assert [branch.kind for branch in blocks[0].branches] == ["attention", "feed_forward"]


def test_attentions_that_cannot_be_told_apart_are_said_to_be() -> None:
    """A decoder has two in each block."""
    step = LayerDrop(unit="attention", drop_count=1, score="first")
    with pytest.raises(PlanError, match="cannot be told apart"):
        step.plan(trace_model(t5(PLAIN), FAMILY), Statistics(task="understanding"))


def test_heads_of_both_attentions_of_a_decoder_are_cut() -> None:
    """Keys and values of the second come from the encoder, and are kept in a cache of their own."""
    model = bart()
    graph = trace_model(model, FAMILY)
    plan = HeadPrune(keep_ratio=0.5, score="magnitude").plan(graph, Statistics(task="understanding")).plan
    edits = [edit for edit in plan.edits if isinstance(edit, KeepHeads)]
    assert {edit.site.rpartition(".")[2] for edit in edits} == {"self_attn", "encoder_attn"}
    reference = copy.deepcopy(model)
    for edit in edits:
        for head in set(range(4)) - set(edit.key_value_groups or ()):
            reference.get_submodule(f"{edit.site}.out_proj").weight.data[:, head * 8 : head * 8 + 8] = 0
    ours: Any = rewrite(copy.deepcopy(model), FAMILY, [plan])
    assert off(ours, reference) < 1e-5 < 1e-3 < off(ours, model)
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": 1, "eos_token_id": None}
    assert torch.equal(ours.generate(IDS, **settings), reference.generate(IDS, **settings))


def test_inspect_shows_the_feed_forwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(t5(GATED), tmp_path / "m")
    assert main(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "gated" in shown and "has a bias of positions" in " ".join(shown.split())


def test_a_question_about_types_is_asked_when_the_block_is_called() -> None:
    """The last linear of T5 stays in float32 where all else is in half precision."""
    half, whole = torch.ones(2, dtype=torch.bfloat16), torch.ones(2)
    assert cast_as(half, whole, "int8").dtype == torch.float32
    assert cast_as(whole, whole, "int8") is whole
    assert cast_as(half, torch.ones(2, dtype=torch.int8), "int8") is half
    assert cast_as(half, "packed", "int8") is half
    model = t5(PLAIN)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if ".wo." in name else torch.bfloat16)
    block = model.encoder.block[1]
    x = torch.randn(1, 3, 32).to(torch.bfloat16)
    before = block(x, position_bias=torch.zeros(1, 4, 3, 3, dtype=torch.bfloat16))[0]
    lower(block, read_block(block, "b.1", "b", 1, FAMILY).graph)
    assert torch.equal(block(x, position_bias=torch.zeros(1, 4, 3, 3, dtype=torch.bfloat16))[0], before)


class Odd(nn.Module):
    """Two linears with a question between them that nobody can answer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x) if x.sum() > 0 else x


class Known(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.known, self.odd = Known(), Odd()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.known(x)
        return x + self.odd(x)


def test_what_a_block_adds_and_nobody_knows_is_listed() -> None:
    found = read_block(Block(), "blocks.0", "main", 0, FAMILY)
    assert [branch.kind for branch in found.branches] == ["feed_forward"]
    (gap,) = found.gaps
    assert gap.kind == "branches" and "Odd add" in gap.reason and "asks for values" in gap.reason


@pytest.mark.parametrize("encoder", [True, False], ids=["both embeddings stored", "one embedding stored"])
def test_a_head_that_is_stored_apart_from_an_alias_of_the_embedding_keeps_its_values(
    encoder: bool, tmp_path: Path
) -> None:
    """No `shared`, but `decoder.embed_tokens` and another `lm_head`: transformers by itself is exact, and so are we."""
    folder, out = tmp_path / "source", tmp_path / "out"
    t5(PLAIN).save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    shared = weights.pop("shared.weight")
    names = ["decoder.embed_tokens.weight", *(["encoder.embed_tokens.weight"] if encoder else [])]
    weights |= {name: shared.clone() for name in names} | {"lm_head.weight": torch.randn(shared.shape)}
    save_file(weights, file, {"format": "pt"})
    theirs = hf.T5ForConditionalGeneration.from_pretrained(folder).eval()
    assert not torch.equal(theirs.lm_head.weight, theirs.shared.weight)
    source = open_source(str(folder))
    model: Any = source.load()
    right = theirs(input_ids=IDS, decoder_input_ids=IDS).logits
    assert torch.equal(model(input_ids=IDS, decoder_input_ids=IDS).logits, right)
    plain = source.family.plain(model, source.folder, [])
    assert not isinstance(plain, str)
    save_plain(plain, out, source.folder)
    for again in (hf.T5ForConditionalGeneration.from_pretrained(out).eval(), open_source(str(out)).load()):
        again_: Any = again
        assert torch.equal(again_(input_ids=IDS, decoder_input_ids=IDS).logits, right)
    disk = open_on_disk(source)
    disk.write(tmp_path / "disk", CompressionRecord(base=str(folder), family="transformers", plans=()))
    assert load_file(tmp_path / "disk/model.safetensors").keys() == load_file(out / "model.safetensors").keys()
