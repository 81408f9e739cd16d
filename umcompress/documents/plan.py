"""Edits and plans: what a pass proposes to change, as documents that survive a round trip through JSON.

All paths in one plan name modules of the model as it is before that plan, also when the plan removes
blocks: blocks are renumbered only after its last edit. Indices are positions in the site as it is before the
edit that holds them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from umcompress.documents.base import Component, Document, Task
from umcompress.errors import PlanError

BranchKind = Literal["attention", "feed_forward"]
Weighting = Literal["one_plus_logit", "softmax"]
Index = tuple[NonNegativeInt, ...]


def _ascending(index: tuple[int, ...], what: str) -> None:
    if not index:
        raise ValueError(f"{what} keeps nothing: drop the branch instead")
    if any(a >= b for a, b in itertools.pairwise(index)):
        raise ValueError(f"{what} must be ascending and without repeats")


class DropBlock(Document):
    """Remove a block from its stack; later blocks move down by one."""

    kind: Literal["drop_block"] = "drop_block"
    block: str


class DropBranch(Document):
    """Remove one residual branch of a block, with its norm and weights. The stream passes by unchanged.

    part: the module of the block that it is in, where several branches are of this kind and component. Of an attention
    that adds to several streams all go.
    """

    kind: Literal["drop_branch"] = "drop_branch"
    block: str
    branch: BranchKind
    component: Component
    part: str = ""


class KeepHeads(Document):
    """Keep these key-value groups with all their query heads, or these query heads (equally many a group)."""

    kind: Literal["keep_heads"] = "keep_heads"
    site: str
    component: Component
    key_value_groups: Index | None = None
    query_heads: Index | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> KeepHeads:
        if (self.key_value_groups is None) == (self.query_heads is None):
            raise ValueError("give key_value_groups or query_heads, not both and not neither")
        for what in ("key_value_groups", "query_heads"):
            if (index := getattr(self, what)) is not None:
                _ascending(index, what)
        return self


class KeepChannels(Document):
    """Keep these inner channels of a feed-forward. `bias`: its last linear gets a zero bias if need be."""

    kind: Literal["keep_channels"] = "keep_channels"
    site: str
    keep: Index
    bias: bool = False

    @model_validator(mode="after")
    def _legal(self) -> KeepChannels:
        _ascending(self.keep, "keep")
        return self


class SplitExperts(Document):
    """Split a feed-forward into experts, of which each token's `active` best run, behind a router of zeros.

    `experts` are the channels of each expert, in expert order; they and the always-on `shared` ones are all
    channels of the site, each once. `selector`: frozen scores of its own choose the experts, and the router's
    trainable logits come on top; without it the logits alone choose.
    """

    kind: Literal["split_experts"] = "split_experts"
    site: str
    experts: Annotated[tuple[Index, ...], Field(min_length=1)]
    shared: Index = ()
    active: PositiveInt
    weighting: Weighting = "one_plus_logit"
    selector: bool = False

    @property
    def width(self) -> int:
        """Channels of one expert."""
        return len(self.experts[0])

    @model_validator(mode="after")
    def _legal(self) -> SplitExperts:
        sizes = sorted({len(expert) for expert in self.experts})
        if len(sizes) > 1:
            raise ValueError(f"experts have {', '.join(map(str, sizes))} channels: give each equally many")
        if sizes[0] == 0:
            raise ValueError("experts have no channels: give each at least one")
        if self.active > len(self.experts):
            allowed = f"1 to {len(self.experts)}"
            raise ValueError(f"active is {self.active} of {len(self.experts)} experts: allowed is {allowed}")
        counts = Counter(itertools.chain(*self.experts, self.shared))
        if twice := sorted(channel for channel, count in counts.items() if count > 1):
            listed = ", ".join(map(str, twice[:5])) + (", ..." if len(twice) > 5 else "")
            raise ValueError(f"channels must be in one expert or shared, once: not so for {listed}")
        return self


class DropModule(Document):
    """Remove a module outside of blocks, with its weights: the kept `task` never reads it, and the other is refused.

    runs: the task sends tokens through it, and reads nothing of what comes out.
    """

    kind: Literal["drop_module"] = "drop_module"
    module: str
    task: Task
    runs: bool = False


class SetTensors(Document):
    """Give tensors new values, of the shape they have by then. The values are in a file next to the plan."""

    kind: Literal["set_tensors"] = "set_tensors"
    names: Annotated[tuple[str, ...], Field(min_length=1)]
    file: str = "tensors.safetensors"
    digest: str = ""

    @model_validator(mode="after")
    def _legal(self) -> SetTensors:
        if len(set(self.names)) != len(self.names):
            raise ValueError("names must not repeat")
        return self


Edit = Annotated[
    DropBlock | DropBranch | DropModule | KeepHeads | KeepChannels | SplitExperts | SetTensors,
    Field(discriminator="kind"),
]


class Evidence(Document):
    """Why a site was treated as it was: a score for each of its units, and the units kept (None: not cut)."""

    site: str
    component: str
    scores: tuple[float, ...] = ()
    kept: Index | None = None
    note: str = ""


class Declined(Document):
    """A site that the pass left alone, and why."""

    site: str
    component: str
    reason: str


class Plan(Document):
    """The ordered edits of one pass, with the evidence for them."""

    pass_name: str
    edits: tuple[Edit, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    declined: tuple[Declined, ...] = ()

    def tensor_names(self) -> tuple[str, ...]:
        """Names of tensors whose new values must be given together with this plan."""
        return tuple(name for edit in self.edits if isinstance(edit, SetTensors) for name in edit.names)


class CompressionRecord(Document):
    """`umcompress.json` of a compressed checkpoint: what it was made from, and the plans to replay."""

    format: Literal[1] = 1
    base: str
    fingerprint: str = ""
    family: str
    components: dict[str, Component] = {}
    plans: tuple[Plan, ...] = ()
    provenance: dict[str, Any] = {}


def plan_problems(plan: Plan, problems: list[str]) -> PlanError:
    """The error that lists everything wrong with a plan."""
    listed = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
    return PlanError(
        asked=f"apply the plan of {plan.pass_name} ({len(plan.edits)} edits)",
        found=listed,
        do="make the plan anew on this model: paths and indices mean the model as it is before the plan",
    )
