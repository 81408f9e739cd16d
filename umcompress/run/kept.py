"""What need not be measured again: the tasks of which a step left every weight as it was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from umcompress.documents.base import Task
from umcompress.documents.report import StepReport
from umcompress.documents.scores import Score
from umcompress.extend.evaluation_base import Evaluation
from umcompress.models.runner import Runner

# Of each tensor: its name when it was last changed, and how many plans the model had been through then.
Origins = Mapping[str, tuple[str, int]]


@dataclass(frozen=True)
class Above:
    """The step that another one starts from, as it was measured: what each task reads, where its tensors come from."""

    report: StepReport
    reads: Mapping[Task, frozenset[str]]
    origins: Origins

    def kept(self, reads: Mapping[Task, frozenset[str]], origins: Origins) -> dict[Task, str]:
        """The tasks that the next step left alone, with the name of the step at which each was measured.

        reads, origins: of the model after that step.  A tensor that no task is seen to read (an autoencoder that runs
        once a picture) may belong to any of them.
        """
        changed = {n for n in origins.keys() | self.origins.keys() if origins.get(n) != self.origins.get(n)}
        found = {}
        for task in reads.keys() & self.reads.keys():
            others = chain(*(names[other] for names in (reads, self.reads) for other in names if other != task))
            if changed.isdisjoint(reads[task] | self.reads[task]) and changed <= set(others):
                found[task] = self.report.kept.get(task, self.report.name)
        return found

    def scores(self, evaluation: Evaluation, kept: Mapping[Task, str]) -> dict[Task, Score]:
        """What need not be scored again.  At the baseline a comparison with it has nothing to say, later it has."""
        known = self.report.evaluations.get(evaluation.name, {})
        return {task: score for task, score in known.items() if task in kept}


def narrowed(runner: Runner, without: Mapping[Task, object]) -> Runner:
    """The runner with fewer tasks: evaluations score those that it has."""
    if not without:
        return runner
    fewer = copy.copy(runner)
    fewer.tasks = tuple(task for task in runner.tasks if task not in without)
    return fewer

