"""All that passes and evaluations may see, shipped ones and users' own alike.

A pass reads and proposes; an evaluation scores.  Both are pydantic documents whose fields are the options of
a recipe.  They are found by entry point, or by `path/to/file.py:Class`.  Importing this loads no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, field_validator

from umcompress.calibrate.declare import (
    BlockSimilarity,
    BranchKind,
    BranchSimilarity,
    ChannelActivation,
    ChannelMoments,
    ChannelSamples,
    ContributionMoments,
    Declaration,
    HeadContribution,
    RoutedMoments,
    Routing,
    Scope,
)
from umcompress.calibrate.statistics import (
    Channels,
    Contributions,
    Heads,
    Moments,
    Routed,
    Samples,
    Similarity,
    Statistics,
)
from umcompress.checkpoint.tensor_file import TensorFile
from umcompress.discover import entries, load_class
from umcompress.edits import (
    Declined,
    DropBlock,
    DropBranch,
    Edit,
    Evidence,
    KeepChannels,
    KeepHeads,
    Plan,
    SetTensors,
    SplitExperts,
)
from umcompress.errors import PlanError, did_you_mean
from umcompress.graph.sites import AttentionSite, BlockSite, BranchSite, ExpertSite, FeedForwardSite
from umcompress.learning import LossWeights, TrainingOptions
from umcompress.recipe import Calibration, Component, Document, Ratio, Task
from umcompress.report import KindScore, Score

if TYPE_CHECKING:
    from torch import Tensor

    from umcompress.graph.model_graph import ModelGraph
    from umcompress.graph.split import SplitPlace
    from umcompress.models.base import TrainingItem

PASSES = "umcompress.passes"
EVALUATIONS = "umcompress.evaluations"
INNER = "inner"


@dataclass(frozen=True)
class Proposal:
    """What a pass hands back: the plan, and the values of the tensors that its SetTensors edits name.

    A `TensorFile` keeps values that are large together out of memory.
    """

    plan: Plan
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Pass(Document, ABC):
    """Plans edits.  It may read the graph, its weights and the statistics; it never writes to any.

    The fields of a subclass are the options of its step in a recipe.  `needs` declares the statistics that
    `plan` will read: one calibration sweep collects them all, and reading another one raises.  A pass that
    finds nothing to do raises PlanError; one that was told to keep everything returns a plan without edits.
    """

    name: ClassVar[str]

    def needs(self) -> Sequence[Declaration]:
        """The statistics that `plan` reads with these options."""
        return ()

    @abstractmethod
    def plan(self, graph: ModelGraph, statistics: Statistics) -> Proposal:
        """The edits for this model, with the evidence for each and the sites that were declined.

        When `statistics.dry` is true only shapes are known: neither weights nor statistics may be read, and
        any members will do as long as their numbers are right.
        """


def parse_layers(text: str) -> frozenset[int] | None:
    """ "all" -> None; "2-20" or "1,3,5-7" -> those layer indices, ends included.  Raises ValueError."""
    if text.strip() == "all":
        return None
    chosen: set[int] = set()
    for part in text.split(","):
        ends = [end.strip() for end in part.split("-")]
        if len(ends) > 2 or not all(end.isascii() and end.isdecimal() for end in ends):
            raise ValueError(f"{part.strip()!r} is no layer and no range; write all, inner, 4, 2-20 or 1,3,5-7")
        first, last = int(ends[0]), int(ends[-1])
        if last < first:
            raise ValueError(f"the range {part.strip()} runs backwards; write {last}-{first}")
        if last > 100_000:
            raise ValueError(f"no model has a layer {last}")
        chosen.update(range(first, last + 1))
    return frozenset(chosen)


def _as_text(value: Any) -> Any:
    """`layers: 3` and `layers: [1, 2]` mean what they look like."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        return ",".join(map(str, value))
    return value


