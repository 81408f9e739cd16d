"""What `passes` and `evaluations` print, as documents."""

from __future__ import annotations

from typing import Any

from umcompress.documents.base import Document, Task


class OptionInfo(Document):
    """One option of a pass or an evaluation. `type` in words; `default` says nothing where it is `required`."""

    name: str
    type: str
    required: bool = False
    default: Any = None
    meaning: str = ""


class PassInfo(Document):
    """A pass: what it does, and its options where these were asked for."""

    name: str
    about: str
    options: tuple[OptionInfo, ...] = ()


class PassList(Document):
    """The passes that there are, each in one sentence."""

    passes: tuple[PassInfo, ...]


class EvaluationInfo(Document):
    """An evaluation: what it scores and how, and its options where these were asked for."""

    name: str
    about: str
    tasks: tuple[Task, ...]
    options: tuple[OptionInfo, ...] = ()


class EvaluationList(Document):
    """The evaluations that there are, each in one sentence."""

    evaluations: tuple[EvaluationInfo, ...]
