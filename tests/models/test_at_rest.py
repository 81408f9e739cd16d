"""No measurement depends on what ran before it: dynamic NTK rope keeps how far it was stretched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hf_models import write_folder
from transformers import LlamaConfig, LlamaForCausalLM

from umcompress.calibrate.collect import collect
from umcompress.extend import BlockSimilarity, Scope, TextSample
from umcompress.graph.model_graph import trace_model
from umcompress.models.source import open_source

LONG = "a long text that goes on far beyond what the model was made for, again and again and again" * 2
SHORT = "some forty characters: more than the 24 it has"


@pytest.fixture(scope="module", params=["dynamic", "longrope"])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    rope: dict[str, Any] = {"rope_type": request.param, "rope_theta": 10000.0, "factor": 4.0}
    if request.param == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
        rope |= factors | {"original_max_position_embeddings": 24}
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=24, rope_parameters=rope,
    )  # fmt: skip
    folder = write_folder(LlamaForCausalLM(config), tmp_path_factory.mktemp(request.param))
    source = open_source(str(folder))
    return source.runner(source.load())


def logits(runner: Any) -> Any:
    return runner.logits(torch.tensor([runner.tokenizer.continuation_ids(SHORT)])).tolist()


def similarity(runner: Any) -> Any:
    need = BlockSimilarity(Scope("shared"))
    graph = trace_model(runner.model, open_source(str(runner.folder)).family)
    measured = collect(graph, [need], lambda: runner.feed([TextSample(SHORT)]))[need]
    return [measured[block, "shared"].cosine for block in graph.blocks()]


MEASURED: dict[str, Callable[[Any], Any]] = {
    "logits": logits,
    "likelihoods": lambda runner: runner.score([None], ["some"], [[SHORT]]),
    "answers": lambda runner: runner.answer([None], [SHORT], 8),
    "similarities": similarity,
    "probe": lambda runner: {name: value.tolist() for name, value in runner.probe().items()},
}
BEFORE: dict[str, Callable[[Any], Any]] = {
    "a long text": lambda runner: runner.model(torch.tensor([runner.tokenizer.continuation_ids(LONG)])),
    "timing": lambda runner: runner.workload("understanding"),
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", MEASURED)
def test_what_ran_before_changes_nothing(runner: Any, name: str, before: str) -> None:
    first = MEASURED[name](runner)
    with torch.no_grad():
        BEFORE[before](runner)
    assert MEASURED[name](runner) == first


def test_a_text_beside_a_longer_one_is_read_as_alone(runner: Any) -> None:
    alone = runner.score([None], ["some"], [[SHORT]])[0][0].nats
    beside = runner.score([None, None], ["some", "some"], [[SHORT], [LONG]])[0][0].nats
    assert beside == pytest.approx(alone, abs=1e-4)
    answers = runner.answer([None, None], [SHORT, LONG], 8)
    assert answers[0] == runner.answer([None], [SHORT], 8)[0]


def test_a_model_that_read_a_long_text_is_as_it_was_built(runner: Any) -> None:
    built = {name: value.clone() for name, value in runner.model.named_buffers()}
    runner.feed([TextSample(LONG)])
    for name, value in runner.model.named_buffers():
        assert torch.equal(value, built[name]), name
