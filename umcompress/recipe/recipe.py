"""A recipe: which model, which passes in which order, which evaluations. Read strictly, never changed.

`parse_recipe` reports every problem at once, each with its line. It knows no pass and no evaluation: the
caller injects how names become classes, so this module stays below the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny, model_validator

from umcompress.documents.base import TASKS, Component, Document, Ratio, Task
from umcompress.documents.gate import Gate
from umcompress.documents.places import ModelName, OutputFolder
from umcompress.documents.sampling import Sampling
from umcompress.errors import RecipeError
from umcompress.recipe.places import seen_from, seen_from_here, with_places

__all__ = [
    "TASKS", "Calibration", "Component", "Document", "Export", "Gate", "Ratio", "Recipe", "RecipeHead", "Step", "Task",
    "parse_recipe",
]  # fmt: skip

Resolver = Callable[[str], type[Document]]
Globs = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class Calibration(Document):
    """The data that scores what to remove."""

    task: Literal["understanding", "generation", "both"] = Field(
        default="understanding",
        description="What the model does while it is observed; both: the one, then the other, for a part that serves "
        "both, as understanding does in a unified model, where it reads the prompts.",
    )
    samples: PositiveInt = Field(default=64, description="How many items are run; of both tasks, so many each.")
    seed: NonNegativeInt = Field(default=0, description="Draws the items.")
    source: str | None = Field(
        default=None, description="The evaluation that provides items; null: the recipe's first."
    )
    data: Path | None = Field(
        default=None, description="A file of your own: a prompt a line, or JSON lines; no source then.",
    )
    memory: PositiveFloat = Field(
        default=4.0, description="GB that large statistics may take; layers beyond that wait for another sweep."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Calibration:
        if self.source is not None and self.data is not None:
            raise ValueError("`source` and `data` are both given; leave one out")
        return self

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks whose items are run, in order."""
        return TASKS if self.task == "both" else (self.task,)

    def __str__(self) -> str:
        """What is run, in words: "64 understanding samples"."""
        return " and ".join(f"{self.samples} {task}" for task in self.tasks) + " samples"


def _off(value: Any) -> Any:
    """`speed: false` means what it looks like."""
    return "off" if value is False else value


class Measure(Document):
    """Which steps are scored and timed; sizes are always counted."""

    scores: Literal["last", "each"] = Field(
        default="each", description="Score each step; or the unpruned model, the last step and those with a stop_if."
    )
    speed: Annotated[Literal["off", "last", "each"], BeforeValidator(_off)] = Field(
        default="each", description="Time each step; the unpruned model and the last step alone; or nothing."
    )


class Export(Document):
    """The result once more, in the layout that another program reads."""

    to: str | None = Field(
        default=None, min_length=1, description="The layout, as `umcompress export --to` takes it."
    )
    pad: bool = Field(
        default=False, description="Fill removed channels up with zeros to one width; it saves no memory and no time."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Export:
        if self.to is None and not self.pad:
            raise ValueError("says nothing to write; give `to: LAYOUT`, or `pad: true`")
        return self

    @property
    def layout(self) -> str:
        """What is asked for."""
        return self.to or "pad"

    @property
    def folder(self) -> str:
        """The name of the folder that it is written to."""
        return f"{self.to}-pad" if self.to not in (None, "pad") and self.pad else self.layout


class RecipeHead(Document):
    """Everything in a recipe but its steps and evaluations, which are validated by classes found by name."""

    model: ModelName = Field(min_length=1, description="A built-in name, a folder, or a hub id.")
    calibration: Calibration = Field(
        default=Calibration(), description="The default of every step that calibrates."
    )
    write: str | None = Field(
        default=None, description="Of alternatives, the step whose model is written; null: the last one."
    )
    output: OutputFolder | None = Field(default=None, description="The run's folder; -o says it too.")
    export: Export | None = Field(
        default=None, description="Write the result for another program as well, into the run's folder `export`."
    )
    seed: NonNegativeInt = Field(default=0, description="Seeds evaluation and whatever is drawn.")
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N.")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None,
        description="What is computed in and written; null: computed in float32, written as the model is stored.",
    )
    components: dict[Component, Globs] | None = Field(
        default=None, description="What the parts of a model are for: component to globs of module paths."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the model (and with an evaluation's `reference`)."
    )

    verify: Literal["full"] | None = Field(
        default=None,
        description="full: out of core as well, all of what was written runs in a fresh process; null: there its bytes "
        "are compared, and what changed runs.",
    )
    measure: Measure = Field(default=Measure(), description="Which steps are scored and timed.")
    sampling: Sampling = Field(default=Sampling(), description="How pictures are painted: steps, guidance, size.")
    sweep: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] | None = Field(
        default=None, description="The grid of `umcompress sweep`: path, as --set takes it, to values."
    )

    @model_validator(mode="after")
    def _one_component_each(self) -> RecipeHead:
        listed = [glob for globs in (self.components or {}).values() for glob in globs]
        if twice := sorted({glob for glob in listed if listed.count(glob) > 1}):
            raise ValueError(f"components: {', '.join(twice)} is named more than once; leave one")
        return self

    def component_globs(self) -> dict[str, Component] | None:
        """Each glob of module paths with its component, as families take it; None where the recipe says nothing."""
        if self.components is None:
            return None
        return {glob: component for component, globs in self.components.items() for glob in globs}


