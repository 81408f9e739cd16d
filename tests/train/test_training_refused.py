"""What cannot be trained on is refused by `plan`, and by `apply` before anything runs: what was asked, found, to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from hf_models import write_folder, write_recipe
from hf_zoo import TEXT, ZOO
from PIL import Image
from seeing_models import write_seeing
from unified_models import write_unified

from umcompress.cli.main import main
from umcompress.models.hf.ask.processors import FILES

LANGUAGE, TOWER = "*language_model.layers.*.mlp.*", "*vision_tower.encoder*"
ASKED = {"image": "0.png", "question": "what?", "answer": "dots"}
PAINTED = {"image": "0.png", "prompt": "dots"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_bagel: Path) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    found = {"llava": write_seeing("llava", home / "llava"), "bagel": tiny_bagel}
    found |= {name: write_unified(name, home / name) for name in ("janus", "chameleon")}
    found["llama"] = write_folder(hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)), home / "llama")
    found["clip"] = write_folder(ZOO["clip"].build(), home / "clip")
    found["bare"] = home / "bare"
    shutil.copytree(found["llava"], found["bare"])
    for name in FILES:
        (found["bare"] / name).unlink()
    return found


@pytest.mark.parametrize(("name", "rows", "options", "said"), [
    ("llama", [ASKED], {"parameters": ["*.mlp.*"]}, ["LlamaForCausalLM", "UnderstandingItem", "give it texts"]),
    ("clip", [{"text": "some"}], {"parameters": ["*.mlp.*"]}, ["CLIP", "does not continue text"]),
    ("bagel", [{"text": "some"}], {"parameters": ["*.layers.1.mlp.*"], "tasks": {"understanding": 1}},
     ["BAGEL", "TextSample", "UnderstandingItem"]),
    ("bagel", [ASKED], {"parameters": ["*.layers.1.mlp_moe_gen.*"]}, ["train generation", "no row of it is for that"]),
    ("llava", [ASKED], {"parameters": [LANGUAGE], "tasks": {"generation": 1}}, ["cannot be trained on generation"]),
    ("llava", [PAINTED], {"parameters": [LANGUAGE]}, ["train understanding", "no row of it is for that"]),
    ("llava", [ASKED | {"answer": " "}], {"parameters": [LANGUAGE]}, ["no row of it is for that"]),
    ("llava", [ASKED | {"image": "1.png"}], {"parameters": [LANGUAGE]}, ["1 of its 1 pictures are not there: 1.png"]),
    ("llava", [ASKED | {"image": "bad.png"}], {"parameters": [LANGUAGE]}, ["bad.png", "not readable"]),
    ("llava", [{"text": "some"}], {"parameters": [TOWER]}, ["vision_tower", "no questions about pictures"]),
    ("bare", [ASKED], {"parameters": [LANGUAGE]}, ["processor", "preprocessor_config.json", "copy"]),
    ("janus", [ASKED], {"parameters": ["*language_model.*"], "tasks": {"generation": 1}},
     ["train generation", "no row of it is for that"]),
    ("janus", [ASKED], {"parameters": ["*language_model.*", "*generation_head.*"]},
     ["generation_head", "no pictures with prompts"]),
    ("janus", [ASKED, PAINTED], {"parameters": ["*vqmodel.encoder.*"]}, ["no task reaches"]),
    ("janus", [ASKED, PAINTED], {"parameters": ["*language_model*", "*vqmodel.encoder.*"]}, ["vqmodel", "by a choice"]),
    ("chameleon", [ASKED, PAINTED], {"parameters": ["*.mlp.*"], "tasks": {"generation": 1}},
     ["cannot be trained on generation", "understanding"]),
])  # fmt: skip
def test_what_cannot_be_trained_on_is_refused_by_plan(
    name: str, rows: list[dict[str, Any]], options: dict[str, Any], said: list[str], models: dict[str, Path],
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"pass": "adapt", "steps": 2, "batch_size": 2, "data": str(tmp_path / "data.jsonl")} | options
    recipe = write_recipe(tmp_path, models[name], step, evaluate=[])
    assert main(["plan", str(recipe), "--format", "json"]) == 2
    plan = json.loads(capsys.readouterr().out)
    (problem,) = plan["problems"] + [step["problem"] for step in plan["steps"] if step["problem"]]
    assert main(["apply", str(recipe), "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for text in (problem, told):
        assert "found: " in text and "do: " in text and "Traceback" not in text
        assert all(" ".join(part.split()) in " ".join(text.split()) for part in said), text
