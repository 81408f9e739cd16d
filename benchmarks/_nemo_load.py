"""A plain BAGEL folder (first argument) in NeMo AutoModel's own class, strictly: each tensor has its place and size.

With a second argument, NeMo's own checkpointer then writes the model there, each tensor moved by a hundredth, as it
does while it trains: `FOLDER/checkpoints/epoch_0_step_1` for `umcompress export` to read back.  The recipe beside the
folder, if there is one, is read by NeMo's own reader, and its data loader is made of it.
Run with a Python that finds `nemo_automodel`, torch, transformers, einops and torchao; of the rest nothing is needed.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def main() -> int:
    from nemo_automodel.components.models.bagel.model import BagelForUnifiedMultimodal
    from nemo_automodel.components.models.bagel.state_dict_adapter import load_bagel_checkpoint_state_dict

    folder = sys.argv[1]
    model = BagelForUnifiedMultimodal.from_pretrained(folder, stage=2, strict=True)
    tensors = load_bagel_checkpoint_state_dict(folder, stage=2, strict=True)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    try:
        release = version("nemo-automodel")
    except PackageNotFoundError:
        release = "unknown"
    found = {"nemo": release, "tensors": len(tensors), "missing": missing, "unexpected": unexpected}
    if len(sys.argv) > 2:
        save(model, Path(sys.argv[2]), folder)
    recipe = Path(folder) / "nemo_automodel.yaml"
    if recipe.is_file():
        found["recipe"] = read(recipe)
    print("RESULT " + json.dumps(found))
    return int(bool(missing or unexpected))


def read(recipe: Path) -> dict[str, Any]:
    """What NeMo's own reader makes of the recipe."""
    from nemo_automodel.components.config.loader import load_yaml_config
    from nemo_automodel.recipes._typed_config import RecipeConfig

    config = load_yaml_config(str(recipe))
    loader = RecipeConfig(config).bagel_dataloader
    return {"stage": config.get("model.stage"), "data loader": type(loader).__name__}


def save(model: Any, step: Path, folder: str) -> None:
    """NeMo's checkpointer, in one process."""
    import torch
    from nemo_automodel.components.checkpoint.checkpointing import Checkpointer, CheckpointingConfig

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    config = CheckpointingConfig(
        enabled=True, checkpoint_dir=str(step.parent), model_save_format="safetensors", model_cache_dir=folder,
        model_repo_id=folder, save_consolidated="every", is_peft=False,
    )  # fmt: skip
    Checkpointer(config=config, dp_rank=0, tp_rank=0, pp_rank=0, moe_mesh=None).save_model(model, str(step))


if __name__ == "__main__":
    raise SystemExit(main())
