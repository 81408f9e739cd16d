"""The names that a transformer's weights had when it was first released, and how they are found again.

diffusers reads files with these names by functions that rename tensors and cut fused ones apart. The way back is found
with the function itself: it is run on numbered rows in place of weights, and where a row comes out is where it is to be
taken from. Some functions ask for every tensor by name, and so say the names; of others, which rename whatever they
get, the table below has them. Whatever the names come from: all rows of all tensors must come out, each once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from umcompress.models.pipelines.names_of_releases import BLOCKS, RENAMED, SEEN

Shapes = Mapping[str, tuple[int, ...]]
# What diffusers' functions raise where a tensor is not what they were written for.
_NOT_FITTING = (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError)


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor of diffusers."""

    name: str
    start: int
    stop: int


def known_classes() -> list[str]:
    """Classes of transformers that can be written with their first names."""
    return sorted({*BLOCKS, *RENAMED})


def first_names(kind: str, shapes: Shapes) -> dict[str, tuple[Rows, ...]] | str:
    """Map each tensor of the first release to the rows of diffusers' tensors that it is made of, in order.

    Or why there is no such map, in words.  shapes: of all tensors of the model, as diffusers names them.
    """
    from diffusers.loaders import single_file_model

    known = getattr(single_file_model, "SINGLE_FILE_LOADABLE_CLASSES", {}).get(kind, {})
    convert = known.get("checkpoint_mapping_fn")
    if kind not in known_classes() or convert is None:
        return f"the names of the first release of {kind} are not known, only those of {', '.join(known_classes())}"
    try:
        whole = _names_with_sources(kind, convert, shapes)
        return whole if isinstance(whole, str) else _inverted(convert, shapes, whole)
    except _NOT_FITTING as error:
        said = (str(error).splitlines() or [""])[0][:200]
        return f"diffusers' own reading of single files does not fit this {kind}: {type(error).__name__}: {said}"


def _names_with_sources(kind: str, convert: Callable[..., Any], shapes: Shapes) -> dict[str, list[str]] | str:
    """Map each first name to the tensors of diffusers that are made of it."""
    asked = _Asked(shapes)
    for name in _seeds(kind, shapes) if kind in BLOCKS else dict.fromkeys(_renamed(kind, name) for name in shapes):
        asked[name] = _Anything(name, shapes)
    made = convert(checkpoint=asked, config={})
    sources: dict[str, list[str]] = {}
    for name, value in made.items():
        if isinstance(value, _Anything) and name in shapes:
            if len(value.names) > 1:
                return f"{name} is made of several tensors: {', '.join(sorted(value.names))}"
            (first,) = value.names
            sources.setdefault(first, []).append(name)
    if unused := [name for name in asked.needed if name not in sources]:
        return f"the first release had tensors that this model has not: {', '.join(unused[:5])}"
    return sources


def _seeds(kind: str, shapes: Shapes) -> Iterator[str]:
    """Names by which a function sees how many blocks there are, and which parts."""
    for first, ours in BLOCKS[kind]:
        found = {int(match[1]) for name in shapes if (match := re.match(rf"{re.escape(ours)}\.(\d+)\.", name))}
        yield from (f"{first}.{number}." for number in sorted(found))
    for pattern, seen in SEEN:
        yield from dict.fromkeys(match.expand(seen) for name in shapes if (match := re.match(pattern, name)))


def _renamed(kind: str, name: str) -> str:
    for pattern, first in RENAMED[kind]:
        name = re.sub(pattern, first, name)
    return name


def _inverted(
    convert: Callable[..., Any], shapes: Shapes, sources: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Rows, ...]] | str:
    """Run the function on numbered rows, and read off where each comes out."""
    numbered: dict[str, torch.Tensor] = {}
    count = 0
    for first, names in sources.items():
        rows = sum(_length(shapes[name]) for name in names)
        tail = [1] * (len(shapes[names[0]]) - 1)
        numbered[first] = torch.arange(count, count + rows).reshape(rows, *tail)
        count += rows
    made = {name: value for name, value in convert(checkpoint=dict(numbered), config={}).items() if value is not None}
    if odd := sorted(made.keys() ^ shapes.keys()):
        return f"diffusers' own reading of single files gives other tensors: {', '.join(odd[:5])}"
    place: list[tuple[str, int]] = [("", 0)] * count
    for name, value in made.items():
        if value.ndim != len(shapes[name]) or value.numel() != _length(shapes[name]):
            return f"diffusers' own reading of single files gives {name} another shape"
        for row, number in enumerate(value.flatten().tolist()):
            place[number] = (name, row)
    if sum(_length(shape) for shape in shapes.values()) != count or ("", 0) in place:
        return "diffusers' own reading of single files does not use every row once"
    return {
        first: tuple(_runs(place[int(rows.min()) : int(rows.max()) + 1])) for first, rows in numbered.items()
    }


def _length(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def _runs(places: Sequence[tuple[str, int]]) -> Iterator[Rows]:
    """Rows that follow each other in a tensor, as one."""
    for _, run in itertools.groupby(enumerate(places), key=lambda item: (item[1][0], item[1][1] - item[0])):
        found = [place for _, place in run]
        yield Rows(found[0][0], found[0][1], found[-1][1] + 1)


class _Anything:
    """Stands for a tensor of which only the name is known, and for any part of it."""

    def __init__(self, name: str, shapes: Shapes) -> None:
        self.names, self.known = frozenset({name}), shapes.get(name)

    @property
    def shape(self) -> tuple[int, ...]:
        if self.known is None:
            raise ValueError(f"the shape of {', '.join(self.names)} is asked for")
        return self.known

    def chunk(self, count: int, dim: int = 0) -> tuple[_Anything, ...]:
        return (self,) * count

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        parts = args[0]
        if function is torch.chunk:
            return (parts,) * args[1]
        if function is torch.split:
            return (parts,) * len(args[1])
        if function is not torch.cat:
            raise TypeError(f"{getattr(function, '__name__', function)} is no change of rows")
        whole = _Anything("", {})
        whole.names = frozenset().union(*(part.names for part in parts))
        return whole


class _Asked(dict[str, Any]):
    """A file of weights that has whatever it is asked for.  needed: what was asked for without another value."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.shapes, self.needed = shapes, list[str]()

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name) if name in self else _Anything(name, self.shapes)

    def pop(self, name: str, *other: Any) -> Any:
        if name in self:
            return super().pop(name)
        if not other:
            self.needed.append(name)
        return _Anything(name, self.shapes)
