"""What recipes say differently: steps aligned by name and pass, options that have their default left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from umcompress.documents.base import Document
from umcompress.errors import UmcompressError

ABSENT = "-"
# What tells steps of one pass from each other, where the recipe gave them no name.
_IDENTITY = ("component", "stack", "unit")
Recipe = Mapping[str, Any]


class Difference(Document):
    """A key that not all runs have alike. `values` has one entry a run; `-` where the key is absent.

    step: the step that it is an option of, null for what the recipe says outside of steps.
    """

    key: str
    values: tuple[Any, ...]
    step: str | None = None


def differences(documents: Sequence[Mapping[str, Any]]) -> tuple[Difference, ...]:
    """The dotted keys at which not all documents agree, in the order of their first appearance."""
    flat = [dict(_leaves(document)) for document in documents]
    keys = dict.fromkeys(key for leaves in flat for key in leaves)
    rows = ((key, tuple(leaves.get(key, ABSENT) for leaves in flat)) for key in keys)
    return tuple(Difference(key=key, values=values) for key, values in rows if any(v != values[0] for v in values))


def recipe_differences(recipes: Sequence[Recipe]) -> tuple[Difference, ...]:
    """The differences of resolved recipes: first those outside of steps, then step by step.

    Of a step that not all have, each has its row of options that are not the pass's defaults.
    """
    heads = [{key: value for key, value in recipe.items() if key != "steps"} for recipe in recipes]
    found = list(differences(heads))
    steps = [_named(recipe.get("steps", ())) for recipe in recipes]
    for name in _in_order(steps):
        here = [of_one.get(name) for of_one in steps]
        found += _of_step(name, here)
    return tuple(found)


def _named(steps: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Each step by what it is aligned by: its name and pass; where it was given no name, pass, component and unit."""
    found: dict[str, Mapping[str, Any]] = {}
    for number, step in enumerate(steps, start=1):
        given, used = str(step.get("name", "")), str(step.get("pass", ""))
        if re.fullmatch(r"\d+-.*", given) or not given or given == f"{number:02d}-{used}":
            usual = _defaults(used)
            words = [used, *(str(step[key]) for key in _IDENTITY if step.get(key) not in (None, usual.get(key)))]
            name = " ".join(words)
        else:
            name = f"{given} ({used})"
        again = sum(other == name or other.startswith(f"{name}, ") for other in found)
        found[f"{name}, {again + 1}" if again else name] = step
    return found


def _in_order(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """All names; one that only a later recipe has comes after the one that it follows there."""
    order: list[str] = []
    for of_one in steps:
        place = 0
        for name in of_one:
            if name in order:
                place = max(place, order.index(name) + 1)
            else:
                order.insert(place, name)
                place += 1
    return order


def _of_step(name: str, steps: Sequence[Mapping[str, Any] | None]) -> Iterator[Difference]:
    """Rows of one step: whether it is there, and the options that differ, or that are not defaults."""
    present = [step for step in steps if step is not None]
    missing = len(present) < len(steps)
    flat = [None if step is None else dict(_leaves(_options(step))) for step in steps]
    usual = dict(_leaves(_defaults(str(present[0].get("pass", "")))))
    keys = dict.fromkeys(key for leaves in flat if leaves is not None for key in leaves)
    rows = []
    for key in keys:
        values = tuple(ABSENT if leaves is None else leaves.get(key, ABSENT) for leaves in flat)
        own = [value for value, step in zip(values, steps, strict=True) if step is not None]
        if any(value != own[0] for value in own) or (missing and any(value != usual.get(key, ABSENT) for value in own)):
            rows.append(Difference(key=key, values=values, step=name))
    if missing and not rows:
        yield Difference(key="", values=tuple(ABSENT if step is None else "yes" for step in steps), step=name)
    yield from rows


def _options(step: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is in the step's name, and what its number says."""
    left = {"pass", "name", *_IDENTITY}
    return {key: value for key, value in step.items() if key not in left}


def _defaults(name: str) -> dict[str, Any]:
    """The options of a pass that the recipe may leave out.

    Nothing where the pass is not there any more, or is in a file of the user's: showing reports runs no such code.
    """
    if ".py:" in name:
        return {}
    from umcompress.extend.registry import one_pass

    try:
        fields = one_pass(name).model_fields
    except (UmcompressError, ImportError, OSError):
        return {}
    optional = {key: field for key, field in fields.items() if not field.is_required()}
    return {key: _plain(field.get_default(call_default_factory=True)) for key, field in optional.items()}


def _plain(value: Any) -> Any:
    """A default as a resolved recipe has it."""
    return value.json_values() if isinstance(value, Document) else list(value) if isinstance(value, tuple) else value


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        items: Any = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = enumerate(value)
    else:
        if path:
            yield path, value
        return
    for key, item in items:
        yield from _leaves(item, f"{path}.{key}" if path else str(key))
