"""Log-likelihoods of continuations: a prompt is read once for all of its own, and logits are made where they count.

Shapes: B prompts of equal length P, R continuations of them, of at most C tokens; V tokens in all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from umcompress.models.hf.ask.rest import at_rest, reads_by_length
from umcompress.models.runner import Likelihood, likelihood

# Token ids of a prompt, and of what is scored after it.
Pair = tuple[list[int], list[int]]
Check = Callable[[Tensor], Tensor]
# Tokens, read before or scored, of one batch of continuations.
TOKENS = 16384


def likelihoods(
    model: Any, pairs: Sequence[Pair], check: Check, batch_tokens: int, prompts_once: bool
) -> list[Likelihood]:
    """Of each pair.  What shares a batch changes them by rounding only.

    check: looks at logits (..., V).  batch_tokens: of texts that are read whole.  prompts_once: of a model that
    `keeps_keys_and_values`.
    """
    found: dict[int, Likelihood] = {}
    if prompts_once:
        for part in _of_one_prompt_length(pairs):
            found |= _after_prompts(model, {place: pairs[place] for place in part}, check)
    else:
        for part in _by_length(pairs, 1 if reads_by_length(model) else batch_tokens):
            found |= _whole({place: pairs[place] for place in part}, model, check)
    return [found[place] for place in range(len(pairs))]


@torch.no_grad()
def keeps_keys_and_values(model: PreTrainedModel) -> bool:
    """Whether all that a model keeps of what it has read are keys and values, each of one token."""
    if reads_by_length(model) or getattr(model.config, "is_encoder_decoder", False):
        return False
    with at_rest(model):
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        kept = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
    return type(kept) is DynamicCache and bool(kept.layers) and all(type(one) is DynamicLayer for one in kept.layers)


def _of_one_prompt_length(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """The places of pairs whose prompts are of one length, equal prompts beside each other, in batches."""
    part: list[int] = []
    longest = 0
    for place in sorted(range(len(pairs)), key=lambda one: (len(pairs[one][0]), pairs[one][0], len(pairs[one][1]))):
        before, after = pairs[place]
        longest = max(longest, len(after))
        new = part and len(pairs[part[0]][0]) != len(before)
        if new or (part and (len(part) + 1) * (len(before) + longest) > TOKENS):
            yield part
            part, longest = [], len(after)
        part.append(place)
    if part:
        yield part


def _after_prompts(model: Any, pairs: Mapping[int, Pair], check: Check) -> dict[int, Likelihood]:
    """The prompts once, then what follows each of them but its last token: that is scored and never read."""
    numbers: dict[tuple[int, ...], int] = {}
    rows = [numbers.setdefault(tuple(before), len(numbers)) for before, _ in pairs.values()]
    ids = torch.tensor(list(numbers), device=model.device)
    longest = max(len(after) for _, after in pairs.values())
    with at_rest(model):
        out = model(input_ids=ids, use_cache=True, **_last_logits(model))
        first = check(out.logits[:, -1:])[rows]
        logits = first
        if longest > 1:
            read = _right_padded([after[:-1] for _, after in pairs.values()], longest - 1).to(model.device)
            kept = out.past_key_values
            kept.batch_select_indices(torch.tensor(rows, device=model.device))
            logits = torch.cat([first, model(input_ids=read, past_key_values=kept, use_cache=True).logits], dim=1)
    found = {}
    for row, (place, (_, after)) in zip(logits, pairs.items(), strict=True):
        found[place] = likelihood(check(row[: len(after)]) if after else row[:0], torch.tensor(after, dtype=torch.long))
    return found


def _last_logits(model: Any) -> dict[str, int]:
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(model).forward).parameters else {}


def _by_length(pairs: Sequence[Pair], tokens: int) -> Iterator[list[int]]:
    """The places of pairs, shortest first, in batches of about so many tokens."""
    part: list[int] = []
    for place in sorted(range(len(pairs)), key=lambda one: (len(pairs[one][0]) + len(pairs[one][1]))):
        if part and (len(part) + 1) * (len(pairs[place][0]) + len(pairs[place][1])) > tokens:
            yield part
            part = []
        part.append(place)
    if part:
        yield part


def _whole(pairs: Mapping[int, Pair], model: Any, check: Check) -> dict[int, Likelihood]:
    """Each prompt with its continuation as one text; logits from the first place on that any of them is scored at."""
    texts = [before + after for before, after in pairs.values()]
    longest = max(map(len, texts))
    ids = _right_padded(texts, longest)
    mask = _right_padded([[1] * len(text) for text in texts], longest)
    start = min(len(before) for before, _ in pairs.values()) - 1
    with at_rest(model):
        call = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        logits = logits_from(model, call, start)
    found = {}
    for row, (place, (before, after)) in zip(logits, pairs.items(), strict=True):
        rows = row[len(before) - 1 - start : len(before) + len(after) - 1 - start]
        found[place] = likelihood(check(rows) if after else rows, torch.tensor(after, dtype=torch.long))
    return found


def logits_from(model: Any, call: Mapping[str, Any], first: int) -> Tensor:
    """(B, T - first, V) logits from token `first` on; a model that takes `logits_to_keep` computes no others."""
    keep = call["input_ids"].shape[1] - first
    keeps = first > 0 and "logits_to_keep" in inspect.signature(type(model).forward).parameters
    logits: Tensor = model(**call, **({"logits_to_keep": keep} if keeps else {}), use_cache=False).logits
    return logits[:, -keep:]


def _right_padded(rows: Sequence[Sequence[int]], longest: int) -> Tensor:
    """(B, longest), zeros where there is nothing."""
    whole = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        whole[place, : len(row)] = torch.tensor(row, dtype=torch.long)
    return whole
