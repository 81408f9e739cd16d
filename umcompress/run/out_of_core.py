"""Apply a recipe from weight files to weight files, without the model in memory.

Structure and shapes come from a skeleton. What a pass reads of weights or measures comes from the files, a tensor
or a block at a time; the result is written a few rows at a time. Nothing is evaluated: that needs the model.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.calibrate.collect import collect
from umcompress.calibrate.statistics import Statistics
from umcompress.checkpoint.atomic import atomic_folder
from umcompress.checkpoint.buffers import saved_buffers
from umcompress.checkpoint.disk import DiskTensors
from umcompress.checkpoint.writer import TensorToWrite as Written
from umcompress.checkpoint.writer import in_parts
from umcompress.data.sources import calibration_source
from umcompress.documents.plan import CompressionRecord, Plan
from umcompress.documents.report import CheckpointResult, StepReport, step_report
from umcompress.errors import CheckError, PlanError
from umcompress.extend.pass_base import Pass, Proposal
from umcompress.extend.users_code import call
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.models.lockstep import Lockstep
from umcompress.models.measure import weigh
from umcompress.models.save import save_plain, write_compressed
from umcompress.models.source import DTYPES, Source, as_stored, located
from umcompress.models.streamed import feed_together, streamed
from umcompress.recipe.recipe import Recipe, Step
from umcompress.rewrite.structure import reshape
from umcompress.rewrite.tensors import TensorMap, evaluate
from umcompress.rewrite.tensors_in_parts import NewTensor
from umcompress.run.folder import CommittedStep, RunFolder, keep_tensors
from umcompress.run.loop import BASELINE, describe
from umcompress.run.verify import in_fresh_process, save_outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from umcompress.models.plain_folder import Plain

Say = Callable[[str], None]


@dataclass
class OnDisk:
    """A model as a skeleton, the files of the one it comes from, and where each tensor is to come from."""

    source: Source
    model: nn.Module
    disk: DiskTensors
    tensors: TensorMap
    dtype: str | None = None
    blobs: list[Mapping[str, Tensor]] = field(default_factory=list)

    def apply(self, plan: Plan, values: Mapping[str, Tensor]) -> None:
        """The structure half now; the tensors follow when they are read."""
        self.blobs.append(values)
        reshape(self.model, self.source.family, plan, len(self.blobs) - 1, self.tensors)

    def read(self, name: str) -> Tensor:
        """One tensor of the model as it is now, of the dtype that the model has."""
        path, _, leaf = name.rpartition(".")
        wanted = getattr(self.model.get_submodule(path), leaf).dtype
        return evaluate(self.tensors.entries[name], self.disk.read, self.blobs).to(wanted)

    def values(self) -> dict[str, Written]:
        """What to write for every tensor of the model as it is now."""
        entries = self.tensors.entries
        return {
            name: in_parts(NewTensor(entries[name], tuple(tensor.shape), tensor.dtype, self.disk, self.blobs))
            for name, tensor in self.model.state_dict(keep_vars=True).items()
        }

    def running(self) -> AbstractContextManager[Lockstep]:
        """A context in which the skeleton can be run, a block in memory at a time.

        A model of transformers computes in one dtype; where its files hold several, that is float32.
        """
        kinds = {tensor.dtype for tensor in self.model.parameters() if tensor.is_floating_point()}
        if len(kinds) < 2 or self.dtype is not None or not self.source.family.general:
            return streamed(self.model, self.source.family, self.read)
        return streamed(self.model, self.source.family, lambda name: _whole(self.read(name)))


def _whole(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def open_on_disk(source: Source, dtype: str | None = None) -> OnDisk:
    """The model of a folder, nothing of it read but headers. `dtype`: None keeps each tensor's own."""
    model, disk = located(source)
    if dtype is not None:
        model = source.family.cast(model, DTYPES[dtype])
    else:
        as_stored(model, disk)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, buffer in model.state_dict(keep_vars=True).items():
        if name not in parameters:
            # Buffers are few and small; a skeleton has real ones, which the files may know better.
            buffer.data = disk.read(name).to(buffer.dtype if dtype is not None else disk.dtype(name))
    return OnDisk(source, model, disk, TensorMap(model.state_dict(keep_vars=True)), dtype)


