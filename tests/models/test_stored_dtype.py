"""A model that is stored in half precision is written so, in memory too, and what was scored is what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hf_models import randomise, tokenizer, write_recipe
from hf_zoo import ZOO
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from umcompress.documents.report import Report
from umcompress.run.apply import apply as apply_command
from umcompress.run.evaluate import evaluate as evaluate_command

TEXT = "".join(f"line {i}: the quick brown fox jumps over {i * 7} lazy dogs\n" for i in range(120))
DROP = {"pass": "layer_drop", "unit": "block", "drop": [1]}
LIGHT = {"pass": "channel_prune", "score": "magnitude", "keep_ratio": 0.5}
REPAIRED = {"pass": "channel_prune", "keep_ratio": 0.5, "repair": "least_squares"}
SPLIT = {"pass": "moe_split", "experts": 6, "active": 3, "weighting": "softmax", "router": "zero",
         "layers": "all"}  # fmt: skip
FIRST_NORM = "model.layers.0.input_layernorm.weight"


def saved(home: Path, dtype: torch.dtype, name: str = "llama") -> Path:
    """A folder as training frameworks leave it: one tensor is kept in float32."""
    model: Any = ZOO[name].build()
    randomise(model)
    model.to(dtype).save_pretrained(home / "source")
    tokenizer().save_pretrained(home / "source")
    state = load_file(home / "source" / "model.safetensors")
    state[FIRST_NORM] = state[FIRST_NORM].float() + 1e-6
    save_file(state, home / "source" / "model.safetensors", {"format": "pt"})
    return home / "source"


def run(
    home: Path, source: Path, *steps: dict[str, Any], out: str = "out", on_disk: bool = False, **keys: Any
) -> Report:
    (home / "text.txt").write_text(TEXT)
    text = {"perplexity": {"data": str(home / "text.txt"), "sample_characters": 200}}
    given: dict[str, Any] = {"calibration": {"task": "understanding", "samples": 4}, "evaluate": [text]}
    recipe = write_recipe(home, source, *steps, **(given | keys))
    return apply_command(str(recipe), str(home / out), out_of_core=on_disk)[0]


def test_in_memory_writes_the_bytes_that_out_of_core_writes(tmp_path: Path) -> None:
    """And out of core, too, a model of two dtypes is run: in float32."""
    source, dtype = saved(tmp_path, torch.float16), torch.float16
    report = run(tmp_path, source, DROP, LIGHT, evaluate=[])
    checked = run(tmp_path, source, DROP, LIGHT, evaluate=[], out="disk", on_disk=True).checkpoint
    assert checked is not None and checked.reload_equal
    ours, theirs = (tmp_path / name / "model" / "model.safetensors" for name in ("out", "disk"))
    assert ours.read_bytes() == theirs.read_bytes()
    state = load_file(ours)
    assert {name for name, tensor in state.items() if tensor.dtype != dtype} == {FIRST_NORM}
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["dtype"] == str(dtype)[6:]
    assert report.checkpoint is not None and str(dtype)[6:] in report.checkpoint.note


def test_what_was_scored_is_what_was_written(tmp_path: Path) -> None:
    """Refitted weights are rounded before they are scored; the dropped block renumbers those that follow."""
    source = saved(tmp_path, torch.bfloat16)
    report = run(tmp_path, source, REPAIRED, DROP, REPAIRED)
    out = tmp_path / "out" / "model"
    assert {tensor.dtype for name, tensor in load_file(out / "model.safetensors").items() if name != FIRST_NORM} == {
        torch.bfloat16
    }
    again = evaluate_command(str(out), [f"perplexity:data={tmp_path / 'text.txt'}"])
    (ours, theirs) = (step.scores["understanding"] for step in (again.steps[0], report.steps[-1]))
    assert (ours.value, ours.numbers) == (theirs.value, theirs.numbers)
    plain = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    kept = load_file(tmp_path / "out" / "steps" / "03-channel_prune" / "tensors.safetensors")
    assert kept and all(torch.equal(value, plain.state_dict()[name]) for name, value in kept.items())


def test_a_dtype_that_the_recipe_names_is_written(tmp_path: Path) -> None:
    source = saved(tmp_path, torch.bfloat16)
    run(tmp_path, source, LIGHT, evaluate=[], dtype="float32")
    state = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_a_split_model_in_half_precision_is_a_mixtral_in_it(tmp_path: Path) -> None:
    """Its down projections are written three times as large, which half precision rounds."""
    source = saved(tmp_path, torch.bfloat16)
    calibration = {"task": "understanding", "samples": 4, "data": str(texts(tmp_path))}
    report = run(tmp_path, source, SPLIT, evaluate=[], calibration=calibration)
    assert report.checkpoint is not None and report.checkpoint.loads_with == "transformers"
    out = tmp_path / "out" / "model"
    assert json.loads((out / "config.json").read_text())["model_type"] == "mixtral"
    assert sum(t.dtype is torch.float32 for t in load_file(out / "model.safetensors").values()) == 1


def texts(home: Path) -> Path:
    file = home / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines()[:8]))
    return file
