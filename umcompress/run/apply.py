"""`umcompress apply`: carry a recipe out into a run folder, write the model, check it, report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress import processes
from umcompress.documents.file_names import EXPORT, REPORT
from umcompress.documents.report import Report, read_report, write_report
from umcompress.errors import UsageError
from umcompress.plan.command import _load, uncollected
from umcompress.progress import say
from umcompress.recipe.files import LoadedRecipe
from umcompress.recipe.recipe import Recipe
from umcompress.run.export import exported, removed_if_wrong
from umcompress.run.fingerprint import dependencies
from umcompress.run.folder import RunFolder, reuse_steps, write_plans
from umcompress.run.provenance import _record, _report

if TYPE_CHECKING:
    from umcompress.documents.plan import CompressionRecord, Plan
    from umcompress.documents.report import CheckpointResult
    from umcompress.models.source import Source
    from umcompress.plan.walk import DryStep
    from umcompress.run.held_model import HeldModel, Written
    from umcompress.run.loop import Loop, Outcome
    from umcompress.run.sharing import Shared


def apply(
    recipe: str,
    output: str | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    dtype: str | None = None,
    out_of_core: bool = False,
    reuse: str | None = None,
    skip_evaluations: bool = False,
    link: bool = False,
) -> tuple[Report, Path]:
    """Run a recipe.  Goes on with an unfinished run of the same recipe in the output folder.

    Several processes train and evaluate together; the first alone plans and writes.  They share the folder.
    out_of_core: from weight files to weight files, without the model in memory; nothing is evaluated then.
    skip_evaluations: the recipe's evaluations give calibration items, and are not run.
    link: weight files that nothing changes by reference.
    """
    if link and not out_of_core:
        raise UsageError("apply with --link", "it goes with --out-of-core, which copies files", "give both, or neither")
    with uncollected():
        loaded = _load(recipe, overrides, {"device": device, "dtype": dtype})
    given = output or loaded.recipe.output
    path = Path(given) if given else Path("runs") / loaded.file.stem
    say(f"umcompress apply {recipe}: {loaded.recipe.model}, steps: {len(loaded.recipe.steps)}, into {path}")
    if out_of_core:
        _check_out_of_core(loaded.recipe, skip_evaluations)
    if skip_evaluations:
        _check_ungated(loaded.recipe)
    with uncollected():
        from umcompress.models.source import open_source
        from umcompress.plan.check import check

        device = processes.start(loaded.recipe.device)
        source = open_source(
            loaded.recipe.model, loaded.recipe.dtype, device, loaded.recipe.component_globs(),
            loaded.recipe.trust_remote_code, loaded.recipe.sampling,
        )
        dry_steps = check(loaded.recipe, source)
        _check_export(loaded, source, dry_steps)
    if (unsaid := written_unsaid(loaded.recipe)) is not None:
        say(unsaid)
    if loaded.recipe.sweep:
        say(f"the recipe's grid is left out; it is for: umcompress sweep {recipe}")
    taken = Path(reuse) if reuse else None
    report = carry_out(
        loaded, source, path, out_of_core, reuse=taken, skip_evaluations=skip_evaluations, link=link
    )
    return report, path


def written_unsaid(recipe: Recipe) -> str | None:
    """A warning where there are alternatives and nothing says which of their models is written."""
    if recipe.write is not None or all(step.after is None for step in recipe.steps):
        return None
    last = recipe.steps[-1].name
    return f"the recipe has alternatives; written is the model of the last one, {last}: say `write: {last}`, or another"


def carry_out(
    loaded: LoadedRecipe, source: Source, path: Path, out_of_core: bool = False, shared: Shared | None = None,
    reuse: Path | None = None, skip_evaluations: bool = False, link: bool = False,
) -> Report:  # fmt: skip
    """A checked recipe into its folder.  shared: what runs of a sweep have in common; reuse: a run to take steps of."""
    folder = RunFolder(path, processes.by_first(lambda: dependencies(loaded, source, out_of_core, skip_evaluations)))
    try:
        if processes.by_first(lambda: _finished(folder, loaded, reuse)):
            say(f"{path} holds the finished run of this recipe; nothing is left to do")
            report = read_report(path)
        else:
            from umcompress.run.loop import Loop

            if shared is not None:
                given = shared
                processes.by_first(lambda: given.give(folder))
            held = _held(loaded.recipe, source, out_of_core, link)
            loop = Loop(loaded.recipe, folder, held, say, shared, skip_evaluations)
            outcome = loop.run()
            report = processes.by_first(lambda: _finish(loaded, loop, outcome, folder.depends_on.fingerprint()))
        if shared is not None:
            shared.take(folder)
        return processes.by_first(lambda: exported(loaded, folder, report))
    finally:
        folder.release()


def _finished(folder: RunFolder, loaded: LoadedRecipe, reuse: Path | None) -> bool:
    """Claim the folder, and take steps of another run; whether everything is done already."""
    in_place = reuse is not None and folder.path.is_dir() and reuse.resolve() == folder.path.resolve()
    begun = folder.claim(loaded, redo=in_place)
    if begun and (folder.path / REPORT).is_file() and folder.model.is_dir():
        # Another alternative is written from the steps that are there.
        return read_report(folder.path).written == loaded.recipe.write
    if reuse is not None and not in_place:
        reuse_steps(folder, reuse)
    return False


def _held(recipe: Recipe, source: Source, out_of_core: bool, link: bool) -> HeldModel:
    """The model, in memory or on disk."""
    if out_of_core:
        from umcompress.run.out_of_core import open_on_disk

        on_disk = open_on_disk(source, recipe.dtype)
        on_disk.link = link
        return on_disk
    from umcompress.run.in_memory import InMemory
    from umcompress.run.verify import finite

    held = InMemory(recipe, source)
    finite(held.model.named_parameters())  # before hours are spent
    return held


def _check_export(loaded: LoadedRecipe, source: Source, dry_steps: Sequence[DryStep]) -> None:
    """RecipeError where the result will certainly not have the layout that it is to be exported to."""
    from umcompress.plan.check import export_problem

    wanted, found = loaded.recipe.export, export_problem(loaded.recipe, source, dry_steps)
    if wanted is None or found is None:
        return
    if found.certain:
        raise loaded.problem(("export",), f"the result cannot be written as {wanted.layout}: {found.reason}")
    say(f"export: if layers come to be as they are planned on shapes, {wanted.layout} cannot hold them: {found.reason}")


def _check_ungated(recipe: Recipe) -> None:
    """UsageError where a step is judged by scores that are not to be made."""
    if gated := [step.name for step in recipe.steps if step.stop_if is not None]:
        found = f"{', '.join(gated)} stops the run by scores (stop_if)"
        raise UsageError("--skip-evaluations", found, "leave it out, or take `stop_if` out of the recipe")


def _check_out_of_core(recipe: Recipe, skip_evaluations: bool) -> None:
    """UsageError for what needs the model in memory."""
    from umcompress.extend.pass_base import TrainingPass

    asked, found = "apply out of core", []
    if recipe.evaluate and not skip_evaluations:
        found.append(f"the recipe evaluates ({', '.join(recipe.evaluation_names)}), which needs the model: give "
                     "--skip-evaluations, which takes from them only what a step calibrates on; score the result later "
                     "with umcompress evaluate")
    found += [f"step {step.name} starts from {step.after}: alternatives need a run each" for step in recipe.steps
              if step.after is not None]
    found += [f"step {step.name} trains, which needs the model" for step in recipe.steps
              if isinstance(step.pass_, TrainingPass)]
    if recipe.device != "cpu":
        found.append(f"device {recipe.device}: weights go from file to file by the CPU")
    if found:
        raise UsageError(asked, "\n    ".join(found), "leave --out-of-core out where the model fits into memory")


def _written(
    held: HeldModel, folder: Path, record: CompressionRecord, plans: Sequence[Plan], full: bool
) -> tuple[Written, CheckpointResult]:
    """Write the model and check what was written.  full: run all of it, out of core as well."""
    from umcompress.run.out_of_core import OnDisk
    from umcompress.run.verify import finite, sound_outputs, verify

    if isinstance(held, OnDisk) and not full:
        from umcompress.run.verify_changed import verify_changed, waiting

        with waiting(held) as waits:
            written = _write(held, folder, record)
            say("comparing it with where it comes from" + (", and running what changed" if waits.changed else ""))
            with removed_if_wrong(folder):  # it is written again from the steps
                checked = verify_changed(held, folder, written, plans, waits)
        say(checked.checked)
        return written, checked
    if not held.on_disk:
        finite(held.model.named_parameters())
    expected = sound_outputs(held)
    written = _write(held, folder, record)
    say("running it in a fresh process and comparing outputs bit for bit")
    with removed_if_wrong(folder):
        return written, verify(held, folder, written, expected)


def _write(held: HeldModel, folder: Path, record: CompressionRecord) -> Written:
    say(f"writing {folder}")
    written = held.write(folder, record)
    for note in written.notes:
        say(note)
    return written


def _finish(loaded: LoadedRecipe, loop: Loop, outcome: Outcome, made_of: str) -> Report:
    """Write the model, check it in a fresh process, report."""
    from umcompress.report.model_card import write_model_card

    held, folder = loop.held, loop.folder
    folder.keep_recipe(loaded)
    plans = {done.name: done.plan for done in outcome.plans}
    write_plans(folder, plans)
    shutil.rmtree(folder.path / EXPORT, ignore_errors=True)  # of the model that was written before
    record = _record(held.source, made_of, list(plans.values()))
    full = loaded.recipe.verify == "full"
    written, checkpoint = _written(held, folder.model, record, list(plans.values()), full)
    report = _report(loaded.recipe.model, outcome.steps, held.source, loop.scoring, loaded.recipe.seed)
    report = report.model_copy(update={
        "recipe": loaded.recipe.resolved_in(), "recipe_name": loaded.file.stem, "fingerprint": made_of,
        "recipe_folder": os.path.relpath((loaded.recipe.base or Path()).resolve(), folder.path.resolve()),
        "written": loaded.recipe.write, "stopped": outcome.stopped, "checkpoint": checkpoint,
        "dtype": held.dtype or "as stored",
    })  # fmt: skip
    write_model_card(report, folder.model)
    report = report.model_copy(update={"notes": (*report.notes, *written.notes)})
    write_report(report, folder.path)
    return report
