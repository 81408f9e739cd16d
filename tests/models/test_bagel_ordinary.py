"""A BAGEL that loses the same in both streams is a plain smaller BAGEL, and its folder says so everywhere.

`read_strictly` is a reader of the BAGEL layout of its own: it builds the list of tensors and shapes from the numbers
in `config.json` alone, as servers do, and compares it with the headers of the weight files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_bagel import DECODER, decoder_tensors, write_tiny_bagel
from torch import Tensor, nn

from umcompress.cli.main import main
from umcompress.documents.plan import DropBlock, DropBranch, Edit, KeepChannels, Plan
from umcompress.extend import Statistics, find_pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.bagel.family import BagelFamily
from umcompress.models.plain_folder import Plain
from umcompress.models.save import save_plain
from umcompress.rewrite.apply import rewrite

FAMILY = BagelFamily()
STREAMS = ("mlp", "mlp_moe_gen")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_bagel(tmp_path_factory.mktemp("dense") / "tiny")
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {}}')
    (folder / "preprocessor_config.json").write_text('{"kept": true}')
    return folder


def headers(folder: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in ("ema.safetensors", "ae.safetensors"):
        with safe_open(folder / file, "pt") as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return found


def read_strictly(folder: Path) -> dict[str, Any]:
    """`config.json` of a plain BAGEL, after every number in it has been held against the weights."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bagel" and config["architectures"] == ["BagelForConditionalGeneration"]
    own = json.loads((folder / "llm_config.json").read_text())
    assert {key: config["llm_config"][key] for key in own} == own and config["llm_config"]["qk_norm"] is True
    assert config["vit_config"] == json.loads((folder / "vit_config.json").read_text())
    found = headers(folder)
    blocks = {name: shape for name, shape in found.items() if name.startswith(f"{DECODER}.")}
    assert blocks == decoder_tensors(config["llm_config"])
    assert found["latent_pos_embed.pos_embed"] == (config["max_latent_size"] ** 2, own["hidden_size"])
    used = config["vit_config"]["num_hidden_layers"] - 1
    tower = {int(name.split(".")[4]) for name in found if name.startswith("vit_model.vision_model.encoder.layers.")}
    assert tower == set(range(used))
    assert not (folder / "umcompress.json").exists()
    return config


def keep(layer: int, stream: str, *channels: int) -> KeepChannels:
    return KeepChannels(site=f"{DECODER}.{layer}.{stream}", keep=channels)


def cut(folder: Path, *edits: Edit) -> nn.Module:
    return rewrite(FAMILY.load(folder), FAMILY, [Plan(pass_name="cut", edits=edits)])


def outputs(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    return FAMILY.runner(model, folder).probe()


ALIKE = [keep(layer, stream, *range(layer, layer + 40)) for layer in (0, 2) for stream in STREAMS]


@pytest.mark.parametrize(
    ("edits", "layers", "width"),
    [
        ([DropBlock(block=f"{DECODER}.1")], 2, 96),
        ([*ALIKE, *(keep(1, stream, *range(3, 43)) for stream in STREAMS)], 3, 40),
        ([DropBlock(block=f"{DECODER}.1"), *ALIKE], 2, 40),
    ],
)
def test_a_cut_of_both_streams_alike_is_an_ordinary_bagel(
    dense: Path, tmp_path: Path, edits: list[Edit], layers: int, width: int
) -> None:
    model = cut(dense, *edits)
    plain = FAMILY.plain(model, dense, ())
    assert isinstance(plain, Plain) and f"a plain BAGEL, {layers} blocks with {width} channels" in plain.note
    save_plain(plain, tmp_path / "model", dense)
    text = read_strictly(tmp_path / "model")["llm_config"]
    assert (text["num_hidden_layers"], text["intermediate_size"]) == (layers, width)
    assert json.loads((tmp_path / "model" / "preprocessor_config.json").read_text()) == {"kept": True}
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == headers(tmp_path / "model").keys()
    ours, theirs = outputs(FAMILY.load(tmp_path / "model"), tmp_path / "model"), outputs(model, dense)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ([keep(1, "mlp", 1, 2, 3)], "understanding widths differ by block (3 to 96)"),
        ([keep(layer, "mlp_moe_gen", 1, 2, 3) for layer in range(3)], "96 in understanding, 3 in generation"),
        (
            [DropBranch(block=f"{DECODER}.1", branch="feed_forward", component="generation")],
            "block 1 has no generation feed-forward",
        ),
        ([DropBranch(block=f"{DECODER}.1", branch="attention", component="generation")], "heads or branches"),
        ([DropBlock(block="vit_model.vision_model.encoder.layers.1")], "leave the tower whole"),
    ],
)
def test_what_is_no_ordinary_bagel_says_why(dense: Path, edits: list[Edit], says: str) -> None:
    reason = FAMILY.plain(cut(dense, *edits), dense, ())
    assert isinstance(reason, str) and says in reason


def test_passes_on_both_streams_leave_a_plain_bagel(dense: Path, tmp_path: Path) -> None:
    """Component shared: a block goes from both streams, and the streams keep as many channels."""
    model = FAMILY.load(dense)
    for name, options in (
        ("layer_drop", {"score": "last", "drop_count": 1}),
        ("channel_prune", {"score": "magnitude", "keep_ratio": 0.5}),
        ("channel_prune", {"score": "magnitude", "keep_ratio": 0.5, "couple": "width"}),
    ):
        asked = find_pass(name).model_validate({"component": "shared"} | options)
        proposal = asked.plan(trace_model(model, FAMILY), Statistics())
        rewrite(model, FAMILY, [proposal.plan], [dict(proposal.tensors)])
    plain = FAMILY.plain(model, dense, ())
    assert isinstance(plain, Plain)
    save_plain(plain, tmp_path / "model", dense)
    text = read_strictly(tmp_path / "model")["llm_config"]
    assert (text["num_hidden_layers"], text["intermediate_size"]) == (2, 24)


def test_plan_says_a_plain_bagel(dense: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    step = {"pass": "layer_drop", "component": "shared", "score": "last", "drop_count": 1}
    recipe.write_text(json.dumps({"model": str(dense), "steps": [step]}))
    assert main(["plan", str(recipe), "--format", "json"]) == 0
    assert "a plain BAGEL, 2 blocks" in json.loads(capsys.readouterr().out)["result"]
    assert main(["plan", str(recipe)]) == 0
    assert "a plain BAGEL, 2 blocks" in capsys.readouterr().out


def test_an_old_config_json_that_does_not_parse_is_replaced(dense: Path, tmp_path: Path) -> None:
    (dense / "config.json").write_text("BAGEL-7B-MoT")
    plain = FAMILY.plain(cut(dense, DropBlock(block=f"{DECODER}.1")), dense, ())
    (dense / "config.json").unlink()
    assert isinstance(plain, Plain)
    save_plain(plain, tmp_path / "model", dense)
    read_strictly(tmp_path / "model")
