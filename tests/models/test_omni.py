"""Omni models: a thinker that reads, sees and hears, a talker and a vocoder; none is called as a whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hf_models import write_folder, write_recipe
from hf_zoo import MROPE, TEXT

from umcompress.cli.main import main
from umcompress.documents.plan import DropBlock, Plan
from umcompress.errors import ModelError
from umcompress.graph.trace import trace_block
from umcompress.models.registry import find_family
from umcompress.models.source import open_source
from umcompress.rewrite.apply import rewrite


def omni() -> hf.PreTrainedModel:
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4, "window_size": 16,
        "fullatt_block_indexes": [1], "out_hidden_size": 32, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    audio = {
        "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 16,
        "output_dim": 32, "n_window": 4, "max_source_positions": 64,
    }  # fmt: skip
    text = TEXT | {"rope_parameters": MROPE}
    ids = {"image_token_index": 90, "video_token_index": 91, "audio_token_index": 94, "vision_start_token_id": 92}
    dit = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ff_mult": 2, "emb_dim": 16,
        "head_dim": 16, "mel_dim": 8, "enc_dim": 16, "enc_emb_dim": 16, "enc_channels": [8, 8, 8, 8, 16],
        "enc_attention_channels": 8, "enc_se_channels": 8, "look_ahead_layers": [1], "look_backward_layers": [0],
    }  # fmt: skip
    sound = {
        "mel_dim": 8, "upsample_initial_channel": 16, "resblock_kernel_sizes": [3], "upsample_rates": [2, 2],
        "resblock_dilation_sizes": [[1, 3, 5]], "upsample_kernel_sizes": [4, 4],
    }  # fmt: skip
    return hf.Qwen2_5OmniForConditionalGeneration(
        hf.Qwen2_5OmniConfig(
            thinker_config={"text_config": text, "vision_config": vision, "audio_config": audio, **ids},
            talker_config=text | {"embedding_size": 32, "num_hidden_layers": 3, "head_dim": 8},
            token2wav_config={"dit_config": dit, "bigvgan_config": sound},
        )
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_folder(omni(), tmp_path_factory.mktemp("omni") / "m")
    torch.save({}, made / "spk_dict.pt")
    return made


STEPS: tuple[dict[str, Any], ...] = (
    {"pass": "layer_drop", "component": "shared", "unit": "block", "keep_ratio": 0.75},
    {"pass": "channel_prune", "stack": "thinker.model.visual.blocks", "keep_ratio": 0.5, "score": "magnitude"},
    {"pass": "head_prune", "component": "shared", "keep_ratio": 0.5, "score": "magnitude"},
    {"pass": "layer_drop", "stack": "talker.model.layers", "unit": "block", "keep_ratio": 0.67, "score": "last"},
    {"pass": "channel_prune", "stack": "talker.model.layers", "keep_ratio": 0.5, "score": "magnitude"},
    {"pass": "channel_prune", "stack": "thinker.model.audio_tower.layers", "keep_ratio": 0.5, "score": "magnitude"},
    # The block that looks ahead stays, under another number.
    {"pass": "layer_drop", "stack": "token2wav.code2wav_dit_model.transformer_blocks", "unit": "block",
     "drop": [0]},
)  # fmt: skip

# Transformers alone: the thinker continues ids, with the logits of every place.
ALONE = """
import sys, json, torch, transformers
model = transformers.Qwen2_5OmniForConditionalGeneration.from_pretrained(sys.argv[1])
ids = torch.arange(5, 25)[None]
with torch.no_grad():
    logits = model.thinker(input_ids=ids).logits
thinker, talker = model.thinker.model, model.talker.model
widths = [len(thinker.language_model.layers), len(talker.layers), talker.layers[0].mlp.up_proj.out_features,
          thinker.visual.blocks[0].mlp.up_proj.out_features, thinker.audio_tower.layers[0].fc1.out_features,
          *[block.look_ahead_block for block in model.token2wav.code2wav_dit_model.transformer_blocks]]
