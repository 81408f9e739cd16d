"""A BAGEL's language model that understands, written for transformers, computes what BAGEL computes of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_bagel import DECODER, write_tiny_bagel
from torch import Tensor, nn

from umcompress.cli.main import main
from umcompress.documents.plan import DropBlock, DropBranch, Edit, KeepChannels, KeepHeads, Plan
from umcompress.extend import Statistics, find_pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.bagel.context import Cache
from umcompress.models.bagel.family import BagelFamily
from umcompress.models.bagel.model import Bagel
from umcompress.models.plain_folder import Plain
from umcompress.models.save import save_plain
from umcompress.rewrite.apply import rewrite

FAMILY = BagelFamily()
CHANNELS = [KeepChannels(site=f"{DECODER}.{layer}.mlp", keep=tuple(range(layer, 96, 3))) for layer in range(3)]
IDS = torch.arange(17) * 31 % 113


def specialized(folder: Path, *edits: Edit) -> Bagel:
    model = rewrite(FAMILY.load(folder), FAMILY, [Plan(pass_name="cut", edits=edits)])
    chosen = find_pass("specialize").model_validate({"task": "understanding"})
    rewrite(model, FAMILY, [chosen.plan(trace_model(model, FAMILY), Statistics()).plan])
    assert isinstance(model, Bagel)
    return model


@torch.no_grad()
def logits(model: Bagel) -> Tensor:
    """(T, V), of plain text as the understanding stream reads it."""
    rows, _ = model.absorb_text(Cache(1), [IDS], wrap=False)
    return model.logits(rows)


@pytest.mark.parametrize("edits", [
    [],
    [*CHANNELS[:1], *CHANNELS[2:], DropBlock(block=f"{DECODER}.1")],
    [KeepHeads(site=f"{DECODER}.{layer}.self_attn", component="understanding", key_value_groups=(0, 2 + layer % 2))
     for layer in range(3)],
], ids=["whole", "a block and channels less", "half of the heads"])  # fmt: skip
def test_transformers_computes_the_same_bits_of_text(edits: list[Edit], tmp_path: Path) -> None:
    folder = write_tiny_bagel(tmp_path / "tiny", rope_theta=50_000)
    model = specialized(folder, *edits)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    plain = FAMILY.laid_out("transformers", model, folder)
    assert isinstance(plain, Plain) and plain.loads_with == "transformers" and "tower" in plain.note
    save_plain(plain, tmp_path / "out", folder)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs) is transformers.Qwen3ForCausalLM
    with torch.no_grad():
        found = theirs(input_ids=IDS[None]).logits[0]
    ours = logits(model)
    assert torch.equal(found, ours) and ours.std() > 0.1


def test_the_folder_holds_nothing_of_pictures(tiny_bagel: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(tiny_bagel), "--to", "transformers", "-o", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 3 and config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    words: Any = transformers.AutoTokenizer.from_pretrained(out)
    assert len(words.decode(words("red circle")["input_ids"])) > 0


@pytest.mark.parametrize(("edits", "says"), [
    (CHANNELS[:1], "layers differ"),
    ([DropBranch(block=f"{DECODER}.0", branch="attention", component="understanding")], "lost an attention"),
    ([DropBranch(block=f"{DECODER}.0", branch="feed_forward", component="understanding")], "lost a feed-forward"),
])  # fmt: skip
def test_what_no_qwen3_is_like_is_refused_in_words(tiny_bagel: Path, edits: list[Edit], says: str) -> None:
    reason = FAMILY.laid_out("transformers", specialized(tiny_bagel, *edits), tiny_bagel)
    assert isinstance(reason, str) and says in reason


def test_what_only_paints_has_no_head(tiny_bagel: Path) -> None:
    model = FAMILY.load(tiny_bagel)
    chosen = find_pass("specialize").model_validate({"task": "generation"})
    rewrite(model, FAMILY, [chosen.plan(trace_model(model, FAMILY), Statistics()).plan])
    reason = FAMILY.laid_out("transformers", model, tiny_bagel)
    assert isinstance(reason, str) and "no head" in reason
