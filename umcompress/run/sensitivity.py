"""`umcompress sensitivity`: what it costs to drop or halve each part of each layer, one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from umcompress import processes
from umcompress.documents.alone import PARTS, AloneScore, Part, PartScore, PartSimilarity, Sensitivity
from umcompress.documents.atomic import write_text_atomic
from umcompress.documents.base import Component, Task
from umcompress.errors import CheckError, UsageError
from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.progress import say
from umcompress.recipe.recipe import Calibration, Recipe
from umcompress.run.dependencies import CONTENT
from umcompress.run.folder import claim_for

if TYPE_CHECKING:
    from umcompress.extend.evaluation_base import Evaluation
    from umcompress.extend.pass_base import Pass
    from umcompress.graph.model_graph import ModelGraph
    from umcompress.models.source import Source
    from umcompress.run.alone import Alone, Choice

FILE, MARK = "sensitivity.json", "sensitivity.made-of.json"
LOSS = "task_loss"


@dataclass(frozen=True)
class Asked:
    """What is measured on what.  data: held-out items of the user's own, calibration: what to calibrate on then."""

    model: str
    data: str | None = None
    calibration: str | None = None
    items: int = 128
    samples: int = 64
    seed: int = 0
    stack: str | None = None
    device: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False


def sensitivity(asked: Asked, output: str | None = None) -> tuple[Sensitivity, Path]:
    """Score every part of every layer without it, and by halves.  Goes on with an unfinished one in the folder."""
    if asked.data is not None and asked.calibration is None:
        raise UsageError(
            f"sensitivity --data {asked.data}", "no data to calibrate on",
            "give --calibration FILE, other texts or prompts than those that are scored",
        )  # fmt: skip
    loss = held_out_loss({"data": asked.data} if asked.data else {}, items=asked.items, seed=asked.seed)
    device = processes.start(asked.device)
    source = shared_source(asked.model, asked.dtype, device, asked.trust_remote_code)
    loss.check()
    loss.suits(source.runner(source.skeleton()))
    path = Path(output) if output else Path("runs") / f"{Path(asked.model).name}-sensitivity"
    with claimed(path, MARK, _depends_on(asked, source), "sensitivity"):
        return _measured(asked, source, loss, path), path


def _measured(asked: Asked, source: Any, loss: Evaluation, path: Path) -> Sensitivity:
    from umcompress.run.alone import Alone

    alone = Alone(_recipe(asked), source, loss, path)
    places = list(_places(alone.graph, asked))
    say(f"umcompress sensitivity {asked.model}: {len(places)} changes, into {path}")
    scores = alone.score_all([choice for _, choice in places])
    if all(score.refused for score in scores):
        raise CheckError(f"sensitivity of {asked.model}", f"nothing could be changed; the first: {scores[0].refused}")
    similarities = _similarities(alone, path, asked)
    found = Sensitivity(
        model=asked.model, evaluation=loss.json_values(),
        baseline={
            task: score.model_copy(update={"items": (), "seconds": None})
            for task, score in alone.unpruned.scores.items()
        },
        parameters=alone.unpruned.parameters,
        parts=tuple(PartScore(**place, **_values(score)) for (place, _), score in zip(places, scores, strict=True)),
        similarities=tuple(similarities),
    )
    text = json.dumps(found.json_values(), indent=1, ensure_ascii=False) + "\n"
    processes.by_first(lambda: write_text_atomic(path / FILE, text))
    return found


def _values(score: AloneScore) -> dict[str, Any]:
    return {name: getattr(score, name) for name in AloneScore.model_fields}


def _depends_on(asked: Asked, source: Any) -> dict[str, str]:
    """All that the figures depend on, in words."""
    from umcompress.run.fingerprint import model_parts

    names = ("items", "samples", "seed", "stack", "device", "dtype")
    files = {key: file_digest(name) for key in ("data", "calibration") if (name := getattr(asked, key)) is not None}
    return {**model_parts(source), **{name: str(getattr(asked, name)) for name in names}, **files, **versions()}


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("umcompress", "torch")}


def file_digest(name: str) -> str:
    """A file's content, for what depends on it."""
    from umcompress.checkpoint.digests import digest_of

    return CONTENT + digest_of(Path(name)) if Path(name).is_file() else "not there"


@contextmanager
def claimed(path: Path, mark: str, parts: Mapping[str, str], what: str) -> Iterator[None]:
    """Within, a folder is this command's: the first process holds it for all."""
    folder = claim_for(path, mark, parts, what) if processes.rank() == 0 else None
    try:
        yield
    finally:
        if folder is not None:
            folder.release()


def held_out_loss(options: Mapping[str, Any], **more: Any) -> Evaluation:
    """`task_loss` with these options."""
    evaluation: Evaluation = find_evaluation(LOSS).model_validate({**options, **more})
    return evaluation


