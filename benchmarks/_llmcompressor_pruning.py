"""What Wanda and SparseGPT cost in llm-compressor, run by calibration.py in an environment that has it.

MODEL TEXTS ROUNDS; TEXTS holds token ids (N, T). Each round: a plain forward of all texts in batches of 8, then half of
the weights pruned by each method with the same batches, on a copy of the model. Prints the medians of the ratios of
processor time as JSON.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def main() -> None:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning.sparsegpt.base import SparseGPTModifier
    from llmcompressor.modifiers.pruning.wanda.base import WandaPruningModifier
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder, texts, rounds = sys.argv[1], torch.load(sys.argv[2]), int(sys.argv[3])
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    rows: Any = [{"input_ids": text, "attention_mask": torch.ones_like(text)} for text in texts]
    batches = DataLoader(rows, batch_size=8)
    # It is asked for one, though all texts are ids already.
    kind_of_tokenizer: Any = PreTrainedTokenizerFast
    unused = kind_of_tokenizer(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), pad_token="a")

    @torch.no_grad()
    def plain() -> None:
        for batch in batches:
            model.model(**batch, use_cache=False)

    kinds = {"Wanda": WandaPruningModifier, "SparseGPT": SparseGPTModifier}
    timed: list[dict[str, float]] = []
    for _ in range(rounds):
        row = {"plain": _processor(plain)}
        for name, kind in kinds.items():
            copied = copy.deepcopy(model)
            recipe = kind(sparsity=0.5, targets=["Linear"], ignore=["lm_head"])
            row[name] = _processor(partial(oneshot, model=copied, dataset=batches, recipe=recipe, tokenizer=unused))
        timed.append(row)
    print(json.dumps({name: statistics.median(row[name] / row["plain"] for row in timed) for name in kinds}))


def _processor(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
