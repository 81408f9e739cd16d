"""NeMo AutoModel: the recipe beside a plain BAGEL, and its checkpoints read back; no NeMo is needed for either."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from umcompress.cli.main import main
from umcompress.models.bagel.config import AutoencoderConfig, BagelConfig
from umcompress.models.bagel.nemo import RECIPE, recipe_text
from umcompress.models.source import open_source


@pytest.fixture(scope="module")
def exported(tiny_bagel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nemo") / "folder"
    assert main(["export", str(tiny_bagel), "--to", "nemo", "-o", str(out)]) == 0
    return out


def trained(exported: Path, folder: Path, drop: str | None = None) -> Path:
    """What NeMo AutoModel leaves: sharded weights with an index, its own config.json, the autoencoder beside."""
    shutil.copytree(exported, folder)
    step = folder / "checkpoints" / "epoch_0_step_7"
    weights = step / "model" / "consolidated"
    weights.mkdir(parents=True)
    tensors = {name: tensor + 0.01 for name, tensor in load_file(folder / "ema.safetensors").items() if name != drop}
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, weights / file)
    index = {name: file for file, held in shards.items() for name in held}
    (weights / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (weights / "config.json").write_text(json.dumps({"model_type": "bagel", "text_config": {}, "vision_config": {}}))
    shutil.copy(folder / "ae.safetensors", step)
    return step


def test_the_recipe_says_the_sizes_of_the_model(exported: Path, tiny_bagel: Path) -> None:
    config, recipe = BagelConfig.from_folder(tiny_bagel), yaml.safe_load((exported / RECIPE).read_text())
    assert recipe["model"]["pretrained_model_name_or_path"] == "." and recipe["model"]["stage"] == 1
    data = recipe["dataset"]
    assert data["vit_patch_size"] == config.vision.patch_size and data["max_latent_size"] == config.max_latent_size
    assert data["vae_image_downsample"] == config.latent_downsample
    assert list(data["grouped_datasets"]) == ["vlm_sft"]
    text = json.loads((exported / "llm_config.json").read_text())
    assert text["pad_token_id"] < text["vocab_size"]
    assert json.loads((exported / "config.json").read_text())["llm_config"]["pad_token_id"] == text["pad_token_id"]
    released = config.model_copy(update={"autoencoder": AutoencoderConfig()})
    both = yaml.safe_load(recipe_text(released))
    assert both["model"]["stage"] == 2 and set(both["dataset"]["grouped_datasets"]) == {"vlm_sft", "t2i_pretrain"}


def test_a_checkpoint_is_read_back(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = trained(exported, tmp_path / "folder")
    out = tmp_path / "trained"
    assert main(["export", str(step), "--to", "bagel", "-o", str(out)]) == 0
    before, after = (load_file(folder / "ema.safetensors") for folder in (exported, out))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name] + 0.01) for name in before)
    source = open_source(str(out))
    assert source.runner(source.load()).probe()
    capsys.readouterr()
    assert main(["inspect", str(step)]) == 2
    assert "checkpoint of NeMo AutoModel" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = trained(exported, tmp_path / "folder", drop="llm2vae.bias")
    assert main(["export", str(step), "--to", "bagel", "-o", str(tmp_path / "out")]) == 2
    assert "llm2vae.bias is missing" in capsys.readouterr().err
    alone = shutil.copytree(step, tmp_path / "alone")
    assert main(["export", str(alone), "--to", "bagel", "-o", str(tmp_path / "out")]) == 2
    assert "no folder above it" in capsys.readouterr().err
