"""Train compressed parts to reproduce the unpruned model (distillation).

By default the split feed-forwards learn, routers and experts; with `parameters` whatever is named, also in a model
that was pruned and not split.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from umcompress.extend import PlanError, Scope, TrainingPass

if TYPE_CHECKING:
    from umcompress.extend import ModelGraph


class Adapt(TrainingPass):
    """Split feed-forwards learn, routers and experts, or the parameters that are named."""

    name: ClassVar[str] = "adapt"
    parameters: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="patterns of names of what learns instead, such as '*.mlp_moe_gen.*'; * stands for anything",
    )

    def learns(self, graph: ModelGraph, scope: Scope) -> Sequence[str]:
        names = [name for name, tensor in graph.model.named_parameters() if tensor.requires_grad]
        if self.parameters is not None:
            return self._named(names)
        homes = tuple(f"{site.path}." for site in graph.experts(**scope.query()))
        if not homes:
            raise PlanError(
                asked=f"{self.name}: split feed-forwards of {self.component or 'any component'}, layers {self.layers}",
                found="none there",
                do="put a step with `pass: moe_split` before this one, or name what learns with `parameters`",
            )
        # The selector is frozen: it only chooses, and nothing flows back through a choice.
        return [name for name in names if name.startswith(homes) and ".selector." not in name]

    def _named(self, names: Sequence[str]) -> list[str]:
        found = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in self.parameters or ()}
        if empty := [pattern for pattern, matching in found.items() if not matching]:
            raise PlanError(
                asked=f"{self.name}: parameters {', '.join(empty)}",
                found=f"no name of a parameter matches, among {len(names)} such as {names[len(names) // 2]}",
                do="* stands for anything, also for dots: '*.mlp.*'; `umcompress inspect` lists module paths",
            )
        chosen = {name for matching in found.values() for name in matching}
        return [name for name in names if name in chosen]