assert "umcompress" not in sys.modules
print(json.dumps([logits.double().sum().item(), widths]))
"""


def test_all_parts_shrink_and_transformers_loads_the_result(folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "the cat sat on the mat"}\n' * 8)
    text = tmp_path / "text.txt"
    text.write_text("the dog lay under the table and slept.\n" * 40)
    recipe = write_recipe(
        tmp_path, folder, *STEPS, evaluate=[{"perplexity": {"data": str(text), "window": 32}}],
        calibration={"task": "understanding", "samples": 8, "data": str(lines)},
    )  # fmt: skip
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert all(step["scores"]["understanding"]["value"] > 0 for step in report["steps"])
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "run" / "model")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    total, widths = json.loads(done.stdout.splitlines()[-1])
    assert widths == [3, 2, 24, 24, 24, 1]
    ours: Any = open_source(str(tmp_path / "run" / "model")).load()
    with torch.no_grad():
        assert total == ours.thinker(input_ids=torch.arange(5, 25)[None]).logits.double().sum().item()


def test_its_parts_are_for_the_senses_or_for_speech(folder: Path) -> None:
    family = find_family(folder)
    paths = ["thinker.model.visual", "thinker.model.audio_tower", "thinker.model.language_model", "talker", "token2wav"]
    assert [family.component_of(path) for path in paths] == [
        "understanding", "understanding", "shared", "generation", "generation",
    ]  # fmt: skip


def test_a_component_of_another_stack_is_pointed_to(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = {"pass": "channel_prune", "component": "generation", "keep_ratio": 0.5, "score": "magnitude"}
    assert main(["apply", str(write_recipe(tmp_path, folder, step)), "-o", str(tmp_path / "run")]) == 2
    assert "stack: talker.model.layers or token2wav" in capsys.readouterr().err


def test_what_is_done_in_half_precision_only_is_left_out_and_guarded(folder: Path) -> None:
    """The audio encoder clamps in float16, and asks for it; the block that is rewritten says that it no longer does."""
    block = open_source(str(folder)).load().get_submodule("thinker.model.audio_tower.layers.0")
    graph = trace_block(block)
    traced = torch.fx.GraphModule(block, graph)
    x, ends = torch.randn(6, 32), torch.tensor([0, 6], dtype=torch.int32)
    with torch.no_grad():
        torch.testing.assert_close(traced(x, ends), block(x, ends), rtol=0, atol=0)
        with pytest.raises(ModelError, match="float32 or bfloat16"):
            traced.half()(x.half(), ends)


def omni3() -> hf.PreTrainedModel:
    """Mixtures in thinker and talker, a predictor of codes, features of three layers of the vision tower."""
    rope = MROPE | {"mrope_interleaved": True}
    mixed = TEXT | {
        "rope_parameters": rope, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    }
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4, "out_hidden_size": 32,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "deepstack_visual_indexes": [1],
        "num_position_embeddings": 16,
    }  # fmt: skip
    audio = {
        "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 16,
        "output_dim": 32, "n_window": 4, "n_window_infer": 8, "max_source_positions": 64, "downsample_hidden_size": 8,
    }  # fmt: skip
    codes = TEXT | {"num_code_groups": 4, "head_dim": 8, "num_hidden_layers": 2}
    talker = {
        "text_config": mixed | {"shared_expert_intermediate_size": 16}, "code_predictor_config": codes,
        "num_code_groups": 4, "thinker_hidden_size": 32, "accept_hidden_layer": 2, "speaker_id": {},
        "spatial_merge_size": 2,
    }  # fmt: skip
    sound = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "decoder_dim": 16,
        "num_key_value_heads": 4, "codebook_size": 16, "num_quantizers": 4, "upsample_rates": [2, 2],
        "upsampling_ratios": [2], "sliding_window": 4,
    }  # fmt: skip
    ids = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "audio_token_id": 94}
    thinker = {"text_config": mixed, "vision_config": vision, "audio_config": audio, **ids}
    return hf.Qwen3OmniMoeForConditionalGeneration(
        hf.Qwen3OmniMoeConfig(thinker_config=thinker, talker_config=talker, code2wav_config=sound)
    ).eval()


def test_an_omni_model_of_mixtures(tmp_path: Path) -> None:
    folder = write_folder(omni3(), tmp_path / "m")
    steps: list[dict[str, Any]] = [
        {"pass": "head_prune", "component": "shared", "keep_ratio": 0.5, "score": "magnitude", "uniform": True},
        *({"pass": "layer_drop", "stack": stack, "unit": "block", "keep_ratio": 0.5, "score": "last"}
          for stack in ("main", "talker.model.layers", "code2wav.pre_transformer.layers")),
        {"pass": "channel_prune", "stack": "talker.code_predictor.model.layers", "keep_ratio": 0.5,
         "score": "magnitude"},
    ]  # fmt: skip
    recipe = write_recipe(tmp_path, folder, *steps, evaluate=[])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), "--out-of-core"]) == 0
    out = tmp_path / "run" / "model"
    theirs = hf.Qwen3OmniMoeForConditionalGeneration.from_pretrained(out).eval()
    ours: Any = open_source(str(out)).load()
    layers = theirs.thinker.model.language_model.layers
    assert (len(layers), layers[0].self_attn.q_proj.out_features, len(theirs.talker.model.layers)) == (2, 16, 2)
    assert theirs.talker.code_predictor.model.layers[0].mlp.up_proj.out_features == 24
    assert len(theirs.code2wav.pre_transformer.layers) == 1
    with torch.no_grad():
        logits = [model.thinker(input_ids=torch.arange(5, 25)[None]).logits for model in (theirs, ours)]
    assert torch.equal(*logits)


@torch.no_grad()
@pytest.mark.parametrize(("gone", "moved"), [(0, 1), (2, 2)])
def test_a_talker_reads_after_the_same_block_of_the_thinker(gone: int, moved: int, tmp_path: Path) -> None:
    """It was told the number of the block; the reference is a block that hands on what it is given."""
    theirs: Any = omni3()
    source = open_source(str(write_folder(theirs, tmp_path / "m")))
    path = f"{source.family.stacks(theirs)['main']}.{gone}"
    ours: Any = rewrite(source.load(), source.family, [Plan(pass_name="test", edits=(DropBlock(block=path),))])
    assert ours.config.talker_config.accept_hidden_layer == moved
    theirs.get_submodule(path).register_forward_hook(lambda _, args, output: args[0])
    ids = torch.arange(5, 25)[None]
    heard = [
        model.thinker(input_ids=ids, output_hidden_states=True).hidden_states[
            model.config.talker_config.accept_hidden_layer
        ]
        for model in (ours, theirs)
    ]
    assert torch.equal(*heard)