class Step(Document):
    """One pass with its options. `reference` is the pass as the recipe names it.

    `after` names the step whose model this one starts from (or `baseline`); null: the step before it. So one
    recipe can hold alternatives, measured against the same baseline.
    """

    name: str
    reference: str
    pass_: SerializeAsAny[Document] = Field(validation_alias="pass", serialization_alias="pass")
    stop_if: Gate | None = None
    after: str | None = None

    def resolved(self) -> dict[str, Any]:
        gate = {"stop_if": self.stop_if.json_values()} if self.stop_if else {}
        after = {"after": self.after} if self.after else {}
        return {"name": self.name, "pass": self.reference, **after, **self.pass_.json_values(), **gate}


class Recipe(RecipeHead):
    """A validated recipe. `evaluation_names[i]` is how the recipe names `evaluate[i]`.

    Options name files, folders and models as they are seen from the current folder; passes and evaluations that are
    `file.py:Class` as they are seen from `base`, the recipe's folder (None: the current one).
    """

    base: Path | None = Field(default=None, exclude=True)
    evaluate: tuple[SerializeAsAny[Document], ...] = ()
    evaluation_names: tuple[str, ...] = ()
    steps: tuple[Step, ...]

    def calibration_of(self, planner: Document) -> Calibration:
        """What the statistics of a pass are measured on: its own `calibration`, else the recipe's."""
        own = getattr(planner, "calibration", None)
        return own if isinstance(own, Calibration) else self.calibration

    def parents(self) -> tuple[int, ...]:
        """For each step, counted from 1, the number of the step that it starts from; 0 is the baseline."""
        numbers = {"baseline": 0} | {step.name: number for number, step in enumerate(self.steps, start=1)}
        return tuple(index if step.after is None else numbers[step.after] for index, step in enumerate(self.steps))

    def written(self, done: int | None = None) -> int:
        """The number of the step whose model is written, from 1.  done: how many are done, where not all are."""
        last = len(self.steps) if done is None else done
        names = {step.name: number for number, step in enumerate(self.steps, start=1)}
        return last if self.write is None else min(names[self.write], last)

    def scores(self, index: int) -> bool:
        """Whether step number `index` is scored; the baseline has number 0."""
        gated = index > 0 and self.steps[index - 1].stop_if is not None
        return self.measure.scores == "each" or gated or index in (0, self.written())

    def times(self, index: int) -> bool:
        """Whether step number `index` is timed; the baseline has number 0."""
        return self.measure.speed == "each" or (self.measure.speed == "last" and index in (0, self.written()))

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out; parsing it again gives an equal recipe."""
        head = RecipeHead.model_validate({name: getattr(self, name) for name in RecipeHead.model_fields})
        named = zip(self.evaluation_names, self.evaluate, strict=True)
        plain = head.json_values()
        unsaid = ("sweep", "write", "export", "verify")
        plain = {key: value for key, value in plain.items() if value is not None or key not in unsaid}
        return {
            **plain,
            "evaluate": [{name: self.evaluated(evaluation)} for name, evaluation in named],
            "steps": [step.resolved() for step in self.steps],
        }

    def evaluated(self, evaluation: Document) -> dict[str, Any]:
        """The options of an evaluation; the seed that it leaves open is the recipe's."""
        plain = evaluation.json_values()
        open_seed = "seed" in plain and "seed" not in evaluation.model_fields_set
        return plain | {"seed": self.seed} if open_seed else plain

    def resolved_in(self, folder: Path | None = None) -> dict[str, Any]:
        """`resolved()` as a recipe that lies in `folder` says it; None: in the folder where it does lie."""
        place = folder or self.base or Path()

        def there(document: type[Document], values: Mapping[str, Any]) -> dict[str, Any]:
            return with_places(document, values, lambda name, kind, at: seen_from(name, kind, place))

        def named(name: str) -> str:
            return seen_from(seen_from_here(name, "code", self.base), "code", place)

        resolved = self.resolved()
        evaluations = zip(resolved["evaluate"], self.evaluate, strict=True)
        steps = zip(resolved["steps"], self.steps, strict=True)
        return there(RecipeHead, resolved) | {
            "evaluate": [
                {named(name): there(type(one), options) for name, options in given.items()}
                for given, one in evaluations
            ],
            "steps": [there(type(step.pass_), given) | {"pass": named(given["pass"])} for given, step in steps],
        }

    def evaluation_named(self, name: str) -> int | None:
        """The place in `evaluate` of the one that an option names; None where it is not among them."""
        same = (seen_from_here(one, "code", self.base) for one in self.evaluation_names)
        wanted = Path(name).resolve()
        return next((place for place, one in enumerate(same) if Path(one).resolve() == wanted), None)


