"""A BAGEL as vLLM reads it: by the names and shapes that it builds from the numbers of the folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_bagel import DECODER, decoder_tensors

from umcompress.documents.plan import DropBlock, DropBranch, Edit, KeepChannels, KeepHeads, Plan
from umcompress.extend import Statistics, find_pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.bagel.family import BagelFamily
from umcompress.models.plain_folder import Plain
from umcompress.models.save import save_plain
from umcompress.rewrite.apply import rewrite

FAMILY = BagelFamily()


def served(folder: Path, *edits: Edit) -> Plain | str:
    model = rewrite(FAMILY.load(folder), FAMILY, [Plan(pass_name="cut", edits=edits)])
    return FAMILY.laid_out("vllm", model, folder)


def understanding(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The decoder's tensors that vLLM builds, each layer by its own entry where there is a list."""
    wanted = {}
    layers = text.get("umcompress_layers") or [
        {"attention": True, "channels": text["intermediate_size"]} for _ in range(text["num_hidden_layers"])
    ]
    for index, layer in enumerate(layers):
        one = decoder_tensors(text | {"num_hidden_layers": index + 1, "intermediate_size": layer["channels"]})
        for name, shape in one.items():
            gone = [".self_attn.", ".input_layernorm."] * (not layer["attention"])
            gone += [".mlp.", ".post_attention_layernorm."] * (not layer["channels"])
            if name.startswith(f"{DECODER}.{index}.") and "_moe_gen" not in name and not any(p in name for p in gone):
                wanted[name] = shape
    return wanted


@pytest.mark.parametrize(
    ("edits", "listed"),
    [
        ([KeepChannels(site=f"{DECODER}.1.mlp_moe_gen", keep=(1, 2))], False),
        ([DropBranch(block=f"{DECODER}.0", branch="attention", component="generation")], False),
        ([KeepChannels(site=f"{DECODER}.1.mlp", keep=(1, 2)), DropBlock(block=f"{DECODER}.0")], True),
        (
            [
                DropBranch(block=f"{DECODER}.0", branch="feed_forward", component="understanding"),
                DropBranch(block=f"{DECODER}.2", branch="attention", component="understanding"),
            ],
            True,
        ),
    ],
)
def test_the_understanding_stream_is_written_layer_by_layer(
    tiny_bagel: Path, tmp_path: Path, edits: list[Edit], listed: bool
) -> None:
    plain = served(tiny_bagel, *edits)
    assert isinstance(plain, Plain) and ("umcompress installed" in plain.note) == listed
    save_plain(plain, tmp_path / "out", tiny_bagel)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BagelForConditionalGeneration"] and config["visual_gen"] is False
    assert ("umcompress_layers" in config["llm_config"]) == listed
    tensors = load_file(tmp_path / "out" / "ema.safetensors")
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(f"{DECODER}.")}
    assert found == understanding(config["llm_config"])
    rest = {name.split(".")[0] for name in tensors if not name.startswith(f"{DECODER}.")}
    assert rest == {"language_model", "vit_model", "connector", "vit_pos_embed"}
    assert not (tmp_path / "out" / "ae.safetensors").exists()


def test_a_model_that_only_understands_is_one_that_vllm_reads(tiny_bagel: Path) -> None:
    for task, reads in (("understanding", True), ("generation", False)):
        model = FAMILY.load(tiny_bagel)
        asked = find_pass("specialize").model_validate({"task": task})
        rewrite(model, FAMILY, [asked.plan(trace_model(model, FAMILY), Statistics()).plan])
        assert isinstance(FAMILY.laid_out("vllm", model, tiny_bagel), Plain) == reads


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (KeepHeads(site=f"{DECODER}.1.self_attn", component="understanding", key_value_groups=(1,)), "leave heads"),
        (DropBlock(block="vit_model.vision_model.encoder.layers.1"), "tower was cut"),
    ],
)
def test_what_vllm_has_no_number_for_is_refused(tiny_bagel: Path, edit: Edit, says: str) -> None:
    reason = served(tiny_bagel, edit)
    assert isinstance(reason, str) and says in reason


def test_the_plug_in_is_imported_without_vllm() -> None:
    code = "import sys, umcompress.models.vllm_plugin; print('torch' in sys.modules, 'vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
