"""Reload a written model in a fresh process and compare what it computes, bit for bit.

`python -m umcompress.run.verify FOLDER EXPECTED DTYPE DEVICE THREADS BAR TRUST` prints one JSON object, which
the parent judges.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.checkpoint.buffers import is_buffer, saved_buffers
from umcompress.documents.report import CheckpointResult
from umcompress.errors import CheckError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from umcompress.models.plain_folder import Plain
    from umcompress.models.source import Source

EXPECTED = "expected.safetensors"


# Of an export that computes the same but in another order: largest difference, over the largest output (or 1).
ROUNDING = {"float32": 1e-4, "bfloat16": 5e-2}


def in_fresh_process(module: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a module of ours; what it printed."""
    # -P: in the user's current folder a file may be called as a module of Python's or of a library is.
    command = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def verify(
    model: nn.Module, source: Source, folder: Path, plain: Plain | None = None, written: Sequence[str] = ()
) -> CheckpointResult:
    """Raises CheckError when the fresh process computes anything else, or counts other parameters.

    plain: what was written, if it is not `model` and its plans but a folder that needs none. written: the dtypes of
    weights that are stored in less than is computed in.
    """
    import torch

    with tempfile.TemporaryDirectory() as temporary:
        expected = Path(temporary) / EXPECTED
        save_outputs(source.runner(model).probe(), expected)
        bar = ROUNDING.get("".join(written) or source.dtype, 5e-2) if plain is not None and not plain.exact else 0.0
        arguments = [str(folder), str(expected), source.dtype, source.device, str(torch.get_num_threads()), str(bar),
                     "trust" if source.trust_remote_code else ""]
        done = in_fresh_process("umcompress.run.verify", arguments)
    if done.returncode != 0:
        raise CheckError(
            f"reload {folder} in a fresh process", done.stderr.strip().splitlines()[-1] if done.stderr else "no output",
            "the run folder keeps all steps; report this as a bug",
        )
    found = json.loads(done.stdout)
    counted = plain.parameters(saved_buffers(model)) if plain else sum(p.numel() for p in model.parameters())
    if found["differing"] or found["parameters"] != counted:
        raise CheckError(
            f"compute the same from {folder} in a fresh process",
            f"differences in {', '.join(found['differing']) or 'the number of parameters'} "
            f"({found['parameters']} parameters stored, {counted} in the report)",
            "the run folder keeps all steps; report this as a bug",
        )
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    notes = [plain.note] if plain and plain.note else []
    if written:
        notes.append(f"weights as they were stored: {', '.join(written)}")
    if bar:
        notes.append(f"outputs in a fresh process differ by rounding only (at most {bar:g})")
    return CheckpointResult(
        path=folder.name, parameters=found["parameters"], bytes=size, reload_equal=None if bar else True,
        loads_with=plain.loads_with if plain else "umcompress", own_code=source.own_code, note="; ".join(notes),
    )


def finite(model: nn.Module) -> None:
    """CheckError where weights are NaN or infinite: no check of a written model could tell whether it is right."""
    import torch

    odd = [name for name, p in model.named_parameters() if p.is_floating_point() and not torch.isfinite(p).all()]
    if odd:
        raise CheckError(
            "write the model", f"NaN or infinite values in {len(odd)} tensors, such as {odd[0]}",
            "look whether the files of the model that is compressed hold them; nothing was written",
        )


def save_outputs(outputs: dict[str, Tensor], path: Path) -> None:
    """For the fresh process. Copies: some models give a tensor under two names, which such a file does not hold."""
    from safetensors.torch import save_file

    save_file({name: tensor.cpu().clone().contiguous() for name, tensor in outputs.items()}, path)


def stored_parameters(folder: Path, model: nn.Module) -> int:
    """Elements in the weight files of a folder, from their headers; the buffers of `model` left out."""
    from umcompress.checkpoint.index import read_header

    buffers = saved_buffers(model)
    return sum(
        prod(entry.shape)
        for path in sorted(folder.glob("*.safetensors"))
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


def main(arguments: list[str]) -> int:
    import torch
    from safetensors.torch import load_file

    from umcompress.models.source import open_source

    folder, expected, dtype, device, threads, bar, trust = arguments
    torch.set_num_threads(int(threads))
    source = open_source(folder, dtype, device, trust_remote_code=bool(trust))
    model = source.load()
    ours = source.runner(model).probe()
    print(json.dumps({
        "differing": differing(ours, load_file(expected), float(bar)),
        "parameters": stored_parameters(Path(folder), model),
    }))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
