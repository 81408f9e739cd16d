"""What is kept of a finished step: its report, its plan, the tensors that the plan sets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.documents.atomic import sha256_file
from umcompress.documents.base import Document, Task
from umcompress.documents.file_names import STEP
from umcompress.documents.files import is_regular, read_text
from umcompress.documents.plan import Plan, SetTensors
from umcompress.documents.report import StepReport
from umcompress.errors import CheckError
from umcompress.progress import say

if TYPE_CHECKING:
    from torch import Tensor

TENSORS = "tensors.safetensors"


class CommittedStep(Document):
    """What is kept of a finished step.

    key: names what it depends on. digest: of report and plan, so that a file changed by hand is found out.
    reads: the names of the weights that each task reads, None where not known.
    """

    report: StepReport
    plan: Plan | None = None
    reads: dict[Task, tuple[str, ...]] | None = None
    key: str = ""
    digest: str = ""

    def content(self) -> str:
        """The digest of report and plan."""
        return hashlib.sha256(self.model_dump_json(by_alias=True, exclude={"digest"}).encode()).hexdigest()


def read_step(folder: Path) -> CommittedStep | None:
    """The step that was committed to a folder; None where there is none, or it was damaged or changed since."""
    file = folder / STEP
    if not is_regular(file):
        return None
    try:
        step = CommittedStep.model_validate_json(read_text(file))
    except ValueError as error:
        say(f"{file} is damaged ({str(error).splitlines()[0]}): the step is done again")
        return None
    if step.digest and step.digest != step.content():
        say(f"{file} was changed after the step was done: it is done again")
        return None
    return step


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