def parse_recipe(
    text: str,
    file: str,
    passes: Resolver,
    evaluations: Resolver,
    overrides: Sequence[str] = (),
    models: Callable[[str], object] | None = None,
    settings: Mapping[str, object] | None = None,
    layouts: Callable[[str], Sequence[str]] | None = None,
    folder: Path | None = None,
) -> Recipe:
    """The recipe in `text`. `file` is the name shown in errors.

    folder: of the recipe, from which its paths are seen; None: the current one, from which those of options are seen.

    passes, evaluations: name (or `file.py:Class`) to class; they raise ValueError (`what is wrong; hint`) or
    UmcompressError.
    overrides: `steps.1.keep_ratio=0.25`; list indices count from 0.
    settings: top-level keys given as options of their own, such as {"device": "cuda"}.
    models: called with the model's name; a UmcompressError from it joins the other problems.
    layouts: called with the name of a model that is there, where it is to be exported: what it can be written as.
    Raises RecipeError with all problems at once.
    """
    # Here, because passes import this module for its documents, and listing them needs no YAML.
    from umcompress.recipe.reader import Reader
    from umcompress.recipe.yaml_lines import YamlText

    source = YamlText(text, file)
    for option in overrides:
        source.override(option)
    for key, value in (settings or {}).items():
        source.set(key, value, f"--{key} {value}")
    reader = Reader(source, RecipeHead, Gate, text, folder)
    head = reader.head(models)
    evaluate = reader.evaluations(evaluations)
    reader.calibration_sources(evaluations)
    if layouts is not None:
        reader.export_layout(layouts)
    steps = reader.steps(passes)
    if source.problems or head is None:
        raise RecipeError(source.ordered())
    # Only what was given, so that a recipe knows what its author left open.
    values = {name: getattr(head, name) for name in head.model_fields_set}
    return Recipe(
        **values,
        base=folder,
        evaluate=tuple(document for _, document in evaluate),
        evaluation_names=tuple(name for name, _ in evaluate),
        steps=tuple(Step(**step) for step in steps),
    )
