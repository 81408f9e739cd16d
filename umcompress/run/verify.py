"""Run a written model in a fresh process and compare what it computes with what the model in this one does.

`python -m umcompress.run.verify CHECK` (a `FreshCheck` as JSON) prints one JSON object; the parent judges.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
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
    """What the fresh process is to do. dtype: null, as it is stored. bar: how far outputs may differ; 0, in no bit."""

    folder: str
    expected: str
    dtype: str | None
    device: str
    threads: int
    bar: float
    trust_remote_code: bool
    on_disk: bool


def verify(
    held: HeldModel, folder: Path, written: Written, expected: dict[str, Tensor] | None = None
) -> CheckpointResult:
    """Raises CheckError when the fresh process computes anything else, or counts other parameters.

    expected: what the model computes of fixed inputs, where that is known.
    """
    import torch

    source = held.source
    plain = None if isinstance(written.plain, str) else written.plain
    inexact = plain is not None and not plain.exact
    bar = ROUNDING.get("".join(written.stored_in) or held.dtype or "", 5e-2) if inexact else 0.0
    asked = f"compute the same from {folder} in a fresh process"
    do = "the run folder keeps all steps; report this as a bug"
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "expected.safetensors"
        save_outputs(sound_outputs(held) if expected is None else expected, file)
        done = _in_fresh_process(FreshCheck(
            folder=str(folder), expected=str(file), dtype=held.dtype, device=source.device,
            threads=torch.get_num_threads(), bar=bar, trust_remote_code=source.trust_remote_code, on_disk=held.on_disk,
        ))  # fmt: skip
    if done.returncode != 0:
        raise CheckError(asked, done.stderr.strip().splitlines()[-1] if done.stderr else "no output", do)
    found, model = json.loads(done.stdout), held.model
    counted = plain.parameters(saved_buffers(model)) if plain else sum(p.numel() for p in model.parameters())
    if found["differing"] or found["parameters"] != counted:
        differences = ", ".join(found["differing"]) or "the number of parameters"
        stored = f"({found['parameters']} parameters stored, {counted} in the report)"
        raise CheckError(asked, f"differences in {differences} {stored}", do)
    return CheckpointResult(
        path=folder.name, parameters=found["parameters"],
        bytes=sum(path.stat().st_size for path in _weights(folder)), reload_equal=None if bar else True,
        loads_with=plain.loads_with if plain else "umcompress", own_code=source.own_code, note=_note(written, bar),
    )  # fmt: skip


def _note(written: Written, bar: float) -> str:
    notes = [written.plain if isinstance(written.plain, str) else written.plain.note]
    if written.stored_in:
        notes.append(f"weights as they were stored: {', '.join(written.stored_in)}")
    if bar:
        notes.append(f"outputs in a fresh process differ by rounding only (at most {bar:g})")
    return "; ".join(filter(None, notes))


def _in_fresh_process(check: FreshCheck) -> subprocess.CompletedProcess[str]:
    # -P: in the user's current folder a file may be called as a module of Python's or of a library is.
    command = [sys.executable, "-P", "-m", "umcompress.run.verify", check.model_dump_json()]
    return subprocess.run(command, capture_output=True, text=True, check=False)


LOOK = "look whether the files of the model that is compressed hold what they say they do; nothing was written"


def finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """CheckError where weights are NaN or infinite: no check of a written model could tell whether it is right."""
    import torch

    odd = [name for name, tensor in tensors if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if odd:
        raise CheckError("write the model", f"NaN or infinite values in {len(odd)} tensors, such as {odd[0]}", LOOK)


def sound_outputs(held: HeldModel) -> dict[str, Tensor]:
    """What the model computes of fixed inputs, for `verify`.  CheckError where that is NaN.

    Finite weights may give that as well: numbers of another type, or from another place of the file.
    """
    outputs = held.probe()
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
        return held.model, held.probe()
    model = source.load()
    return model, source.runner(model).probe()


def main(arguments: list[str]) -> int:
    """What the fresh process does."""
    import torch
    from safetensors.torch import load_file

    check = FreshCheck.model_validate_json(arguments[0])
    torch.set_num_threads(check.threads)
    model, ours = _fresh_outputs(check)
    print(json.dumps({
        "differing": differing(ours, load_file(check.expected), check.bar),
        "parameters": stored_parameters(Path(check.folder), model),
    }))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
