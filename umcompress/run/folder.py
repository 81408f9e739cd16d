"""The output folder of a run: what is in it, whose it is, how a killed run goes on.

A step is committed by one rename, after everything that belongs to it lies in a temporary folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.checkpoint.atomic import atomic_folder, sha256_file, write_text_atomic
from umcompress.documents.base import Document
from umcompress.documents.plan import Plan, SetTensors
from umcompress.documents.report import StepReport
from umcompress.errors import CheckError, UsageError
from umcompress.files import is_regular, read_bytes, read_text
from umcompress.progress import say
from umcompress.recipe.files import LoadedRecipe
from umcompress.recipe.yaml_writer import yaml_text

if TYPE_CHECKING:
    from torch import Tensor

MARK = "run.json"
RECIPE = "recipe.yaml"
RESOLVED = "recipe.resolved.yaml"
TENSORS = "tensors.safetensors"
BASELINE = "baseline"
# Where a training keeps its curve, and its checkpoint as long as the step is not committed.
TRAINING = "training"


class Mark(Document):
    """Says that a folder is ours, and what it computes."""

    umcompress_run: int = 1
    fingerprint: str


class CommittedStep(Document):
    """What is kept of a finished step."""

    report: StepReport
    plan: Plan | None = None


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def model(self) -> Path:
        return self.path / "model"

    def claim(self, loaded: LoadedRecipe, fingerprint: str) -> bool:
        """Take the folder for this run; whether an unfinished or finished run of the same recipe is in it.

        Raises UsageError where the folder is somebody else's, holds another recipe's run, or is being worked in. It is
        this process's until `release`, or until the process ends.
        """
        asked = f"the output folder {self.path}"
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(asked, "a file of that name", "choose another with -o")
        make_folder(self.path, asked)
        self._hold(asked)
        mark = self.path / MARK
        if mark.is_file():
            if _fingerprint(mark, asked) == fingerprint:
                return True
            if not self._only_claimed():
                raise UsageError(
                    asked, "a run of another recipe, model or version (or of this recipe before it was changed, or in "
                    "memory and not out of core, or the other way round)",
                    f"give another folder with -o, or remove it first: rm -r {self.path}",
                )
        elif not self._is_our_beginning(loaded):
            raise UsageError(asked, "it is not empty, and no run of umcompress is in it", "choose another with -o")
        write_text_atomic(self.path / RECIPE, loaded.text)
        write_text_atomic(self.path / RESOLVED, yaml_text(loaded.recipe.resolved_in(self.path)))
        write_text_atomic(mark, Mark(fingerprint=fingerprint).model_dump_json() + "\n")
        return False

    def _hold(self, asked: str) -> None:
        """Two runs in one folder would take each other's files away. The lock leaves nothing on the disk."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            do = "wait until it has ended, or choose another folder with -o"
            raise UsageError(asked, "another `umcompress apply` is at work in it", do) from error
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
        halves = {f".{name}.partial" for name in (MARK, RECIPE, RESOLVED)}
        if not {path.name for path in self.path.iterdir()} <= {*halves, RECIPE, RESOLVED}:
            return False
        recipe = self.path / RECIPE  # the user's own may lie there, and is not written over
        return not recipe.exists() or (is_regular(recipe) and read_bytes(recipe) == loaded.text.encode())

    def _only_claimed(self) -> bool:
        """Whether the run in it computed nothing: it stopped at an error in its recipe, say, which is now put right."""
        return {path.name for path in self.path.iterdir()} <= {MARK, RECIPE, RESOLVED}

    def step_path(self, index: int, name: str) -> Path:
        """`steps/NN-NAME`; a step that the recipe gave no name is called NN-PASS already."""
        number = f"{index:02d}-"
        return self.path / "steps" / (name if name.startswith(number) else number + name)

    def committed(self, index: int, name: str) -> CommittedStep | None:
        """A finished step, None where it is still to be done."""
        file = self.step_path(index, name) / "step.json"
        if not is_regular(file):
            return None
        try:
            return CommittedStep.model_validate_json(read_text(file))
        except ValueError as error:
            say(f"{file} is damaged ({str(error).splitlines()[0]}): the step is done again")
            return None

    def work(self, index: int, name: str, keep: Collection[str] = ()) -> Path:
        """A folder for what a step leaves behind, outside of `steps` until it is committed.

        It is empty but for the folders to `keep`, if a killed run left any.
        """
        final = self.step_path(index, name)
        path = final.with_name(f".{final.name}.partial")
        for place in (path.parent, path):
            if place.exists() and not place.is_dir():
                place.unlink()
        path.mkdir(parents=True, exist_ok=True)
        for left in path.iterdir():
            if not left.is_dir() or left.is_symlink():
                left.unlink()
            elif left.name not in keep:
                shutil.rmtree(left)
        return path

    def commit(self, index: int, name: str, work: Path, step: CommittedStep) -> None:
        for checkpoint in (work / TRAINING).glob("*.safetensors"):
            checkpoint.unlink()
        write_text_atomic(work / "step.json", step.model_dump_json(indent=2, by_alias=True) + "\n")
        target = self.step_path(index, name)
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        elif target.exists():
            target.unlink()
        work.rename(target)

    def blobs(self, index: int, name: str, plan: Plan) -> Mapping[str, Tensor]:
        """The tensors that a committed plan sets.  CheckError where the file is not the one of the plan."""
        return kept_tensors(plan, self.step_path(index, name))


def make_folder(path: Path, asked: str) -> None:
    """The folder, and those above it.  UsageError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"it cannot be made: {error.strerror}"
        raise UsageError(asked, found, "choose another with -o") from error


def _fingerprint(mark: Path, asked: str) -> str:
    try:
        return Mark.model_validate_json(mark.read_text(encoding="utf-8")).fingerprint
    except ValueError as error:
        found = f"its {mark.name} is damaged, or not ours"
        raise UsageError(asked, found, "choose another with -o, or remove it first") from error


def keep_tensors(plan: Plan, tensors: Mapping[str, Tensor], work: Path) -> Plan:
    """Write what a plan sets next to it; the plan with the file's digest."""
    if not plan.tensor_names():
        return plan
    from umcompress.checkpoint.writer import in_memory, write_file

    write_file(work / TENSORS, {name: in_memory(tensor) for name, tensor in sorted(tensors.items())})
    digest = sha256_file(work / TENSORS)
    edits = [
        edit.model_copy(update={"digest": digest, "file": TENSORS}) if isinstance(edit, SetTensors) else edit
        for edit in plan.edits
    ]
    return plan.model_copy(update={"edits": tuple(edits)})


def kept_tensors(plan: Plan, folder: Path) -> Mapping[str, Tensor]:
    """What `keep_tensors` wrote.  CheckError where the file is not the one of the plan."""
    edits = [edit for edit in plan.edits if isinstance(edit, SetTensors)]
    if not edits:
        return {}
    from safetensors.torch import load_file

    file = folder / TENSORS
    if not is_regular(file) or any(edit.digest != sha256_file(file) for edit in edits):
        raise CheckError(f"the tensors of the step {folder.name}", f"{file} is not the file that its plan names",
                         "remove the output folder and run again")
    return load_file(file)


def write_plans(folder: RunFolder, plans: Mapping[str, Plan]) -> None:
    """plan.json: every step's plan in order."""
    text = json.dumps({name: plan.model_dump(mode="json") for name, plan in plans.items()}, indent=1)
    write_text_atomic(folder.path / "plan.json", text + "\n")


__all__ = ["TRAINING", "CommittedStep", "RunFolder", "atomic_folder", "keep_tensors", "kept_tensors", "write_plans"]
