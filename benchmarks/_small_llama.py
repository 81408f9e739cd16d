"""A small Llama trained from nothing on text that every Python has: the docstrings of its standard library.

Random models cannot tell a good choice of channels from a bad one; this one can.
"""

from __future__ import annotations

import ast
import math
import pydoc_data.topics
import random
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SCORED = 0.1
WINDOW, BATCH = 256, 16
SIZES: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 6,
    "num_key_value_heads": 3, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
# A third of the parameters, for what has to be done many times.
SMALLER: dict[str, Any] = SIZES | {
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def corpus() -> str:
    """Docstrings and the language reference's topics, once each, in an order that is always the same."""
    found = dict.fromkeys(text.strip() for text in pydoc_data.topics.topics.values())
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"test", "tests", "site-packages", "idlelib"} & set(file.parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 80:
                    found[text.strip()] = None
    texts = list(found)
    random.Random(0).shuffle(texts)
    return "\n\n".join(texts) + "\n"


def train(folder: Path, steps: int, sizes: Mapping[str, Any] = SIZES, window: int = WINDOW) -> None:
    """Write `text.txt` and the model's folder `model`, with its tokenizer.  window: tokens of a row."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    text = corpus()
    (folder / "text.txt").write_text(text, encoding="utf-8")
    learnt = text[: int(len(text) * (1 - SCORED))]
    tokenizer = _tokenizer(learnt)
    ids = torch.tensor(tokenizer(learnt)["input_ids"])
    print(f"{len(text):,} characters, {len(ids):,} tokens to learn from", flush=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    drawn = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 40) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))
        rows = _rows(ids, drawn, window)
        # In float32: processors without bfloat16 units take ten times as long for bfloat16.
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def _rows(ids: Tensor, drawn: torch.Generator, window: int) -> Tensor:
    starts = torch.randint(len(ids) - window, (BATCH,), generator=drawn)
    return torch.stack([ids[start : start + window] for start in starts])


def _tokenizer(text: str):  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"], special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(text.split("\n\n"), learner)
    marks = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<s>")
    return PreTrainedTokenizerFast(tokenizer_object=made, **marks)  # type: ignore[no-untyped-call]
