"""Answers are greedy whatever a folder's generation_config.json says.

`generate` takes each setting that it is not given from the model's own: penalties for repetition, beams, tokens that
are never said. Two models would be compared by how they are asked; so while answers are made the model says no more
than which tokens begin, end and fill a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from umcompress.models.hf.ask.rest import forget_earlier_calls

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@contextmanager
def greedily(model: Any, max_new_tokens: int, **more: Any) -> Iterator[GenerationConfig]:
    """The settings for `generate` while the model's own are set aside. more: what a kind of model asks for."""
    forget_earlier_calls(model)
    before = model.generation_config
    tokens = {name: getattr(before, name, None) for name in _TOKENS}
    model.generation_config = GenerationConfig(**tokens)  # type: ignore[no-untyped-call]
    try:
        yield GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, **tokens, **more
        )
    finally:
        model.generation_config = before
        forget_earlier_calls(model)
