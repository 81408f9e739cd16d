"""What a step removed, site by site, with the measurement that decided: read off its plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import NonNegativeInt

from umcompress.documents.base import Document
from umcompress.documents.plan import (
    DropBlock,
    DropBranch,
    DropModule,
    Edit,
    Evidence,
    Index,
    KeepChannels,
    KeepHeads,
    Plan,
    SplitExperts,
)


class SiteResult(Document):
    """What a step left of one site: `after` of `before` units (null where the plan does not say how many there were).

    unit: block, attention, feed_forward, module, key-value groups, query heads, channels or those at work of experts.
    score: what was measured of a block or branch, its similarity.  kept: which heads stay.  note: experts in words.
    """

    site: str
    component: str = ""
    unit: str
    before: NonNegativeInt | None = None
    after: NonNegativeInt
    score: float | None = None
    kept: Index | None = None
    note: str = ""


def site_results(plan: Plan) -> tuple[SiteResult, ...]:
    """A row for each site that the plan cuts, and for each that it scored and kept, in the order of the evidence."""
    evidence = {found.site: found for found in plan.evidence}
    # Of a block that goes branch by branch, one row.
    cut = list({(row.site, row.unit): row for edit in plan.edits for row in _rows(edit, evidence)}.values())
    unit = next((row.unit for row in cut if row.before == 1), None)
    at = {row.site for row in cut}
    kept = [
        SiteResult(site=found.site, component=found.component, unit=unit, before=1, after=1, score=_single(found))
        for found in plan.evidence
        if unit is not None and found.site not in at and found.kept is None
    ]
    order = {site: place for place, site in enumerate(evidence)}
    return tuple(sorted([*cut, *kept], key=lambda row: order.get(row.site, len(order))))


def _rows(edit: Edit, evidence: Mapping[str, Evidence]) -> Iterator[SiteResult]:
    if isinstance(edit, DropBlock):
        # A block goes as a whole also where its last branch was asked for: then that is what was measured.
        asked = [site for site in evidence if site == edit.block or site.startswith(f"{edit.block}.")]
        for site in asked or [edit.block]:
            yield _dropped(site, "block", evidence.get(site))
    elif isinstance(edit, DropBranch):
        site = f"{edit.block}.{edit.branch}"
        found = evidence.get(site) or evidence.get(edit.block)
        yield _dropped(site if found is None else found.site, edit.branch if site in evidence else "block", found)
    elif isinstance(edit, DropModule):
        yield _dropped(edit.module, "module", evidence.get(edit.module))
    elif isinstance(edit, KeepHeads):
        kept = edit.key_value_groups or edit.query_heads or ()
        unit = "query heads" if edit.key_value_groups is None else "key-value groups"
        yield _narrowed(edit.site, unit, len(kept), evidence).model_copy(update={"kept": kept})
    elif isinstance(edit, KeepChannels):
        yield _narrowed(edit.site, "channels", len(edit.keep), evidence)
    elif isinstance(edit, SplitExperts):
        experts, shared = len(edit.experts), len(edit.shared)
        found = evidence.get(edit.site)
        yield SiteResult(
            site=edit.site, component=found.component if found else "", unit="channels at work",
            before=experts * edit.width + shared, after=edit.active * edit.width + shared,
            note=experts_in_words(experts, edit.width, edit.active, shared),
        )  # fmt: skip


def _dropped(site: str, unit: str, found: Evidence | None) -> SiteResult:
    component = found.component if found else ""
    return SiteResult(site=site, component=component, unit=unit, before=1, after=0, score=_single(found))


def _single(found: Evidence | None) -> float | None:
    return found.scores[0] if found is not None and len(found.scores) == 1 else None


def _narrowed(site: str, unit: str, after: int, evidence: Mapping[str, Evidence]) -> SiteResult:
    found = evidence.get(site)
    before = len(found.scores) if found is not None and found.scores else None
    return SiteResult(site=site, component=found.component if found else "", unit=unit, before=before, after=after)


def experts_in_words(experts: int, width: int, active: int, shared: int) -> str:
    """A description of a split feed-forward."""
    return f"{experts} experts of {width}, {active} active" + (f", {shared} shared" if shared else "")
