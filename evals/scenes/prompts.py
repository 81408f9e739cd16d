"""Generation prompts in GenEval's six kinds, with GenEval's own metadata, and scenes that satisfy them.

Where GenEval names a colour, this world names a fill and a colour ("striped red"), which its rules compare as one.
A prompt is prefix, body and suffix. Prompt strings are split by a hash: a fifth is for evaluation only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umcompress.evals.scenes.glyphs import PLURALS, SHAPES
from umcompress.evals.scenes.world import GRID, LOOKS, Object, Scene, Split, bucket, is_evaluation, make_scene, place

if TYPE_CHECKING:
    import numpy as np

KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PREFIXES = (
    "", "a photo of", "a picture of", "an image of", "a drawing of", "draw", "show me", "paint",
)  # fmt: skip
SUFFIXES = ("", "on a grey background", "please")
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
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


def _noun(shape: str, look: str | None = None) -> str:
    words = f"{look} {shape}" if look else shape
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _clause(shape: str, count: int = 1, look: str | None = None) -> dict[str, Any]:
    clause: dict[str, Any] = {"class": shape, "count": count}
    return clause | {"color": look} if look else clause


def _body(kind: str, first: str, second: str, looks: Sequence[str], number: int, relation: str) -> _Body:
    """What a kind asks for, of two shapes, two looks, a number and a relation; it takes of them what it needs."""
    a, b = looks
    if kind == "single_object":
        return _Body(kind, _noun(first), (_clause(first),))
    if kind == "two_object":
        return _Body(kind, f"{_noun(first)} and {_noun(second)}", (_clause(first), _clause(second)))
    if kind == "counting":
        text = f"{NUMBERS[number]} {a} {PLURALS[first]}"
        return _Body(kind, text, (_clause(first, number, a),), (_clause(first, number + 1),))
    if kind == "colors":
        return _Body(kind, _noun(first, a), (_clause(first, 1, a),))
    if kind == "position":
        # GenEval lists the target first; the subject's clause points back at it.
        text = f"{_noun(first, a)} {relation} {_noun(second, b)}"
        return _Body(kind, text, (_clause(second, 1, b), _clause(first, 1, a) | {"position": [relation, 0]}))
    if kind == "color_attr":
        return _Body(kind, f"{_noun(first, a)} and {_noun(second, b)}", (_clause(first, 1, a), _clause(second, 1, b)))
    raise ValueError(f"unknown kind of prompt {kind!r}; one of {', '.join(KINDS)}")


def _dress(body: _Body, prefix: str, suffix: str) -> Prompt:
    text = " ".join(part for part in (prefix, body.text, suffix) if part)
    metadata: dict[str, Any] = {"tag": body.kind, "include": [dict(clause) for clause in body.include]}
    if body.exclude:
        metadata["exclude"] = [dict(clause) for clause in body.exclude]
    return Prompt(body.kind, text, metadata | {"prompt": text})


def sample_prompt(rng: np.random.Generator, kind: str | None = None, split: Split = "training") -> Prompt:
    """A random prompt of one split; of a random kind if none is given.  The two shapes and looks differ."""
    wanted = split == "evaluation"
    if kind is None:
        kind = KINDS[int(rng.random() * len(KINDS))]
    while True:
        shapes, looks = _two(rng, SHAPES), _two(rng, LOOKS)
        u = rng.random(4)
        number = tuple(NUMBERS)[int(u[0] * len(NUMBERS))]
        body = _body(kind, *shapes, looks, number, RELATIONS[int(u[1] * len(RELATIONS))])
        prompt = _dress(body, PREFIXES[int(u[2] * len(PREFIXES))], SUFFIXES[int(u[3] * len(SUFFIXES))])
        if is_evaluation_prompt(prompt.text) == wanted:
            return prompt


def _two(rng: np.random.Generator, options: Sequence[str]) -> tuple[str, str]:
    """Two different ones of the options."""
    first, step = int(rng.random() * len(options)), 1 + int(rng.random() * (len(options) - 1))
    return options[first], options[(first + step) % len(options)]


def all_texts() -> tuple[str, ...]:
    """Strings that together hold every word of every prompt."""
    nouns = [_noun(shape, look) for shape in SHAPES for look in (None, *LOOKS)]
    return (*PREFIXES, *SUFFIXES, *NUMBERS.values(), *RELATIONS, *PLURALS.values(), *nouns, "and")


def _related(relation: str, subject: int, target: int) -> bool:
    """Whether cells stand clearly in a relation: further apart along its axis than across it.

    Offsets in a cell move a centre by two pixels at most, so GenEval's rule then holds and no other does.
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

    Objects of one clause share their look, as in "three striped red circles".
    """
    include = prompt.metadata["include"]
    while True:
        cells = iter(_cells(rng, include, sum(clause["count"] for clause in include)))
        things: list[Object] = []
        for clause in include:
            look = clause.get("color") or LOOKS[int(rng.random() * len(LOOKS))]
            things += [place(rng, clause["class"], look, next(cells)) for _ in range(clause["count"])]
        scene = make_scene(things)
        if not is_evaluation(scene):
            return scene
