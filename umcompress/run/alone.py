"""Score changes of a model one at a time, each made to the unpruned model by itself.

The model is loaded once, calibrated once for each kind of data, and scored as it is once. Each score is kept in a file
of its own, so that a killed command goes on with the next one. Several processes take turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from umcompress import processes
from umcompress.calibrate.collect import collect
from umcompress.calibrate.statistics import Statistics
from umcompress.data.sources import calibration_items, seeded
from umcompress.documents.alone import AloneScore, Sizes
from umcompress.documents.atomic import write_text_atomic
from umcompress.documents.base import Document, Task
from umcompress.documents.files import is_regular, read_text
from umcompress.documents.plan import DropBlock, DropBranch, KeepChannels, KeepHeads, Plan, SplitExperts
from umcompress.documents.scores import Score, change
from umcompress.errors import PlanError, UsageError
from umcompress.extend.evaluation_base import Evaluation
from umcompress.extend.pass_base import Pass, Proposal
from umcompress.extend.users_code import call
from umcompress.graph.model_graph import ModelGraph
from umcompress.models.measure import weigh
from umcompress.models.runner import Runner
from umcompress.progress import duration, say
from umcompress.recipe.recipe import Calibration, Recipe
from umcompress.rewrite.apply import rewrite
from umcompress.run.in_memory import InMemory
from umcompress.run.sharing import SharedSource, twin

if TYPE_CHECKING:
    from umcompress.run.output_distance import OutputDistance

FOLDER = "alone"
AnyDocument = TypeVar("AnyDocument", bound=Document)


@dataclass(frozen=True)
class Choice:
    """One change: what these passes do, planned on the unpruned model, one after the other."""

    name: str
    passes: tuple[Pass, ...]


class UnprunedScore(Document):
    """The unpruned model: its losses and what it weighs."""

    scores: dict[Task, Score]
    sizes: Sizes | None = None
    parameters: int


class Alone:
    """The unpruned model, and what is measured of changes to it.

    recipe: says what calibrates.  sized: whether to count sizes and work, timed: whether to time the tasks, too.
    distant: whether to measure the distance of the outputs on the items of `loss`, and the losses of the same batches,
    in place of running `loss`.
    """

    def __init__(
        self, recipe: Recipe, source: SharedSource, loss: Evaluation, folder: Path, sized: bool = False,
        timed: bool = False, distant: bool = False,
    ) -> None:  # fmt: skip
        self.recipe, self.source, self.loss, self.distant = recipe, source, loss, distant
        self.folder, self.sized, self.timed = folder / FOLDER, sized, timed
        self.evaluations = [seeded(evaluation, recipe.seed) for evaluation in recipe.evaluate]
        self.statistics: dict[Calibration, Statistics] = {}

    @cached_property
    def held(self) -> InMemory:
        """Read when something is to be measured; rewritten is only ever a twin of its model."""
        return InMemory(self.recipe, self.source)

    @cached_property
    def graph(self) -> ModelGraph:
        return self.held.graph()

    @cached_property
    def distance(self) -> OutputDistance:
        from umcompress.run.output_distance import OutputDistance

        return OutputDistance(self.loss, self.source.runner(self.held.model))

    @cached_property
    def unpruned(self) -> UnprunedScore:
        file = self.folder / "unpruned.json"
        if (kept := _kept(file, UnprunedScore)) is not None:
            return kept
        say("the unpruned model: evaluating")
        model = self.held.model
        runner = self.source.runner(model)
        found = UnprunedScore(
            scores=self.distance.losses(runner) if self.distant else self._scores(runner),
            parameters=_parameters(model), sizes=self._sizes(model, runner, False),
        )
        processes.by_first(lambda: _keep(file, found))
        return found

    def score_all(self, choices: Sequence[Choice]) -> list[AloneScore]:
        """Of each choice what it does.  Processes share the choices; each of them gets all scores."""
        processes.by_first(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        # All together, and before they part: everything is held against it.
        assert self.unpruned
        mine = list(range(processes.rank(), len(choices), processes.world()))
        found, started, measured = list[tuple[int, AloneScore]](), time.monotonic(), 0
        with processes.by_itself():
            for place, number in enumerate(mine):
                kept = _kept(self._file(choices[number]), AloneScore)
                if kept is None:
                    left = (time.monotonic() - started) / measured * (len(mine) - place) if measured else 0.0
                    about = f"; about {duration(left)} left" if left >= 60 else ""
                    say(f"{number + 1} of {len(choices)}: {choices[number].name}{about}")
                    kept, measured = self._score(choices[number], choices), measured + 1
                found.append((number, kept))
        return [score for _, score in sorted((pair for part in processes.gather(found) for pair in part),
                                             key=lambda pair: pair[0])]  # fmt: skip

    def _file(self, choice: Choice) -> Path:
        return self.folder / f"{choice.name}.json"

    def _score(self, choice: Choice, choices: Sequence[Choice]) -> AloneScore:
        try:
            proposals = [self._proposal(planner, choices) for planner in choice.passes]
        except (PlanError, UsageError) as error:
            found = AloneScore(name=choice.name, refused=" ".join(str(error).split()))
        else:
            found = self._measured(choice.name, proposals)
        _keep(self._file(choice), found)
        return found

    def _proposal(self, planner: Pass, choices: Sequence[Choice]) -> Proposal:
        needs = call(planner, "needs")
        wanted = self.recipe.calibration_of(planner)
        statistics = self._calibrated(wanted, choices) if needs else Statistics(task=wanted.task)
        proposal: Proposal = call(planner, "plan", self.graph, statistics)
        return self.held.as_written(proposal, []) if proposal.tensors else proposal

    def _calibrated(self, wanted: Calibration, choices: Sequence[Choice]) -> Statistics:
        """All that the passes of all choices want of this data, in one sweep."""
        if wanted not in self.statistics:
            planners = (planner for choice in choices for planner in choice.passes)
            needs = [
                needed for planner in planners if self.recipe.calibration_of(planner) == wanted
                for needed in call(planner, "needs")
            ]  # fmt: skip
            self.statistics[wanted] = self.collected(wanted, needs)
        return self.statistics[wanted]

    def collected(self, wanted: Calibration, needs: Sequence[Any]) -> Statistics:
        """Statistics of the unpruned model."""
        say(f"calibrating on {wanted}")
        items = calibration_items(self.recipe, wanted, self.evaluations, say)
        return collect(
            self.graph, needs, lambda: self.held.feed(items), wanted.task, self.held.rework(FOLDER, items),
            wanted.memory, say,
        )  # fmt: skip

    def _measured(self, name: str, proposals: Sequence[Proposal]) -> AloneScore:
        model = twin(self.held.model)
        plans = [proposal.plan for proposal in proposals]
        rewrite(model, self.source.family, plans, [proposal.tensors for proposal in proposals])
        runner = self.source.runner(model)
        scores, distances = self.distance.compared(runner) if self.distant else (self._scores(runner), {})
        before = self.unpruned.scores
        changed = [branch for plan in plans for branch in changed_branches(self.graph, plan)]
        return AloneScore(
            name=name, branches=tuple(dict.fromkeys(branch for branch, _ in changed)),
            dropped=tuple(dict.fromkeys(branch for branch, gone in changed if gone)),
            changes={task: change(scores[task], before[task]) for task in scores if task in before},
            distances=distances, parameters=_parameters(model), sizes=self._sizes(model, runner, True),
        )  # fmt: skip

    def _scores(self, runner: Runner) -> dict[Task, Score]:
        with tempfile.TemporaryDirectory() as out:
            return dict(call(self.loss, "run", runner, Path(out), lambda text: None))

    def _sizes(self, model: Any, runner: Runner, changed: bool) -> Sizes | None:
        if not self.sized:
            return None
        weight = weigh(model, self.source.family, runner)
        seconds: dict[Task, float] = dict.fromkeys(runner.tasks, 1.0) if self.timed else {}
        if self.timed and changed:
            seconds = {task: 1 / speed.ratio for task, speed in self.held.speed(runner, False, runner.tasks).items()}
        return Sizes(
            parameters=weight.parameters, bytes=weight.bytes, macs_per_token=weight.macs_per_token, seconds=seconds
        )


def branch_name(block: str, kind: str, component: str) -> str:
    return f"{block} {kind} {component}"


def changed_branches(graph: ModelGraph, plan: Plan) -> list[tuple[str, bool]]:
    """The residual branches that the edits of a plan act on, and whether they go."""
    attentions = {(site.path, site.component): site.block for site in graph.attentions(stack="all")}
    feed_forwards = {site.path: (site.block, site.component) for site in graph.feed_forwards(stack="all")}
    found: list[tuple[str, bool]] = []
    for edit in plan.edits:
        if isinstance(edit, DropBlock):
            of_block = [branch for branch in graph.branches(stack="all") if branch.block == edit.block]
            found += [(branch_name(edit.block, branch.kind, branch.component), True) for branch in of_block]
            # A block of which no branch was found goes as one piece.
            found += [] if of_block else [(branch_name(edit.block, "block", "shared"), True)]
        elif isinstance(edit, DropBranch):
            found.append((branch_name(edit.block, edit.branch, edit.component), True))
        elif isinstance(edit, KeepHeads):
            block = attentions[edit.site, edit.component]
            found.append((branch_name(block, "attention", edit.component), False))
        elif isinstance(edit, KeepChannels | SplitExperts):
            block, component = feed_forwards[edit.site]
            found.append((branch_name(block, "feed_forward", component), False))
    return found


def layers_of(graph: ModelGraph, stack: str | None) -> Mapping[str, list[int]]:
    """The layers of a stack in which each component has a part, components in order of their names."""
    found: dict[str, list[int]] = {}
    for block in graph.blocks(stack=stack):
        for component in block.components:
            found.setdefault(component, []).append(block.index)
    return dict(sorted(found.items(), reverse=True))


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _keep(file: Path, document: Document) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(file, document.model_dump_json() + "\n")


def _kept(file: Path, kind: type[AnyDocument]) -> AnyDocument | None:
    """What a command that was killed had measured; a damaged file is measured again."""
    if not is_regular(file):
        return None
    try:
        return kind.model_validate_json(read_text(file))
    except ValueError as error:
        say(f"{file} is damaged ({str(error).splitlines()[0]}): it is measured again")
        return None


