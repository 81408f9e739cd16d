"""Check a model that went from file to file by what changed of it.

Opened again from its folder it must have the modules, settings and buffers of the model that was rewritten; every
tensor must hold the bits that it comes from, and every file beside them the bytes; and where a block was rewritten,
the written model computes in a fresh process what the rewritten one does here, one block of each structure in memory.
Blocks that were copied as they are compute what they did before. What this cannot tell apart is checked as a whole,
see `verify`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from umcompress.checkpoint.buffers import saved_buffers
from umcompress.documents.plan import Plan
from umcompress.documents.report import CheckpointResult
from umcompress.errors import CheckError, ModelError, PlanError
from umcompress.graph.lower import lowered_graph, original_class
from umcompress.models.equal_blocks import equal_blocks, kind_of
from umcompress.models.save import beside_compressed, beside_plain
from umcompress.models.source import Source, open_source
from umcompress.models.streamed import block_paths
from umcompress.plan.walk import header_problems
from umcompress.rewrite.tensors import Unchanged
from umcompress.run.held_model import Written
from umcompress.run.verify import (
    DO,
    LOOK,
    FreshProcess,
    refuse_not_finite,
    result_of,
    sound_outputs,
    stored_parameters,
    verify,
)
from umcompress.run.written_bytes import check_origins, compare_beside, compare_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from umcompress.run.out_of_core import OnDisk


class Waiting(NamedTuple):
    """What is known before anything is written: blocks that changed, and the process that will run them, if any."""

    changed: tuple[str, ...]
    process: FreshProcess | None


@contextmanager
def waiting(held: OnDisk) -> Iterator[Waiting]:
    """Inside, a fresh process is ready to run what changed; it imports while this one writes."""
    changed = changed_blocks(held)
    process = FreshProcess() if changed else None
    try:
        yield Waiting(changed, process)
    finally:
        if process is not None:
            process.end()


def changed_blocks(held: OnDisk) -> tuple[str, ...]:
    """Paths of the blocks that are rewritten, or have tensors that do not lie in a file as they are written.

    "" where that is so of what lies outside of blocks.
    """
    blocks = block_paths(held.model, held.source.family)
    values = held.values()
    computed = [name for name, entry in held.tensors.entries.items()
                if not isinstance(entry, Unchanged) or held.disk.dtype(entry.name) != values[name].dtype]
    of = {next((path for path in blocks if name.startswith(f"{path}.")), "") for name in computed}
    rewritten = {path for path in blocks if any(map(lowered_graph, held.model.get_submodule(path).modules()))}
    return tuple(sorted(of | rewritten))


def verify_changed(
    held: OnDisk, folder: Path, written: Written, plans: Sequence[Plan], waits: Waiting
) -> CheckpointResult:
    """CheckError where the folder holds or computes anything else than the rewritten model."""
    started = time.monotonic()
    asked = f"find in {folder} what was to be written"
    again = _opened(held.source, folder, held.dtype, asked)
    _compare_beside(held, folder, written, asked)
    why = _why_whole(held, again, written)
    if why is None and waits.process is None and (odd := differing_fields(held.model, again.model)):
        why = f"its configuration has another {odd[0]}"
    if why is None:
        check_origins(
            held.tensors.entries, list(held.source.family.stacks(held.model).values()), list(held.disk.places), plans,
            asked,
        )  # fmt: skip
        found = compare_tensors(held, again, asked)
        refuse_not_finite(found.not_finite)
        if large := found.too_large:
            said = f"values of 2^64 and more in {len(large)} tensors, such as {large[0]}: their products overflow"
            raise CheckError("write the model", said, LOOK)
        parts = [f"{len(found.copied)} tensors copied and {len(found.computed)} computed, equal to the last bit"]
        if waits.process is not None:
            in_place = equal_blocks(held.model)
            ran = [path for path in block_paths(held.model, held.source.family) if path not in in_place]
            waits.process.compare(held, folder, sound_outputs(held, in_place), in_place)
            parts.append(f"of {len(waits.changed)} parts that changed, a block of each structure ({len(ran)} in all) "
                        "computes the same in a fresh process")  # fmt: skip
        else:
            parts.append("no block changed")
        counted = _counted(held, folder, written, asked)
        result = result_of(held, folder, written, counted)
    else:
        result = verify(held, folder, written)
        parts = [f"as a whole, since {why}"]
    seconds = time.monotonic() - started
    return result.model_copy(update={"checked": f"checked in {seconds:.1f} s: {'; '.join(parts)}"})


def _opened(source: Source, folder: Path, dtype: str | None, asked: str) -> OnDisk:
    """The written model as anyone finds it.  CheckError where its files do not fit its configuration."""
    from umcompress.run.out_of_core import open_on_disk

    try:
        opened = open_source(
            str(folder), dtype, source.device, source.components or None, trust_remote_code=source.trust_remote_code
        )
        again = open_on_disk(opened, dtype)
        problems = header_problems(again.model, opened)
    except (ModelError, PlanError) as error:
        raise CheckError(asked, str(error), DO) from error
    if problems:
        raise CheckError(asked, "; ".join(problems[:5]), DO)
    return again


def _compare_beside(held: OnDisk, folder: Path, written: Written, asked: str) -> None:
    """CheckError where a file beside the weights is another than was to be written."""
    plain, source = written.plain, held.source
    compare_beside(
        beside_compressed(held.model, source.family, source.folder) if isinstance(plain, str)
        else beside_plain(plain, source.folder), folder, asked,
    )  # fmt: skip


def _counted(held: OnDisk, folder: Path, written: Written, asked: str) -> int:
    """Elements in the weight files, which must be those of the model."""
    plain = None if isinstance(written.plain, str) else written.plain
    counted = plain.parameters(saved_buffers(held.model)) if plain else sum(p.numel() for p in held.model.parameters())
    if (stored := stored_parameters(folder, held.model)) != counted:
        raise CheckError(asked, f"{stored} parameters stored, {counted} in the report", DO)
    return counted


def _why_whole(held: OnDisk, again: OnDisk, written: Written) -> str | None:
    """Why comparing parts would say too little; None where it says all."""
    if not isinstance(written.plain, str) and not written.plain.exact:
        return "the layout computes in another order"
    if held.source.own_code:
        return "the model's own code builds it"
    return unlike(held.model, again.model, block_paths(held.model, held.source.family))


def unlike(ours: nn.Module, theirs: nn.Module, blocks: Sequence[str]) -> str | None:
    """Where two skeletons may compute otherwise, beside blocks that are rewritten in one and built so in the other."""
    from umcompress.models.hf.export.ordinary import differing_setting

    one, other = dict(ours.named_modules()), dict(theirs.named_modules())
    if odd := sorted(one.keys() ^ other.keys()):
        return f"only one of both models has {odd[0]}"
    for path, module in one.items():
        same = original_class(module) is original_class(other[path])
        if not same or (path not in blocks and kind_of(module) != kind_of(other[path])):
            return f"{path or 'the model'} is of another class"
        if (setting := differing_setting(module, other[path], _OF_A_FOLDER)) is not None:
            return f"{path or 'the model'} has another {setting}"
    return None


# What a model knows of where it lies and who wrote it.
_OF_A_FOLDER = frozenset({
    "name_or_path", "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version",
})  # fmt: skip


def differing_fields(ours: nn.Module, theirs: nn.Module) -> list[str]:
    """Names of fields that the configurations of two models have otherwise; a module may look at them when it runs."""
    one, other = _fields(ours), _fields(theirs)
    return sorted(name for name in one.keys() | other.keys()
                  if name not in _OF_A_FOLDER and one.get(name) != other.get(name))  # fmt: skip


def _fields(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = getattr(getattr(model, "config", None), "to_dict", dict)()
    return found
