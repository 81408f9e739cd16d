"""`umcompress apply`: carry a recipe out into a run folder, write the model, check it, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress import processes
from umcompress.documents.report import Report, read_report, write_report
from umcompress.errors import CheckError, UsageError
from umcompress.plan.command import _load
from umcompress.progress import say
from umcompress.recipe.files import LoadedRecipe
from umcompress.recipe.recipe import Recipe
from umcompress.run.fingerprint import fingerprint
from umcompress.run.folder import RunFolder, write_plans
from umcompress.run.provenance import _record, _report

if TYPE_CHECKING:
    from umcompress.models.plain_folder import Plain


def apply(
    recipe: str,
    output: str | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    dtype: str | None = None,
    out_of_core: bool = False,
) -> tuple[Report, Path]:
    """Run a recipe.  Goes on with an unfinished run of the same recipe in the output folder.

    Several processes train and evaluate together; the first alone plans and writes.  They share the folder.
    out_of_core: from weight files to weight files, without the model in memory; nothing is evaluated then.
    """
    loaded = _load(recipe, overrides, {"device": device, "dtype": dtype})
    given = output or loaded.recipe.output
    path = Path(given) if given else Path("runs") / loaded.file.stem
    say(f"umcompress apply {recipe}: {loaded.recipe.model}, steps: {len(loaded.recipe.steps)}, into {path}")
    if out_of_core:
        _check_out_of_core(loaded.recipe)
    from umcompress.models.source import open_source
    from umcompress.plan.check import check

    device = processes.start(loaded.recipe.device)
    source = open_source(
        loaded.recipe.model, loaded.recipe.dtype, device, loaded.recipe.component_globs(),
        loaded.recipe.trust_remote_code,
    )
    check(loaded.recipe, source)
    made_of = fingerprint(loaded, source.fingerprint() + ("/out of core" if out_of_core else ""))
    folder = RunFolder(path)
    try:
        claimed = processes.by_first(lambda: folder.claim(loaded, made_of))
        if claimed and (path / "report.json").is_file() and folder.model.is_dir():
            say(f"{path} holds the finished run of this recipe; nothing is left to do")
            return read_report(path), path
        return (_run_on_disk if out_of_core else _run)(loaded, source, folder, made_of), path
    finally:
        folder.release()


def _check_out_of_core(recipe: Recipe) -> None:
    """UsageError for what needs the model in memory."""
    from umcompress.extend.pass_base import TrainingPass

    asked, found = "apply out of core", []
    if recipe.evaluate:
        found.append("the recipe evaluates, which needs the model: leave `evaluate` out (--set evaluate=[]), "
                     "and give a step that measures a text to calibrate on: `calibration: {data: FILE}`")
    found += [f"step {step.name} starts from {step.after}: alternatives need a run each" for step in recipe.steps
              if step.after is not None]
    found += [f"step {step.name} trains, which needs the model" for step in recipe.steps
              if isinstance(step.pass_, TrainingPass)]
    if recipe.device != "cpu":
        found.append(f"device {recipe.device}: weights go from file to file by the CPU")
    if found:
        raise UsageError(asked, "; ".join(found), "leave --out-of-core out where the model fits into memory")


def _run_on_disk(loaded: LoadedRecipe, source: Any, folder: RunFolder, made_of: str) -> Report:
    from umcompress.run.out_of_core import OutOfCore, peak_bytes, verify, write

    run = OutOfCore(loaded.recipe, source, folder, say)
    model = run.run()
    write_plans(folder, run.plans)
    say(f"writing {folder.model}")
    started = time.monotonic()
    plain = write(model, folder.model, _record(source, made_of, list(run.plans.values())))
    seconds, peak = time.monotonic() - started, peak_bytes()
    say(f"wrote it in {seconds:.1f} s; at most {peak / 1e9:.2f} GB in memory")
    say("running it a block at a time in a fresh process and comparing outputs bit for bit")
    with _checking(folder.model):
        checkpoint = verify(model, folder.model, plain)
    report = _report(loaded.recipe.model, run.steps, source, [], loaded.recipe.seed)
    report = report.model_copy(update={
        "recipe": loaded.recipe.resolved(), "recipe_name": loaded.file.stem, "fingerprint": made_of,
        "checkpoint": checkpoint, "dtype": model.dtype or "as stored",
    })
    from umcompress.report.model_card import write_model_card

    write_model_card(report, folder.model)
    took = f"out of core: written in {seconds:.1f} s, peak memory {peak / 1e9:.2f} GB"
    report = report.model_copy(update={"notes": (*report.notes, took)})
    write_report(report, folder.path)
    return report


@contextmanager
def _checking(model: Path) -> Iterator[None]:
    """Take a model away that failed its check: nobody is to load it by mistake. It is written again from the steps."""
    try:
        yield
    except CheckError:
        shutil.rmtree(model, ignore_errors=True)
        raise


def _run(loaded: LoadedRecipe, source: Any, folder: RunFolder, made_of: str) -> Report:
    from umcompress.run.in_memory import Pipeline

    pipeline = Pipeline(loaded.recipe, source, folder, say)
    outcome = pipeline.run()
    return processes.by_first(lambda: _finish(loaded, source, folder, made_of, pipeline, outcome))


def _finish(
    loaded: LoadedRecipe, source: Any, folder: RunFolder, made_of: str, pipeline: Any, outcome: Any
) -> Report:
    """Write the model, check it in a fresh process, report."""
    from umcompress.models.stored_dtype import held_as, stored_dtypes
    from umcompress.run.verify import finite, verify

    finite(outcome.model)
    plans = {done.name: done.plan for done in outcome.plans}
    write_plans(folder, plans)
    record = _record(source, made_of, [done.plan for done in outcome.plans])
    say(f"writing {folder.model}")
    with held_as(outcome.model, stored_dtypes(source, loaded.recipe, [done.plan for done in outcome.plans])) as stored:
        plain = write_model(outcome.model, source, folder, record)
    say("reloading it in a fresh process and comparing outputs bit for bit")
    written = sorted(str(dtype).removeprefix("torch.") for dtype in stored)
    with _checking(folder.model):
        checkpoint = verify(outcome.model, source, folder.model, None if isinstance(plain, str) else plain, written)
    if isinstance(plain, str) and plain:
        notes = "; ".join(filter(None, (plain, checkpoint.note)))
        checkpoint = checkpoint.model_copy(update={"note": notes})
    report = _report(
        loaded.recipe.model, outcome.steps, source, pipeline.evaluations, loaded.recipe.seed
    ).model_copy(update={
        "recipe": loaded.recipe.resolved(), "recipe_name": loaded.file.stem, "fingerprint": made_of,
        "stopped": outcome.stopped, "checkpoint": checkpoint,
    })
    from umcompress.report.model_card import write_model_card

    write_model_card(report, folder.model)
    write_report(report, folder.path)
    return report


def write_model(model: Any, source: Any, folder: RunFolder, record: Any) -> Plain | str:
    """`model/`, as a whole or not at all: a folder that needs no plans, or a model with them and why."""
    from umcompress.models.save import save_compressed, save_plain

    plain: Plain | str = source.family.plain(model, source.folder, record.plans)
    if isinstance(plain, str):
        save_compressed(model, source.family, folder.model, record, source.folder, replace=True)
    else:
        save_plain(plain, folder.model, source.folder, replace=True)
    return plain
