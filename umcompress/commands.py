"""What the commands do, as functions that return documents.  The command line prints them."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress import processes
from umcompress.chosen import chosen, headline
from umcompress.documents import Task
from umcompress.errors import RecipeError, UsageError
from umcompress.extend import Evaluation, find_evaluation, find_pass
from umcompress.fingerprint import fingerprint
from umcompress.models.registry import resolve_folder
from umcompress.recipe import Recipe
from umcompress.recipe_files import LoadedRecipe, load_recipe
from umcompress.report import Report, Score, read_report, write_report
from umcompress.run_folder import RunFolder, make_folder, write_plans
from umcompress.say import say
from umcompress.views import Inspection, PlanReport

if TYPE_CHECKING:
    from umcompress.models.plain import Plain

PACKAGES = ("umcompress", "torch", "transformers", "accelerate", "safetensors", "pydantic", "numpy", "scipy")


def _load(recipe: str, overrides: Sequence[str], settings: Mapping[str, object | None]) -> LoadedRecipe:
    given = {key: value for key, value in settings.items() if value is not None}
    return load_recipe(recipe, find_pass, find_evaluation, overrides, given, models=resolve_folder)


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
    from umcompress.dry import check
    from umcompress.opening import open_source

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
        if claimed and (path / "report.json").is_file():
            say(f"{path} holds the finished run of this recipe; nothing is left to do")
            return read_report(path), path
        return (_run_on_disk if out_of_core else _run)(loaded, source, folder, made_of), path
    finally:
        folder.release()


def _check_out_of_core(recipe: Recipe) -> None:
    """UsageError for what needs the model in memory."""
    from umcompress.extend import TrainingPass

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
    from umcompress.out_of_core import OutOfCore, peak_bytes, verify, write

    run = OutOfCore(loaded.recipe, source, folder, say)
    model = run.run()
    write_plans(folder, run.plans)
    say(f"writing {folder.model}")
    started = time.monotonic()
    plain = write(model, folder.model, _record(source, made_of, list(run.plans.values())))
    seconds, peak = time.monotonic() - started, peak_bytes()
    say(f"wrote it in {seconds:.1f} s; at most {peak / 1e9:.2f} GB in memory")
    say("running it a block at a time in a fresh process and comparing outputs bit for bit")
    checkpoint = verify(model, folder.model, plain)
    report = _report(loaded.recipe.model, run.steps, source, [], loaded.recipe.seed)
    report = report.model_copy(update={
        "recipe": loaded.recipe.resolved(), "recipe_name": loaded.file.stem, "fingerprint": made_of,
        "checkpoint": checkpoint, "dtype": model.dtype or "as stored",
        "notes": (*report.notes, f"out of core: written in {seconds:.1f} s, peak memory {peak / 1e9:.2f} GB",),
    })
    from umcompress.model_card import write_model_card

    write_model_card(report, folder.model)
    write_report(report, folder.path)
    return report


def _run(loaded: LoadedRecipe, source: Any, folder: RunFolder, made_of: str) -> Report:
    from umcompress.pipeline import Pipeline

    pipeline = Pipeline(loaded.recipe, source, folder, say)
    outcome = pipeline.run()
    return processes.by_first(lambda: _finish(loaded, source, folder, made_of, pipeline, outcome))


def _finish(
    loaded: LoadedRecipe, source: Any, folder: RunFolder, made_of: str, pipeline: Any, outcome: Any
) -> Report:
    """Write the model, check it in a fresh process, report."""
    from umcompress.stored import held_as, stored_dtypes
    from umcompress.verify import verify

    plans = {done.name: done.plan for done in outcome.plans}
    write_plans(folder, plans)
    record = _record(source, made_of, [done.plan for done in outcome.plans])
    say(f"writing {folder.model}")
    with held_as(outcome.model, stored_dtypes(source, loaded.recipe, [done.plan for done in outcome.plans])) as stored:
        plain = write_model(outcome.model, source, folder, record)
    say("reloading it in a fresh process and comparing outputs bit for bit")
    written = sorted(str(dtype).removeprefix("torch.") for dtype in stored)
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
    from umcompress.model_card import write_model_card

    write_model_card(report, folder.model)
    write_report(report, folder.path)
    return report


def _record(source: Any, made_of: str, plans: Sequence[Any]) -> Any:
    from umcompress.edits import CompressionRecord

    before = source.record
    earlier = before.plans if before is not None else ()
    return CompressionRecord(
        base=before.base if before is not None else source.name, fingerprint=made_of,
        family=source.family.name, components=dict(source.components), plans=(*earlier, *plans),
        provenance={"versions": _versions()},
    )


def write_model(model: Any, source: Any, folder: RunFolder, record: Any) -> Plain | str:
    """`model/`, as a whole or not at all: a folder that needs no plans, or a model with them and why."""
    from umcompress.rewrite.store import save_compressed, save_plain

    plain: Plain | str = source.family.plain(model, source.folder, record.plans)
    if isinstance(plain, str):
        save_compressed(model, source.family, folder.model, record, source.folder, replace=True)
    else:
        save_plain(plain, folder.model, source.folder, replace=True)
    return plain


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, None where it is no checkout."""
    root = Path(__file__).resolve().parent.parent
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
        model=model, steps=tuple(steps), evaluations={e.name: e.plain() for e in evaluations}, seed=seed,
        device=source.device, dtype=source.dtype, hardware=_hardware(source.device), versions=_versions(),
        commit=_commit(), command=tuple(sys.argv), created=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=_own_code(source),
    )


