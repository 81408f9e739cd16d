"""The main loop: load, measure, and for each step calibrate, plan, rewrite, measure, commit; then write and check.

Everything that a step leaves is committed by one rename.  A killed run finds the committed steps, replays their
plans on the freshly loaded model, and goes on with the first one that is missing.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress import processes
from umcompress.calibrate.collect import collect
from umcompress.calibrate.statistics import Statistics
from umcompress.data.calibration_file import CalibrationFile
from umcompress.data.sources import calibration_source, seeded, training_source
from umcompress.documents.base import Task
from umcompress.documents.plan import Edit, Plan
from umcompress.documents.report import StepReport, Stopped, check_gate, step_report
from umcompress.documents.scores import Score, headline
from umcompress.errors import PlanError
from umcompress.extend.pass_base import Pass, Proposal, TrainingPass
from umcompress.extend.users_code import call
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.models.measure import Stopwatch, own_speed, weigh
from umcompress.models.runner import Runner
from umcompress.models.source import Source
from umcompress.models.stored_dtype import rounded
from umcompress.recipe.recipe import Calibration, Recipe, Step
from umcompress.rewrite.apply import rewrite
from umcompress.run.folder import TRAINING, CommittedStep, RunFolder, keep_tensors, kept_tensors
from umcompress.run.loop import BASELINE, Applied, Outcome, Say, _reason, describe
from umcompress.run.reference import scored
from umcompress.train.step import feed_experts, run_training, sharded, summary

if TYPE_CHECKING:
    from torch import Tensor, nn


class Pipeline:
    """One run of a recipe on a source, into a folder."""

    def __init__(self, recipe: Recipe, source: Source, folder: RunFolder, say: Say) -> None:
        self.recipe, self.source, self.folder, self.say = recipe, source, folder, say
        self.evaluations = [seeded(evaluation, recipe.seed) for evaluation in recipe.evaluate]

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """Holds the unpruned model; on the CPU its weights stay mapped, and it is timed in turn with the other."""
        dense = self.source.runner(self.source.load())
        return Stopwatch(dense, paired=self.source.device == "cpu")

    def run(self) -> Outcome:
        """All steps, those that are committed already from the folder."""
        model = self.source.load()
        baseline = self._baseline(model)
        outcome = Outcome(model, [baseline])
        # What the model has been through after each step; alternatives start from an earlier one.
        chains: list[list[Applied]] = [[]]
        for index, (step, parent) in enumerate(zip(self.recipe.steps, self.recipe.parents(), strict=True), start=1):
            if parent != index - 1:
                outcome.model = self._replay(chains[parent])
            if (kept := self.folder.committed(index, step.name)) is not None:
                self.say(f"{self._place(index)} {step.name}: done before, replayed")
                report, plan = kept.report, kept.plan
                tensors = self.folder.blobs(index, step.name, plan) if plan else {}
            else:
                report, plan, tensors = self._step(index, step, outcome, parent, chains[parent])
            outcome.steps.append(report)
            if report.stopped:
                outcome.stopped = Stopped(step=report.name, reason=_reason(report))
                outcome.model = self._replay(chains[-1])
                break
            assert plan is not None
            chains.append([*chains[parent], Applied(step.name, plan, tensors)])
            if kept is not None:
                rewrite(outcome.model, self.source.family, [plan], [tensors])
        outcome.plans = chains[-1]
        return outcome

    def _kept(self) -> set[str]:
        """What a killed step leaves for the next try: evaluations know which of their answers still hold, and a
        training goes on from its checkpoint."""
        return {evaluation.name for evaluation in self.evaluations} | {TRAINING}

    def _place(self, index: int) -> str:
        return f"[{index}/{len(self.recipe.steps)}]"

    # -- one step ---------------------------------------------------------------------------------------------------

    def _baseline(self, model: nn.Module) -> StepReport:
        if (kept := self.folder.committed(0, BASELINE)) is not None:
            self.say(f"{self._place(0)} baseline: done before")
            return kept.report
        started = time.monotonic()
        work = processes.by_first(lambda: self.folder.work(0, BASELINE, self._kept()))
        self.say(f"{self._place(0)} baseline: evaluating the unpruned model")
        report = step_report(self._measured(model, 0, BASELINE, work, None, started))
        processes.by_first(lambda: self.folder.commit(0, BASELINE, work, CommittedStep(report=report)))
        return report

    def _step(
        self, index: int, step: Step, outcome: Outcome, parent: int, before: Sequence[Applied]
    ) -> tuple[StepReport, Plan, dict[str, Tensor]]:
        started = time.monotonic()
        work = processes.by_first(lambda: self.folder.work(index, step.name, self._kept()))
        try:
            plan, tensors = self._planned(index, step, outcome.model, work, before)
        except PlanError as error:
            error.add_note(f"  in step {step.name} of the recipe")
            raise
        self.say(f"{self._place(index)} {step.name}: {describe(plan)}")
        if sharded(outcome.model):
            outcome.model = self._replay(before)
        rewrite(outcome.model, self.source.family, [plan], [tensors])
        self.say(f"{self._place(index)} {step.name}: evaluating")
        report = self._measured(outcome.model, index, step.name, work, (step, plan), started)
        baseline, above = outcome.steps[0], outcome.steps[parent]
        gates = check_gate(step.stop_if, report.scores, baseline.scores) if step.stop_if else []
        stopped = any(not gate.passed for gate in gates)
        start = above.name if parent != index - 1 else None
        report = report.model_copy(update={"gates": tuple(gates), "stopped": stopped, "after": start})
        report = step_report(report, baseline, above)
        processes.by_first(lambda: self.folder.commit(index, step.name, work, CommittedStep(report=report, plan=plan)))
        return report, plan, tensors

    def _planned(
        self, index: int, step: Step, model: nn.Module, work: Path, before: Sequence[Applied]
    ) -> tuple[Plan, dict[str, Tensor]]:
        """The plan with its tensors kept in `work`.  Processes train together; all else one plans for all."""
        if isinstance(step.pass_, TrainingPass):
            proposal = self._rounded(self._train(index, step, step.pass_, model, work), before)
            plan = processes.by_first(lambda: keep_tensors(proposal.plan, proposal.tensors, work))
            return plan, dict(proposal.tensors)
        if processes.rank() == 0:
            proposal = self._rounded(self._propose(index, step, model), before)
            plan = processes.from_first(keep_tensors(proposal.plan, proposal.tensors, work))
            return plan, dict(proposal.tensors)
        plan = processes.from_first(Plan(pass_name=step.reference))
        return plan, dict(kept_tensors(plan, work))

    def _rounded(self, proposal: Proposal, before: Sequence[Applied]) -> Proposal:
        """Values as they will be written."""
        plans = [*(done.plan for done in before), proposal.plan]
        return Proposal(proposal.plan, rounded(self.source, self.recipe, plans, proposal.tensors))

    def _train(self, index: int, step: Step, planner: TrainingPass, model: nn.Module, work: Path) -> Proposal:
        proposal: Proposal = call(planner, "plan", trace_model(model, self.source.family), Statistics())
        values = run_training(
            planner, proposal.plan.tensor_names(), model, self.source,
            training_source(self.recipe, planner, self.evaluations), work / TRAINING,
            self.say, f"{self._place(index)} {step.name}",
        )  # fmt: skip
        return Proposal(proposal.plan, values)

    def _propose(self, index: int, step: Step, model: nn.Module) -> Proposal:
        planner = step.pass_
        assert isinstance(planner, Pass)
        graph = trace_model(model, self.source.family)
        wanted = getattr(planner, "calibration", None) or self.recipe.calibration
        needs = call(planner, "needs")
        statistics = Statistics(task=wanted.task)
        if needs:
            self.say(
                f"{self._place(index)} {step.name}: calibrating on {wanted.samples} {wanted.task} samples"
            )
            items = self._items(wanted)
            statistics = collect(
                graph, needs, lambda: self.source.runner(model).feed(items), wanted.task,
                lambda edits: self._rework(planner.name, model, edits, items), wanted.memory,
                lambda text: self.say(f"{self._place(index)} {step.name}: {text}"),
            )
        proposal: Proposal = call(planner, "plan", graph, statistics)
        return proposal

    def _rework(
        self, name: str, model: nn.Module, edits: Sequence[Edit], items: list[Any]
    ) -> tuple[ModelGraph, Callable[[], None]]:
        """An edited copy of the model, for passes that measure again; what is not edited is shared, not copied."""
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        edited = rewrite(
            copy.deepcopy(model, dict(shared)), self.source.family, [Plan(pass_name=name, edits=tuple(edits))]
        )
        runner = self.source.runner(edited)
        return trace_model(edited, self.source.family), lambda: runner.feed(items)

    def _items(self, wanted: Calibration) -> list[Any]:
        source = calibration_source(self.recipe, wanted, self.evaluations)
        if isinstance(source, CalibrationFile):
            for line in source.overlaps((wanted.task, wanted.samples, wanted.seed), self.evaluations):
                self.say(line)
        items: list[Any] = call(source, "calibration_items", wanted.task, wanted.samples, wanted.seed)
        return items

    def _measured(
        self, model: nn.Module, index: int, name: str, work: Path, done: tuple[Step, Plan] | None, started: float
    ) -> StepReport:
        runner = self.source.runner(model)
        scores: dict[str, dict[Task, Score]] = {}
        for evaluation in self.evaluations:
            out, baseline = work / evaluation.name, self.folder.step_path(0, BASELINE) / evaluation.name
            scores[evaluation.name] = scored(
                evaluation, runner, out, self.say, self.source, None if done is None else baseline
            )
        return processes.by_first(lambda: self._weighed(runner, scores, model, index, name, work, done, started))

    def _weighed(
        self, runner: Runner, scores: dict[str, dict[Task, Score]], model: nn.Module, index: int, name: str, work: Path,
        done: tuple[Step, Plan] | None, started: float,
    ) -> StepReport:  # fmt: skip
        """What is not shared among processes: size, speed, the load of experts."""
        self.say(f"{self._place(index)} {name}: measuring size and speed")
        weight = weigh(model, self.source.family, runner)
        speed = own_speed(runner) if done is None else self.stopwatch.compare(runner)
        samples = next((str(p.relative_to(work)) for p in sorted(work.rglob("samples.png"))), None)
        report = StepReport(
            name=name, scores=headline(scores), evaluations=scores, parameters=weight.parameters, bytes=weight.bytes,
            macs_per_token=weight.macs_per_token, speed=speed, seconds=time.monotonic() - started,
            samples=f"steps/{self.folder.step_path(index, name).name}/{samples}" if samples else None,
            experts=feed_experts(model, self.source.family, runner, self.evaluations, self.recipe.seed),
            training=summary(work / TRAINING, done[1], model) if done else None,
        )
        if done is None:
            return report
        step, plan = done
        return report.model_copy(update={
            "pass_": step.reference, "options": step.pass_.json_values(), "edits": len(plan.edits),
            "declined": plan.declined,
        })

    def _replay(self, plans: Sequence[Applied]) -> nn.Module:
        """The model as the plans leave it, from the source anew."""
        return rewrite(
            self.source.load(), self.source.family, [done.plan for done in plans], [done.tensors for done in plans]
        )
