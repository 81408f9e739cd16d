"""A search as tables: the front beside the uniform recipes of the same sizes, and what was chosen where."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from umcompress.documents.base import TASKS, Task
from umcompress.documents.report import StepReport
from umcompress.documents.search import Candidate, ChoiceScore, FrontPoint, Search
from umcompress.report.pictures import NO_PICTURES
from umcompress.report.scores_view import tone_of
from umcompress.report.table import Cell, Table, View, number_columns, text_column

SECONDS = "seconds."


def search_view(found: Search, folder: str, written: Sequence[str]) -> View:
    """written: the pictures' files, in the folder."""
    budgets = ", ".join(f"{measure} {share:g}" for measure, share in found.budgets.items())
    title = f"{found.recipe} on {found.model}: {len(found.choices)} choices scored alone; budget {budgets}"
    ends = [*found.notes, *(f"written: {folder}/{name}" for name in written)] if written else [NO_PICTURES]
    first = found.front[0]
    todo = f"umcompress apply {shlex.quote(f'{folder}/{first.recipe}')}"
    ran = next((point for point in found.front if point.result is not None), None)
    if ran is not None:
        runs = [f"{folder}/runs/{name}" for name in (ran.name, *([ran.uniform.name] if ran.uniform else []))]
        todo = f"umcompress compare {' '.join(map(shlex.quote, runs))}"
    return (title, front_table(found), chosen_table(found), "", *ends, f"next: {todo}")


def candidates(found: Search) -> list[Candidate]:
    """Each recipe of the front, its uniform one behind it."""
    pairs = [(point, point.uniform) for point in found.front]
    return [one for pair in pairs for one in pair if one is not None]


def front_table(found: Search) -> Table:
    """A row a recipe: its sizes, what its choices change alone in all, what it came to."""
    tasks = [task for task in TASKS if task in found.unpruned]
    measures = list(found.budgets)
    rows = []
    for one in candidates(found):
        shares = [_share(one, measure) for measure in measures]
        expected = [f"{one.expected[task]:+.3g}" if task in one.expected else "" for task in tasks]
        rows.append((one.name, *shares, *expected, *(_measured(one.result, task) for task in tasks)))
    # The title names a single budget; its name would take the room of the figures.
    heads = measures if len(measures) > 1 else ["left"]
    columns = (*heads, *(f"sum {task[:3]}." for task in tasks), *tasks)
    notes = ["sum: of what the choices change alone; the last columns: what the recipe came to, change of the loss"]
    if found.score == "distance":
        notes = ["chosen by the distance of outputs from the unpruned model's", *notes]
    notes += ["± half of the paired 95 % interval, * beyond noise; lower is better"]
    if any(measure.startswith(SECONDS) for measure in measures):
        notes.append("seconds: by what each choice saved alone; then as measured of the recipe, where it was run")
    return Table("Front", (text_column("recipe"), *number_columns(*columns)), tuple(rows), tuple(notes))


def _share(one: Candidate, measure: str) -> str:
    """What is left of a measure as a share; of times also what the recipe itself was measured at."""
    if measure not in one.shares:
        return "-"
    speed = one.result.speed.get(_task_of(measure)) if one.result is not None else None
    measured = f", {1 / speed.ratio:.4f}" if speed is not None and measure.startswith(SECONDS) else ""
    return f"{one.shares[measure]:.4f}{measured}"


def _task_of(measure: str) -> Any:
    """`seconds.generation` -> `generation`."""
    return measure.partition(".")[2]


def _measured(result: StepReport | None, task: Task) -> str:
    if result is None:
        return "not run"
    if (change := result.changes.get(task)) is None:
        return ""
    half = (change.high - change.low) / 2
    text = f"{change.value:+.3g} ±{half:.2g}{'*' if change.beyond_noise else ' '}"
    return Cell(text, tone_of(change, lower_is_better=True))


def chosen_table(found: Search) -> Table:
    """A row a layer of a component, a column a recipe of the front: what is taken there."""
    by_name = {choice.name: choice for choice in found.choices}
    places: dict[tuple[str, str, int], dict[str, dict[str, str]]] = {}
    for point in found.front:
        for name in point.choices:
            choice = by_name[name]
            for layer in choice.layers:
                row = places.setdefault((choice.component, choice.stack, layer), {})
                kinds = {branch.split(" ")[1] for branch in choice.branches}
                row.setdefault(point.name, {}).update(dict.fromkeys(kinds, _kept(choice)))
    order = {"understanding": 0, "shared": 1, "all": 1, "generation": 2}
    rows = [
        (f"{component} {layer}", *(_both(own.get(point.name, {})) for point in found.front))
        for (component, _, layer), own in sorted(places.items(), key=lambda item: (order[item[0][0]], *item[0][1:]))
    ]
    columns = tuple(text_column(name) for name in ("layer", *(point.name for point in found.front)))
    note = "the share that is kept, of attention / feed-forward; - : nothing is taken"
    return Table("Chosen", columns, tuple(rows), (note,))


def _kept(choice: ChoiceScore) -> str:
    return "0" if choice.dropped else kept_share(choice)


def _both(kept: Mapping[str, str]) -> str:
    """`1/0.5`: the attention is whole, half of the feed-forward is left.  A block of unknown parts counts for both."""
    whole = kept.get("block", "1")
    return "/".join(kept.get(kind, whole) for kind in ("attention", "feed_forward")) if kept else "-"


def kept_share(choice: ChoiceScore) -> str:
    return "cut" if choice.kept is None else f"{choice.kept:g}"


def weights_text(point: FrontPoint) -> str:
    return ", ".join(f"{task} {weight:g}" for task, weight in point.weights.items())
