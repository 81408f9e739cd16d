"""Every language model of transformers, and every one that reads pictures, as a pico model through what a user does.

    python benchmarks/every_architecture.py [--only llama bloom] [--task image_text_to_text] [--again] [--write]

For each model type of transformers' auto classes: a small random model of its default configuration is saved by
transformers, opened, inspected, traced; a block is dropped, feed-forward channels and heads are cut to half by the
shipped passes; each result is compared with references that know no graph (a block that hands on what it was given,
zeros in the weights), saved, and loaded again by transformers or by umcompress. What calibration says of the blocks is
compared with hooks on them. No network, no weights. What was found is kept in `runs/architectures`, so that a killed
sweep goes on; `--write` makes docs/architectures.md of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOUND = ROOT / "runs" / "architectures"
SECONDS = 120
TASKS = {"causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
         "image_text_to_text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"}  # fmt: skip


def architectures(task: str) -> dict[str, str]:
    """model type -> class, as transformers' auto class has them."""
    from transformers.models.auto import modeling_auto

    found = getattr(modeling_auto, TASKS[task])
    return {kind: name if isinstance(name, str) else name[0] for kind, name in found.items()}


def examine(kind: str, cls: str) -> dict[str, Any]:
    """One architecture, guarded: what it raises that is no error of ours is a finding."""
    from _architecture import NotBuilt, look

    from umcompress.errors import UmcompressError

    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    found: dict[str, Any] = {"kind": kind, "class": cls, "verdict": "works"}
    try:
        with tempfile.TemporaryDirectory() as folder:
            look(cls, Path(folder), found)
    except NotBuilt as error:
        found |= {"verdict": "not built", "error": str(error)}
    except UmcompressError as error:
        found |= {"verdict": "refused", "error": " ".join(str(error).split())}
    except Exception as error:  # the sweep must go on, and the row says what was raised
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "/umcompress/" in f.filename]
        where = ", ".join(f"{Path(f.filename).name}:{f.lineno}" for f in (*ours[-1:], frame))
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        found |= {"verdict": "crash", "error": f"{what} ({where})"}
    if found["verdict"] == "works" and found.get("wrong"):
        found["verdict"] = "wrong"
    signal.alarm(0)
    return found


def _late(*_: object) -> None:
    raise TimeoutError(f"not done after {SECONDS} s")


def _child(kind: str, cls: str, file: Path) -> None:
    """In a process of its own: what kills it is a finding, too."""
    sys.stderr = open("/dev/null", "w")  # noqa: SIM115, PTH123
    file.write_text(json.dumps(examine(kind, cls), indent=1), encoding="utf-8")


def sweep(task: str, only: list[str], again: bool) -> list[dict[str, Any]]:
    """All architectures of a task; those found before are not looked at again."""
    home = FOUND / task
    home.mkdir(parents=True, exist_ok=True)
    rows, fork = [], multiprocessing.get_context("fork")
    for kind, cls in architectures(task).items():
        file = home / f"{kind}.json"
        if (not only or kind in only) and (again or not file.is_file()):
            file.unlink(missing_ok=True)
            process = fork.Process(target=_child, args=(kind, cls, file))
            process.start()
            process.join(SECONDS + 30)
            if process.is_alive():
                process.kill()
                process.join()
            if not file.is_file():
                row = {"kind": kind, "class": cls, "verdict": "crash", "error": f"process died ({process.exitcode})"}
                file.write_text(json.dumps(row), encoding="utf-8")
            print(brief(json.loads(file.read_text(encoding="utf-8"))), flush=True)
        if file.is_file():
            rows.append(json.loads(file.read_text(encoding="utf-8")))
    return rows


def brief(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    notes = "; ".join([*row.get("wrong", []), *row.get("missing", []), row.get("error", "")])
    return f"{row['verdict']:9} {row['kind']:24} {row.get('cuts', {})} {notes}"[:1500]


def main() -> None:
    import _architecture
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--task", choices=list(TASKS), nargs="*", default=list(TASKS))
    parser.add_argument("--again", action="store_true", help="look again at what was found before")
    parser.add_argument("--write", action="store_true", help="write docs/architectures.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        # What transformers and umcompress load late is loaded once, not in every process.
        _architecture.look("LlamaForCausalLM", Path(folder), {})
    rows = {task: sweep(task, options.only, options.again) for task in options.task}
    for task, found in rows.items():
        verdicts = [row["verdict"] for row in found]
        print(task, {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))})
    if options.write:
        from _architecture_table import write

        write(rows)


if __name__ == "__main__":
    main()
