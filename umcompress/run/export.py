"""`umcompress export`: write a result again in the layout that another program reads, and check what was written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.documents.file_names import EXPORT
from umcompress.documents.report import Report, write_report
from umcompress.errors import CheckError, UsageError, did_you_mean
from umcompress.progress import say
from umcompress.recipe.files import LoadedRecipe

if TYPE_CHECKING:
    from umcompress.models.plain_folder import Plain
    from umcompress.run.folder import RunFolder
    from umcompress.run.out_of_core import OnDisk


def export(
    run: str, layout: str, output: Path, trust_remote_code: bool = False, pad: bool = False
) -> list[str]:
    """Write the model of a run, or any other, to a new folder; what there is to say of it, a line each.

    The weights go from file to file, in the dtypes that they have; the model is never in memory as a whole.
    pad: what was removed is filled up with zeros to one width.  The folder is there once it is checked, not before.
    """
    asked = f"export {run} to {layout}{', filled up' if pad and layout != 'pad' else ''}"
    if output.exists():
        raise UsageError(f"{asked}, into {output}", "it exists already", "choose another -o")
    held = _opened(run, trust_remote_code)
    source = held.source
    if layout not in source.family.layouts:
        found = f"a {source.family.name} model can be written as {', '.join(source.family.layouts) or 'nothing else'}"
        raise UsageError(asked, found, did_you_mean(layout, source.family.layouts))
    plain = source.family.laid_out(layout, held.model, source.folder, held.values(), pad)
    if isinstance(plain, str):
        others = ", ".join(name for name in source.family.layouts if name != layout)
        do = f"it may be one of the other layouts: {others}" if others else "umcompress.load opens it as it is"
        raise UsageError(asked, plain or "there is none", do)
    say(f"writing {output}")
    # The folder gets its name once it is checked: what is interrupted before does not pass for the result.
    unchecked = output.with_name(f".{output.name}.unchecked")
    shutil.rmtree(unchecked, ignore_errors=True)
    try:
        checked = _write_and_check(held, plain, unchecked)
        unchecked.rename(output)
    finally:
        shutil.rmtree(unchecked, ignore_errors=True)
    stored = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    line = f"{output}: {plain.parameters():,} parameters, {stored / 1e6:,.1f} MB; {checked}"
    return [line, *filter(None, [plain.note])]


def _write_and_check(held: OnDisk, plain: Plain, folder: Path) -> str:
    """Write the folder; how it was checked.  CheckError where it is not what it was to be."""
    from umcompress.models.save import save_plain
    from umcompress.run.held_model import Written
    from umcompress.run.verify import verify

    with held.disk:
        save_plain(plain, folder, held.source.folder)
        if not plain.opens_here:
            say("reading every tensor back")
            compare_files(plain, folder)
            return "every tensor was read back and is what it was"
    say("running it in a fresh process and comparing outputs")
    result = verify(held, folder, Written(plain))
    return "it computes the same in a fresh process" + ("" if result.reload_equal else ", but for rounding")


def _opened(run: str, trust_remote_code: bool) -> OnDisk:
    """The model of a run, of a folder, or of a checkpoint that NeMo AutoModel trained; no weight is read yet."""
    from umcompress.models.bagel.nemo import checkpoint_of, open_checkpoint
    from umcompress.models.source import open_source
    from umcompress.run.out_of_core import held_on_disk, open_on_disk

    if (trained := checkpoint_of(Path(run))) is None:
        return open_on_disk(open_source(run, trust_remote_code=trust_remote_code))
    source = open_source(str(trained.base))
    model = source.skeleton()
    return held_on_disk(source, model, open_checkpoint(trained, model))


@contextmanager
def removed_if_wrong(model: Path) -> Iterator[None]:
    """Take a model away that failed its check: nobody is to load it by mistake."""
    try:
        yield
    except CheckError:
        shutil.rmtree(model, ignore_errors=True)
        raise


def exported(loaded: LoadedRecipe, folder: RunFolder, report: Report) -> Report:
    """The model of a finished run once more, as its recipe's `export` says; the report then says so as well."""
    wanted = loaded.recipe.export
    if wanted is None or (output := folder.path / EXPORT / wanted.folder).is_dir():
        return report
    try:
        lines = export(str(folder.model), wanted.layout, output, loaded.recipe.trust_remote_code, wanted.pad)
    except UsageError as error:
        # The run itself is done and reported; what is missing is this folder alone.
        raise loaded.problem(("export",), f"{error.asked}: {error.found}", error.do) from error
    lines[0] = f"export: {EXPORT}/{output.name}{lines[0].removeprefix(str(output))}"
    recipe = loaded.recipe.resolved_in()
    report = report.model_copy(update={"recipe": recipe, "notes": (*report.notes, *lines)})
    folder.keep_recipe(loaded)
    write_report(report, folder.path)
    return report


def compare_files(plain: Plain, folder: Path) -> None:
    """CheckError where the weight files of `folder` hold anything but the tensors of `plain`."""
    import torch

    from umcompress.checkpoint.index import open_folder

    asked, do = f"read back what was written to {folder}", "report this as a bug"
    for file, tensors in plain.weights.items():
        with open_folder(folder, file) as stored:
            if stored.entries.keys() != tensors.keys():
                raise CheckError(asked, f"{file} has other tensors than were written", do)
            for name, tensor in tensors.items():
                if not torch.equal(stored.read(name), tensor.make()):
                    raise CheckError(asked, f"{name} has other values", do)
