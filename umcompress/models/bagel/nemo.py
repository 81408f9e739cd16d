"""NVIDIA's NeMo AutoModel trains a plain BAGEL: a recipe for it beside the folder, and its checkpoints read back.

NeMo AutoModel 0.7 writes a checkpoint as `epoch_E_step_S/model/consolidated/*.safetensors`, the names as in BAGEL's own
file, and copies the autoencoder beside `model`.  Configuration and tokenizer are those of the folder that it started
from, which the recipe puts the checkpoints into.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from umcompress.checkpoint.disk import DiskTensors, FileTensor, OpenFiles
from umcompress.checkpoint.index import open_folder, shards_of
from umcompress.documents.file_names import NEMO_WEIGHTS
from umcompress.documents.files import read_json
from umcompress.errors import ModelError
from umcompress.models.bagel.config import AutoencoderConfig, BagelConfig
from umcompress.models.bagel.load import disk_names
from umcompress.models.bagel.ordinary import CONFIG, TEXT_CONFIG
from umcompress.models.plain_folder import Plain

RECIPE = "nemo_automodel.yaml"
NOTE = f"to train it: cd FOLDER, put your data into {RECIPE}, automodel {RECIPE} --nproc-per-node 8"
CHECKPOINTS = "checkpoints"
# What NeMo takes for a `pad_token_id` that is not said; its embedding table must have the row.
_PADDING = 151643
_STORED, _AUTOENCODER = "model.safetensors", "ae.safetensors"


# -- a recipe beside the folder ------------------------------------------------------------------------------


def with_recipe(plain: Plain, folder: Path) -> Plain:
    """A plain BAGEL's folder that NeMo AutoModel can train where it lies.  folder: where the model came from."""
    config = BagelConfig.from_folder(folder)
    texts = dict(plain.texts) | {RECIPE: recipe_text(config)}
    if config.text.vocab_size <= _PADDING:
        last = config.text.vocab_size - 1
        text = {"pad_token_id": last, **json.loads(texts[TEXT_CONFIG])}
        overall = {"pad_token_id": last, **json.loads(texts[CONFIG])}
        overall["llm_config"] = {"pad_token_id": last, **overall["llm_config"]}
        texts |= {TEXT_CONFIG: json.dumps(text, indent=2) + "\n", CONFIG: json.dumps(overall, indent=2) + "\n"}
    return dataclasses.replace(plain, texts=texts, note=f"{plain.note}; {NOTE}")


def recipe_text(config: BagelConfig) -> str:
    """The recipe: sizes from the model, data to be filled in."""
    released = config.autoencoder == AutoencoderConfig()
    stage = "2" if released else "1  # understanding alone: NeMo knows the released autoencoder only"
    pictures = (
        f"{{image_stride: {config.vae_rule.stride}, max_image_size: {config.vae_rule.max_size}, "
        f"min_image_size: {config.vae_rule.min_size}}}"
    )
    seen = (
        f"{{image_stride: {config.vit_rule.stride}, max_image_size: {config.vit_rule.max_size}, "
        f"min_image_size: {config.vit_rule.min_size}}}"
    )
    painted = _PAINTED.format(pictures=pictures) if released else ""
    return _RECIPE.format(
        stage=stage, seen=seen, painted=painted, latent=config.max_latent_size, patch=config.vision.patch_size,
        side=config.vit_max_num_patch_per_side, downsample=config.latent_downsample, checkpoints=CHECKPOINTS,
        info=_PAINTED_DATA if released else "",
    )  # fmt: skip


