"""Time a model against the unpruned one, in turn, until the interval is tight enough and no longer."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence

from umcompress.documents.base import Task
from umcompress.documents.report import Speed
from umcompress.models.runner import Runner, Work
from umcompress.progress import Progress, say

FEWEST, MOST = 3, 12
# Rounds end when the interval of the ratio is this narrow (relative, to either side), or after so many seconds.
TIGHT, SECONDS = 0.02, 20.0
# With fewer values than this even the whole range is no 95 % interval of a median.
_ENOUGH = 6


class Stopwatch:
    """Times a model against the unpruned one, in turn, in this process.

    On a GPU a second copy of the weights may not fit, and clocks are steady: there the unpruned model is timed
    once, at the start.
    """

    def __init__(self, dense: Runner, paired: bool) -> None:
        self._dense = dense if paired else None
        self._warm: set[Task] = set()
        self._once = {} if paired else {task: _own(dense, task) for task in dense.tasks}

    def compare(self, runner: Runner, tasks: Iterable[Task]) -> dict[Task, Speed]:
        """Median ratio dense / this of each task's seconds (above 1: faster), with its noise."""
        return {task: self._task(runner, task) for task in tasks}

    def _task(self, runner: Runner, task: Task) -> Speed:
        runner.workload(task)
        if self._dense is not None and task not in self._warm:
            self._warm.add(task)
            self._dense.workload(task)
        ratios: list[float] = []
        works: list[Work] = []
        started = time.monotonic()
        with _rounds(task) as shown:
            while not _enough(ratios, started):
                before = self._unpruned(task, len(works))
                works.append(runner.workload(task))
                ratios.append(before / works[-1].seconds)
                shown.advance(1)
        return Speed(ratio=statistics.median(ratios), measures=_medians(works), noise=relative_noise(ratios))

    def _unpruned(self, task: Task, index: int) -> float:
        if self._dense is not None:
            return self._dense.workload(task).seconds
        times = self._once[task]
        return times[index % len(times)].seconds


def own_speed(runner: Runner, tasks: Iterable[Task]) -> dict[Task, Speed]:
    """The unpruned model's own figures; its ratio is 1 by definition."""
    return {task: Speed(ratio=1.0, measures=_medians(_own(runner, task))) for task in tasks}


def relative_noise(ratios: Sequence[float]) -> float:
    """Half of the 95 % interval of the median over the median: by ranks, whatever the distribution.

    Where there are fewer than six values, half of their range.
    """
    ordered, count = sorted(ratios), len(ratios)
    cut, below = 0, 2.0 ** (1 - count)
    while count >= _ENOUGH and below + 2 * math.comb(count, cut + 1) / 2**count <= 0.05:
        cut += 1
        below += 2 * math.comb(count, cut) / 2**count
    return (ordered[count - 1 - cut] - ordered[cut]) / 2 / statistics.median(ordered)


def _enough(values: Sequence[float], started: float) -> bool:
    """Whether no further round is needed.  Of less than six values the range says too little: it counts double."""
    if len(values) < FEWEST:
        return False
    noise = relative_noise(values) * (1 if len(values) >= _ENOUGH else 2)
    return noise <= TIGHT or len(values) >= MOST or time.monotonic() - started > SECONDS


def _own(runner: Runner, task: Task) -> list[Work]:
    """A model's own works, the first one left out: it warms up."""
    runner.workload(task)
    works: list[Work] = []
    started = time.monotonic()
    with _rounds(task) as shown:
        while not _enough([work.seconds for work in works], started):
            works.append(runner.workload(task))
            shown.advance(1)
    return works


def _rounds(task: Task) -> Progress:
    return Progress(f"measuring {task}", "rounds at most", MOST, 0, say, headed=False)


def _medians(works: Sequence[Work]) -> dict[str, float]:
    return {name: statistics.median(work.measures[name] for work in works) for name in works[0].measures}
