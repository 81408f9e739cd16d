"""Run a written model in a fresh process and compare what it computes with what the model in this one does.

`python -m umcompress.run.verify` imports, reads what to do (a `FreshCheck` as JSON), and prints one JSON object; the
parent judges.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.checkpoint.buffers import is_buffer, saved_buffers
from umcompress.documents.base import Document
from umcompress.documents.report import CheckpointResult
from umcompress.errors import CheckError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from umcompress.run.held_model import HeldModel, Written

# Of an export that computes the same but in another order: largest difference, over the largest output (or 1).
ROUNDING = {"float32": 1e-4, "bfloat16": 5e-2}


class FreshCheck(Document):
    """What the fresh process is to do. dtype: null, as it is stored. bar: how far outputs may differ; 0, in no bit.

    in_place: out of core, blocks that are not run, each with the one whose outputs stand for its own; null: all run.
    """

    folder: str
    expected: str
    dtype: str | None
    device: str
    threads: int
    bar: float
    trust_remote_code: bool
    on_disk: bool
    in_place: dict[str, str] | None = None


class FreshProcess:
    """A process that imports what it needs while this one goes on, and then waits for what to do."""

    def __init__(self) -> None:
        # -P: in the user's current folder a file may be called as a module of Python's or of a library is.
        command = [sys.executable, "-P", "-m", "umcompress.run.verify"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def compare(
        self, held: HeldModel, folder: Path, expected: dict[str, Tensor], in_place: Mapping[str, str] | None = None,
        bar: float = 0.0,
    ) -> int:  # fmt: skip
        """How many parameters the folder holds.  CheckError where its model computes anything but `expected`."""
        import torch

        asked, source = f"compute the same from {folder} in a fresh process", held.source
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "expected.safetensors"
            save_outputs(expected, file)
            check = FreshCheck(
                folder=str(folder), expected=str(file), dtype=held.dtype, device=source.device,
                threads=torch.get_num_threads(), bar=bar, trust_remote_code=source.trust_remote_code,
                on_disk=held.on_disk, in_place=None if in_place is None else dict(in_place),
            )  # fmt: skip
            done = self.done(check)
        if done.returncode != 0:
            raise CheckError(asked, done.stderr.strip().splitlines()[-1] if done.stderr else "no output", DO)
        found = json.loads(done.stdout)
        if found["differing"]:
            raise CheckError(asked, f"differences in {', '.join(found['differing'])}", DO)
        return int(found["parameters"])

    def done(self, check: FreshCheck) -> subprocess.CompletedProcess[str]:
        """What the process says, which ends with it."""
        said, errors = self._process.communicate(check.model_dump_json())
        return subprocess.CompletedProcess(self._process.args, self._process.returncode, said, errors)

    def end(self) -> None:
        """Let it go, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


DO = "the run folder keeps all steps; report this as a bug"


def verify(
    held: HeldModel, folder: Path, written: Written, expected: dict[str, Tensor] | None = None
) -> CheckpointResult:
    """Raises CheckError when the fresh process computes anything else, or counts other parameters.

    expected: what the model computes of fixed inputs, where that is known.
    """
    plain = None if isinstance(written.plain, str) else written.plain
    inexact = plain is not None and not plain.exact
    bar = ROUNDING.get("".join(written.stored_in) or held.dtype or "", 5e-2) if inexact else 0.0
    process = FreshProcess()
    try:
        found = process.compare(held, folder, sound_outputs(held) if expected is None else expected, bar=bar)
    finally:
        process.end()
    model = held.model
    counted = plain.parameters(saved_buffers(model)) if plain else sum(p.numel() for p in model.parameters())
    if found != counted:
        asked = f"find in {folder} what was to be written"
        raise CheckError(asked, f"{found} parameters stored, {counted} in the report", DO)
    return result_of(held, folder, written, found, bar)


def result_of(held: HeldModel, folder: Path, written: Written, parameters: int, bar: float = 0.0) -> CheckpointResult:
    """What the report says of a folder that is as it was to be; bar: how far its outputs may differ."""
    plain = None if isinstance(written.plain, str) else written.plain
    return CheckpointResult(
        path=folder.name, parameters=parameters,
        bytes=sum(path.stat().st_size for path in _weights(folder)), reload_equal=None if bar else True,
        loads_with=plain.loads_with if plain else "umcompress", own_code=held.source.own_code, note=_note(written, bar),
    )  # fmt: skip


