"""Steps in the order in which they are shown: as they ran, or where some are alternatives, as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from umcompress.documents.report import StepReport


def parents(steps: Sequence[StepReport]) -> tuple[int, ...]:
    """The place of the step that each started from; -1 for the baseline."""
    names = [step.name for step in steps]
    return tuple(names.index(step.after) if step.after in names else index - 1 for index, step in enumerate(steps))


def named_steps(steps: Sequence[StepReport]) -> list[tuple[StepReport, str]]:
    """Each step with the name that its row has.  A tree's branches are drawn in front of the names."""
    if all(step.after is None for step in steps):
        return [(step, step_name(step)) for step in steps]
    above = parents(steps)

    def below(place: int, before: str) -> Iterator[tuple[StepReport, str]]:
        children = [index for index, parent in enumerate(above) if parent == place]
        for index in children:
            last = index == children[-1]
            yield steps[index], f"{before}{'└ ' if last else '├ '}{step_name(steps[index])}"
            yield from below(index, before + ("  " if last else "│ "))

    return [(steps[0], step_name(steps[0])), *below(0, "")]


def step_name(step: StepReport) -> str:
    """The step's name; whether it was undone."""
    return f"{step.name} (undone)" if step.stopped else step.name
