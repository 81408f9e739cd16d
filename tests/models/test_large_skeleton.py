"""A model far larger than the machine is planned on its shapes: nothing of its size is ever made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hf_models import write_recipe

from umcompress.models.source import open_source

# Memory that the whole process may ask for: torch alone asks for some, the experts of one layer would for 30 GB.
LIMIT = 12 << 30
DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "attention_bias": False,
    "first_k_dense_replace": 3, "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "n_group": 8, "n_routed_experts": 256,
    "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 61, "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "routed_scaling_factor": 2.5, "tie_word_embeddings": False, "topk_group": 4,
    "v_head_dim": 128, "vocab_size": 129280, "rope_theta": 10000, "torch_dtype": "bfloat16",
}  # fmt: skip
LIMITED = """
import resource, sys
from umcompress.cli.main import main
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""

# Of Qwen-Image as it is released.
QWEN_IMAGE: dict[str, dict[str, Any]] = {
    "text_encoder": {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "hidden_size": 3584,
        "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "vocab_size": 152064, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": False,
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
    "transformer": {
        "_class_name": "QwenImageTransformer2DModel", "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56],
        "in_channels": 64, "joint_attention_dim": 3584, "num_attention_heads": 24, "num_layers": 60, "out_channels": 16,
        "patch_size": 2,
    },
    "vae": {
        "_class_name": "AutoencoderKLQwenImage", "base_dim": 96, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
        "temperal_downsample": [False, True, True], "z_dim": 16, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16,
    },
}  # fmt: skip


def test_the_parts_of_a_pipeline_of_29_billion_parameters(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    index: dict[str, Any] = {"_class_name": "QwenImagePipeline"}
    for part, config in QWEN_IMAGE.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
        kind = config.get("_class_name", "Qwen2_5_VLForConditionalGeneration")
        index[part] = ["transformers" if part == "text_encoder" else "diffusers", kind]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    source = open_source(str(tmp_path))
    model = source.skeleton()
    assert all(parameter.is_meta for parameter in model.parameters())
    counted = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counted == {"text_encoder": 8_292_166_656, "transformer": 20_430_401_088, "vae": 126_892_531}


def test_a_model_of_671_billion_parameters_is_planned(tmp_path: Path) -> None:
    folder = tmp_path / "deepseek"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    recipe = write_recipe(tmp_path, folder, {"pass": "layer_drop", "unit": "block", "score": "last", "drop_count": 2})
    command = [sys.executable, "-c", LIMITED, str(LIMIT), "plan", str(recipe), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # As published: 671 billion parameters, without the layer that predicts further tokens; 37 at work for a token.
    before = json.loads(done.stdout)["steps"][0]["before"]
    assert round(before["total"] / 1e9) == 671