_RECIPE = """\
# For NeMo AutoModel 0.7, from this folder: automodel nemo_automodel.yaml --nproc-per-node 8
# Put your own data where it says PATH. The model, its sizes and the place of the checkpoints are right as they are.
# Then, to measure or compress what was trained: umcompress export checkpoints/epoch_0_step_1000 --to bagel -o trained
recipe: FinetuneRecipeForMultimodal
seed: 4396
model:
  _target_: nemo_automodel.NeMoAutoModelForMultimodalLM.from_pretrained
  pretrained_model_name_or_path: .
  torch_dtype: float32
  stage: {stage}
  max_latent_size: {latent}
  vae_encode_micro_batch_size: 1
distributed:
  strategy: fsdp2
  activation_checkpointing: true
  mp_policy: {{param_dtype: bfloat16, reduce_dtype: bfloat16, output_dtype: bfloat16, cast_forward_inputs: false}}
step_scheduler: {{global_batch_size: 8, local_batch_size: 1, max_steps: 1000, ckpt_every_steps: 500}}
checkpoint:
  enabled: true
  checkpoint_dir: {checkpoints}
  model_save_format: safetensors
  save_consolidated: final
optimizer:
  _target_: torch.optim.AdamW
  lr: 2.0e-5
  betas: [0.9, 0.95]
  eps: 1.0e-15
  weight_decay: 0.0
  foreach: false
lr_scheduler: {{schedule: constant, warmup_steps: 50}}
clip_grad_norm: {{max_norm: 1.0}}
dist_env: {{backend: nccl, timeout_minutes: 30}}
dataloader: {{num_workers: 1, pin_memory: true, prefetch_factor: 2}}
dataset:
  dataset_info:
    vlm_sft:
      questions: {{data_dir: PATH/images, jsonl_path: PATH/questions.jsonl, num_total_samples: 1000}}
{info}  grouped_datasets:
    vlm_sft:
      dataset_names: [questions]
      image_transform_args: {seen}
      is_mandatory: true
      shuffle_lines: true
      shuffle_seed: 0
      num_used_data: [1000]
      weight: 1
{painted}  expected_num_tokens: 32768
  max_num_tokens: 36864
  max_num_tokens_per_sample: 16384
  prefer_buffer_before: 16384
  max_buffer_size: 50
  vit_patch_size: {patch}
  max_num_patch_per_side: {side}
  interpolate_pos: false
  data_seed: 42
  text_cond_dropout_prob: 0.1
  vit_cond_dropout_prob: 0.3
  vae_cond_dropout_prob: 0.3
  vae_image_downsample: {downsample}
  max_latent_size: {latent}
  use_flex: true
"""
_PAINTED_DATA = """\
    t2i_pretrain:
      prompts: {data_dir: PATH/parquet, num_files: 8, num_total_samples: 1000}
"""
_PAINTED = """\
    t2i_pretrain:
      dataset_names: [prompts]
      image_transform_args: {pictures}
      is_mandatory: true
      num_used_data: [8]
      weight: 1
"""


# -- its checkpoints -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """What NeMo trained: its weights, and the folder of the BAGEL that it started from."""

    weights: Path
    autoencoder: Path
    base: Path


def checkpoint_of(folder: Path) -> Checkpoint | None:
    """The checkpoint of a BAGEL in `folder`, as NeMo AutoModel leaves it; None where there is none.

    ModelError where it does not lie in the folder of a BAGEL, whose configuration and tokenizer it needs.
    """
    weights = folder if folder.parts[-2:] == Path(NEMO_WEIGHTS).parts else folder / NEMO_WEIGHTS
    try:
        there = (weights / CONFIG).is_file() and shards_of(weights, _STORED)[0].is_file()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        return None
    config = read_json(weights / CONFIG)
    if not isinstance(config, dict) or config.get("model_type") != "bagel":
        return None
    step = weights.resolve().parents[1]
    base = next((above for above in step.parents if (above / TEXT_CONFIG).is_file()), None)
    if base is None:
        raise ModelError(
            f"the checkpoint of NeMo AutoModel in {folder}", "no folder above it is the BAGEL that it started from",
            "move it into the folder that `umcompress export --to nemo` wrote, whose recipe puts it there",
        )  # fmt: skip
    return Checkpoint(weights, step if (step / _AUTOENCODER).is_file() else base, base)


def open_checkpoint(checkpoint: Checkpoint, model: nn.Module) -> DiskTensors:
    """Where the tensors of `model` lie in the files of a checkpoint.  ModelError where they do not fit."""
    files, places, problems = OpenFiles(), dict[str, FileTensor](), list[str]()
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    for file, names in disk_names(model).items():
        trained = file != _AUTOENCODER
        where = (checkpoint.weights, _STORED) if trained else (checkpoint.autoencoder, _AUTOENCODER)
        stored = open_folder(*where)
        for name, target in names.items():
            assert isinstance(target, str)  # a plain BAGEL has no experts
            if name not in stored.entries:
                problems.append(f"{name} is missing")
            elif (found := stored.entry(name).shape) != wanted[target]:
                problems.append(f"{name} is {list(found)} and not {list(wanted[target])}")
            else:
                places[target] = FileTensor(stored.entry(name), files)
        problems += [f"{name} is unexpected" for name in _others(stored.entries, names)]
    if problems:
        raise ModelError(
            f"the checkpoint in {checkpoint.weights}, of the model in {checkpoint.base}",
            "\n    ".join(problems[:40]), "look whether it was trained from another folder",
        )  # fmt: skip
    return DiskTensors(places, files)


def _others(stored: Mapping[str, object], names: Mapping[str, object]) -> list[str]:
    """Tensors that no module has; what Transformer Engine keeps for itself is none."""
    return sorted(name for name in stored.keys() - names.keys() if not name.endswith("._extra_state"))
