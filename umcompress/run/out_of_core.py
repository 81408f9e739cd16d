"""A model that a run holds as files: from weight files to weight files, without the model in memory.

Structure and shapes come from a skeleton. What a pass reads of weights or measures comes from the files, a tensor
or a block at a time; the result is written a few rows at a time. Nothing is evaluated: that needs the model.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.checkpoint.disk import DiskTensors
from umcompress.checkpoint.writer import TensorToWrite, in_parts
from umcompress.documents.atomic import atomic_folder
from umcompress.documents.base import Task
from umcompress.documents.plan import CompressionRecord, Plan
from umcompress.documents.report import Speed
from umcompress.extend.pass_base import Proposal
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.models.equal_blocks import EqualBlocks
from umcompress.models.items import GenerationItem
from umcompress.models.lockstep import Lockstep
from umcompress.models.plain_folder import Plain
from umcompress.models.runner import Runner
from umcompress.models.save import save_plain, write_compressed
from umcompress.models.source import DTYPES, Source, as_stored, located
from umcompress.models.streamed import block_paths, feed_together, rounds_together, streamed
from umcompress.progress import counting, say
from umcompress.rewrite.structure import reshape
from umcompress.rewrite.tensors import TensorMap, evaluate
from umcompress.rewrite.tensors_in_parts import NewTensor
from umcompress.run.held_model import Written

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class OnDisk:
    """A `HeldModel` as a skeleton, the files of the one it comes from, and where each tensor is to come from."""

    source: Source
    model: nn.Module
    disk: DiskTensors
    tensors: TensorMap
    dtype: str | None = None
    blobs: list[Mapping[str, Tensor]] = field(default_factory=list)
    on_disk: bool = True
    # Whether weight files that nothing changes are taken by reference.
    link: bool = False

    def start_over(self) -> None:
        again = open_on_disk(self.source, self.dtype)
        self.model, self.disk, self.tensors, self.blobs = again.model, again.disk, again.tensors, again.blobs

    def apply(self, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
        """The structure half now; the tensors follow when they are read."""
        self.blobs.append(tensors)
        reshape(self.model, self.source.family, plan, len(self.blobs) - 1, self.tensors)

    def read(self, name: str) -> Tensor:
        """One tensor of the model as it is now, of the dtype that the model has."""
        path, _, leaf = name.rpartition(".")
        wanted = getattr(self.model.get_submodule(path), leaf).dtype
        return evaluate(self.tensors.entries[name], self.disk.read, self.blobs).to(wanted)

    def values(self) -> dict[str, TensorToWrite]:
        """What to write for every tensor of the model as it is now."""
        entries = self.tensors.entries
        return {
            name: in_parts(NewTensor(entries[name], tuple(tensor.shape), tensor.dtype, self.disk, self.blobs))
            for name, tensor in self.model.state_dict(keep_vars=True).items()
        }

    def read_checked(self, name: str) -> Tensor:
        """As `read`.  CheckError where it is NaN or infinite."""
        from umcompress.run.verify import finite

        tensor = self.read(name)
        finite([(name, tensor)])
        return tensor

    def running(self, equal: EqualBlocks | None = None) -> AbstractContextManager[Lockstep]:
        """A context in which the skeleton can be run, a block in memory at a time; every weight is looked at.

        equal: blocks that are not run, whose weights are not read; where this is given, all were looked at before.

        A model of transformers computes in one dtype; where its files hold several, that is float32.
        """
        skips = equal.known if equal is not None else lambda *_: False
        read = self.read_checked if equal is None else self.read
        kinds = {tensor.dtype for tensor in self.model.parameters() if tensor.is_floating_point()}
        if len(kinds) < 2 or self.dtype is not None or not self.source.family.general:
            return streamed(self.model, self.source.family, read, skips)
        return streamed(self.model, self.source.family, lambda name: _whole(read(name)), skips)

    def graph(self) -> ModelGraph:
        return trace_model(self.model, self.source.family, self.read)

    def feed(self, items: Sequence[Any]) -> None:
        """A block in memory at a time."""
        runner = self.source.runner(self.model)
        with streamed(self.model, self.source.family, self.read) as lockstep, self._counted(runner, items):
            feed_together(runner, items, lockstep)

    def _counted(self, runner: Runner, items: Sequence[Any]) -> AbstractContextManager[Any]:
        """All samples go through a block together: blocks are counted, unless pictures are denoised through them again
        and again."""
        if any(isinstance(item, GenerationItem) for item in items):
            return counting("calibrating", "samples", len(items), say)
        blocks = len(block_paths(self.model, self.source.family))
        return counting("calibrating", "blocks", blocks * rounds_together(runner, items), say)

    def rework(self, name: str, items: Sequence[Any]) -> None:
        """An edited copy would need memory for what is edited."""

    def as_written(self, proposal: Proposal, before: Sequence[Plan]) -> Proposal:
        """Values get the dtype of their tensor when they are read, and nothing is measured before."""
        return proposal

    def origins(self) -> None:
        """Nothing is evaluated."""

    def speed(self, runner: Runner, baseline: bool, tasks: Sequence[Task]) -> dict[Task, Speed]:
        """The time would be the disk's."""
        return {}

    def probe(self, in_place: Mapping[str, str] | None = None) -> dict[str, Tensor]:
        """in_place: blocks that are not run, each with the one whose outputs stand for its own."""
        equal = EqualBlocks(in_place or {}, float)
        with self.disk, self.running(equal if in_place is not None else None), equal.counted_once(self.model):
            return self.source.runner(self.model).probe()

    def write(self, folder: Path, record: CompressionRecord) -> Written:
        started = time.monotonic()
        family, values = self.source.family, self.values()
        plain: Plain | str = family.plain(self.model, self.source.folder, record.plans, values)
        links: list[str] | None = [] if self.link else None
        with self.disk:
            if isinstance(plain, str):
                with atomic_folder(folder, replace=True, sync=False) as work:
                    write_compressed(self.model, family, work, record, self.source.folder, values=values, links=links)
            else:
                save_plain(plain, folder, self.source.folder, replace=True, links=links)
        seconds, peak = time.monotonic() - started, peak_bytes()
        note = f"out of core: written in {seconds:.1f} s, peak memory {peak / 1e9:.2f} GB"
        return Written(plain, notes=(note, *_of_links(links)))


