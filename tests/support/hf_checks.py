"""What holds for a model of transformers whatever was done to it: caches, gradients, bits; none of it knows graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hf_models import tokenizer
from hf_subject import Subject, subject
from hf_zoo import ZOO
from torch import Tensor

from umcompress.models.hf.ask.text_runner import TransformersRunner

IDS = torch.tensor([[7, 31, 15, 42, 9, 27, 51, 33, 12, 44, 19]])


@torch.no_grad()
def chunks_differ(model: Any) -> float:
    """Three tokens, one, four, three with a cache; all at once without."""
    whole = model(input_ids=IDS, use_cache=False).logits
    past, parts = None, []
    for part in torch.split(IDS, [3, 1, 4, 3], dim=1):
        out = model(input_ids=part, past_key_values=past, use_cache=True)
        past = out.past_key_values
        parts.append(out.logits)
    return apart(torch.cat(parts, 1), whole)


@torch.no_grad()
def padded_differ(model: Any) -> float:
    """Generated with a cache, one text padded on the left; against each text by itself without one."""
    settings: dict[str, Any] = {
        "max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True,
        "pad_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    rows = [IDS[:, :7], IDS[:, 4:8]]
    padded = torch.cat([rows[0], torch.nn.functional.pad(rows[1], (3, 0))])
    mask = (padded != 0).long()
    together = model.generate(input_ids=padded, attention_mask=mask, use_cache=True, **settings)
    worst = 0.0
    for index, row in enumerate(rows):
        alone = model.generate(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False, **settings)
        for ours, theirs in zip(together.logits, alone.logits, strict=True):
            worst = max(worst, apart(ours[index], theirs[0]))
    return worst


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Where a model forbids tokens, both say so."""
    forbidden = theirs < -1e30
    assert torch.equal(ours < -1e30, forbidden)
    assert not ours.isnan().any() and not theirs.isnan().any()
    return float((ours - theirs)[~forbidden].abs().max() / theirs[~forbidden].abs().max().clamp(min=1))


def learn(model: Any) -> None:
    """Gradients of the probe's outputs; forbidden tokens count for nothing."""
    probe: Any = TransformersRunner.probe
    with torch.enable_grad():
        found = probe.__wrapped__(TransformersRunner(model, Path()))
        parts = [value.nan_to_num(0).clamp(min=-1e6).square().mean() for value in found.values()]
        torch.autograd.backward(torch.stack(parts).sum())


def dead(one: Subject, stack: str) -> set[str]:
    """Parameters that get no gradient in the unedited model either, by their names within a block."""
    model = copy.deepcopy(one.model)
    learn(model)
    named = model.get_submodule(one.graph.stacks[stack]).named_parameters()
    return {key.split(".", 1)[1] for key, p in named if p.grad is None or not p.grad.abs().max() > 0}


def folders(home: Callable[[str], Path]) -> Callable[[str], Path]:
    """name -> its folder as transformers writes it, in float32, with a tokenizer; each in a home of its own."""
    made: dict[str, Path] = {}

    def source(name: str) -> Path:
        if name not in made:
            made[name] = home("sources") / name
            whole: Any = ZOO[name].build().eval()  # type: ignore[no-untyped-call]
            whole.load_state_dict({key: value.float() for key, value in subject(name).model.state_dict().items()})
            whole.save_pretrained(made[name])
            tokenizer().save_pretrained(made[name])
        return made[name]

    return source


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """To the last bit."""
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value.nan_to_num(0), theirs[key].nan_to_num(0)), key
