"""What a report says of models that are mixtures already: work per token, parameters, a checked result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hf_models import write_folder, write_recipe
from hf_zoo import ZOO
from transformers import PreTrainedModel

from umcompress.cli.main import main
from umcompress.models.measure import weigh
from umcompress.models.source import open_source

# A pass of a transformers model reads so many tokens where it has positions for them: 64 less 8 to decode.
TOKENS = 56
DROP = {"pass": "layer_drop", "component": "shared", "unit": "attention", "layers": "1-3", "drop_count": 1}


def folder(kind: str, path: Path) -> Path:
    torch.manual_seed(0)
    return write_folder(ZOO[kind].build(), path)


@pytest.mark.parametrize("in_memory", [True, False])
def test_two_of_four_experts_are_work(tmp_path: Path, in_memory: bool) -> None:
    """As a skeleton counts it, so does the model itself, whose products are grouped by expert."""
    source = open_source(str(folder("mixtral", tmp_path / "m")))
    model = source.load() if in_memory else source.skeleton()
    found = weigh(model, source.family, source.runner(model)).macs_per_token["understanding"]
    experts, router, attention, head = 2 * 3 * 32 * 48, 4 * 32, (32 + 16 + 16 + 32) * 32, 32 * 96
    products = 2 * TOKENS * 32
    assert found == pytest.approx(4 * (experts + router + attention + products) + head, rel=0.01)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3"])
def test_of_the_experts_those_are_active_that_a_token_uses(tmp_path: Path, kind: str, in_memory: bool) -> None:
    """Everything but the experts that a token does not use, whose sizes are those of the configuration."""
    source = open_source(str(folder(kind, tmp_path / "m")))
    model = source.load() if in_memory else source.skeleton()
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    experts = next(config[key] for key in ("num_local_experts", "num_experts", "n_routed_experts") if key in config)
    # All layers are mixtures but those that the configuration says are dense.
    dense = len(config.get("mlp_only_layers") or ()) + config.get("first_k_dense_replace", 0)
    unused = (experts - config["num_experts_per_tok"]) * (config["num_hidden_layers"] - dense)
    found = weigh(model, source.family, source.runner(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert found.parameters.active == {"understanding": total - unused * 3 * config["hidden_size"] * width}
    assert found.bytes.active == {"understanding": 4 * found.parameters.active["understanding"]}


@pytest.mark.parametrize(
    ("step", "how"), [(DROP, []), (DROP, ["--out-of-core"]), (DROP | {"unit": "block"}, [])],
    ids=["compressed", "out of core", "plain"],
)
def test_buffers_of_a_router_are_no_parameters(tmp_path: Path, step: dict[str, object], how: list[str]) -> None:
    """DeepSeek-V3 saves the balance of its experts beside its weights: the check of the written files knows."""
    calibration = tmp_path / "lines.jsonl"
    calibration.write_text('{"text": "some words to read"}\n' * 4)
    recipe = write_recipe(
        tmp_path, folder("deepseek_v3", tmp_path / "m"), step, evaluate=[],
        calibration={"task": "understanding", "samples": 4, "data": str(calibration)},
    )
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), *how]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    model = open_source(str(tmp_path / "run")).load()
    assert isinstance(model, PreTrainedModel)
    assert any("e_score_correction_bias" in name for name, _ in model.named_buffers())
    assert report["checkpoint"]["parameters"] == model.num_parameters() == report["steps"][-1]["parameters"]["total"]
