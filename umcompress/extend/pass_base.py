"""What a pass is: typed options, the statistics it needs, and a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, field_validator

from umcompress.calibrate.declare import (
    Declaration,
    Scope,
)
from umcompress.calibrate.statistics import (
    Statistics,
)
from umcompress.documents.plan import (
    Plan,
    SetTensors,
)
from umcompress.documents.training_options import TrainingOptions
from umcompress.errors import PlanError, did_you_mean
from umcompress.recipe.recipe import Calibration, Component, Document

if TYPE_CHECKING:
    from torch import Tensor

    from umcompress.graph.model_graph import ModelGraph


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
        description="whose parts to compress; may be left out where the model has one component only; shared means "
        "both streams of blocks that have two, cut alike",
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

    def on_layers(self, component: str, layers: Sequence[int]) -> Self:
        """The same pass with the same options on these layers of a component: how a search offers it layer by layer."""
        return self.model_copy(update={"component": component, "layers": ",".join(map(str, layers))})

    def resolve(self, graph: ModelGraph) -> Scope:
        """The scope in this model, its component named.  PlanError where the model has no such part."""
        self._check_stack(graph)
        blocks = graph.blocks(stack=self.stack)
        here = sorted({component for block in blocks for component in block.components})
        if "shared" not in here and graph.blocks(component="shared", stack=self.stack):
            here.append("shared")
        component = self.component or (here[0] if len(here) == 1 else None)
        if component is None or component not in here:
            raise PlanError(
                asked=f"{self.name}: component {self.component or '(not given)'}",
                found=f"these blocks belong to {', '.join(here) or 'no component'}",
                do=self._other_stacks(graph)
                + (f"component: {here[0]}" if len(here) == 1 else f"name one of {', '.join(here)}"),
            )
        return Scope(component=component, stack=self.stack, layers=self._resolved_layers(graph, component))

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

    def _resolved_layers(self, graph: ModelGraph, component: str | None = None) -> frozenset[int] | None:
        """Stacks of one component do not say where those of another begin and end."""
        blocks = graph.blocks(stack=self.stack)
        mine = [block for block in blocks if component in block.components] or blocks
        present = {block.index for block in mine}
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
