"""Check a plan on shapes alone, before anything changes: every problem at once."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

from torch import nn

from umcompress.documents.plan import (
    DropBlock,
    DropBranch,
    DropModule,
    Edit,
    KeepChannels,
    KeepHeads,
    Plan,
    SetTensors,
    SplitExperts,
    plan_problems,
)
from umcompress.errors import did_you_mean
from umcompress.graph.block_graph import BlockGraph, read_block
from umcompress.graph.branches import Branch
from umcompress.graph.expert_place import find_part, module_path
from umcompress.graph.model_graph import BlockCountingFamily, ModelFamily
from umcompress.graph.sites import AttentionSite, BranchSite, ExpertSite, FeedForwardSite
from umcompress.rewrite.experts import sparse_module


class Blocks:
    """The blocks of a model before a plan; each is traced when first asked for."""

    def __init__(self, model: nn.Module, family: ModelFamily) -> None:
        self.model, self.family = model, family
        self.stacks = family.stacks(model)
        self._read: dict[str, BlockGraph] = {}
        self.paths: dict[str, tuple[str, int]] = {}
        for stack, path in self.stacks.items():
            for index in range(len(self.modules(stack))):
                self.paths[f"{path}.{index}"] = (stack, index)

    def modules(self, stack: str) -> nn.ModuleList:
        found = self.model.get_submodule(self.stacks[stack])
        assert isinstance(found, nn.ModuleList)
        return found

    def read(self, path: str) -> BlockGraph:
        if path not in self._read:
            stack, index = self.paths[path]
            block = self.model.get_submodule(path)
            self._read[path] = read_block(block, path, stack, index, self.family)
        return self._read[path]

    def holding(self, site: str) -> str | None:
        """The block that contains a site."""
        parts = site.split(".")
        paths = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((path for path in paths if path in self.paths), None)

    def attention(self, path: str, component: str) -> AttentionSite:
        """The stream of an attention that `check_plan` has accepted."""
        holding = self.holding(path)
        assert holding is not None
        return next(one for one in self.read(holding).attentions if (one.path, one.component) == (path, component))

    def feed_forward(self, path: str) -> FeedForwardSite:
        """The feed-forward at a path that `check_plan` has accepted."""
        holding = self.holding(path)
        assert holding is not None
        return next(site for site in self.read(holding).feed_forwards if site.path == path)


def check_plan(blocks: Blocks, plan: Plan) -> None:
    """Raises PlanError that lists unknown sites, indices out of range, contradictions, and emptied stacks."""
    checker = _Checker(blocks, plan)
    for number, edit in enumerate(plan.edits):
        where = f"edit {number} ({edit.kind})"
        checker.problems += [f"{where}: {problem}" for problem in checker.check(edit)]
    checker.problems += checker.emptied_stacks()
    if checker.problems:
        raise plan_problems(plan, checker.problems)
    if isinstance(blocks.family, BlockCountingFamily) and (removed := checker.removed()):
        blocks.family.check_removable(blocks.model, removed)


class _Checker:
    def __init__(self, blocks: Blocks, plan: Plan) -> None:
        self.blocks = blocks
        self.problems: list[str] = []
        self.dropped = Counter(edit.block for edit in plan.edits if isinstance(edit, DropBlock))
        drops = (edit for edit in plan.edits if isinstance(edit, DropBranch))
        self.branches: Counter[tuple[str, str, str, str]] = Counter(
            (e.block, e.branch, e.component, e.part) for e in drops
        )
        # Sizes as the edits so far leave them.
        self.heads: dict[tuple[str, str], tuple[int, int]] = {}
        self.widths: dict[str, int] = {}
        self.split: set[str] = set()
        self.tensors = set(blocks.model.state_dict(keep_vars=True))

    def check(self, edit: Edit) -> list[str]:
        if isinstance(edit, DropBlock):
            return self._block(edit.block) or self._once(self.dropped[edit.block], edit.block)
        if isinstance(edit, DropBranch):
            return self._branch(edit)
        if isinstance(edit, DropModule):
            return self._module(edit.module)
        if isinstance(edit, KeepHeads):
            return self._heads(edit)
        if isinstance(edit, KeepChannels):
            return self._channels(edit)
        if isinstance(edit, SplitExperts):
            return self._experts(edit)
        return self._tensors(edit)

    def _block(self, path: str) -> list[str]:
        if path in self.blocks.paths:
            return []
        return [f"no block {path} ({did_you_mean(path, self.blocks.paths)})"]

    def _module(self, path: str) -> list[str]:
        known = {name for name, _ in self.blocks.model.named_modules() if name}
        if path not in known:
            return [f"no module {path} ({did_you_mean(path, known)})"]
        if (block := self.blocks.holding(path)) is not None:
            return [f"{path} is in the block {block}: drop the block, or a branch of it"]
        return []

    @staticmethod
    def _once(times: int, what: str) -> list[str]:
        return [f"{what} is dropped {times} times"] if times > 1 else []

    def _branch(self, edit: DropBranch) -> list[str]:
        if problems := self._block(edit.block):
            return problems
        if self.dropped[edit.block]:
            return [f"{edit.block} is dropped as a whole by the same plan"]
        what = f"{edit.component} {edit.branch} branch {f'{edit.part} ' if edit.part else ''}of {edit.block}"
        there = self.blocks.read(edit.block).site.branches
        count = sum(_means(edit, site) for site in there)
        if count != 1:
            found = ", ".join(f"{b.component} {b.kind}{f' {b.part}' if b.part else ''}" for b in there) or "none"
            return [f"{'no' if count == 0 else f'{count} times the'} {what} (branches found: {found})"]
        return self._once(self.branches[edit.block, edit.branch, edit.component, edit.part], what)

    def _heads(self, edit: KeepHeads) -> list[str]:
        path = self.blocks.holding(edit.site)
        sites = self.blocks.read(path).attentions if path else ()
        found = [s for s in sites if s.path == edit.site and s.component == edit.component]
        if not found or path is None:
            known = [f"{s.path} ({s.component})" for s in sites]
            return [f"no attention {edit.site} ({edit.component}); {did_you_mean(edit.site, known)}"]
        if problems := self._gone(path, "attention", edit.component, edit.site):
            return problems
        site, key = found[0], (edit.site, edit.component)
        groups, per = self.heads.get(key, (site.key_value_groups, site.query_heads_per_group))
        if edit.key_value_groups is not None:
            kept = edit.key_value_groups
            self.heads[key] = (len(kept), per)
            problems = _in_range(kept, groups, f"key-value groups of {edit.site}")
            if len(kept) % site.multiple_of:
                wanted = f"its groups lie in {site.multiple_of} parts of equal size: keep a multiple of that"
                problems.append(f"{edit.site} would keep {len(kept)} key-value groups; {wanted}")
            return problems
        kept = edit.query_heads or ()
        counts = [sum(head // per == group for head in kept) for group in range(groups)]
        self.heads[key] = (groups, max(counts, default=0))
        problems = _in_range(kept, groups * per, f"query heads of {edit.site}")
        if len(set(counts)) > 1:
            problems.append(f"{edit.site} would keep {counts} query heads in its groups: keep equally many")
        return problems

    def _channels(self, edit: KeepChannels) -> list[str]:
        site, problems = self._feed_forward(edit.site)
        if site is None:
            return problems
        width = self.widths.get(edit.site, site.width)
        self.widths[edit.site] = len(edit.keep)
        if edit.bias:
            self.tensors.add(f"{site.consumer}.bias")
        return _in_range(edit.keep, width, f"channels of {edit.site}")

    def _experts(self, edit: SplitExperts) -> list[str]:
        site, problems = self._feed_forward(edit.site)
        if site is None:
            return problems
        self.split.add(edit.site)
        found, block = self.blocks.read(site.block), self.blocks.model.get_submodule(site.block)
        part = find_part(found.graph, block, site)
        if isinstance(part, str):
            return [f"{edit.site} cannot be split: {part}"]
        place = f"{site.block}.{module_path(found.graph, block, site, part)}"
        bias = f"{site.consumer}.bias" in self.tensors
        stays = site.shared_consumer
        gone = tuple(f"{path}." for path in (*site.producers, *(() if stays else (site.consumer,))))
        self.tensors = {name for name in self.tensors if not name.startswith(gone)}
        made = sparse_module(block, site, part, edit, bias)
        self.tensors |= {f"{place}.{name}" for name in made.state_dict(keep_vars=True)}
        return _covering(edit, self.widths.get(edit.site, site.width))

    def _feed_forward(self, name: str) -> tuple[FeedForwardSite | None, list[str]]:
        """The feed-forward at a path if it can still be cut or split; otherwise None, with a problem noted."""
        path = self.blocks.holding(name)
        found = self.blocks.read(path) if path else None
        sites = found.feed_forwards if found else ()
        site = next((s for s in sites if s.path == name), None)
        if site is None or path is None:
            earlier = next((s for s in found.experts if _made_of(s, name)), None) if found else None
            if earlier is not None:
                return None, [_already(name, f"{earlier.experts} experts ({earlier.active} active)")]
            return None, [f"no feed-forward {name} ({did_you_mean(name, [s.path for s in sites])})"]
        if name in self.split:
            return None, [_already(name, "experts by an earlier edit of this plan")]
        if problems := self._gone(path, "feed_forward", None, name):
            return None, problems
        return site, []

    def _gone(self, path: str, kind: str, component: str | None, site: str) -> list[str]:
        """Whether the same plan drops the block or branch that contains a site."""
        if self.dropped[path]:
            return [f"{site} is in {path}, which the same plan drops"]
        for branch in self.blocks.read(path).branches:
            if not self._dropped(path, branch) or branch.kind != kind or component not in (None, branch.component):
                continue
            targets = {f"{path}.{node.target}" for node in branch.own if node.op == "call_module"}
            if any(target == site or target.startswith(f"{site}.") for target in targets):
                return [f"{site} is in a branch that the same plan drops"]
        return []

    def _tensors(self, edit: SetTensors) -> list[str]:
        unknown = [name for name in edit.names if name not in self.tensors]
        return [f"no tensor {n} ({did_you_mean(n, _siblings(n, self.tensors))})" for n in unknown]

    def removed(self) -> dict[str, list[int]]:
        """Stack -> positions of the blocks that are dropped, as a whole or branch by branch."""
        found: dict[str, list[int]] = defaultdict(list)
        for path, (stack, index) in self.blocks.paths.items():
            if self.dropped[path] or self._hollow(path):
                found[stack].append(index)
        return dict(found)

    def emptied_stacks(self) -> list[str]:
        """Stacks that would keep no block; a block whose branches are all dropped does not count."""
        left: dict[str, int] = defaultdict(int)
        for path, (stack, _) in self.blocks.paths.items():
            left[stack] += 0 if self.dropped[path] or self._hollow(path) else 1
        return [f"nothing would be left of the stack {stack}" for stack, count in left.items() if count == 0]

    def _hollow(self, path: str) -> bool:
        if not any(block == path for block, *_ in self.branches):
            return False
        branches = self.blocks.read(path).branches
        return self.blocks.read(path).site.complete and all(self._dropped(path, branch) for branch in branches)

    def _dropped(self, path: str, branch: Branch) -> int:
        """How often the plan drops a branch: by its part, or as the only one of its kind."""
        return sum(self.branches[path, branch.kind, branch.component, part] for part in {branch.part, ""})


def _means(edit: DropBranch, site: BranchSite) -> bool:
    """Whether an edit means this branch; without a part it means the only one of its kind and component."""
    return (edit.branch, edit.component) == (site.kind, site.component) and edit.part in ("", site.part)


def _siblings(name: str, known: set[str]) -> list[str]:
    """Names that share the longest prefix with a wrong name: a model has too many to suggest them all."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        start = ".".join(parts[:end]) + "."
        if near := [other for other in known if other.startswith(start)]:
            return near
    return []


