"""The output folder of a run: what is in it, whose it is, how a killed run goes on.

A step is committed by one rename, after everything that belongs to it lies in a temporary folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.documents.atomic import write_text_atomic
from umcompress.documents.base import Document
from umcompress.documents.file_names import PLAN, RECIPE, REPORT, RESOLVED, RUN, STEP
from umcompress.documents.files import is_regular, read_bytes, read_text
from umcompress.documents.plan import Plan
from umcompress.errors import UsageError
from umcompress.progress import say
from umcompress.recipe.files import LoadedRecipe
from umcompress.recipe.yaml_writer import yaml_text
from umcompress.run.committed import CommittedStep, kept_tensors, read_step
from umcompress.run.dependencies import Dependencies, StepDependencies, changes, shortened

if TYPE_CHECKING:
    from torch import Tensor

BASELINE = "baseline"
# Where a training keeps its curve, and its checkpoint as long as the step is not committed.
TRAINING = "training"
# In a folder that is worked in: the key of the step that it is for.
_KEY = ".key"


class Mark(Document):
    """Says that a folder is ours, and what its steps depend on (folders of earlier versions say only the first)."""

    umcompress_run: int = 1
    fingerprint: str
    depends_on: Dependencies | None = None


class RunFolder:
    """The folder of one run, whose steps depend on what `depends_on` says."""

    def __init__(self, path: Path, depends_on: Dependencies) -> None:
        self.path, self.depends_on = path, depends_on
        self._lock: int | None = None

    @property
    def model(self) -> Path:
        return self.path / "model"

    def claim(self, loaded: LoadedRecipe, redo: bool = False) -> bool:
        """Take the folder for this run; whether there is something in it to go on with.

        Raises UsageError where the folder is somebody else's, is being worked in, or holds results of another run that
        would be lost.  redo: these may go; steps that still hold are kept.  The folder is this process's until
        `release`, or until the process ends.
        """
        asked = f"the output folder {self.path}"
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(asked, "a file of that name", "choose another with -o")
        make_folder(self.path, asked)
        self.hold(asked)
        mark, begun = self.path / RUN, False
        if mark.is_file():
            before = _mark(mark, asked)
            if before.fingerprint == self.depends_on.fingerprint():
                return True
            begun = not self._only_claimed()
            if begun:
                self._set_aside_changed(before, asked, redo)
        elif not self._is_our_beginning(loaded):
            raise UsageError(asked, "it is not empty, and no run of umcompress is in it", "choose another with -o")
        self.keep_recipe(loaded)
        said = Mark(fingerprint=self.depends_on.fingerprint(), depends_on=self.depends_on)
        write_text_atomic(mark, said.model_dump_json() + "\n")
        return begun

    def keep_recipe(self, loaded: LoadedRecipe) -> None:
        """The recipe as it was given, and with all defaults, as it would lie in this folder."""
        write_text_atomic(self.path / RECIPE, loaded.text)
        write_text_atomic(self.path / RESOLVED, yaml_text(loaded.recipe.resolved_in(self.path)))

    def _set_aside_changed(self, before: Mark, asked: str, redo: bool) -> None:
        """Remove results that hold no longer, where there are none or that is wished.  UsageError otherwise."""
        keys = self.depends_on.keys()
        held, lost = list[str](), list[Path]()
        for path in sorted((self.path / "steps").glob("[!.]*")):
            step = read_step(path)
            if step is not None and step.key in keys:
                held.append(step.report.name)
            else:
                lost.append(path)
        report = self.path / REPORT
        if (lost or report.exists() or not held) and not redo:
            found = f"a run of another recipe, model or version is in it: {_why(before, self.depends_on)}"
            raise UsageError(asked, found, _advice(self.path, held))
        say(f"{self.path}: {_why(before, self.depends_on)}; "
            + (f"{', '.join(held)} kept" if held else "nothing of it holds"))
        report.unlink(missing_ok=True)
        for path in lost:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def take_over(self, run: Path) -> list[str]:
        """Copy committed steps of another run that depend on the same things; the names of those taken."""
        there = {done.key: path for path in sorted((run / "steps").glob("[!.]*")) if (done := read_step(path))}
        taken = []
        for index, (step, key) in enumerate(zip(self.depends_on.steps, self.depends_on.keys(), strict=True)):
            if key in there and self.committed(index, step.name) is None:
                self.copy_step(index, step.name, there[key])
                taken.append(step.name)
        return taken

    def copy_step(self, index: int, name: str, committed: Path) -> None:
        """A committed step of another run's folder into this one, as a whole or not at all."""
        work = self.work(index, name)
        shutil.copytree(committed, work, dirs_exist_ok=True)
        self._in_place(index, name, work)

    def hold(self, asked: str) -> None:
        """Two runs in one folder would take each other's files away. The lock leaves nothing on the disk."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            do = "wait until it has ended, or choose another folder with -o"
            raise UsageError(asked, "another `umcompress` is at work in it", do) from error
        except OSError:
            # Some file systems of networks have no locks.
            os.close(handle)
        else:
            self._lock = handle

    def release(self) -> None:
        """Others may have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _is_our_beginning(self, loaded: LoadedRecipe) -> bool:
        """Whether nothing is in it but what a run leaves that was killed before it could say that the folder is its."""
        halves = {f".{name}.partial" for name in (RUN, RECIPE, RESOLVED)}
        if not {path.name for path in self.path.iterdir()} <= {*halves, RECIPE, RESOLVED}:
            return False
        recipe = self.path / RECIPE  # the user's own may lie there, and is not written over
        return not recipe.exists() or (is_regular(recipe) and read_bytes(recipe) == loaded.text.encode())

    def _only_claimed(self) -> bool:
        """Whether the run in it computed nothing: it stopped at an error in its recipe, say, which is now put right."""
        return {path.name for path in self.path.iterdir()} <= {RUN, RECIPE, RESOLVED}

    def step_path(self, index: int, name: str) -> Path:
        """`steps/NN-NAME`; a step that the recipe gave no name is called NN-PASS already."""
        number = f"{index:02d}-"
        return self.path / "steps" / (name if name.startswith(number) else number + name)

    def committed(self, index: int, name: str) -> CommittedStep | None:
        """A finished step, None where it is still to be done."""
        step = read_step(self.step_path(index, name))
        return step if step is not None and step.key == self.depends_on.key(index) else None

    def work(self, index: int, name: str, keep: Collection[str] = ()) -> Path:
        """A folder for what a step leaves behind, outside of `steps` until it is committed.

        It is empty but for the folders to `keep`, if a killed run of the same step left any.
        """
        final, key = self.step_path(index, name), self.depends_on.key(index)
        path = final.with_name(f".{final.name}.partial")
        for place in (path.parent, path):
            if place.exists() and not place.is_dir():
                place.unlink()
        path.mkdir(parents=True, exist_ok=True)
        same = is_regular(path / _KEY) and read_bytes(path / _KEY) == key.encode()
        for left in path.iterdir():
            if not left.is_dir() or left.is_symlink():
                left.unlink()
            elif left.name not in keep or not same:
                shutil.rmtree(left)
        write_text_atomic(path / _KEY, key)
        return path

    def commit(self, index: int, name: str, work: Path, step: CommittedStep) -> None:
        for checkpoint in (work / TRAINING).glob("*.safetensors"):
            checkpoint.unlink()
        named = step.model_copy(update={"key": self.depends_on.key(index)})
        whole = named.model_copy(update={"digest": named.content()})
        write_text_atomic(work / STEP, whole.model_dump_json(indent=2, by_alias=True) + "\n")
        self._in_place(index, name, work)

    def _in_place(self, index: int, name: str, work: Path) -> None:
        (work / _KEY).unlink(missing_ok=True)
        target = self.step_path(index, name)
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        elif target.exists():
            target.unlink()
        work.rename(target)

    def blobs(self, index: int, name: str, plan: Plan) -> Mapping[str, Tensor]:
        """The tensors that a committed plan sets.  CheckError where the file is not the one of the plan."""
        return kept_tensors(plan, self.step_path(index, name))