class ScopedPass(Pass):
    """A pass that works on one component in a range of layers: the common options, resolved."""

    component: Component | None = Field(
        default=None,
        description="whose parts to compress; may be left out where the model has one component only",
    )
    layers: Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | int | list[int])] = Field(
        default="all",
        description="all, inner (all but the first and last block), or layer indices and ranges, ends included: "
        "2-20 or 1,3,5-7",
    )
    stack: str | None = Field(
        default=None, description="a stack of blocks, or all; default: the model's main stack"
    )

    @field_validator("layers")
    @classmethod
    def _layers_parse(cls, text: str) -> str:
        if text.strip() != INNER:
            parse_layers(text)
        return text.strip()

    def scope(self) -> Scope:
        """The scope as asked for, before the model is known: for declarations in `needs`.

        Which layers are the inner ones is not known yet: all are in it then.
        """
        layers = None if self.layers == INNER else parse_layers(self.layers)
        return Scope(component=self.component, stack=self.stack, layers=layers)

    def resolve(self, graph: ModelGraph) -> Scope:
        """The scope in this model, its component named.  PlanError where the model has no such part."""
        self._check_stack(graph)
        blocks = graph.blocks(stack=self.stack)
        here = sorted({component for block in blocks for component in block.components})
        component = self.component or (here[0] if len(here) == 1 else None)
        if component is None or component not in here:
            raise PlanError(
                asked=f"{self.name}: component {self.component or '(not given)'}",
                found=f"these blocks belong to {', '.join(here) or 'no component'}",
                do=self._other_stacks(graph)
                + (f"component: {here[0]}" if len(here) == 1 else f"name one of {', '.join(here)}"),
            )
        return Scope(component=component, stack=self.stack, layers=self._resolved_layers(graph))

    def _check_stack(self, graph: ModelGraph) -> None:
        if self.stack not in (None, "all") and self.stack not in graph.stacks:
            raise PlanError(
                asked=f"{self.name}: stack {self.stack}",
                found=f"this model has {', '.join(graph.stacks)}",
                do=did_you_mean(self.stack or "", [*graph.stacks, "all"]),
            )

    def _other_stacks(self, graph: ModelGraph) -> str:
        """Where the component that is wanted does lie; the start of a sentence, empty where it is nowhere."""
        lie = [
            stack for stack in graph.stacks
            if any(self.component in block.components for block in graph.blocks(stack=stack))
        ]
        return f"stack: {' or '.join(lie)}, which serves {self.component}; or " if lie else ""

    def _everywhere(self, graph: ModelGraph) -> Scope:
        """The scope of all components."""
        self._check_stack(graph)
        return Scope(component=self.component, stack=self.stack, layers=self._resolved_layers(graph))

    def _resolved_layers(self, graph: ModelGraph) -> frozenset[int] | None:
        present = {block.index for block in graph.blocks(stack=self.stack)}
        if self.layers == INNER:
            if self.stack == "all" or len(present) < 3:
                what = "all stacks" if self.stack == "all" else f"a stack of {len(present)} blocks"
                raise PlanError(
                    asked=f"{self.name}: layers inner",
                    found=f"{what}, where it says nothing",
                    do="name one stack" if self.stack == "all" else "name the layers, such as 0",
                )
            return frozenset(present - {min(present), max(present)})
        missing = sorted((parse_layers(self.layers) or set()) - present)
        if missing:
            raise PlanError(
                asked=f"{self.name}: layers {self.layers}",
                found=f"no layer {', '.join(map(str, missing[:5]))} of 0 to {max(present, default=0)}",
                do="name layers that exist; an earlier step may have dropped blocks",
            )
        return parse_layers(self.layers)


class SitePass(ScopedPass):
    """A pass that works on the sites of one component in a range of layers, by what calibration measures there."""

    calibration: Calibration | None = Field(
        default=None, description="the data that statistics are measured on; default: the recipe's"
    )


class TrainingPass(ScopedPass, TrainingOptions):
    """Says what learns; umcompress trains it, with the unpruned model as teacher, and keeps the new values.

    Its plan is one SetTensors for the parameters that `learns` names.  All else stays as it is, but gradients
    pass through it.  Without `component` it works on the parts of every component.
    """

    @abstractmethod
    def learns(self, graph: ModelGraph, scope: Scope) -> Sequence[str]:
        """Names of the parameters that learn.  PlanError, that says what to do, where there are none."""

    def plan(self, graph: ModelGraph, statistics: Statistics) -> Proposal:
        names = tuple(self.learns(graph, self.resolve(graph)))
        return Proposal(Plan(pass_name=self.name, edits=(SetTensors(names=names),)))

    def resolve(self, graph: ModelGraph) -> Scope:
        return super().resolve(graph) if self.component else self._everywhere(graph)


@dataclass(frozen=True)
class ScoredItem:
    """A prompt, or a question about pictures (encoded files), that an evaluation scores."""

    text: str
    pictures: tuple[bytes | Path, ...] = ()


