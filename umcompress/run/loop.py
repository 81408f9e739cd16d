"""The main loop: measure, then for each step calibrate, plan, rewrite, measure, commit.

It does not know whether the model is in memory or on disk: `HeldModel` is all that it asks of it. Everything that a
step leaves is committed by one rename. A killed run finds the committed steps, replays their plans on the freshly
opened model, and goes on with the first one that is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress import processes
from umcompress.calibrate.collect import collect
from umcompress.calibrate.declare import Declaration
from umcompress.calibrate.statistics import Statistics
from umcompress.data.sources import calibration_items, seeded, training_source
from umcompress.documents.plan import Plan
from umcompress.documents.removed import site_results
from umcompress.documents.report import StepReport, Stopped, check_gate, step_report
from umcompress.errors import PlanError
from umcompress.extend.pass_base import Pass, Proposal, TrainingPass
from umcompress.extend.users_code import call
from umcompress.graph.model_graph import ModelGraph
from umcompress.recipe.recipe import Calibration, Recipe, Step
from umcompress.run.committed import CommittedStep, keep_tensors, kept_tensors
from umcompress.run.folder import BASELINE, TRAINING, RunFolder
from umcompress.run.held_model import HeldModel
from umcompress.run.kept import Above
from umcompress.run.measured import measured
from umcompress.run.sharing import Shared, trains
from umcompress.train.step import feed_experts, run_training, sharded, summary

if TYPE_CHECKING:
    from torch import Tensor


Say = Callable[[str], None]


@dataclass(frozen=True)
class Applied:
    """One plan that the model has been through."""

    name: str
    plan: Plan
    tensors: Mapping[str, Tensor]


@dataclass
class Outcome:
    """What a run came to."""

    steps: list[StepReport]
    plans: list[Applied] = field(default_factory=list)
    stopped: Stopped | None = None


@dataclass(frozen=True)
class Place:
    """One step of a run: its number (the baseline has 0), its name, the number of the step that it starts from."""

    index: int
    step: Step
    parent: int
    title: str


class Loop:
    """One run of a recipe on a model, into a folder.  shared: what runs of a sweep have in common.

    skip_evaluations: they give calibration items, and score nothing.
    """

    def __init__(
        self, recipe: Recipe, folder: RunFolder, held: HeldModel, say: Say, shared: Shared | None = None,
        skip_evaluations: bool = False,
    ) -> None:
        self.recipe, self.folder, self.held, self.say, self.shared = recipe, folder, held, say, shared
        self.source = held.source
        self.evaluations = [seeded(evaluation, recipe.seed) for evaluation in recipe.evaluate]
        self.scoring = [] if skip_evaluations else self.evaluations
        # What each step was measured as, by its number: what follows need not measure again what it left alone.
        self._above: dict[int, Above] = {}

    def run(self) -> Outcome:
        """All steps, those that are committed already from the folder; the model is then the one to be written."""
        outcome = Outcome([self._baseline()])
        # What the model has been through after each step; alternatives start from an earlier one.
        chains: list[list[Applied]] = [[]]
        for index, (step, parent) in enumerate(zip(self.recipe.steps, self.recipe.parents(), strict=True), start=1):
            place = Place(index, step, parent, f"{self._count(index)} {step.name}")
            if parent != index - 1:
                self._replay(chains[parent])
            kept = self.folder.committed(index, step.name)
            if kept is not None and kept.plan is not None:
                self.say(f"{place.title}: done before, replayed")
                report, done = kept.report, self._kept(place, kept.plan)
                if not report.stopped:
                    self.held.apply(done.plan, done.tensors)
                self._remember(index, kept)
            else:
                report, done = self._step(place, outcome.steps, chains[parent])
            outcome.steps.append(report)
            if report.stopped:
                outcome.stopped = Stopped(step=report.name, reason=_reason(report))
                break
            chains.append([*chains[parent], done])
        written = self.recipe.written(len(chains) - 1)
        if outcome.stopped is not None or written < len(chains) - 1:
            self._replay(chains[written])
        outcome.plans = chains[written]
        return outcome

    def _count(self, index: int) -> str:
        return f"[{index}/{len(self.recipe.steps)}]"

    def _kept(self, place: Place, plan: Plan) -> Applied:
        return Applied(place.step.name, plan, self.folder.blobs(place.index, place.step.name, plan))

    def _replay(self, plans: Sequence[Applied]) -> None:
        """Take the model through these plans, from its source anew."""
        self.held.start_over()
        for done in plans:
            self.held.apply(done.plan, done.tensors)

    # -- one step ---------------------------------------------------------------------------------------------------

    def _baseline(self) -> StepReport:
        if (kept := self.folder.committed(0, BASELINE)) is not None:
            self.say(f"{self._count(0)} baseline: done before")
            self._remember(0, kept)
            return kept.report
        started = time.monotonic()
        work = self._work(0, BASELINE)
        done = self._measured(0, BASELINE, 0, work, None)
        report = done.report.model_copy(update={"seconds": time.monotonic() - started})
        done = done.model_copy(update={"report": report})
        processes.by_first(lambda: self.folder.commit(0, BASELINE, work, done))
        self._remember(0, done)
        return report

    def _work(self, index: int, name: str) -> Path:
        """The folder to work in. What a killed try left there is kept where the next one has a use for it: evaluations
        know which of their answers still hold, and a training goes on from its checkpoint."""
        keep = {evaluation.name for evaluation in self.evaluations} | {TRAINING}
        return processes.by_first(lambda: self.folder.work(index, name, keep))

    def _step(self, place: Place, steps: Sequence[StepReport], before: Sequence[Applied]) -> tuple[StepReport, Applied]:
        """Plan, rewrite, measure, commit. `steps`: the reports so far; `before`: what the model has been through."""
        started, step = time.monotonic(), place.step
        work = self._work(place.index, step.name)
        try:
            plan, tensors = self._planned(place, work, [done.plan for done in before])
        except PlanError as error:
            error.add_note(f"  in step {step.name} of the recipe")
            raise
        self.say(f"{place.title}: {describe(plan)}")
        if sharded(self.held.model):
            self._replay(before)
        self.held.apply(plan, tensors)
        measured_as = self._measured(place.index, step.name, place.parent, work, plan)
        baseline, above = steps[0], steps[place.parent]
        gates = check_gate(step.stop_if, measured_as.report.scores, baseline.scores) if step.stop_if else []
        report = measured_as.report.model_copy(update={
            "pass_": step.reference, "options": step.pass_.json_values(), "edits": len(plan.edits),
            "declined": plan.declined, "sites": site_results(plan), "gates": tuple(gates),
            "stopped": any(not gate.passed for gate in gates),
            "after": above.name if place.parent != place.index - 1 else None, "seconds": time.monotonic() - started,
        })
        report = step_report(report, baseline, above)
        done = measured_as.model_copy(update={"report": report, "plan": plan})
        processes.by_first(lambda: self.folder.commit(place.index, step.name, work, done))
        self._remember(place.index, done)
        return report, Applied(step.name, plan, tensors)

    def _planned(self, place: Place, work: Path, before: Sequence[Plan]) -> tuple[Plan, Mapping[str, Tensor]]:
        """The plan with its tensors kept in `work`.  Processes train together; all else one plans for all."""
        if isinstance(place.step.pass_, TrainingPass):
            proposal = self.held.as_written(self._train(place, place.step.pass_, work), before)
            plan = processes.by_first(lambda: keep_tensors(proposal.plan, proposal.tensors, work))
            return plan, proposal.tensors
        if processes.rank() == 0:
            proposal = self.held.as_written(self._propose(place), before)
            plan = processes.from_first(keep_tensors(proposal.plan, proposal.tensors, work))
            return plan, proposal.tensors
        plan = processes.from_first(Plan(pass_name=place.step.reference))
        return plan, kept_tensors(plan, work)

    def _train(self, place: Place, planner: TrainingPass, work: Path) -> Proposal:
        proposal = _plan(planner, self.held.graph(), Statistics())
        values = run_training(
            planner, proposal.plan.tensor_names(), self.held.model, self.source,
            training_source(self.recipe, planner, self.evaluations), work / TRAINING, self.say, place.title,
        )  # fmt: skip
        return Proposal(proposal.plan, values)

    def _propose(self, place: Place) -> Proposal:
        planner = place.step.pass_
        assert isinstance(planner, Pass)
        wanted, needs = self.recipe.calibration_of(planner), tuple(call(planner, "needs"))
        if not needs:
            return _plan(planner, self.held.graph(), Statistics(task=wanted.task))
        if self.shared is None or trains(self.recipe):
            return _plan(planner, *self._calibrated(place, planner, self.held, wanted, needs))
        key = (self.folder.depends_on.key(place.parent), wanted, needs)
        made, known = self.shared.calibrated(
            key, self.held, lambda own: self._calibrated(place, planner, own, wanted, needs)
        )
        if known:
            self.say(f"{place.title}: calibrated before, in another cell")
        return _plan(planner, *made)

    def _calibrated(
        self, place: Place, planner: Pass, held: HeldModel, wanted: Calibration, needs: Sequence[Declaration]
    ) -> tuple[ModelGraph, Statistics]:
        self.say(f"{place.title}: calibrating on {wanted}")
        graph, items = held.graph(), calibration_items(self.recipe, wanted, self.evaluations, self.say)
        statistics = collect(
            graph, needs, lambda: held.feed(items), wanted.task, held.rework(planner.name, items),
            wanted.memory, lambda text: self.say(f"{place.title}: {text}"),
        )
        return graph, statistics

    def _remember(self, index: int, done: CommittedStep) -> None:
        """What the steps that start from this one compare themselves with."""
        origins = self.held.origins()
        if done.reads is not None and origins is not None:
            reads = {task: frozenset(names) for task, names in done.reads.items()}
            self._above[index] = Above(done.report, reads, origins)

    def _measured(self, index: int, name: str, parent: int, work: Path, plan: Plan | None) -> CommittedStep:
        """Scores, size, speed; of a step (which has a `plan`) scores may be held against the baseline's."""
        baseline = None if plan is None else self.folder.step_path(0, BASELINE)
        model, runner = self.held.model, self.source.runner(self.held.model)
        above = None if plan is None else self._above.get(parent)
        scoring = self.scoring if self.recipe.scores(index) else []
        report, weight = measured(
            name, model, runner, self.source, scoring, work, self.say, f"{self._count(index)} {name}",
            (lambda tasks: self.held.speed(runner, plan is None, tasks)) if self.recipe.times(index) else None,
            baseline, above, self.held.origins(),
        )  # fmt: skip

        def beside() -> dict[str, Any]:
            pictures = next((str(p.relative_to(work)) for p in sorted(work.rglob("samples.png"))), None)
            earlier = above.report.samples if above is not None and "generation" in report.kept else None
            return {
                "samples": f"steps/{self.folder.step_path(index, name).name}/{pictures}" if pictures else earlier,
                "experts": feed_experts(model, self.source.family, runner, self.scoring, self.recipe.seed),
                "training": None if plan is None else summary(work / TRAINING, plan, model),
            }

        report = report.model_copy(update=processes.by_first(beside))
        reads = {task: tuple(sorted(names)) for task, names in weight.reads.items()}
        return CommittedStep(report=report, plan=plan, reads=reads)


def _plan(planner: Pass, graph: ModelGraph, statistics: Statistics) -> Proposal:
    proposal: Proposal = call(planner, "plan", graph, statistics)
    return proposal


def describe(plan: Plan) -> str:
    """One line: how many edits of which kind, how many sites were declined."""
    kinds: dict[str, int] = {}
    for edit in plan.edits:
        kinds[edit.kind] = kinds.get(edit.kind, 0) + 1
    text = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "nothing to change"
    return text + (f"; {len(plan.declined)} sites declined" if plan.declined else "")


def _reason(report: StepReport) -> str:
    failed = [gate for gate in report.gates if not gate.passed]
    return "; ".join(
        f"{gate.task} got worse by {gate.drop:.3f} ({gate.low:.3f} to {gate.high:.3f}), allowed {gate.limit:g}"
        for gate in failed
    )
