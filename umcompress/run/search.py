"""`umcompress search`: the choices that lose least within a budget, layer by layer; the front between the tasks.

Each step of the recipe is a choice that every layer may take. Each is made alone on the unpruned model and scored by
how far its outputs are from the unpruned model's, or by its loss; an integer program then picks, once for each
weighting of the tasks. What choices cost adds up only about: the recipes of the front are there to be run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from umcompress import processes
from umcompress.documents.atomic import write_text_atomic
from umcompress.documents.search import FILE, Candidate, ChoiceScore, FrontPoint, Search
from umcompress.errors import UsageError
from umcompress.extend.pass_base import ScopedPass, TrainingPass
from umcompress.plan.command import _load
from umcompress.progress import say
from umcompress.recipe.files import LoadedRecipe, load_recipe
from umcompress.recipe.recipe import Recipe
from umcompress.run.budgets import amount, budgets_of
from umcompress.run.sensitivity import LOSS, claimed, file_digest, held_out_loss, shared_source, versions

if TYPE_CHECKING:
    from umcompress.documents.report import StepReport
    from umcompress.extend.evaluation_base import Evaluation
    from umcompress.graph.model_graph import ModelGraph
    from umcompress.run.alone import Alone, Choice
    from umcompress.run.sharing import Shared
    from umcompress.run.uniform import Known

MARK = "search.made-of.json"


@dataclass(frozen=True)
class Asked:
    """A search as the command line gives it.

    run: which recipes of the front to run, `all`, `none`, or `middle`: the one that weighs the tasks most alike.
    uniform: all layers that stay are cut alike.
    score: what choices are priced by, the distance of outputs or the rise of the loss.
    """

    recipe: str
    budgets: Sequence[str]
    output: str | None = None
    overrides: Sequence[str] = ()
    device: str | None = None
    dtype: str | None = None
    data: str | None = None
    items: int = 128
    score: Literal["distance", "loss"] = "distance"
    run: str = "none"
    uniform: bool = False


def search(asked: Asked) -> tuple[Search, Path]:
    """Search, write the recipes of the front, run those that are asked for.  Goes on with an unfinished search."""
    budgets = budgets_of(asked.budgets)
    loaded = _load(asked.recipe, asked.overrides, {"device": asked.device, "dtype": asked.dtype})
    recipe = _with_loss(loaded.recipe)
    _check_steps(recipe)
    wanted = _to_run(asked.run)
    if asked.uniform and any(text.startswith("seconds") for text in asked.budgets):
        raise UsageError("search --uniform", "a budget of measured time", "give one of size, or work.generation=0.6")
    loss = _loss(recipe, asked)
    device = processes.start(recipe.device)
    source = shared_source(
        recipe.model, recipe.dtype, device, recipe.trust_remote_code, recipe.component_globs()
    )
    loss.check()
    loss.suits(source.runner(source.skeleton()))
    path = Path(asked.output) if asked.output else Path("runs") / f"{loaded.file.stem}-search"
    timed = any(name.startswith("seconds") for name in budgets)
    with claimed(path, MARK, _depends_on(recipe, loss, source, timed, asked.score), "search"):
        searching = _Searching(recipe, loaded, source, loss, budgets, path, asked)
        found, path = searching.run(wanted), searching.place
    text = json.dumps(found.json_values(), indent=1, ensure_ascii=False) + "\n"
    processes.by_first(lambda: write_text_atomic(path / FILE, text))
    return found, path


def _with_loss(recipe: Recipe) -> Recipe:
    """The recipe with `task_loss` among its evaluations: what is searched for is what is then measured."""
    if LOSS in recipe.evaluation_names:
        return recipe
    return recipe.model_copy(update={
        "evaluate": (*recipe.evaluate, held_out_loss({})), "evaluation_names": (*recipe.evaluation_names, LOSS),
    })  # fmt: skip


def _check_steps(recipe: Recipe) -> None:
    for step in recipe.steps:
        if isinstance(step.pass_, TrainingPass) or not isinstance(step.pass_, ScopedPass):
            raise UsageError(
                f"search: the step {step.name}", "it is no choice that a layer can take: it trains, or has no layers",
                "leave it out here, and add it to the recipe that is found",
            )  # fmt: skip


def _loss(recipe: Recipe, asked: Asked) -> Evaluation:
    """The recipe's loss on other items than those that judge the result."""
    own: Any = recipe.evaluate[recipe.evaluation_names.index(LOSS)]
    seed = own.seed if "seed" in own.model_fields_set else recipe.seed
    options: dict[str, Any] = {"times": own.times, "items": asked.items, "seed": seed + 1}
    if own.data is None and asked.data is None:
        return held_out_loss({**options, "source": own.source})
    data = asked.data or recipe.calibration.data
    if data is None:
        raise UsageError(
            "search: items to score the choices on", f"{own.data} judges the result",
            "give --data FILE, or the recipe a `calibration: {data: FILE}` whose items are scored, too",
        )  # fmt: skip
    return held_out_loss({**options, "data": data})


