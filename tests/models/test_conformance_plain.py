"""Ten families through a two-pass recipe, then loaded and run by a script that imports only transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import write_folder, write_recipe
from hf_zoo import ZOO

from umcompress.documents.report import read_report
from umcompress.models.source import open_source
from umcompress.run.apply import apply

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "opt", "mixtral")
SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
assert "umcompress" not in sys.modules
found = {}
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), folder
    ids = torch.arange(4, 15)[None]
    out = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert out.shape == (1, 15)
    found[folder] = model(ids).logits.detach().double().flatten().tolist()
print(json.dumps(found))
"""


def second(name: str) -> dict[str, Any]:
    """What can be cut evenly besides blocks."""
    if name == "mixtral":
        return {"pass": "head_prune", "keep_ratio": 0.5, "score": "magnitude"}
    return {"pass": "channel_prune", "keep_ratio": 0.5, "score": "magnitude", "repair": "none"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """name -> the model folder of its run."""
    made = {}
    for name in FAMILIES:
        home = tmp_path_factory.mktemp(name)
        folder = write_folder(ZOO[name].build().eval(), home / "source")
        recipe = write_recipe(home, folder, {"pass": "layer_drop", "drop": [1]}, second(name))
        made[name] = apply(str(recipe), str(home / "run"))[1] / "model"
    return made


def test_a_script_that_knows_only_transformers_gets_the_same_logits(outputs: dict[str, Path]) -> None:
    folders = [str(folder) for folder in outputs.values()]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    ids = torch.arange(4, 15)[None]
    for name, folder in outputs.items():
        assert not (folder / "umcompress.json").exists(), name
        model: Any = open_source(str(folder)).load()
        with torch.no_grad():
            ours = model(input_ids=ids).logits.double().flatten()
        assert torch.equal(torch.tensor(theirs[str(folder)], dtype=torch.float64), ours), name
        report = read_report(folder.parent)
        assert report.checkpoint is not None and report.checkpoint.loads_with == "transformers", name
        assert report.checkpoint.reload_equal is True, name
        assert report.steps[-1].parameters.total < report.steps[0].parameters.total, name
