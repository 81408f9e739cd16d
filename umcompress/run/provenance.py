"""Where a result comes from: versions, commit, hardware, command line."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from umcompress.documents.report import Report
from umcompress.extend.evaluation_base import Evaluation

PACKAGES = ("umcompress", "torch", "transformers", "accelerate", "safetensors", "pydantic", "numpy", "scipy")


def _record(source: Any, made_of: str, plans: Sequence[Any]) -> Any:
    from umcompress.documents.plan import CompressionRecord

    before = source.record
    earlier = before.plans if before is not None else ()
    return CompressionRecord(
        base=before.base if before is not None else source.name, fingerprint=made_of,
        family=source.family.name, components=dict(source.components), plans=(*earlier, *plans),
        provenance={"versions": _versions()},
    )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, None where it is no checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _hardware(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _report(
    model: str, steps: Sequence[Any], source: Any, evaluations: Sequence[Evaluation], seed: int
) -> Report:
    return Report(
        model=model, steps=tuple(steps), evaluations={e.name: e.json_values() for e in evaluations}, seed=seed,
        device=source.device, dtype=source.dtype, hardware=_hardware(source.device), versions=_versions(),
        commit=_commit(), command=tuple(sys.argv), created=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=(*_own_code(source), *source.family.left_aside(source.folder), *_not_read(source)),
    )


def _not_read(source: Any) -> tuple[str, ...]:
    """Parts whose removal costs a task nothing, whatever is measured: scores of that task say nothing about them."""
    found = source.family.not_read(source.skeleton())
    return tuple(f"not read in {task}: {path}" for path, task in found.items())


def _own_code(source: Any) -> tuple[str, ...]:
    """Which code of the model's was run: whoever loads the result runs it as well."""
    if not (files := source.own_code):
        return ()
    digest = hashlib.sha256(b"".join((source.folder / name).read_bytes() for name in files)).hexdigest()
    return (f"the model runs Python code that came with it: {', '.join(files)} (sha256 {digest[:16]})",)