class Evaluation(Document, ABC):
    """Scores a model on one or more tasks.  The fields of a subclass are its options in a recipe."""

    name: ClassVar[str]
    tasks: ClassVar[tuple[Task, ...]] = ("understanding", "generation")
    compares: ClassVar[bool] = False

    def check(self) -> None:
        """Look, before hours are spent, whether what `run` reads is there.  UsageError says what is missing."""

    def suits(self, runner: Any) -> None:
        """Look whether a model can be scored, by its shapes and files alone.  UsageError says why it cannot.

        runner: of a skeleton of the model.
        """

    @abstractmethod
    def run(self, runner: Any, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        """Score what `runner` answers and generates; leave artifacts (answers, images) in `out`."""

    def compare(
        self, runner: Any, out: Path, progress: Callable[[str], None], reference: Path
    ) -> dict[Task, Score]:
        """As `run`, for a model that was made from another one; `reference` is what `run` left of that one.

        An evaluation that `compares` has something to say only here.
        """
        return self.run(runner, out, progress)

    def scored_items(self, task: Task) -> Iterable[ScoredItem]:
        """What `run` scores, so that calibration data can be held against it.  Default: nothing that is known."""
        return ()

    def calibration_items(self, task: Task, samples: int, seed: int) -> list[Any]:
        """Items for Runner.feed, disjoint from what `run` scores.  Default: none, so not a source."""
        raise PlanError(
            asked=f"calibration data for {task} from {self.name}",
            found=f"the evaluation {self.name} provides none",
            do="leave `calibration.source` out, or name an evaluation that provides data",
        )

    def training_items(self, task: Task, count: int, seed: int) -> list[TrainingItem]:
        """`count` items to train `task` on, other ones for another seed; disjoint from what `run` scores."""
        raise PlanError(
            asked=f"training data for {task} from {self.name}",
            found=f"the evaluation {self.name} provides none",
            do="name an evaluation that provides some with the step's `source`, or a file with its `data`",
        )


def passes() -> list[str]:
    """The names of the installed passes; nothing of them is imported."""
    return sorted(entries(PASSES))


def evaluations() -> list[str]:
    """The names of the installed evaluations; nothing of them is imported."""
    return sorted(entries(EVALUATIONS))


def find_pass(name: str, base: Path | None = None) -> type[Pass]:
    """A pass by registered name or as `path/to/file.py:Class`, the path relative to `base`.  UsageError."""
    found: type[Pass] = load_class(PASSES, name, base, Pass, "pass")
    return found


def find_evaluation(name: str, base: Path | None = None) -> type[Evaluation]:
    """An evaluation by registered name or as `path/to/file.py:Class`.  UsageError."""
    found: type[Evaluation] = load_class(EVALUATIONS, name, base, Evaluation, "evaluation")
    return found


def __getattr__(name: str) -> Any:
    """ModelGraph and SplitPlace, for annotations: they bring torch, so they load when somebody asks for them."""
    if name in ("ModelGraph", "SplitPlace"):
        from umcompress.graph import model_graph

        return getattr(model_graph, name)
    raise AttributeError(f"umcompress.extend has no {name}")


__all__ = [
    "AttentionSite",
    "BlockSimilarity",
    "BlockSite",
    "BranchKind",
    "BranchSimilarity",
    "BranchSite",
    "Calibration",
    "ChannelActivation",
    "ChannelMoments",
    "ChannelSamples",
    "Channels",
    "Component",
    "ContributionMoments",
    "Contributions",
    "Declaration",
    "Declined",
    "Document",
    "DropBlock",
    "DropBranch",
    "Edit",
    "Evaluation",
    "Evidence",
    "ExpertSite",
    "FeedForwardSite",
    "HeadContribution",
    "Heads",
    "KeepChannels",
    "KeepHeads",
    "KindScore",
    "LossWeights",
    "ModelGraph",
    "Moments",
    "Pass",
    "Plan",
    "PlanError",
    "Proposal",
    "Ratio",
    "Routed",
    "RoutedMoments",
    "Routing",
    "Samples",
    "Scope",
    "ScopedPass",
    "Score",
    "ScoredItem",
    "SetTensors",
    "Similarity",
    "SitePass",
    "SplitExperts",
    "SplitPlace",
    "Statistics",
    "Task",
    "TensorFile",
    "TrainingOptions",
    "TrainingPass",
    "evaluations",
    "find_evaluation",
    "find_pass",
    "parse_layers",
    "passes",
]