def _to_run(text: str) -> set[int] | str:
    """Numbers of the front from 1, or what is said in their place."""
    if text in ("all", "middle"):
        return text
    parts = [] if text == "none" else text.split(",")
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--run {text}", "it is neither all, none, middle nor numbers of the front", "such as --run 1,3"
        )
    return {int(part) for part in parts}


def _numbers(wanted: set[int] | str, front: Sequence[FrontPoint]) -> set[int]:
    if isinstance(wanted, set):
        return wanted
    spread = [max(point.weights.values()) - min(point.weights.values()) for point in front]
    return {spread.index(min(spread)) + 1} if wanted == "middle" else set(range(1, len(front) + 1))


def _depends_on(recipe: Recipe, loss: Evaluation, source: Any, timed: bool, score: str) -> dict[str, str]:
    """What the scores of the choices depend on, in words; budgets may change."""
    from umcompress.run.fingerprint import model_parts

    data = [recipe.calibration.data, getattr(loss, "data", None)]
    files = {f"data {name}": file_digest(str(name)) for name in data if name is not None}
    resolved = {key: str(value) for key, value in recipe.resolved_in().items() if key not in ("output", "sweep")}
    asked = {"loss": str(loss.json_values()), "timed": str(timed), "score": score}
    return {**model_parts(source), **resolved, **asked, **files, **versions()}


