"""Find out what the steps of a run depend on: the model's bytes, options, data, code and versions.

A killed run goes on only with the same, and never mixes old results with new code.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.checkpoint.digests import digest_of, digests_of, files_under, model_files
from umcompress.data.pictures_named import pictures_named
from umcompress.documents.base import Document
from umcompress.documents.files import is_regular
from umcompress.documents.places import placed
from umcompress.extend.registry import find_evaluation
from umcompress.recipe.files import LoadedRecipe
from umcompress.recipe.recipe import Calibration, Recipe, Step
from umcompress.run.dependencies import CONTENT, Dependencies, StepDependencies
from umcompress.run.own_code import own_code
from umcompress.run.provenance import PACKAGES

if TYPE_CHECKING:
    from umcompress.models.source import Source

Parts = dict[str, str]


def dependencies(
    loaded: LoadedRecipe, source: Source, out_of_core: bool = False, skip_evaluations: bool = False
) -> Dependencies:
    """What the baseline and each step of a recipe depend on. Reads the model and the data as a whole."""
    return depending(loaded, model_parts(source), out_of_core, skip_evaluations)


def depending(
    loaded: LoadedRecipe, model: Parts, out_of_core: bool = False, skip_evaluations: bool = False
) -> Dependencies:
    """As `dependencies`, of a model that is known."""
    recipe = loaded.recipe
    common = {**model, **_versions(), **_settings(recipe, out_of_core)}
    if skip_evaluations:
        common["the evaluations are"] = "skipped"
    for name, evaluation in zip(recipe.evaluation_names, recipe.evaluate, strict=True):
        common |= _under(f"evaluation {Path(name).name}", recipe.evaluated(evaluation), evaluation)
        common |= _sources(recipe, getattr(evaluation, "source", None))
    steps = [StepDependencies(name="baseline", parts=common | _timed(recipe, 0))]
    for index, (step, start) in enumerate(zip(recipe.steps, recipe.parents(), strict=True), start=1):
        parts = _of_step(recipe, step) | _timed(recipe, index)
        steps.append(StepDependencies(name=step.name, start=start, parts=parts))
    return Dependencies(steps=tuple(steps))


def model_parts(source: Source) -> Parts:
    """The digest of every file that the model may be read from."""
    found = digests_of(model_files(source.folder, source.trust_remote_code))
    return {f"the model's {file.relative_to(source.folder)}": CONTENT + digest for file, digest in found.items()}


def _versions() -> Parts:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _settings(recipe: Recipe, out_of_core: bool) -> Parts:
    names = ("seed", "device", "dtype", "components", "trust_remote_code", "sampling")
    head = recipe.resolved()
    return {name: str(head[name]) for name in names} | {"the model is held": "on disk" if out_of_core else "in memory"}


def _timed(recipe: Recipe, index: int) -> Parts:
    scored = {} if recipe.scores(index) else {"scored": "False"}
    return {"timed": str(recipe.times(index)), **scored}


def _of_step(recipe: Recipe, step: Step) -> Parts:
    options = {key: value for key, value in step.resolved().items() if key not in ("name", "pass", "calibration")}
    parts = {"pass": Path(step.reference).name} | _under("", options, step.pass_)
    wanted = recipe.calibration_of(step.pass_)
    parts |= _under("calibration", wanted.json_values(), wanted)
    return parts | _sources(recipe, wanted.source, getattr(step.pass_, "source", None))


def _sources(recipe: Recipe, *names: Any) -> Parts:
    """The code of evaluations that provide items and are not among those of the recipe."""
    parts = Parts()
    for name in names:
        if isinstance(name, str) and recipe.evaluation_named(name) is None:
            parts |= _code(Path(name).name, find_evaluation(name, Path()))
    return parts


def _under(title: str, options: dict[str, Any], giver: Document) -> Parts:
    """Each option of a pass, an evaluation or a calibration; files by their content, wherever they lie."""
    places = dict(_places(giver))
    start = f"{title}: " if title else ""
    parts = {f"{start}{key}": _text(value) for key, value in options.items() if key not in places}
    for key, place in places.items():
        parts |= {f"{start}{key}, {name}": digest for name, digest in _content(place)}
    return parts if isinstance(giver, Calibration) else parts | _code(title, type(giver))


def _text(value: Any) -> str:
    """A value of an option. Code by path counts by its name: where it lies is no part of what it does."""
    return Path(value).name if isinstance(value, str) and ".py:" in value else str(value)


def _places(giver: Document) -> Iterator[tuple[str, Path]]:
    """Options that name files, folders and models that are folders; and where data are sought."""
    values: Any = giver.json_values()
    for at, kind in placed(type(giver), values).items():
        value = functools.reduce(lambda inside, part: inside[part], at, values)
        if kind == "path" or (kind == "model" and Path(value).is_dir()):
            yield ".".join(map(str, at)), Path(value)
    sought = getattr(giver, "folder", None)
    if getattr(giver, "data", None) is None and isinstance(sought, Path):
        yield "data", sought


def _content(place: Path) -> Iterator[tuple[str, str]]:
    """A digest for each file of a place. One that is not there is reported by what wants to read it."""
    if place.is_dir():
        files = files_under(place)
        yield from ((str(file.relative_to(place)), CONTENT + digest) for file, digest in digests_of(files).items())
    elif is_regular(place):
        yield place.name, CONTENT + digest_of(place)
        yield from _pictures(pictures_named(place))
    else:
        yield place.name, "not there"


def _pictures(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    there = [file for file in files if is_regular(file)]
    yield from ((f"the picture {file.name}", CONTENT + digest) for file, digest in digests_of(there).items())


def _code(title: str, kind: type[object]) -> Parts:
    start = f"{title}: " if title else ""
    files, versions = own_code(kind)
    found = {f"{start}the code in {file.name}": CONTENT + digest for file, digest in digests_of(files).items()}
    return found | {f"{start}{name}": number for name, number in versions.items()}
