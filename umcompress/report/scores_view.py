"""Scores as tables: one for each evaluation and task, with intervals from low to high.  Formats what a report holds."""

from __future__ import annotations

from collections.abc import Sequence

from umcompress.documents.base import TASKS, Task
from umcompress.documents.report import StepReport
from umcompress.documents.scores import Change, KindScore, Score, printed
from umcompress.report.table import Cell, Table, Tone, number_columns, seconds, text_column

WIDTH = 80
MOST_STEPS = 6  # that stand beside each other in 80 columns
Entry = tuple[str | None, Task]  # an evaluation (null: a report that does not name it), and a task that it scores


def entries(steps: Sequence[StepReport]) -> list[Entry]:
    """Every evaluation with each task that it scores, in the order of their first appearance."""
    found: list[Entry] = [(name, task) for step in steps for name, part in step.evaluations.items() for task in part]
    told = {task for _, task in found}
    found += [(None, task) for task in TASKS for step in steps if task in step.scores and task not in told]
    return list(dict.fromkeys(found))


def score_of(step: StepReport, entry: Entry) -> Score | None:
    """The score of an evaluation and task."""
    name, task = entry
    return step.scores.get(task) if name is None else step.evaluations.get(name, {}).get(task)


def change_of(step: StepReport, entry: Entry) -> Change | None:
    """Its change from the baseline, of what is printed of it."""
    name, task = entry
    own = step.evaluation_changes.get(name, {}).get(task) if name is not None else None
    # Reports of before format 3 have the change of a task's first score only.
    first = step.scores.get(task)
    return own or (step.changes.get(task) if first is not None and first == score_of(step, entry) else None)


def entry_name(entry: Entry) -> str:
    """`scenes, generation`."""
    name, task = entry
    return task.capitalize() if name is None else f"{name}, {task}"


def is_share(score: KindScore) -> bool:
    """Whether a value is a proportion or a mean of grades: those have three places."""
    lower = isinstance(score, Score) and score.lower_is_better
    return not lower and score.low >= -1 and score.high <= 1


def number_text(value: float, share: bool) -> str:
    """`0.853` of shares; four digits of other numbers, none of them an exponent's where it is of everyday size."""
    if share:
        return f"{value:.3f}"
    return f"{value:.1f}" if 1000 <= abs(value) < 1e7 else f"{value:#.4g}"


def interval_text(low: float, high: float, share: bool) -> str:
    """`0.895 to 0.961`."""
    return f"{number_text(low, share)} to {number_text(high, share)}"


def tone_of(change: Change, lower_is_better: bool) -> Tone:
    """Whether a change is one for the better or the worse, or may be noise."""
    if not change.beyond_noise:
        return "noise"
    return "better" if (change.value < 0) == lower_is_better else "worse"


def lower_wins(score: Score) -> bool:
    """Whether less is better, of what is printed of a score."""
    return score.lower_is_better or score.printed == "perplexity"


def change_text(change: Change | None, share: bool, lower_is_better: bool) -> str:
    """`-0.042*`; a star: beyond noise, a blank in its place keeps columns straight."""
    if change is None:
        return ""
    return Cell(_starred(change, share), tone_of(change, lower_is_better))


def _starred(change: Change, share: bool) -> str:
    return f"{_signed(change.value, share)}{'*' if change.beyond_noise else ' '}"


def change_interval(change: Change | None, share: bool) -> str:
    """`-0.055 to -0.031`."""
    return "" if change is None else f"{_signed(change.low, share)} to {_signed(change.high, share)}"


def _signed(value: float, share: bool) -> str:
    return f"{value:+.3f}" if share else f"{value:+.3g}"


def score_in_one(score: Score) -> str:
    """`0.930 (0.895 to 0.961)`."""
    value, interval, _, _ = score_cells(score, None)
    return f"{value} ({interval})"


