"""Errors that a user sees: what was asked, what was found, what to do next.

Everything here derives from `UmcompressError`. The command line turns one into a message on stderr and its
`exit_code`; anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The option most like `word`, or None when nothing comes close. Case does not count."""
    import difflib  # here, as `--help` starts without a mistake

    folded: dict[str, str] = {}
    for option in options:
        folded.setdefault(option.casefold(), option)
    found = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A hint that names the nearest option, or all of them (sorted, first ten) when none is near."""
    names = sorted(set(options))
    close = nearest(word, names)
    if close is not None:
        return f"did you mean {close!r}?"
    if not names:
        return ""
    rest = f" ... ({len(names)} in all)" if len(names) > 10 else ""
    return f"known: {', '.join(names[:10])}{rest}"


class UmcompressError(Exception):
    """A failure that is explained to the user. `asked`, `found` and `do` make up the message."""

    exit_code: int = 1

    def __init__(self, asked: str, found: str = "", do: str = "") -> None:
        super().__init__(asked, found, do)
        self.asked = asked
        self.found = found
        self.do = do

    def __str__(self) -> str:
        lines = [self.asked]
        if self.found:
            lines.append(f"  found: {self.found}")
        if self.do:
            lines.append(f"  do: {self.do}")
        return "\n".join([*lines, *getattr(self, "__notes__", [])])


class UsageError(UmcompressError):
    """The request itself cannot be met: a wrong option, file, name or folder."""

    exit_code = 2


class ModelError(UsageError):
    """A model folder is missing, incomplete, damaged or of an unknown kind."""


class UncountedError(ModelError):
    """A model cannot be run without values, so how much it works is not known; its sizes are."""


class PlanError(UmcompressError):
    """A step cannot be planned: it selects nothing, or its ratio is not legal for a site."""

    exit_code = 2


class CheckError(UmcompressError):
    """A check that the program makes of its own results failed, or a gate stopped the run."""


class Problem(NamedTuple):
    """One thing wrong with a recipe. `line` counts from 1; None where there is no line (an override)."""

    file: str
    line: int | None
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        head = ": ".join(part for part in (where, self.path, self.message) if part)
        return f"{head}\n    {self.hint}" if self.hint else head


class RecipeError(UsageError):
    """A recipe has problems; all of them are listed, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        count = len(self.problems)
        title = "the recipe has a problem" if count == 1 else f"the recipe has {count} problems"
        super().__init__(title, "\n".join(str(problem) for problem in self.problems))

    def __str__(self) -> str:
        body = (line for problem in self.problems for line in str(problem).splitlines())
        return "\n".join([f"{self.asked}:", *(f"  {line}" for line in body), *getattr(self, "__notes__", [])])
