"""A model that a run holds in memory: everything can be done with it, two copies at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.calibrate.statistics import Rework
from umcompress.documents.base import Task
from umcompress.documents.plan import CompressionRecord, Edit, Plan
from umcompress.documents.report import Speed
from umcompress.extend.pass_base import Proposal
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.models.plain_folder import Plain
from umcompress.models.runner import Runner
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import Source
from umcompress.models.stopwatch import Stopwatch, own_speed
from umcompress.models.stored_dtype import held_as, rounded, stored_dtypes
from umcompress.progress import counting, say
from umcompress.recipe.recipe import Recipe
from umcompress.rewrite.apply import rewrite, rewrite_tensors
from umcompress.rewrite.tensors import Unchanged
from umcompress.run.held_model import Written
from umcompress.run.kept import Origins

if TYPE_CHECKING:
    from torch import Tensor, nn


class InMemory:
    """A `HeldModel` whose weights are all in memory."""

    on_disk = False

    def __init__(self, recipe: Recipe, source: Source) -> None:
        self.recipe, self.source = recipe, source
        self.model = source.load()
        self.dtype: str | None = source.dtype
        self._origins, self._plans = _as_loaded(self.model), 0

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """Holds the unpruned model; on the CPU its weights stay mapped, and it is timed in turn with the other."""
        dense = self.source.runner(self.source.load())
        return Stopwatch(dense, paired=self.source.device == "cpu")

    def start_over(self) -> None:
        self.model = self.source.load()
        self._origins, self._plans = _as_loaded(self.model), 0

    def apply(self, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
        made = rewrite_tensors(self.model, self.source.family, [plan], [tensors])
        self._plans += 1
        self._origins = {
            name: self._origins[entry.name] if isinstance(entry, Unchanged) else (name, self._plans)
            for name, entry in made.entries.items()
        }

    def origins(self) -> Origins:
        return self._origins

    def graph(self) -> ModelGraph:
        return trace_model(self.model, self.source.family)

    def feed(self, items: Sequence[Any]) -> None:
        with counting("calibrating", "samples", len(items), say):
            self.source.runner(self.model).feed(items)

    def rework(self, name: str, items: Sequence[Any]) -> Rework:
        """What is not edited is shared, not copied."""
        model = self.model

        def edited(edits: Sequence[Edit]) -> tuple[ModelGraph, Callable[[], None]]:
            shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
            other = copy.deepcopy(model, dict(shared))
            rewrite(other, self.source.family, [Plan(pass_name=name, edits=tuple(edits))])
            runner = self.source.runner(other)

            def feed() -> None:
                with counting("calibrating what was cut", "samples", len(items), say):
                    runner.feed(items)

            return trace_model(other, self.source.family), feed

        return edited

    def as_written(self, proposal: Proposal, before: Sequence[Plan]) -> Proposal:
        """Weights are written in the dtype that they are stored in, so values are rounded to it before they count."""
        values = rounded(self.source, self.recipe, [*before, proposal.plan], proposal.tensors)
        return Proposal(proposal.plan, dict(values))

    def speed(self, runner: Runner, baseline: bool, tasks: Sequence[Task]) -> dict[Task, Speed]:
        return own_speed(runner, tasks) if baseline else self.stopwatch.compare(runner, tasks)

    def probe(self, in_place: Mapping[str, str] | None = None) -> dict[str, Tensor]:
        return self.source.runner(self.model).probe()

    def write(self, folder: Path, record: CompressionRecord) -> Written:
        # The dtypes follow from the plans of this run; the record has those of earlier ones, too.
        earlier = len(before.plans) if (before := self.source.record) is not None else 0
        dtypes = stored_dtypes(self.source, self.recipe, record.plans[earlier:])
        family, source = self.source.family, self.source.folder
        with held_as(self.model, dtypes) as stored:
            plain: Plain | str = family.plain(self.model, source, record.plans)
            if isinstance(plain, str):
                save_compressed(self.model, family, folder, record, source, replace=True)
            else:
                save_plain(plain, folder, source, replace=True)
        return Written(plain, tuple(sorted(str(dtype).removeprefix("torch.") for dtype in stored)))


def _as_loaded(model: nn.Module) -> Origins:
    return {name: (name, 0) for name in model.state_dict(keep_vars=True)}