def _own_code(source: Any) -> tuple[str, ...]:
    """Which code of the model's was run: whoever loads the result runs it as well."""
    if not (files := source.own_code):
        return ()
    digest = hashlib.sha256(b"".join((source.folder / name).read_bytes() for name in files)).hexdigest()
    return (f"the model runs Python code that came with it: {', '.join(files)} (sha256 {digest[:16]})",)


def plan(
    recipe: str, overrides: Sequence[str] = (), device: str | None = None, dtype: str | None = None
) -> PlanReport:
    """What a recipe would do, from shapes alone."""
    loaded = _load(recipe, overrides, {"device": device, "dtype": dtype})
    from umcompress.dry import plan_recipe

    return plan_recipe(loaded.recipe, loaded.file.stem)


def inspect(model: str, graph_path: str | None = None, trust_remote_code: bool = False) -> Inspection:
    """Components, blocks, sites and sizes; no weights are read."""
    from umcompress.dry import inspect_model

    return inspect_model(model, graph_path, trust_remote_code)


def evaluate(
    model: str,
    evaluations: Sequence[str],
    *,
    seed: int = 0,
    limit: int | None = None,
    output: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Score a model as it is: one step, the baseline.

    Of several processes each takes a part of the questions; the first reports.
    """
    wanted = chosen(evaluations, seed, limit)
    from umcompress.against import require_reference, scored

    for evaluation in wanted:
        evaluation.check()
        require_reference(evaluation)
    if output:
        make_folder(Path(output), f"the output folder {output}")
    device = processes.start(device)
    from umcompress.measure import own_speed, weigh
    from umcompress.opening import open_source
    from umcompress.report import StepReport, step_report

    source = open_source(model, dtype, device, trust_remote_code=trust_remote_code)
    if processes.rank() == 0:
        say(f"umcompress evaluate {model}: {', '.join(evaluations)}, seed {seed}")
    loaded = source.load()
    runner = source.runner(loaded)
    scores: dict[str, dict[Task, Score]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(output or processes.from_first(temporary))
        for evaluation in wanted:
            scores[evaluation.name] = scored(evaluation, runner, out / evaluation.name, say, source)
    weight = weigh(loaded, source.family, runner)
    step = StepReport(
        name="baseline", scores=headline(scores), evaluations=scores, parameters=weight.parameters, bytes=weight.bytes,
        macs_per_token=weight.macs_per_token, speed=own_speed(runner),
    )
    report = _report(model, [step_report(step)], source, wanted, seed)
    if output and processes.rank() == 0:
        write_report(report, Path(output))
    return report


def generate(
    model: str, prompt: str, out: Path, *, seed: int = 0, steps: int | None = None, guidance: float | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Paint one picture and write it."""
    if not out.parent.is_dir():
        raise UsageError(f"write {out}", f"there is no folder {out.parent}", "make it first, or choose another -o")
    from PIL import Image

    if out.suffix.lower() not in Image.registered_extensions():
        raise UsageError(f"write {out}", f"no picture format {out.suffix!r}", "name a file that ends in .png")
    from umcompress.opening import open_source

    source = open_source(model, trust_remote_code=trust_remote_code)
    runner: Any = source.runner(source.load())
    if steps is not None or guidance is not None:
        runner.settings(steps=steps, guidance=guidance)
    picture = runner.generate([prompt], seed)[0]
    try:
        Image.fromarray(picture).save(out)
    except (OSError, ValueError) as error:
        raise UsageError(f"write {out}", str(error), "name a file that ends in .png") from error
    return out


def ask(model: str, picture: Path, question: str, trust_remote_code: bool = False) -> str:
    """Answer one question about one picture."""
    from PIL import Image, UnidentifiedImageError

    from umcompress.models.picture import read_image
    from umcompress.opening import open_source

    source = open_source(model, trust_remote_code=trust_remote_code)
    try:
        with Image.open(picture) as opened:
            image = read_image(opened)
    except FileNotFoundError as error:
        raise UsageError(f"the picture {picture}", "no such file", "check the path") from error
    except (UnidentifiedImageError, OSError) as error:
        found = f"not readable as a picture: {error}"
        raise UsageError(f"the picture {picture}", found, "give a PNG or JPEG") from error
    return source.runner(source.load()).answer([image], [question])[0]


__all__ = ["RecipeError", "apply", "ask", "evaluate", "generate", "inspect", "plan", "write_model"]