class _Searching:
    """One search: what was asked, and what is shared on the way."""

    def __init__(
        self, recipe: Recipe, loaded: LoadedRecipe, source: Any, loss: Evaluation, budgets: Mapping[str, float],
        path: Path, asked: Asked,
    ) -> None:  # fmt: skip
        from umcompress.run.alone import Alone
        from umcompress.run.sharing import Shared

        self.recipe, self.loaded, self.source = recipe, loaded, source
        # What choices cost alone does not depend on the budgets; all else is kept by budgets.
        named = [f"{measure}={share:g}" for measure, share in budgets.items()]
        self.place = path / "_".join([*named, "uniform"] if asked.uniform else named)
        self.uniform, self.score = asked.uniform, asked.score
        self.budgets = dict(budgets)
        self.alone: Alone = Alone(
            recipe, source, loss, path, sized=True, timed=any(name.startswith("seconds") for name in budgets),
            distant=asked.score == "distance",
        )
        self.shared: Shared = Shared()
        self.uniform_sizes: Known = {}

    def run(self, wanted: set[int] | str) -> Search:
        from umcompress.run.alike import AlikeFront, alike_choices
        from umcompress.run.front import Front

        graph, sizes = self.alone.graph, self.alone.unpruned.sizes
        assert sizes is not None
        for measure in self.budgets:
            amount(sizes, measure)
        offered = alike_choices(self.recipe, graph) if self.uniform else offered_choices(self.recipe, graph)
        say(f"umcompress search {self.loaded.file}: {len(offered)} choices, into {self.place}")
        scores = self.alone.score_all([choice for _, choice in offered])
        choices = [
            ChoiceScore(**place, **{name: getattr(score, name) for name in type(score).model_fields})
            for (place, _), score in zip(offered, scores, strict=True)
        ]
        points = (AlikeFront if self.uniform else Front)(self.alone, self.budgets).points(choices)
        front = [self._written(point, number, choices) for number, point in enumerate(points, start=1)]
        numbers = _numbers(wanted, front)
        front = [self._ran(point) if number in numbers else point for number, point in enumerate(front, start=1)]
        return Search(
            recipe=self.loaded.file.stem, model=self.recipe.model, budgets=self.budgets,
            loss=self.alone.loss.json_values(), score=self.score, sizes=sizes,
            choices=tuple(choices), front=tuple(front),
            unpruned={task: score.value for task, score in self.alone.unpruned.scores.items()},
            notes=tuple(f"no layer takes {name}: {reason}" for name, reason in self._useless(choices).items()),
        )

    def _useless(self, choices: Sequence[ChoiceScore]) -> dict[str, str]:
        """Steps that no layer can take, and why."""
        by_step: dict[int, list[ChoiceScore]] = {}
        for choice in choices:
            by_step.setdefault(choice.step, []).append(choice)
        return {
            self.recipe.steps[number].name: own[0].refused or "" for number, own in by_step.items()
            if all(choice.refused for choice in own)
        }  # fmt: skip

    # -- recipes and runs -------------------------------------------------------------------------------------------

    def _written(self, point: FrontPoint, number: int, choices: Sequence[ChoiceScore]) -> FrontPoint:
        from umcompress.run.alike import by_component
        from umcompress.run.composed import composed_steps

        picked = [choice for choice in choices if choice.name in point.choices]
        if self.uniform:
            picked = by_component(picked, self.alone.graph, self.recipe)
        steps = composed_steps(self.recipe, self.alone.graph, picked)
        size = ", ".join(f"{measure} {share:.4f}" for measure, share in point.shares.items())
        weights = ", ".join(f"{task} {weight:g}" for task, weight in point.weights.items())
        name = f"front-{number}"
        recipe = self._write(name, steps, f"Found by umcompress search, {size}; weights: {weights}.")
        uniform = self._uniform(point, number, choices) if steps and not self.uniform else None
        return point.model_copy(update={"name": name, "recipe": recipe, "uniform": uniform})

    def _write(self, name: str, steps: Sequence[Any], about: str) -> str:
        from umcompress.run.composed import recipe_text, with_steps

        file = self.place / f"{name}.yaml"
        recipe = with_steps(self.recipe, steps)
        self.place.mkdir(parents=True, exist_ok=True)
        processes.by_first(lambda: write_text_atomic(file, recipe_text(recipe, self.place, about)))
        return file.name

    def _uniform(
        self, point: FrontPoint, number: int, choices: Sequence[ChoiceScore]
    ) -> Candidate | None:
        from umcompress.run.uniform import uniform_recipe

        measure = next(iter(self.budgets))
        if measure.startswith("seconds"):
            return None
        made = uniform_recipe(
            self.recipe, self.source, self.alone.graph, choices, measure, point.shares[measure], self.uniform_sizes
        )
        if made is None:
            return None
        steps, shares = made
        name = f"uniform-{number}"
        about = f"Every layer alike, for comparison with front-{number}: {measure} {shares[measure]:.4f}."
        return Candidate(name=name, recipe=self._write(name, steps, about), shares=shares)

    def _ran(self, point: FrontPoint) -> FrontPoint:
        found = point.model_copy(update={"result": self._result(point)})
        if point.uniform is None:
            return found
        uniform = point.uniform.model_copy(update={"result": self._result(point.uniform)})
        return found.model_copy(update={"uniform": uniform})

    def _result(self, candidate: Candidate) -> StepReport:
        from umcompress.extend.registry import find_evaluation, find_pass
        from umcompress.plan.check import check
        from umcompress.run.apply import carry_out

        say(f"running {candidate.name}")
        loaded = load_recipe(str(self.place / candidate.recipe), find_pass, find_evaluation)
        check(loaded.recipe, self.source)
        report = carry_out(loaded, self.source, self.place / "runs" / candidate.name, shared=self.shared)
        return report.result


def offered_choices(recipe: Recipe, graph: ModelGraph) -> list[tuple[dict[str, Any], Choice]]:
    """Every step on every layer of every component that it names: where it is, and the pass that makes it."""
    from umcompress.run.alone import Choice, layers_of

    found = []
    for number, step in enumerate(recipe.steps):
        planner = step.pass_
        assert isinstance(planner, ScopedPass)
        components = layers_of(graph, planner.stack)
        named = [planner.component] if planner.component else list(components)
        for component in named:
            own = planner.model_copy(update={"component": component})
            narrowed = own.resolve(graph).layers
            for block in graph.blocks(component, planner.stack):
                if narrowed is not None and block.index not in narrowed:
                    continue
                placed = own.model_copy(update={"stack": block.stack}) if planner.stack else own
                place = {"step": number, "component": component, "stack": block.stack, "layers": (block.index,),
                         "kept": getattr(planner, "keep_ratio", None)}  # fmt: skip
                name = f"{number:02d}-{planner.name}-{component}-{block.stack}-{block.index}"
                found.append((place, Choice(name, (placed.on_layers(component, (block.index,)),))))
    return found