def _in_range(index: tuple[int, ...], size: int, what: str) -> list[str]:
    if index and index[-1] >= size:
        return [f"index {index[-1]} is out of range: {what} are 0 to {size - 1}"]
    return []


def _made_of(site: ExpertSite, name: str) -> bool:
    """Whether a name means these experts: their own path, or that of the feed-forward they were made from."""
    inside = name != site.block and site.path.startswith(f"{name}.")
    return inside or site.path in (name, f"{name}_experts")


def _already(name: str, into: str) -> str:
    allowed = "its branch can be dropped and its tensors set, or cut the channels before the split"
    return f"{name} is already split into {into}: {allowed}"


def _covering(edit: SplitExperts, width: int) -> list[str]:
    """Every channel must be in an expert or shared; that none occurs twice is checked by the edit itself."""
    given = {*itertools.chain(*edit.experts), *edit.shared}
    missing = sorted(set(range(width)) - given)
    problems = _in_range(tuple(sorted(given)), width, f"channels of {edit.site}")
    if missing:
        listed = ", ".join(map(str, missing[:5])) + (f", ... ({len(missing)} in all)" if len(missing) > 5 else "")
        found = f"channels {listed} of {edit.site} are in no expert and not shared"
        problems.append(f"{found}: give each of its {width} channels to one of them")
    return problems
