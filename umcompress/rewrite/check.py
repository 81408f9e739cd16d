"""Check a plan on shapes alone, before anything changes: every problem at once."""

from __future__ import annotations

from collections import Counter, defaultdict

from torch import nn

from umcompress.edits import (
    DropBlock,
    DropBranch,
    Edit,
    KeepChannels,
    KeepHeads,
    Plan,
    SetTensors,
    plan_problems,
)
from umcompress.errors import did_you_mean
from umcompress.graph.model_graph import BlockGraph, ModelFamily, read_block


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
        """The block that a site's path lies in."""
        parts = site.split(".")
        paths = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((path for path in paths if path in self.paths), None)


def check_plan(blocks: Blocks, plan: Plan) -> None:
    """Raises PlanError that lists unknown sites, indices out of range, contradictions, and emptied stacks."""
    checker = _Checker(blocks, plan)
    for number, edit in enumerate(plan.edits):
        where = f"edit {number} ({edit.kind})"
        checker.problems += [f"{where}: {problem}" for problem in checker.check(edit)]
    checker.problems += checker.emptied_stacks()
    if checker.problems:
        raise plan_problems(plan, checker.problems)


class _Checker:
    def __init__(self, blocks: Blocks, plan: Plan) -> None:
        self.blocks = blocks
        self.problems: list[str] = []
        self.dropped = Counter(edit.block for edit in plan.edits if isinstance(edit, DropBlock))
        drops = (edit for edit in plan.edits if isinstance(edit, DropBranch))
        self.branches: Counter[tuple[str, str, str]] = Counter(
            (e.block, e.branch, e.component) for e in drops
        )
        # Sizes as the edits so far leave them.
        self.heads: dict[tuple[str, str], tuple[int, int]] = {}
        self.widths: dict[str, int] = {}
        self.added: set[str] = set()
        self.tensors = set(blocks.model.state_dict(keep_vars=True))

    def check(self, edit: Edit) -> list[str]:
        if isinstance(edit, DropBlock):
            return self._block(edit.block) or self._once(self.dropped[edit.block], edit.block)
        if isinstance(edit, DropBranch):
            return self._branch(edit)
        if isinstance(edit, KeepHeads):
            return self._heads(edit)
        if isinstance(edit, KeepChannels):
            return self._channels(edit)
        return self._tensors(edit)

    def _block(self, path: str) -> list[str]:
        if path in self.blocks.paths:
            return []
        return [f"no block {path} ({did_you_mean(path, self.blocks.paths)})"]

    @staticmethod
    def _once(times: int, what: str) -> list[str]:
        return [f"{what} is dropped {times} times"] if times > 1 else []

    def _branch(self, edit: DropBranch) -> list[str]:
        if problems := self._block(edit.block):
            return problems
        if self.dropped[edit.block]:
            return [f"{edit.block} is dropped as a whole by the same plan"]
        what = f"{edit.component} {edit.branch} branch of {edit.block}"
        there = [(b.kind, b.component) for b in self.blocks.read(edit.block).branches]
        count = there.count((edit.branch, edit.component))
        if count != 1:
            found = ", ".join(f"{component} {kind}" for kind, component in there) or "none"
            return [f"{'no' if count == 0 else f'{count} times the'} {what} (branches found: {found})"]
        return self._once(self.branches[edit.block, edit.branch, edit.component], what)

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
            return _in_range(kept, groups, f"key-value groups of {edit.site}")
        kept = edit.query_heads or ()
        counts = [sum(head // per == group for head in kept) for group in range(groups)]
        self.heads[key] = (groups, max(counts, default=0))
        problems = _in_range(kept, groups * per, f"query heads of {edit.site}")
        if len(set(counts)) > 1:
            problems.append(f"{edit.site} would keep {counts} query heads in its groups: keep equally many")
        return problems

    def _channels(self, edit: KeepChannels) -> list[str]:
        path = self.blocks.holding(edit.site)
        sites = self.blocks.read(path).feed_forwards if path else ()
        site = next((s for s in sites if s.path == edit.site), None)
        if site is None or path is None:
            return [f"no feed-forward {edit.site} ({did_you_mean(edit.site, [s.path for s in sites])})"]
        if problems := self._gone(path, "feed_forward", None, edit.site):
            return problems
        width = self.widths.get(edit.site, site.width)
        self.widths[edit.site] = len(edit.keep)
        if edit.bias:
            self.added.add(f"{site.consumer}.bias")
        return _in_range(edit.keep, width, f"channels of {edit.site}")

    def _gone(self, path: str, kind: str, component: str | None, site: str) -> list[str]:
        """Whether the same plan drops what holds a site."""
        if self.dropped[path]:
            return [f"{site} is in {path}, which the same plan drops"]
        for branch in self.blocks.read(path).branches:
            dropped = self.branches[path, branch.kind, branch.component]
            if not dropped or branch.kind != kind or component not in (None, branch.component):
                continue
            targets = {f"{path}.{node.target}" for node in branch.own if node.op == "call_module"}
            if any(target == site or target.startswith(f"{site}.") for target in targets):
                return [f"{site} is in a branch that the same plan drops"]
        return []

    def _tensors(self, edit: SetTensors) -> list[str]:
        known = self.tensors | self.added
        return [
            f"no tensor {n} ({did_you_mean(n, _siblings(n, known))})" for n in edit.names if n not in known
        ]

    def emptied_stacks(self) -> list[str]:
        """A stack must keep a block; one whose branches are all dropped does not count."""
        left: dict[str, int] = defaultdict(int)
        for path, (stack, _) in self.blocks.paths.items():
            left[stack] += 0 if self.dropped[path] or self._hollow(path) else 1
        return [f"nothing would be left of the stack {stack}" for stack, count in left.items() if count == 0]

    def _hollow(self, path: str) -> bool:
        if not any(block == path for block, _, _ in self.branches):
            return False
        branches = self.blocks.read(path).branches
        return all(self.branches[path, b.kind, b.component] for b in branches)


def _siblings(name: str, known: set[str]) -> list[str]:
    """Names under the deepest shared path: a model has too many to offer all."""
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