class OutOfCore:
    """One run of a recipe on files, into a folder. Resumes like the pipeline in memory."""

    def __init__(self, recipe: Recipe, source: Source, folder: RunFolder, say: Say) -> None:
        self.recipe, self.source, self.folder, self.say = recipe, source, folder, say
        self.plans: dict[str, Plan] = {}
        self.steps: list[StepReport] = []

    def run(self) -> OnDisk:
        """All steps; the model that they come to, still on disk."""
        model = open_on_disk(self.source, self.recipe.dtype)
        self.steps.append(self._weighed(model, BASELINE, time.monotonic()))
        for index, step in enumerate(self.recipe.steps, start=1):
            place = f"[{index}/{len(self.recipe.steps)}] {step.name}"
            if (kept := self.folder.committed(index, step.name)) is not None and kept.plan is not None:
                self.say(f"{place}: planned before")
                model.apply(kept.plan, self.folder.blobs(index, step.name, kept.plan))
                self.plans[step.name] = kept.plan
                self.steps.append(kept.report)
                continue
            self.steps.append(self._step(index, step, place, model))
        return model

    def _step(self, index: int, step: Step, place: str, model: OnDisk) -> StepReport:
        started = time.monotonic()
        work = self.folder.work(index, step.name)
        try:
            proposal = self._propose(step, place, model)
        except PlanError as error:
            error.add_note(f"  in step {step.name} of the recipe")
            raise
        plan = keep_tensors(proposal.plan, proposal.tensors, work)
        self.say(f"{place}: {describe(plan)}")
        model.apply(plan, proposal.tensors)
        report = self._weighed(model, step.name, started).model_copy(update={
            "pass_": step.reference, "options": step.pass_.json_values(), "edits": len(plan.edits),
            "declined": plan.declined,
        })
        report = step_report(report, self.steps[0], self.steps[-1])
        self.folder.commit(index, step.name, work, CommittedStep(report=report, plan=plan))
        self.plans[step.name] = plan
        return report

    def _propose(self, step: Step, place: str, model: OnDisk) -> Proposal:
        planner = step.pass_
        assert isinstance(planner, Pass)
        graph = trace_model(model.model, self.source.family, model.read)
        wanted = getattr(planner, "calibration", None) or self.recipe.calibration
        needs = call(planner, "needs")
        if not needs:
            return self._planned(planner, graph, Statistics(task=wanted.task))
        self.say(f"{place}: calibrating on {wanted.samples} {wanted.task} samples, a block at a time")
        items = calibration_source(self.recipe, wanted, ()).calibration_items(
            wanted.task, wanted.samples, wanted.seed
        )

        def feed() -> None:
            runner = self.source.runner(model.model)
            with streamed(model.model, self.source.family, model.read) as lockstep:
                feed_together(runner, items, lockstep)

        statistics = collect(
            graph, needs, feed, wanted.task, memory=wanted.memory, say=lambda text: self.say(f"{place}: {text}")
        )
        return self._planned(planner, graph, statistics)

    def _planned(self, planner: Pass, graph: ModelGraph, statistics: Statistics) -> Proposal:
        proposal: Proposal = call(planner, "plan", graph, statistics)
        return proposal

    def _weighed(self, model: OnDisk, name: str, started: float) -> StepReport:
        weight = weigh(model.model, self.source.family, self.source.runner(model.model))
        return StepReport(
            name=name, parameters=weight.parameters, bytes=weight.bytes, macs_per_token=weight.macs_per_token,
            seconds=time.monotonic() - started,
        )


def write(model: OnDisk, folder: Path, record: CompressionRecord) -> Plain | str:
    """Write the model folder, as a whole or not at all: one that needs no plans, or one with them and why."""
    family, values = model.source.family, model.values()
    plain: Plain | str = family.plain(model.model, model.source.folder, record.plans, values)
    with model.disk:
        if not isinstance(plain, str):
            save_plain(plain, folder, model.source.folder, replace=True)
            return plain
        with atomic_folder(folder, replace=True, sync=False) as work:
            write_compressed(model.model, family, work, record, model.source.folder, values=values)
    return plain


def verify(model: OnDisk, folder: Path, plain: Plain | str) -> CheckpointResult:
    """Compare what a fresh process computes from the written files, a block at a time, with the plan on the old ones.

    Raises CheckError where it is anything else.
    """
    with tempfile.TemporaryDirectory() as temporary:
        expected = Path(temporary) / "expected.safetensors"
        with model.disk, model.running():
            outputs = model.source.runner(model.model).probe()
        save_outputs(outputs, expected)
        exact = isinstance(plain, str) or plain.exact
        trust = "trust" if model.source.trust_remote_code else ""
        arguments = [str(folder), str(expected), model.dtype or "", "0" if exact else "5e-2", trust]
        done = in_fresh_process("umcompress.run.out_of_core", arguments)
    asked = f"compute the same from {folder} in a fresh process"
    if done.returncode != 0:
        raise CheckError(asked, done.stderr.strip().splitlines()[-1] if done.stderr else "no output")
    found = json.loads(done.stdout)
    inner = model.model
    own = sum(p.numel() for p in inner.parameters())
    counted = own if isinstance(plain, str) else plain.parameters(saved_buffers(inner))
    if found["differing"] or found["parameters"] != counted:
        raise CheckError(
            asked,
            f"differences in {', '.join(found['differing']) or 'the number of parameters'} "
            f"({found['parameters']} parameters stored, {counted} in the report)",
            "the run folder keeps all steps; report this as a bug",
        )
    return CheckpointResult(
        path=folder.name, parameters=found["parameters"],
        bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")), reload_equal=True if exact else None,
        loads_with="umcompress" if isinstance(plain, str) else plain.loads_with, own_code=model.source.own_code,
        note=plain if isinstance(plain, str) else "",
    )


def main(arguments: list[str]) -> int:
    """What the fresh process does: `FOLDER EXPECTED DTYPE BAR TRUST`; prints one JSON object."""
    from safetensors.torch import load_file

    from umcompress.models.source import open_source
    from umcompress.run.verify import differing, stored_parameters

    folder, expected, dtype, bar, trust = arguments
    model = open_on_disk(open_source(folder, dtype or None, trust_remote_code=bool(trust)), dtype or None)
    with model.disk, model.running():
        ours = model.source.runner(model.model).probe()
    print(json.dumps({
        "differing": differing(ours, load_file(expected), float(bar)),
        "parameters": stored_parameters(Path(folder), model.model),
    }))
    return 0


def peak_bytes() -> int:
    """The largest amount of memory that this process has held so far."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
