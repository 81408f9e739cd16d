"""What each step removed, and why, as tables: alike layers share a row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from umcompress.documents.removed import SiteResult
from umcompress.documents.report import StepReport
from umcompress.report.table import Table, text_column

_LAYER = re.compile(r"(.*?)(?:\.(\d+)(?=\.|$)(.*))?$")


def removed_tables(steps: Sequence[StepReport]) -> list[Table]:
    """A table for each step that tells what it removed, or left alone."""
    tables = []
    for step in steps:
        rows = [*_dropped(step.sites), *_narrowed(step.sites)]
        rows += [(_place(site, ""), f"left alone: {reason}", layers or "-") for site, layers, reason in
                 _refused(step)]  # fmt: skip
        if rows:
            undone = " (undone)" if step.stopped else ""
            columns = tuple(map(text_column, ("where", "what", "layers")))
            tables.append(Table(f"Removed by {step.name}{undone}", columns, tuple(rows), _notes(step)))
    return tables


def _notes(step: StepReport) -> tuple[str, ...]:
    measured = any(site.score is not None for site in step.sites)
    return ("in brackets: similarity of what enters and what leaves; the largest go first",) if measured else ()


def split_site(site: str) -> tuple[str, int | None, str]:
    """`decoder.layers.3.mlp` -> ("decoder.layers", 3, ".mlp"); without a layer's number, (site, None, "")."""
    found = _LAYER.match(site)
    assert found is not None, "every text matches"
    head, number, tail = found.groups()
    return (head, int(number), tail or "") if number is not None else (site, None, "")


def _place(site: str, component: str) -> str:
    return f"{site}, {component}" if component else site


def _dropped(sites: Iterable[SiteResult]) -> list[tuple[str, str, str]]:
    """Blocks and branches: those gone, then those kept, each with its similarity."""
    groups: dict[tuple[str, str], list[SiteResult]] = {}
    for site in sites:
        if site.before == 1 and site.unit in ("block", "attention", "feed_forward"):
            head, number, tail = split_site(site.site)
            place = _place(f"{head}.*{tail}" if number is not None else site.site, site.component)
            groups.setdefault((place, site.unit), []).append(site)
    rows = []
    for (place, unit), found in groups.items():
        for what, after in (("dropped", 0), ("kept", 1)):
            some = [site for site in found if site.after == after]
            if some:
                rows.append((place, f"{len(some)} of {len(found)} {unit}s {what}", ", ".join(map(_scored, some))))
    return rows


def _scored(site: SiteResult) -> str:
    number = split_site(site.site)[1]
    name = site.site if number is None else str(number)
    return name if site.score is None else f"{name} ({site.score:.3f})"


def _narrowed(sites: Iterable[SiteResult]) -> list[tuple[str, str, str]]:
    """Heads, channels and experts: layers of which as much stays share a row."""
    groups: dict[tuple[str, str], list[int]] = {}
    for site in sites:
        if site.before == 1 and site.unit in ("block", "attention", "feed_forward"):
            continue
        head, number, tail = split_site(site.site)
        place = _place(f"{head}.*{tail}" if number is not None else site.site, site.component)
        of = "" if site.before is None else f" of {site.before}"
        what = f"{site.after}{of} {site.unit}" + (f" ({site.note})" if site.note else " kept")
        groups.setdefault((place, what), []).extend([] if number is None else [number])
    return [(place, what, ranges(layers) or "-") for (place, what), layers in groups.items()]


def _refused(step: StepReport) -> list[tuple[str, str, str]]:
    groups: dict[tuple[str, str], list[int]] = {}
    for item in step.declined:
        head, number, tail = split_site(item.site)
        place = _place(f"{head}.*{tail}" if number is not None else item.site, item.component)
        groups.setdefault((place, item.reason), []).extend([] if number is None else [number])
    return [(place, ranges(layers), reason) for (place, reason), layers in groups.items()]


def ranges(layers: Iterable[int]) -> str:
    """[0, 1, 2, 7] -> `0-2, 7`."""
    runs: list[list[int]] = []
    for number in sorted(set(layers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
