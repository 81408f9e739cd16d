"""Models that keep no keys and values are timed, too: they hand a state on, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from umcompress.models.hf.ask.text_runner import NEW_TOKENS
from umcompress.models.source import open_source

SIZES: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
BUILD = {
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**SIZES, state_size=4)),
    "rwkv": lambda: hf.RwkvForCausalLM(hf.RwkvConfig(**SIZES, attention_hidden_size=32)),
    "openai-gpt": lambda: hf.OpenAIGPTLMHeadModel(
        hf.OpenAIGPTConfig(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    ),
}


@pytest.mark.parametrize("kind", list(BUILD))
def test_every_token_is_decoded_with_the_whole_text_before_it(kind: str, tmp_path: Path) -> None:
    BUILD[kind]().eval().save_pretrained(tmp_path)
    source = open_source(str(tmp_path))
    model = source.load()
    asked: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []

    def watch(module: torch.nn.Module, inputs: tuple[Any, ...], given: dict[str, Any], out: Any) -> None:
        asked.append(given["input_ids"])
        seen.append(out.logits[:, -1])

    model.register_forward_hook(watch, with_kwargs=True)
    source.runner(model).workload("understanding")
    assert len(seen) == 1 + NEW_TOKENS
    known: Any = getattr(hf, type(model).__name__).from_pretrained(tmp_path).eval()
    decoded = [ids[:, -1:] for ids in asked[1:]]
    with torch.no_grad():
        whole = known(torch.cat([asked[0], *decoded], dim=1)).logits
    torch.testing.assert_close(seen[-1], whole[:, -1], rtol=1e-4, atol=1e-5)
