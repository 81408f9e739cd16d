"""Equal blocks of a skeleton are run once, and counted as if each had been run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hf_models import write_folder
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from umcompress.models.measure import Weight, weigh
from umcompress.models.source import open_source
from umcompress.plan.walk import checked_skeleton

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "vocab_size": 96,
}  # fmt: skip


def weighed(folder: Path, once: bool) -> tuple[Weight, Counter[str]]:
    """What a skeleton weighs, and how often each block of its stacks ran."""
    source = open_source(str(folder))
    model = checked_skeleton(source)
    ran: Counter[str] = Counter()
    for path, module in model.named_modules():
        if path.rpartition(".")[0].endswith("layers"):
            # A hook of a part and not of the block: the block itself is called, and does not run.
            part = next(module.children())
            part.register_forward_pre_hook(lambda *_, path=path, **__: ran.update([path]), with_kwargs=True)
    with pytest.MonkeyPatch.context() as patch:
        if not once:
            patch.setattr("umcompress.models.measure.equal_blocks", lambda _: {})
        return weigh(model, source.family, source.runner(model)), ran


def mixture(folder: Path) -> Path:
    """Four blocks of two kinds."""
    config = Qwen3MoeConfig(
        **SIZES, num_hidden_layers=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
        mlp_only_layers=[1, 2], decoder_sparse_step=1,
    )  # fmt: skip
    return write_folder(Qwen3MoeForCausalLM(config), folder)


def sliding(folder: Path) -> Path:
    """Every second block looks back less far."""
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(**SIZES, num_hidden_layers=4, layer_types=kinds, sliding_window=8)
    return write_folder(Gemma3ForCausalLM(config), folder)


@pytest.mark.parametrize("make", [mixture, sliding])
def test_they_are_run_once_and_counted_each(make: object, tmp_path: Path) -> None:
    assert callable(make)
    folder = make(tmp_path / "model")
    whole, every = weighed(folder, once=False)
    counted, some = weighed(folder, once=True)
    assert counted == whole and whole.reads["understanding"]
    assert len(every) == 4 and len(some) == 2 and set(some) < set(every)


def test_both_streams_of_bagel(tiny_bagel: Path) -> None:
    whole, every = weighed(tiny_bagel, once=False)
    counted, some = weighed(tiny_bagel, once=True)
    assert counted == whole and whole.macs_per_token["generation"] > 0
    assert sum(some.values()) < sum(every.values())
