"""Train only the routers of split feed-forwards.

What a router learns is how much each chosen expert counts, and with it which ones are chosen: its logits are added
to the scores that choose.  Mostly the unpruned model teaches, by its blocks' outputs and its final one (as in arXiv
2305.15798 and 2412.01199).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from umcompress.extend import PlanError, Scope, TrainingPass

if TYPE_CHECKING:
    from umcompress.extend import ModelGraph


class RouterTrain(TrainingPass):
    """Only the routers of split feed-forwards learn; experts and all else stay as they are."""

    name: ClassVar[str] = "router_train"

    def learns(self, graph: ModelGraph, scope: Scope) -> Sequence[str]:
        sites = graph.experts(**scope.query())
        if not sites:
            raise PlanError(
                asked=f"{self.name}: routers of {self.component or 'any component'}, layers {self.layers}",
                found="no split feed-forward there",
                do="put a step with `pass: moe_split` before this one",
            )
        return [f"{site.path}.gate.weight" for site in sites]
