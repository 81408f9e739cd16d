"""Generation prompts in GenEval's six kinds, with GenEval's own metadata, and scenes that satisfy them.

A prompt is prefix, body and suffix. Prompt strings are split by a hash: a fifth is for evaluation only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umcompress.evals.scenes.world import (
    COLOUR_NAMES,
    GRID,
    SHAPES,
    Object,
    Scene,
    Split,
    bucket,
    is_evaluation,
    make_scene,
    place,
)

if TYPE_CHECKING:
    import numpy as np

KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PREFIXES = (
    "", "a photo of", "a picture of", "an image of", "a drawing of", "draw", "show me", "paint",
)  # fmt: skip
SUFFIXES = ("", "on a plain background", "please")
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
_EVALUATION_SHARE = 5


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt; `metadata` is a GenEval metadata record (tag, include, exclude, prompt)."""

    kind: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Body:
    """What is asked for, in words and as GenEval clauses."""

    kind: str
    text: str
    include: tuple[dict[str, Any], ...]
    exclude: tuple[dict[str, Any], ...] = ()


def is_evaluation_prompt(text: str) -> bool:
    """Whether a prompt string is set aside for evaluation (one in five)."""
    return bucket(text, _EVALUATION_SHARE) == 0


def _noun(shape: str, colour: str | None = None) -> str:
    return f"a {colour} {shape}" if colour else f"a {shape}"


def _clause(shape: str, count: int = 1, colour: str | None = None) -> dict[str, Any]:
    clause: dict[str, Any] = {"class": shape, "count": count}
    return clause | {"color": colour} if colour else clause


def _pair(kind: str, first: str, second: str, a: str | None = None, b: str | None = None) -> _Body:
    text = f"{_noun(first, a)} and {_noun(second, b)}"
    return _Body(kind, text, (_clause(first, 1, a), _clause(second, 1, b)))


def _counting(shape: str, count: int) -> _Body:
    body = f"{NUMBERS[count]} {PLURALS[shape]}"
    return _Body("counting", body, (_clause(shape, count),), (_clause(shape, count + 1),))


def _position(relation: str, subject: str, target: str, a: str | None = None, b: str | None = None) -> _Body:
    """GenEval lists the target first; the subject's clause points back at it."""
    text = f"{_noun(subject, a)} {relation} {_noun(target, b)}"
    return _Body(
        "position", text, (_clause(target, 1, b), _clause(subject, 1, a) | {"position": [relation, 0]})
    )


def _bodies(kind: str) -> tuple[tuple[_Body, ...], ...]:
    """The bodies of a kind in groups that are drawn equally often (position: bare nouns, coloured nouns)."""
    shape_pairs = tuple(itertools.permutations(SHAPES, 2))
    if kind == "single_object":
        return (tuple(_Body(kind, _noun(s), (_clause(s),)) for s in SHAPES),)
    if kind == "two_object":
        return (tuple(_pair(kind, s, t) for s, t in shape_pairs),)
    if kind == "counting":
        return (tuple(_counting(s, n) for s in SHAPES for n in NUMBERS),)
    if kind == "colors":
        return (tuple(_Body(kind, _noun(s, c), (_clause(s, 1, c),)) for s in SHAPES for c in COLOUR_NAMES),)
    if kind == "position":
        bare = tuple(_position(r, s, t) for r in RELATIONS for s, t in shape_pairs)
        colours = tuple(itertools.product(COLOUR_NAMES, repeat=2))
        return bare, tuple(
            _position(r, s, t, a, b) for r in RELATIONS for s, t in shape_pairs for a, b in colours
        )
    if kind == "color_attr":
        colours = tuple(itertools.permutations(COLOUR_NAMES, 2))
        return (tuple(_pair(kind, s, t, a, b) for s, t in shape_pairs for a, b in colours),)
    raise ValueError(f"unknown kind of prompt {kind!r}; one of {', '.join(KINDS)}")


BODIES = {kind: _bodies(kind) for kind in KINDS}


def _dress(body: _Body, prefix: str, suffix: str) -> Prompt:
    text = " ".join(part for part in (prefix, body.text, suffix) if part)
    metadata: dict[str, Any] = {"tag": body.kind, "include": [dict(clause) for clause in body.include]}
    if body.exclude:
        metadata["exclude"] = [dict(clause) for clause in body.exclude]
    return Prompt(body.kind, text, metadata | {"prompt": text})


def all_prompts(kind: str) -> Iterator[Prompt]:
    """Every prompt of a kind, in a fixed order."""
    for group in BODIES[kind]:
        for body, prefix, suffix in itertools.product(group, PREFIXES, SUFFIXES):
            yield _dress(body, prefix, suffix)


def sample_prompt(rng: np.random.Generator, kind: str | None = None, split: Split = "training") -> Prompt:
    """A random prompt of one split; of a random kind if none is given."""
    wanted = split == "evaluation"
    if kind is None:
        kind = KINDS[int(rng.random() * len(KINDS))]
    groups = BODIES[kind]
    while True:
        u = rng.random(4)
        group = groups[int(u[0] * len(groups))]
        body = group[int(u[1] * len(group))]
        prompt = _dress(body, PREFIXES[int(u[2] * len(PREFIXES))], SUFFIXES[int(u[3] * len(SUFFIXES))])
        if is_evaluation_prompt(prompt.text) == wanted:
            return prompt


def _related(relation: str, subject: int, target: int) -> bool:
    """Whether cells stand clearly in a relation: further apart along its axis than across it.

    Offsets in a cell move a centre by one pixel at most, so GenEval's rule then holds and no other does.
    """
    right, down = subject % GRID - target % GRID, subject // GRID - target // GRID
    along, across = (right, down) if relation in ("left of", "right of") else (down, right)
    sign = 1 if relation in ("right of", "below") else -1
    return sign * along > abs(across)


_CELL_PAIRS = {
    relation: tuple(
        (subject, target)
        for subject, target in itertools.permutations(range(GRID * GRID), 2)
        if _related(relation, subject, target)
    )
    for relation in RELATIONS
}


def _cells(rng: np.random.Generator, include: list[dict[str, Any]], count: int) -> list[int]:
    """Cells for the objects of the clauses in order."""
    for clause in include:
        if "position" in clause:
            pairs = _CELL_PAIRS[clause["position"][0]]
            subject, target = pairs[int(rng.random() * len(pairs))]
            return [target, subject]
    return [int(cell) for cell in rng.random(GRID * GRID).argsort()[:count]]


def scene_for_prompt(rng: np.random.Generator, prompt: Prompt) -> Scene:
    """A training scene that shows what the prompt asks for and nothing else; the rest is random.

    Objects of one clause share their colour, as in "three circles".
    """
    include = prompt.metadata["include"]
    while True:
        cells = iter(_cells(rng, include, sum(clause["count"] for clause in include)))
        things: list[Object] = []
        for clause in include:
            colour = clause.get("color") or COLOUR_NAMES[int(rng.random() * len(COLOUR_NAMES))]
            things += [place(rng, clause["class"], colour, next(cells)) for _ in range(clause["count"])]
        scene = make_scene(things)
        if not is_evaluation(scene):
            return scene
