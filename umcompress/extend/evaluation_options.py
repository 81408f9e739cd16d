"""Evaluations as the command line names them: `mme`, `mme:data=PATH,limit=100`, `file.py:Class:option=1`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from umcompress.documents.base import explain
from umcompress.errors import UsageError, did_you_mean
from umcompress.extend.evaluation_base import Evaluation
from umcompress.extend.registry import find_evaluation

_NAMED = re.compile(r"(?P<name>.*?):(?P<options>[a-z_][a-z0-9_]*=.*)", re.DOTALL)
_NEXT_OPTION = re.compile(r",(?=[a-z_][a-z0-9_]*=)")


def chosen(names: Sequence[str], seed: int, limit: int | None) -> list[Evaluation]:
    """The evaluations with their options; `seed` and `limit` hold where an entry gives none of its own."""
    found = [_one(text, seed, limit) for text in names]
    for index, evaluation in enumerate(found):
        if any(evaluation.name == other.name for other in found[:index]):
            raise UsageError(f"--evaluation {names[index]}", f"{evaluation.name} is named twice", "run it by itself")
    return found


def bare_name(text: str) -> str:
    """An evaluation without its options, as a recipe names it."""
    match = _NAMED.fullmatch(text)
    return match["name"] if match else text


def _one(text: str, seed: int, limit: int | None) -> Evaluation:
    asked = f"--evaluation {text}"
    match, name = _NAMED.fullmatch(text), bare_name(text)
    kind = find_evaluation(name, Path())
    known = [field.alias or key for key, field in kind.model_fields.items()]
    options: dict[str, Any] = {}
    for part in _NEXT_OPTION.split(match["options"]) if match else ():
        key, _, value = part.partition("=")
        if key not in known:
            raise UsageError(asked, f"{name} has no option {key!r}", did_you_mean(key, known))
        if key in options:
            raise UsageError(asked, f"{key} is given twice", "give it once")
        options[key] = value
    if "seed" in kind.model_fields:
        options.setdefault("seed", seed)
    if limit is not None and "limit" not in options:
        if "limit" not in kind.model_fields:
            raise UsageError(f"--limit {limit}", f"the evaluation {name} has no limit", "leave --limit out")
        options["limit"] = limit
    try:
        # Not strict: on a command line every value is text.
        return kind.model_validate(options)
    except ValidationError as error:
        raise UsageError(asked, explain(error), f"the options of {name}: {', '.join(known)}") from error