def shared_source(
    model: str, dtype: str | None, device: str | None, trust: bool, components: Mapping[str, Component] | None = None
) -> Any:
    """A source whose model is read once, however often it is loaded."""
    from umcompress.models.source import open_source
    from umcompress.run.sharing import SharedSource

    source: Source = open_source(model, dtype, device, components, trust)
    return SharedSource(**vars(source))


def _recipe(asked: Asked) -> Recipe:
    """What calibrates, as recipes say it."""
    return Recipe(
        model=asked.model, calibration=_calibration(asked, "understanding"), seed=asked.seed, dtype=_dtype(asked),
        steps=(),
    )


def _dtype(asked: Asked) -> Literal["float32", "bfloat16"] | None:
    return cast(Literal["float32", "bfloat16"] | None, asked.dtype)


def _calibration(asked: Asked, task: Task) -> Calibration:
    source = None if asked.calibration else "scenes"
    data = Path(asked.calibration) if asked.calibration else None
    return Calibration(task=task, samples=asked.samples, seed=asked.seed, source=source, data=data)


def _places(graph: ModelGraph, asked: Asked) -> Iterator[tuple[dict[str, Any], Choice]]:
    """Every change: where it is, and the passes that make it."""
    from umcompress.run.alone import Choice, layers_of

    for component in layers_of(graph, asked.stack):
        for block in graph.blocks(component, asked.stack):
            for part in PARTS:
                for change in ("dropped", "halved"):
                    passes = _passes(graph, asked, component, block.index, block.stack, part, change)
                    name = f"{component}-{block.stack}-{block.index}-{part}-{change}"
                    place = {"component": component, "stack": block.stack, "layer": block.index, "part": part,
                             "change": change}  # fmt: skip
                    yield place, Choice(name, tuple(passes))


def _passes(
    graph: ModelGraph, asked: Asked, component: str, layer: int, stack: str, part: Part, change: str
) -> Sequence[Pass]:
    # What a component is for is what the model is to do while it is observed.
    observed = _calibration(asked, "generation" if component == "generation" else "understanding")
    common: dict[str, Any] = {"component": component, "stack": stack, "layers": str(layer), "calibration": observed}
    if change == "dropped":
        drop = {**common, "layers": "all", "unit": part, "drop": (layer,)}
        return [find_pass("layer_drop").model_validate(drop)]
    half = {**common, "keep_ratio": 0.5}
    passes: list[Pass] = []
    if part != "feed_forward":
        sites = graph.attentions(component, stack, frozenset({layer}))
        grouped = any(site.key_value_groups > site.multiple_of for site in sites)
        unit = "key_value_group" if grouped or not sites else "query_head"
        passes.append(find_pass("head_prune").model_validate({**half, "unit": unit}))
    if part != "attention":
        passes.append(find_pass("channel_prune").model_validate(half))
    return passes


def _similarities(alone: Alone, path: Path, asked: Asked) -> list[PartSimilarity]:
    """Of every part, on every task of the model; kept in a file like the scores."""
    found: list[PartSimilarity] = []
    for task in alone.unpruned.scores:
        file = path / "alone" / f"similarity-{task}.json"
        if not file.is_file():
            measured = processes.by_first(partial(_similar, alone, asked, task))
            text = json.dumps([one.json_values() for one in measured])
            processes.by_first(partial(write_text_atomic, file, text + "\n"))
        found += [PartSimilarity.model_validate(one) for one in json.loads(file.read_text(encoding="utf-8"))]
    return found


def _similar(alone: Alone, asked: Asked, task: Task) -> list[PartSimilarity]:
    from umcompress.calibrate.declare import BlockSimilarity, BranchSimilarity, Declaration, Scope

    scope = Scope(stack=asked.stack)
    wanted: dict[Part, Declaration] = {
        "attention": BranchSimilarity("attention", scope), "feed_forward": BranchSimilarity("feed_forward", scope),
        "block": BlockSimilarity(scope),
    }  # fmt: skip
    measured, graph = alone.collected(_calibration(asked, task), list(wanted.values())), alone.graph
    found: list[PartSimilarity] = []
    for part, declaration in wanted.items():
        values = {key: value for key, value in measured[declaration]._values.items() if value.tokens}
        for block in graph.blocks(stack=asked.stack):
            for component in sorted(block.components, reverse=True):
                key = (block.path if part == "block" else f"{block.path}.{part}", component)
                if key in values:
                    found.append(PartSimilarity(
                        task=task, component=cast(Component, component), stack=block.stack, layer=block.index,
                        part=part, cosine=values[key].cosine,
                    ))  # fmt: skip
    return found
