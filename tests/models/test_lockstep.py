"""Calibration data pass the blocks together: each block is read once for all of them, and nothing else changes."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import write_folder
from hf_zoo import ZOO

from umcompress.calibrate.collect import collect
from umcompress.calibrate.declare import BlockSimilarity, ChannelActivation, ChannelMoments, Declaration
from umcompress.graph.model_graph import trace_model
from umcompress.models.items import GenerationItem, TextSample, UnderstandingItem
from umcompress.models.lockstep import Lockstep
from umcompress.models.source import open_source
from umcompress.models.streamed import LARGE, feed_together, streamed
from umcompress.run.out_of_core import OnDisk, open_on_disk


def test_runs_stop_together_and_never_compute_at_once() -> None:
    lockstep, order, busy = Lockstep(), [], threading.Lock()

    def work(name: str, stops: int) -> None:
        for stop in range(stops):
            lockstep.pause()
            assert busy.acquire(blocking=False)
            order.append((stop, name))
            busy.release()

    lockstep.run([partial(work, "a", 2), partial(work, "b", 3), partial(work, "c", 1)])
    assert order == [(0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "b"), (2, "b")]
    lockstep.pause()
    lockstep.run([])


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_ends_all_and_comes_out(failing: int) -> None:
    lockstep, ended = Lockstep(), []

    def work(place: int) -> None:
        try:
            lockstep.pause()
            if place == failing:
                raise ValueError(place)
            lockstep.pause()
            lockstep.pause()
            ended.append(place)
        finally:
            ended.append(-place)

    before = threading.active_count()
    with pytest.raises(ValueError, match=str(failing)):
        lockstep.run([partial(work, place) for place in range(3)])
    assert sorted(ended) == [-2, -1, 0]
    assert threading.active_count() == before


class Reads:
    """Counts how often each tensor is read."""

    def __init__(self, disk: OnDisk) -> None:
        self.disk, self.count = disk, Counter[str]()

    def __call__(self, name: str) -> torch.Tensor:
        self.count[name] += 1
        return self.disk.read(name)


def fed(folder: Path, items: list[Any], together: bool) -> tuple[Reads, Any]:
    source = open_source(str(folder))
    disk = open_on_disk(source, "float32")
    reads = Reads(disk)
    graph = trace_model(disk.model, source.family, disk.read)
    needs: list[Declaration] = [BlockSimilarity(), ChannelActivation(), ChannelMoments()]

    def feed() -> None:
        with streamed(disk.model, source.family, reads) as lockstep:
            runner = source.runner(disk.model)
            if together:
                feed_together(runner, items, lockstep)
            else:
                runner.feed(items)

    with disk.disk:
        found = collect(graph, needs, feed)
    assert all(parameter.is_meta for parameter in disk.model.parameters())
    return reads, found


@pytest.mark.parametrize("large", [0, LARGE])
def test_texts_of_any_lengths_read_the_model_once(
    large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("umcompress.models.streamed.LARGE", large)
    folder = write_folder(ZOO["llama"].build(), tmp_path / "llama")
    items = [TextSample("a line of words, and more"[: 5 + length]) for length in range(9) for _ in range(2)]
    apart, wanted = fed(folder, items, together=False)
    assert max(apart.count.values()) == 9
    reads, found = fed(folder, items, together=True)
    assert set(reads.count) == set(apart.count) and set(reads.count.values()) == {1}
    for need, values in wanted.values.items():
        for key in values:
            ours, theirs = vars(found[need]._values[key]), vars(values._values[key])
            for name, value in theirs.items():
                assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(value)), (need, key, name)


def test_more_than_pass_together_read_it_once_a_wave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umcompress.models.streamed.TOGETHER", 4)
    folder = write_folder(ZOO["llama"].build(), tmp_path / "llama")
    items = [TextSample("a line of words, and more"[: 5 + length]) for length in range(9)]
    reads, _ = fed(folder, items, together=True)
    in_blocks = {count for name, count in reads.count.items() if ".layers." in name}
    assert in_blocks == {3}


def test_portions_are_all_items_and_each_passes_once(tmp_path: Path) -> None:
    folder = write_folder(ZOO["llama"].build(), tmp_path / "llama")
    source = open_source(str(folder))
    runner = source.runner(source.load())
    question = UnderstandingItem(None, "who", "me")
    items = [TextSample("abc"), TextSample("abcdef"), question, TextSample("xyz")]
    portions = runner.portions(items)
    assert sorted(map(id, items)) == sorted(id(item) for portion in portions for item in portion)
    assert [items[0], items[3]] in portions and len(portions) == 3


def test_pictures_in_the_making_share_each_step(tiny_bagel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are read for every step of sampling, not for every step of every picture, also of pictures so large
    that each has a batch of its own.
    """
    monkeypatch.setattr("umcompress.models.bagel.runner.BATCH_TOKENS", 1)
    counts = {}
    for number in (1, 3):
        source = open_source(str(tiny_bagel))
        disk = open_on_disk(source, "float32")
        reads = Reads(disk)
        items = [GenerationItem(f"a red circle {'and a blue square ' * index}", index) for index in range(number)]
        with disk.disk, streamed(disk.model, source.family, reads) as lockstep:
            feed_together(source.runner(disk.model), items, lockstep)
        counts[number] = reads.count
    assert counts[1] == counts[3]
    assert max(counts[1].values()) > 1