def claim_for(path: Path, mark: str, parts: Mapping[str, str], what: str) -> RunFolder:
    """Take a folder for something that is no run, marked by a file of that name.  UsageError as `RunFolder.claim`.

    parts: what its figures depend on; what: what is in it, for messages. Release it when all is done.
    """
    asked = f"the output folder {path}"
    depends_on = Dependencies(steps=(StepDependencies(name=what, parts=dict(parts)),))
    folder, file = RunFolder(path, depends_on), path / mark
    make_folder(path, asked)
    folder.hold(asked)
    if not file.is_file() and any(path.iterdir()):
        raise UsageError(asked, f"it is not empty, and no {what} is in it", "choose another with -o")
    if file.is_file() and (before := _mark(file, asked)).fingerprint != depends_on.fingerprint():
        raise UsageError(
            asked, f"a {what} of something else is in it: {_why(before, depends_on)}",
            f"give another folder with -o, or remove it first: rm -r {shlex.quote(str(path))}",
        )  # fmt: skip
    said = Mark(fingerprint=depends_on.fingerprint(), depends_on=depends_on)
    write_text_atomic(file, said.model_dump_json() + "\n")
    return folder


def reuse_steps(folder: RunFolder, run: Path) -> None:
    """Take the steps of another run that depend on the same things.  UsageError where not even its baseline does."""
    asked = f"--reuse {run}"
    if not is_regular(run / RUN):
        raise UsageError(asked, "no run of umcompress is in it", "name the output folder of a run")
    before = _mark(run / RUN, asked)
    if taken := folder.take_over(run):
        say(f"taken from {run}: {', '.join(taken)}")
    elif folder.committed(0, BASELINE) is None:
        found = f"nothing of it holds: {_why(before, folder.depends_on)}"
        raise UsageError(asked, found, "leave --reuse out, or name a run of the same model, versions and evaluations")


def make_folder(path: Path, asked: str) -> None:
    """The folder, and those above it.  UsageError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"it cannot be made: {error.strerror}"
        raise UsageError(asked, found, "choose another with -o") from error


def _mark(file: Path, asked: str) -> Mark:
    try:
        return Mark.model_validate_json(read_text(file))
    except ValueError as error:
        found = f"its {file.name} is damaged, or not ours"
        raise UsageError(asked, found, "choose another with -o, or remove it first") from error


def _why(before: Mark, now: Dependencies) -> str:
    if before.depends_on is None:
        return "it was made by an earlier version of umcompress"
    return shortened(changes(before.depends_on, now))


def _advice(path: Path, held: Collection[str]) -> str:
    place = shlex.quote(str(path))
    if not held:
        return f"give another folder with -o, or remove it first: rm -r {place}"
    return (f"give another folder with -o, and --reuse {place} to take {', '.join(held)} from here; "
            f"or -o {place} --reuse {place}: what holds no longer is then done again in its place")


def write_plans(folder: RunFolder, plans: Mapping[str, Plan]) -> None:
    """plan.json: every step's plan in order."""
    text = json.dumps({name: plan.model_dump(mode="json") for name, plan in plans.items()}, indent=1)
    write_text_atomic(folder.path / PLAN, text + "\n")