def _of_links(links: list[str] | None) -> list[str]:
    """What is to be known of files that were taken by reference."""
    if links is None:
        return []
    found = [f"{links.count(how)} weight files are {how}s" for how in ("reflink", "hard link") if how in links]
    careful = ["; do not write over the originals in place"] if "hard link" in links else []
    return ["; ".join(found) + "".join(careful) if found else "no weight file could be taken by reference"]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def open_on_disk(source: Source, dtype: str | None = None) -> OnDisk:
    """The model of a folder, nothing of it read but headers. `dtype`: None keeps each tensor's own."""
    return held_on_disk(source, *located(source), dtype)


def held_on_disk(source: Source, model: nn.Module, disk: DiskTensors, dtype: str | None = None) -> OnDisk:
    """A skeleton whose tensors lie where `disk` says."""
    if dtype is not None:
        model = source.family.cast(model, DTYPES[dtype])
    else:
        as_stored(model, disk)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, buffer in model.state_dict(keep_vars=True).items():
        if name not in parameters:
            # Buffers are few and small; a skeleton has real ones, which the files may know better.
            buffer.data = disk.read(name).to(buffer.dtype if dtype is not None else disk.dtype(name))
    return OnDisk(source, model, disk, TensorMap(model.state_dict(keep_vars=True)), dtype)


def peak_bytes() -> int:
    """The largest amount of memory that this process has held so far."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
