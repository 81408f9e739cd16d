"""The tokenizer of a BAGEL folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from umcompress.errors import ModelError


class FolderTokenizer:
    """The tokenizer of the folder, by the `tokenizers` library where it can be (no slow imports)."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        self.encode: Callable[[str], list[int]]
        self.decode: Callable[[list[int]], str]
        if path.exists():
            from tokenizers import Tokenizer

            try:
                fast = Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises this and nothing narrower
                raise _no_tokenizer(folder, f"tokenizer.json is not readable: {error}") from error
            self.encode = lambda text: list(fast.encode(text, add_special_tokens=False).ids)
            self.decode = lambda ids: str(fast.decode(ids, skip_special_tokens=True))
            return
        if not (folder / "vocab.json").exists():
            raise _no_tokenizer(folder, "neither tokenizer.json nor vocab.json")
        from transformers import AutoTokenizer

        try:
            slow = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise _no_tokenizer(folder, str(error)) from error
        self.encode = lambda text: list(slow(text, add_special_tokens=False)["input_ids"])
        self.decode = lambda ids: str(slow.decode(ids, skip_special_tokens=True))

    def ids(self, text: str) -> Tensor:
        return torch.tensor(self.encode(text), dtype=torch.long)


def _no_tokenizer(folder: Path, found: str) -> ModelError:
    do = "copy the tokenizer files of the model into its folder"
    return ModelError(f"the tokenizer of {folder}", found, do)