def change_in_one(change: Change | None, score: Score) -> str:
    """`-0.042 (-0.055 to -0.031)*`.  score: the one that changed to this."""
    if change is None:
        return ""
    share, star = is_share(score), "*" if change.beyond_noise else " "
    text = f"{_signed(change.value, share)} ({change_interval(change, share)}){star}"
    return Cell(text, tone_of(change, score.lower_is_better))


def score_cells(score: Score | None, change: Change | None) -> tuple[str, str, str, str]:
    """Value, interval, change, its interval."""
    if score is None:
        return ("-", "", "", "")
    shown = printed(score)
    share, mark = is_share(shown), "~" if score.partial else ""
    return (
        f"{mark}{number_text(shown.value, share)}", interval_text(shown.low, shown.high, share),
        change_text(change, share, lower_wins(score)), change_interval(change, share),
    )  # fmt: skip


def scores_tables(steps: Sequence[StepReport], names: Sequence[str], timed: bool = True) -> list[Table]:
    """For each evaluation and task its scores, its parts by kind, its further numbers.  names: of the steps' rows."""
    tables: list[Table] = []
    for entry in entries(steps):
        tables.append(_scores(steps, names, entry, timed))
        tables += [table for table in (_kinds(steps, entry), _numbers(steps, entry)) if table is not None]
    return tables


def _scores(steps: Sequence[StepReport], names: Sequence[str], entry: Entry, timed: bool) -> Table:
    rows: list[tuple[str, ...]] = []
    for step, name in zip(steps, names, strict=True):
        score, change = score_of(step, entry), change_of(step, entry)
        relative = "" if change is None or change.relative is None else f"{change.relative:+.1%}"
        rows.append((name, *score_cells(score, change), relative))
    first = next(score for step in steps if (score := score_of(step, entry)) is not None)
    if first.chance is not None and first.printed is None:
        rows.append(("chance", f"{first.chance:.3f}", "", "", "", ""))
    heads = [first.printed or ("loss" if first.lower_is_better else "score"), "95 % interval", "change",
             "95 % interval", "relative"]  # fmt: skip
    if not any(row[5] for row in rows):
        rows, heads = [row[:5] for row in rows], heads[:4]
    if not any(row[3] for row in rows):
        rows, heads = [row[:3] for row in rows], heads[:2]
    notes = _notes(steps, entry, first, timed)
    if len(heads) == 5 and _width([("step", *heads), *rows]) > WIDTH:
        # The intervals of the changes are those that decide.
        rows, heads = [(row[0], row[1], *row[3:]) for row in rows], [heads[0], *heads[2:]]
        notes.append(f"report.json has the intervals of each {heads[0]}")
    columns = (text_column("step"), *number_columns(*heads))
    return Table(entry_name(entry), columns, tuple(rows), tuple(notes))


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Of rows as a table prints them, two blanks between columns."""
    return sum(max(map(len, column)) for column in zip(*rows, strict=True)) + 2 * (len(rows[0]) - 1)


def _notes(steps: Sequence[StepReport], entry: Entry, first: Score, timed: bool) -> list[str]:
    scores = [score for step in steps if (score := score_of(step, entry)) is not None]
    changes = [change for step in steps if (change := change_of(step, entry)) is not None]
    notes = ["lower is better"] if lower_wins(first) else []
    if changes:
        how = "paired over the items" if all(change.paired for change in changes) else "each score by itself"
        notes.append(f"change from the baseline, {how}; * beyond noise: the interval leaves zero out")
    name = entry[0] or entry[1]
    notes += dict.fromkeys(
        f"~ a part of {name} only: {score.partial}; no score of the whole" for score in scores if score.partial
    )
    notes += dict.fromkeys(f"{name} is a variant: {score.variant}" for score in scores if score.variant)
    last = score_of(steps[-1], entry)
    if timed and last is not None and last.seconds is not None:
        notes.append(f"{name} {entry[1]} took {seconds(last.seconds)}")
    return notes


def _beside(steps: Sequence[StepReport], entry: Entry) -> tuple[list[StepReport], list[str]]:
    """(the scored steps that have room, the first always; a note on the others)."""
    scored = [step for step in steps if score_of(step, entry) is not None]
    shown = scored if len(scored) <= MOST_STEPS else [scored[0], *scored[1 - MOST_STEPS :]]
    return shown, [left_out(len(scored) - len(shown))] if len(shown) < len(scored) else []


def step_heads(steps: Sequence[StepReport]) -> tuple[list[str], list[str]]:
    """(heads of columns, notes): the steps' names; where those do not fit, numbers, and what they stand for."""
    names = [step.name for step in steps]
    if sum(map(len, names)) + 2 * len(names) <= 56:
        return names, []
    heads = [names[0], *(str(number) for number in range(1, len(names)))]
    return heads, [", ".join(f"{head}: {name}" for head, name in zip(heads[1:], names[1:], strict=True))]


