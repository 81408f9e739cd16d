"""Folders that hold a model: most are one; a pipeline of diffusers has a folder for each of its parts."""

from __future__ import annotations

from pathlib import Path

# What a pipeline of diffusers has in its folder: which part is of which class.
INDEX = "model_index.json"
# That of the pipeline which a compressed one was made from.
BASE_INDEX = "base_model_index.json"


# Without any of these transformers may make up a tokenizer that knows no word.
_TOKENIZER = ("tokenizer.*", "tokenizer_config.json", "vocab.*", "*.tiktoken", "*.model")


def tokenizer_files(folder: Path) -> list[Path]:
    """The files in a folder that make a tokenizer."""
    return sorted({file for pattern in _TOKENIZER for file in folder.glob(pattern) if file.is_file()})


def beside(folder: Path) -> Path | None:
    """The folder of the tokenizer of a pipeline's part, which lies beside it: `tokenizer_2` of `text_encoder_2`."""
    found = folder.parent / folder.name.replace("text_encoder", "tokenizer")
    inside = (folder.parent / INDEX).is_file() and found != folder
    return found if inside and tokenizer_files(found) else None


def folders_of(folder: Path) -> list[Path]:
    """The folder itself, and those of its parts if it is a pipeline's."""
    if not (folder / INDEX).is_file():
        return [folder]
    return [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))]


def files_of(folder: Path) -> list[Path]:
    """All files of a model, sorted by name within each folder."""
    return [path for part in folders_of(folder) for path in sorted(part.iterdir()) if path.is_file()]


def tokenizer_beside(folder: Path) -> list[Path]:
    """The files of the tokenizer that lies beside a part of a pipeline which has none of its own."""
    other = None if tokenizer_files(folder) or not folder.is_dir() else beside(folder.resolve())
    return [] if other is None else sorted(path for path in other.iterdir() if path.is_file())