def _note(written: Written, bar: float) -> str:
    notes = [written.plain if isinstance(written.plain, str) else written.plain.note]
    if written.stored_in:
        notes.append(f"weights as they were stored: {', '.join(written.stored_in)}")
    if bar:
        notes.append(f"outputs in a fresh process differ by rounding only (at most {bar:g})")
    return "; ".join(filter(None, notes))


# Elements that are looked at together.
CHECKED = 1 << 22
LOOK = "look whether the files of the model that is compressed hold what they say they do; nothing was written"


def finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """CheckError where weights are NaN or infinite: no check of a written model could tell whether it is right."""
    import torch

    def sound(tensor: Tensor) -> bool:
        # Piece by piece: what a check of a whole tensor makes on the way is as large as the tensor.
        flat = tensor.reshape(-1)
        return all(bool(torch.isfinite(flat[at : at + CHECKED]).all()) for at in range(0, len(flat), CHECKED))

    refuse_not_finite([name for name, tensor in tensors if tensor.is_floating_point() and not sound(tensor)])


def refuse_not_finite(odd: Sequence[str]) -> None:
    """CheckError for tensors of these names."""
    if odd:
        raise CheckError("write the model", f"NaN or infinite values in {len(odd)} tensors, such as {odd[0]}", LOOK)


def sound_outputs(held: HeldModel, in_place: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """What the model computes of fixed inputs, for `verify`.  CheckError where that is NaN.

    Finite weights may give that as well: numbers of another type, or from another place of the file.
    in_place: as of `HeldModel.probe`.
    """
    outputs = held.probe(in_place)
    odd = sorted(name for name, tensor in outputs.items() if tensor.is_floating_point() and tensor.isnan().any())
    if odd:
        raise CheckError("write the model", f"it computes NaN of fixed inputs: {', '.join(odd[:3])}", LOOK)
    return outputs


def save_outputs(outputs: dict[str, Tensor], path: Path) -> None:
    """For the fresh process. Copies: some models give a tensor under two names, which such a file does not hold."""
    from safetensors.torch import save_file

    save_file({name: tensor.cpu().clone().contiguous() for name, tensor in outputs.items()}, path)


def _weights(folder: Path) -> list[Path]:
    from umcompress.models.parts_of_folder import files_of

    return [path for path in files_of(folder) if path.suffix == ".safetensors"]


def stored_parameters(folder: Path, model: nn.Module) -> int:
    """Elements in the weight files of a folder, from their headers; the buffers of `model` left out."""
    from umcompress.checkpoint.index import read_header

    buffers = saved_buffers(model)
    return sum(
        prod(entry.shape)
        for path in _weights(folder)
        for name, entry in read_header(path).items()
        if not is_buffer(name, buffers)
    )


def differing(ours: dict[str, Tensor], expected: dict[str, Tensor], bar: float = 0.0) -> list[str]:
    """Names whose tensors are not equal: to the last bit, or within `bar` of the largest value (or of 1)."""
    names = sorted(ours.keys() | expected.keys())
    return [n for n in names if n not in ours or n not in expected or not _same(ours[n].cpu(), expected[n], bar)]


def _same(ours: Tensor, expected: Tensor, bar: float) -> bool:
    import torch

    if ours.shape != expected.shape or not bar or not ours.is_floating_point():
        return torch.equal(ours, expected)
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return bool(((ours.double() - expected.double()).abs() <= bar * scale).all())


def _fresh_outputs(check: FreshCheck) -> tuple[nn.Module, dict[str, Tensor]]:
    """The written model, held as the run held its own, and its outputs."""
    from umcompress.models.source import open_source

    source = open_source(check.folder, check.dtype, check.device, trust_remote_code=check.trust_remote_code)
    if check.on_disk:
        from umcompress.run.out_of_core import open_on_disk

        held = open_on_disk(source, check.dtype)
        return held.model, held.probe(check.in_place)
    model = source.load()
    return model, source.runner(model).probe()


def main() -> int:
    """What the fresh process does."""
    # First of all what takes seconds, while the other process is at work.
    import transformers.modeling_utils  # noqa: F401

    import umcompress.run.out_of_core  # noqa: F401

    if asked := sys.stdin.read():  # else it is no longer needed
        carry_out(FreshCheck.model_validate_json(asked))
    return 0


def carry_out(check: FreshCheck) -> None:
    """Open the written model, compare what it computes, print what was found."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(check.threads)
    model, ours = _fresh_outputs(check)
    print(json.dumps({
        "differing": differing(ours, load_file(check.expected), check.bar),
        "parameters": stored_parameters(Path(check.folder), model),
    }))


if __name__ == "__main__":
    sys.exit(main())
