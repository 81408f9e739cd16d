"""Perplexity and agreement against references computed position by position in float64."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import write_folder, write_recipe
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from umcompress.cli.main import main
from umcompress.documents.scores import change
from umcompress.errors import PlanError, UsageError
from umcompress.evals.text._text import windows
from umcompress.evals.text.agreement import compared
from umcompress.evals.text.perplexity import Perplexity, token_weighted
from umcompress.models.source import open_source

WORDS = "the cat sat on a mat and the dog ran far away from it all; nobody knows why.\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )
    return write_folder(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{i} {WORDS}" for i in range(20)))
    return path


@given(tokens=st.integers(2, 400), window=st.integers(2, 60), data=st.data())
def test_windows_score_every_token_but_the_first_once(tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    found = windows(tokens, window, stride)
    scored = [place for _, end, first in found for place in range(first, end)]
    assert scored == list(range(1, tokens))
    assert all(0 <= start < first < end and end - 1 - start <= window for start, end, first in found)


def reference_nats(
    folder: Path, ids: list[int], parts: list[tuple[int, int, int]], before: tuple[int, ...] = ()
) -> list[list[float]]:
    """Negative log-likelihood of each scored token, one forward of the float64 model for each of them."""
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    nats = []
    for start, end, first in parts:
        of_window = []
        for place in range(first, end):
            with torch.no_grad():
                logits = model(torch.tensor([[*before, *ids[start:place]]])).logits[0, -1]
            of_window.append(-float(logits.log_softmax(-1)[ids[place]]))
        nats.append(of_window)
    return nats


@pytest.mark.parametrize(("window", "stride"), [(24, 24), (24, 7)])
def test_perplexity_is_that_of_single_predictions(
    llama: Path, text: Path, tmp_path: Path, window: int, stride: int
) -> None:
    source = open_source(str(llama))
    runner: Any = source.runner(source.load())
    evaluation = Perplexity(data=text, window=window, stride=stride, limit=5)
    score = evaluation.run(runner, tmp_path, print)["understanding"]
    ids = runner.tokenizer.continuation_ids(evaluation.parts()[1])
    nats = [x for one in reference_nats(llama, ids, windows(len(ids), window, stride)[:5]) for x in one]
    assert score.numbers["perplexity"].value == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)
    assert score.value == pytest.approx(math.exp(-sum(nats) / len(nats)), rel=1e-5)
    # Here every character is a token; the line feeds are unknown ones, of which the tokenizer gives nothing back.
    size = len(evaluation.parts()[1][: windows(len(ids), window, stride)[4][1]].encode())
    assert score.numbers["bits_per_byte"].value == pytest.approx(sum(nats) / size / math.log(2), rel=1e-5)
    assert score.partial == f"5 of {len(windows(len(ids), window, stride))}" and score.n == len(nats)


def test_windows_can_begin_with_the_token_that_begins_texts(llama: Path, text: Path, tmp_path: Path) -> None:
    """Left out, as lm-eval does: for Gemma only."""
    source = open_source(str(llama))
    runner: Any = source.runner(source.load())
    options: dict[str, Any] = {"data": text, "window": 24, "stride": 9, "limit": 3}
    found: dict[Any, float] = {}
    for bos in (True, False, None):
        evaluation = Perplexity(**options, bos=bos)
        score = evaluation.run(runner, tmp_path / str(bos), print)["understanding"]
        found[bos] = score.numbers["perplexity"].value
    ids = runner.tokenizer.continuation_ids(evaluation.parts()[1])
    for bos, first in ((True, (1,)), (False, ())):
        nats = [x for one in reference_nats(llama, ids, windows(len(ids), 24, 9)[:3], first) for x in one]
        assert found[bos] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)
    assert found[None] == found[False] != found[True]
    runner.model.config.model_type = "gemma2"
    assert evaluation.run(runner, tmp_path / "gemma", print)["understanding"].numbers[
        "perplexity"
    ].value == pytest.approx(found[True], rel=1e-6)
    runner.max_text_tokens = 256
    with pytest.raises(UsageError, match="set window: 255, or bos: false"):
        Perplexity(data=text, window=256, bos=True).suits(runner)


def test_agreement_of_known_distributions() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64)
    same, nats = compared(p.log() + 3, q.log() - 1)
    assert same == [0.0, 1.0]
    assert nats == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 2)


def test_both_through_the_command_line(llama: Path, text: Path, tmp_path: Path) -> None:
    """Dropping a block costs agreement; keeping everything costs nothing."""
    options = {"data": str(text), "window": 32}
    evaluate = [{"perplexity": options | {"limit": 4}}, {"agreement": options | {"tokens": 96}}]
    calibration = {"task": "understanding", "samples": 3, "source": "perplexity"}
    steps = ({"pass": "channel_prune", "keep_ratio": 1.0}, {"pass": "layer_drop", "unit": "block", "drop_count": 1})
    evaluate[0]["perplexity"]["sample_characters"] = 60
    recipe = write_recipe(tmp_path, llama, *steps, evaluate=evaluate, calibration=calibration)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    same, worse = (step["evaluations"]["agreement"]["understanding"] for step in report["steps"][1:])
    assert same["value"] == 1.0 and same["numbers"]["kl"]["value"] == 0.0
    assert worse["value"] < 1.0 and worse["numbers"]["kl"]["value"] > 0.0
    perplexities = [
        step["evaluations"]["perplexity"]["understanding"]["numbers"]["perplexity"]["value"]
        for step in report["steps"]
    ]
    assert perplexities[0] == perplexities[1] != perplexities[2]


def test_calibration_text_is_never_scored(tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("".join(f"word{i} \n" for i in range(500)))
    evaluation = Perplexity(data=text, sample_characters=50)
    held, scored = evaluation.parts()
    items = evaluation.calibration_items("understanding", 20, 0)
    assert all(item.text in held and item.text not in scored for item in items)
    assert items == evaluation.calibration_items("understanding", 20, 0)
    assert items != evaluation.training_items("understanding", 20, 1)
    with pytest.raises(PlanError, match="characters are held out"):
        evaluation.model_copy(update={"sample_characters": 10_000}).calibration_items("understanding", 1, 0)


def test_a_text_of_one_line_is_cut_between_words(tmp_path: Path) -> None:
    """As text8 is: without line ends nothing could calibrate."""
    (tmp_path / "text.txt").write_text("seven " * 1000)
    held, scored = Perplexity(data=tmp_path).parts()
    assert held == "seven " * 201 and scored == "seven " * 799


def test_missing_and_unreadable_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"text\.txt"):
        Perplexity(data=tmp_path).check()
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no UTF-8"):
        Perplexity(data=tmp_path).check()
    with pytest.raises(ValueError, match="stride"):
        Perplexity(window=8, stride=9)


def test_a_change_of_perplexity_is_compared_window_by_window() -> None:
    """Windows of which some are hard, all a little worse: seen in pairs, lost in the spread without them."""
    counts = [16] * 12
    easy = [16 * (1.0 + 0.3 * (index % 4)) for index in range(12)]
    before = token_weighted(easy, counts, 1000).model_copy(update={"items_of": "text"})
    worse = token_weighted([1.03 * loss for loss in easy], counts, 1000).model_copy(update={"items_of": "text"})
    assert math.exp(-sum(before.items) / 12) == pytest.approx(before.value)
    paired = change(worse, before)
    assert paired.paired and paired.beyond_noise and paired.value == pytest.approx(worse.value - before.value)
    alone = change(worse, before.model_copy(update={"items_of": "another text"}))
    assert not alone.paired and not alone.beyond_noise
    # Independently: the same change of windows that are drawn anew, many times.
    draw, changes = random.Random(0), []
    for _ in range(4000):
        drawn = [easy[draw.randrange(12)] for _ in easy]
        changes.append(math.exp(-1.03 * sum(drawn) / 192) - math.exp(-sum(drawn) / 192))
    spread = statistics.stdev(changes) * (12 / 11) ** 0.5
    assert (paired.high - paired.low) / 2 == pytest.approx(2.200985 * spread, rel=0.1)


def test_a_text_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "wiki.test.txt").write_text("a text\n" * 20, encoding="utf-8")
    with pytest.raises(UsageError, match=r"wiki\.tst\.txt\n.*no such file\n.*did you mean 'wiki\.test\.txt'"):
        Perplexity(data=tmp_path / "wiki.tst.txt").check()
    with pytest.raises(UsageError, match=r"put text\.txt there"):
        Perplexity(data=tmp_path / "folder").check()
