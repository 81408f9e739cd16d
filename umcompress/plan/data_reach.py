"""Check that the calibration data of a step reach the modules that it measures, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from umcompress.data.sources import calibration_source, seeded
from umcompress.errors import PlanError, UncountedError, UsageError
from umcompress.extend.pass_base import Pass
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.models.source import Source
from umcompress.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from umcompress.models.runner import Runner


def reach_problem(recipe: Recipe, planner: Pass, model: nn.Module, source: Source) -> PlanError | None:
    """Why a step cannot measure what it needs: its data are texts, and texts do not pass through a vision tower.

    model: a skeleton, as the step finds it.  What is wrong with the data as such is left out.
    """
    wanted = recipe.calibration_of(planner)
    stacks = {needed.scope.stack or "main" for needed in planner.needs() if hasattr(needed, "scope")} - {"all"}
    runner = source.runner(model)
    if not stacks or wanted.task != "understanding" or not runner.reads_texts:
        return None
    evaluations = [seeded(evaluation, recipe.seed) for evaluation in recipe.evaluate]
    try:
        items = calibration_source(recipe, wanted, evaluations).calibration_items(
            wanted.task, wanted.samples, wanted.seed
        )
    except (PlanError, UsageError):
        return None
    if any(getattr(item, "image", None) is not None for item in items):
        return None
    graph = trace_model(model, source.family)
    for stack in sorted(stacks & set(graph.stacks)):
        if not _text_reaches(stack, graph, runner):
            return PlanError(
                f"{planner.name}: calibrate the stack {stack}", "the calibration data are texts, and none goes there",
                "calibrate on data that go there, such as pictures with questions for a vision tower (`calibration: "
                "{data: FILE}`); or choose without data (`score: magnitude`, `score: last`)",
            )  # fmt: skip
    return None


def _text_reaches(stack: str, graph: ModelGraph, runner: Runner) -> bool:
    """Also true where the model cannot be run on shapes."""
    blocks = [graph.model.get_submodule(block.path) for block in graph.blocks(stack=stack)]
    try:
        with _noticed(blocks) as called:
            runner.pass_text()
    except UncountedError:
        return True
    return bool(called)


@contextmanager
def _noticed(modules: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """Those of `modules` that are called within the context."""
    called: list[nn.Module] = []

    def note(module: nn.Module, _: Any) -> None:
        called.append(module)

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()
