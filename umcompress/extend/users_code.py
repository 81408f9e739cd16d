"""Call what users wrote, a pass or an evaluation: what goes wrong in it is said by its file and line, in words."""

from __future__ import annotations

import errno
import inspect
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umcompress.documents.base import TASKS
from umcompress.documents.scores import Score
from umcompress.errors import UmcompressError
from umcompress.extend.pass_base import Pass, Proposal

_OURS = "umcompress."
# The disk's doing, whoever writes.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def call(given: Any, method: str, *arguments: Any) -> Any:
    """What a method of a pass or an evaluation returns.  UmcompressError where it raises or returns something else.

    An error of a shipped one is a bug of ours and keeps its traceback; one that is raised in words goes on as it is.
    """
    asked = f"{method} of the {'pass' if isinstance(given, Pass) else 'evaluation'} {given.name}"
    try:
        found = getattr(given, method)(*arguments)
    except (UmcompressError, NotImplementedError):
        raise
    except Exception as error:  # somebody else's code may raise anything; it is said, and shown with --debug
        if type(given).__module__.startswith(_OURS) or (isinstance(error, OSError) and error.errno in _DISK):
            raise
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        do = "mend it there; --debug shows the whole traceback"
        raise UmcompressError(asked, f"{said}\n    in {_place(error, given)}", do) from error
    if (wrong := _wrong(method, found)) is not None:
        raise UmcompressError(asked, f"it returned {wrong}\n    in {_defined(given, method)}", _WANTED[method])
    return found


_WANTED = {
    "plan": "return Proposal(Plan(...)), with the tensors that it sets",
    "needs": "return a list of what is to be measured, such as [BlockSimilarity()]",
    "run": 'return a score for each task, as {"understanding": mean_score(values)}',
    "compare": 'return a score for each task, as {"understanding": mean_score(values)}',
    "calibration_items": "return a list of items", "training_items": "return a list of items",
}  # fmt: skip


def _wrong(method: str, found: Any) -> str | None:
    """What was returned, where it is not what the method has to return."""
    if method == "plan":
        return None if isinstance(found, Proposal) else _kind(found)
    if method == "needs":
        return None if isinstance(found, Sequence) and not isinstance(found, str) else _kind(found)
    if method in ("run", "compare"):
        if not isinstance(found, Mapping):
            return _kind(found)
        odd = next((key for key, score in found.items() if key not in TASKS or not isinstance(score, Score)), None)
        return None if odd is None else f"{_kind(found[odd])} for {odd!r}; tasks are {', '.join(TASKS)}"
    if method in _WANTED:
        return None if isinstance(found, list | tuple) else _kind(found)
    return None


def _kind(found: Any) -> str:
    return "None" if found is None else f"{type(found).__name__} {ascii(found)[:80]}"


def _place(error: BaseException, given: Any) -> str:
    """The last line of the user's that ran: of the class's own file, else of any that is neither ours nor a library."""
    frames = traceback.extract_tb(error.__traceback__)
    own = _file(given)
    ours = str(Path(__file__).parent.parent)
    theirs = [frame for frame in frames if frame.filename == own] or [
        frame for frame in frames if not frame.filename.startswith(ours)
    ]
    last = (theirs or frames)[-1]
    return f"{last.filename}, line {last.lineno}: {last.line}"


def _defined(given: Any, method: str) -> str:
    try:
        line = inspect.getsourcelines(getattr(type(given), method))[1]
    except (OSError, TypeError):  # made without a file
        return _file(given)
    return f"{_file(given)}, line {line}"


def _file(given: Any) -> str:
    try:
        return inspect.getsourcefile(type(given)) or type(given).__module__
    except (OSError, TypeError):
        return str(type(given).__module__)
