"""What both ways of running a recipe share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from umcompress.documents.plan import Plan
from umcompress.documents.report import StepReport, Stopped

if TYPE_CHECKING:
    from torch import nn


Say = Callable[[str], None]


BASELINE = "baseline"


@dataclass
class Applied:
    """One plan that the model has been through."""

    name: str
    plan: Plan
    tensors: Any


@dataclass
class Outcome:
    """What a run came to."""

    model: nn.Module
    steps: list[StepReport]
    plans: list[Applied] = field(default_factory=list)
    stopped: Stopped | None = None


def describe(plan: Plan) -> str:
    """One line: how many edits of which kind, how many sites were declined."""
    kinds: dict[str, int] = {}
    for edit in plan.edits:
        kinds[edit.kind] = kinds.get(edit.kind, 0) + 1
    text = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "nothing to change"
    return text + (f"; {len(plan.declined)} sites declined" if plan.declined else "")


def _reason(report: StepReport) -> str:
    failed = [gate for gate in report.gates if not gate.passed]
    return "; ".join(f"{gate.task} got worse by {gate.drop:.3f}, allowed {gate.limit:g}" for gate in failed)
