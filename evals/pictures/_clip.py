"""CLIP from a folder on disk, as unit vectors of pictures and of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.extend import ModelError, files

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

BATCH = 32


class Clip:
    """transformers' CLIP with its PIL processor: pictures and texts in, unit vectors (n, D) out."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        check_folder(folder, "clip", f"the CLIP model {folder}")
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        asked = f"the CLIP model {folder}"
        self.processor = load(CLIPImageProcessorPil, folder, asked)
        self.tokenizer = load(CLIPTokenizer, folder, asked)
        self.model = load_model(CLIPModel, folder, asked, device)
        self.length: int = self.model.config.text_config.max_position_embeddings
        self.name = f"transformers CLIP ({folder.name})"

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, D); what is longer than CLIP reads is cut."""
        import torch

        parts = []
        for start in range(0, len(texts), BATCH):
            words = self.tokenizer(
                list(texts[start : start + BATCH]), padding=True, truncation=True, max_length=self.length,
                return_tensors="pt",
            ).to(self.model.device)
            with torch.no_grad():
                seen = self.model.text_model(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
                parts.append(self.model.text_projection(seen.pooler_output))
        return _unit(torch.cat(parts))

    def images(self, images: Sequence[Image]) -> Tensor:
        """(n, D)."""
        import torch

        parts = []
        for start in range(0, len(images), BATCH):
            batch = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = self.processor(images=batch, return_tensors="pt")["pixel_values"].to(self.model.device)
            with torch.no_grad():
                parts.append(self.model.visual_projection(self.model.vision_model(pixels).pooler_output))
        return _unit(torch.cat(parts))

    def is_cut(self, text: str) -> bool:
        """Whether CLIP reads only the beginning of the text."""
        return len(self.tokenizer(text)["input_ids"]) > self.length


def _unit(rows: Tensor) -> Tensor:
    rows = rows.float()
    unit: Tensor = rows / rows.norm(dim=-1, keepdim=True)
    return unit


def load(kind: Any, folder: Path, asked: str, **options: Any) -> Any:
    """`kind.from_pretrained` of a folder on disk.  ModelError where that does not work."""
    from safetensors import SafetensorError
    from transformers.utils import logging as library

    logging: Any = library

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError, AttributeError) as error:
        raise ModelError(asked, f"it does not load: {error}", "download all files of the model again") from error
    finally:
        if shown:
            logging.enable_progress_bar()


def load_model(kind: Any, folder: Path, asked: str, device: str) -> Any:
    """A model of which every weight is in the folder: transformers makes missing ones up.

    From safetensors: what lies in a .bin is a pickle, which may run anything.
    """
    model, report = load(kind, folder, asked, output_loading_info=True, use_safetensors=True)
    made_up = sorted(name for name in report["missing_keys"] if not name.startswith("criterion."))
    if made_up:
        raise ModelError(asked, f"{len(made_up)} weights are missing: {', '.join(made_up[:3])}",
                         "download all files of the model again")
    return model.to(device).eval()


def check_folder(folder: Path, kind: str, asked: str) -> None:
    """ModelError unless `folder` holds a transformers model whose config says `kind`.  Loads nothing."""
    config = folder / "config.json"
    if not config.is_file():
        found = f"there is no {config}" if folder.is_dir() else f"there is no folder {folder}"
        raise ModelError(asked, found, "download the model and give the folder that holds its config.json")
    try:
        found = files.read_json(config).get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise ModelError(asked, f"{config} is not readable: {error}", "download the model again") from error
    if found != kind:
        raise ModelError(asked, f"{folder} holds a {found} model", f"give the folder of a {kind} model")
