"""What is shown of long work: bars with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from fake_runners import Clock
from hf_models import write_folder
from hf_zoo import TEXT

from umcompress import progress
from umcompress.documents.report import Speed
from umcompress.models import stopwatch
from umcompress.models.items import GenerationItem, TextSample
from umcompress.models.source import open_source
from umcompress.progress import EVERY, counting, passed, say
from umcompress.recipe.recipe import Recipe
from umcompress.run.in_memory import InMemory
from umcompress.run.out_of_core import open_on_disk


class Terminal(io.StringIO):
    """Takes what is drawn, as a terminal would."""

    def isatty(self) -> bool:
        return True


def fake_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In place of stderr; not a fixture, for pytest puts its own stream there between fixtures and the test."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return shown


class Heard:
    """Keeps how far each display came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ended: list[tuple[str, str, int, int]] = []
        leave = progress.Progress.__exit__

        def left(display: progress.Progress, *error: Any) -> None:
            counted = display.remaining
            self.ended.append((display.label, display.unit, counted.done, counted.total))
            leave(display, *error)

        monkeypatch.setattr(progress.Progress, "__exit__", left)


def test_a_bar_with_the_time_left_and_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, now = fake_terminal(monkeypatch), [0.0]
    with counting("painting", "pictures", 10, say) as shown:
        shown.remaining._clock = lambda: now[0]
        for _ in range(4):
            now[0] += 30
            passed("pictures", 2)
            passed("samples")  # nobody counts these here
        say("a line [not markup] of a hundred and more characters " + "x" * 100)
        assert shown.remaining.done == 8
    drawn = terminal.getvalue()
    assert "8/10" in drawn and "about 30 s left" in drawn and "[not markup]" in drawn
    passed("pictures")  # outside of it nobody listens
    say("after")
    assert terminal.getvalue().endswith("after\n") and not progress._BARS and not progress._HEARING


def test_piped_it_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with counting("painting", "pictures", 100, said.append) as shown:
        now = [0.0]
        shown._clock, shown._told, shown.remaining._clock = (lambda: now[0]), 0.0, (lambda: now[0])
        for _ in range(100):
            now[0] += EVERY / 20
            passed("pictures")
        shown.reach(100)
    assert len(said) == 4 and said[0].startswith("painting: 20 of 100 pictures, about")


def test_the_innermost_display_of_a_unit_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(monkeypatch)
    with counting("all", "pictures", 4, say), pytest.raises(RuntimeError), counting("some", "pictures", 2, say):
        passed("pictures")
        raise RuntimeError
    assert [(label, done) for label, _, done, _ in heard.ended] == [("some", 1), ("all", 0)]
    assert not progress._HEARING


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)), tmp_path_factory.mktemp("models") / "llama")


def test_calibration_counts_samples_in_memory_and_blocks_on_disk(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, texts = Heard(monkeypatch), [TextSample("some words"), TextSample("other words"), TextSample("more")]
    source = open_source(str(llama))
    InMemory(Recipe(model=str(llama), steps=()), source).feed(texts)
    open_on_disk(source).feed(texts)
    layers = int(TEXT["num_hidden_layers"])
    assert heard.ended == [("calibrating", "samples", 3, 3), ("calibrating", "blocks", layers, layers)]


def test_pictures_and_calibration_of_bagel_are_counted(tiny_bagel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, source = Heard(monkeypatch), open_source(str(tiny_bagel))
    runner = source.runner(source.load())
    with counting("painting", "pictures", 2, say), counting("calibrating", "samples", 1, say):
        runner.generate(["a red circle", "a blue square"], 0)
        runner.feed([GenerationItem("a red circle", 0)])
    assert [(unit, done) for _, unit, done, _ in heard.ended] == [("samples", 1), ("pictures", 2)]


def test_timing_counts_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, runner = Heard(monkeypatch), Clock(1.0)
    watch = stopwatch.Stopwatch(runner, paired=True)
    found = watch.compare(runner, ["understanding"])
    assert isinstance(found["understanding"], Speed) and found["understanding"].ratio == 1
    assert heard.ended == [("measuring understanding", "rounds at most", stopwatch.FEWEST, stopwatch.MOST)]
