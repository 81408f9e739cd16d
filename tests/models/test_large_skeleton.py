"""A model far larger than the machine is planned on its shapes: nothing of its size is ever made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hf_models import write_recipe

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