def _kinds(steps: Sequence[StepReport], entry: Entry) -> Table | None:
    shown, notes = _beside(steps, entry)
    scores = [score for step in shown if (score := score_of(step, entry)) is not None]
    if not scores[0].by_kind:
        return None
    chances = any(part.chance is not None for part in scores[0].by_kind.values())
    rows = []
    for kind, part in scores[0].by_kind.items():
        found = [score.by_kind.get(kind) for score in scores]
        cells = ["-" if one is None else number_text(one.value, is_share(one)) for one in found]
        chance = ("" if part.chance is None else f"{part.chance:.2f}",) if chances else ()
        rows.append((kind, *cells, *chance))
    heads, told = step_heads(shown)
    columns = (text_column("kind"), *number_columns(*heads, *["chance"] * chances))
    return Table(f"{entry_name(entry)} by kind", columns, tuple(rows), (*told, *notes))


def _numbers(steps: Sequence[StepReport], entry: Entry) -> Table | None:
    """Published numbers of an evaluation, without the one that stands for its score."""
    shown, notes = _beside(steps, entry)
    scores = [score for step in shown if (score := score_of(step, entry)) is not None]
    names = [name for name in scores[0].numbers if name != scores[0].printed]
    if not names:
        return None
    rows: list[tuple[str, ...]] = []
    changes = [step.number_changes.get(entry[0] or "", {}).get(entry[1], {}) for step in shown]
    for name in names:
        found = [score.numbers.get(name) for score in scores]
        rows.append((name, *("-" if one is None else number_text(one.value, is_share(one)) for one in found)))
        ends = [None if one is None else (one.low, one.high, is_share(one)) for one in found]
        rows.append(("  from", *("" if one is None else number_text(one[0], one[2]) for one in ends)))
        rows.append(("  to", *("" if one is None else number_text(one[1], one[2]) for one in ends)))
        rows += _number_changes([of_step.get(name) for of_step in changes], [end is None or end[2] for end in ends])
    rows.append(("items", *(score.partial or str(score.n) for score in scores)))
    heads, told = step_heads(shown)
    columns = (text_column("number"), *number_columns(*heads))
    told = [*told, "from, to: the 95 % interval"]
    told += ["change: of the same items, from the baseline; * beyond noise"] * any(map(bool, changes))
    return Table(f"{entry_name(entry)}: numbers", columns, tuple(rows), (*told, *notes))


def _number_changes(changes: Sequence[Change | None], shares: Sequence[bool]) -> list[tuple[str, ...]]:
    """Rows of a number's changes, a cell a step."""
    if not any(changes):
        return []
    pairs = list(zip(changes, shares, strict=True))
    ends = [("", "") if one is None else (_signed(one.low, share), _signed(one.high, share)) for one, share in pairs]
    return [
        ("  change", *("" if one is None else _starred(one, share) for one, share in pairs)),
        ("    from", *(low for low, _ in ends)), ("    to", *(high for _, high in ends)),
    ]


def left_out(steps: int) -> str:
    """A note on columns that a table has no room for."""
    return f"{steps} step{'s' if steps > 1 else ''} left out; report.json has all"
