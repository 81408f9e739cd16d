"""Understanding questions about a scene, with exact answers, and the score of a guesser that sees nothing.

Five kinds: color, count, existence, position, comparison. Answers are short lower-case strings. Questions are coarse:
they name a colour, a fill or a place at a time, never one of the many shapes.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from umcompress.evals.scenes.glyphs import FILLS, SHAPES
from umcompress.evals.scenes.prompts import RELATIONS
from umcompress.evals.scenes.world import CELL_NAMES, COLOUR_NAMES, LOOKS, MAX_OBJECTS, Object, Scene, sample_scene

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

KINDS = ("color", "count", "existence", "position", "comparison")
_TIE_SHARE = 0.2  # of the comparisons answered "no"


@dataclass(frozen=True, slots=True)
class Question:
    """`template` is the text with its colours, fills and places left open; a blind guesser may know it."""

    kind: str
    text: str
    answer: str
    template: str


def _choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


_WORDS = (*COLOUR_NAMES, *FILLS)


def _unique(scene: Scene) -> list[tuple[str, Object]]:
    """(word, object) wherever one colour or one fill names an object without doubt."""
    counts = Counter(word for thing in scene.objects for word in (thing.colour, thing.fill))
    return [(word, thing) for thing in scene.objects for word in (thing.colour, thing.fill) if counts[word] == 1]


def _color(rng: np.random.Generator, scene: Scene) -> Question:
    thing = _choose(rng, scene.objects)
    place = CELL_NAMES[thing.cell]
    return Question("color", f"what color is the {place} object?", thing.colour, "what color is the P object?")


def _tallies(scene: Scene, fills: bool) -> dict[str, int]:
    """Plural phrase -> how many, over all fills or all colours."""
    counts = Counter(thing.fill if fills else thing.colour for thing in scene.objects)
    return {f"{word} objects": counts[word] for word in (FILLS if fills else COLOUR_NAMES)}


def _count(rng: np.random.Generator, scene: Scene) -> Question:
    """The number asked for is drawn first, among those in the scene, so that "0" does not prevail."""
    what = int(rng.random() * 3)
    if what == 2:
        text = "how many objects are there?"
        return Question("count", text, str(len(scene.objects)), text)
    tallies = _tallies(scene, fills=what == 0)
    number = _choose(rng, sorted(set(tallies.values())))
    phrase = _choose(rng, [phrase for phrase, tally in tallies.items() if tally == number])
    template = "how many F objects are there?" if what == 0 else "how many C objects are there?"
    return Question("count", f"how many {phrase} are there?", str(number), template)


def _existence(rng: np.random.Generator, scene: Scene) -> Question:
    """Half yes, half no, of a colour or a fill."""
    present = {word for thing in scene.objects for word in (thing.colour, thing.fill)}
    yes = rng.random() < 0.5
    word = _choose(rng, [word for word in _WORDS if (word in present) == yes])
    return Question("existence", f"is there a {word} object?", "yes" if yes else "no", "is there a W object?")


def _holds(relation: str, subject: Object, target: Object) -> bool:
    if relation in ("left of", "right of"):
        a, b = subject.column, target.column
    else:
        a, b = subject.row, target.row
    return a < b if relation in ("left of", "above") else a > b


def _relative(rng: np.random.Generator, named: Sequence[tuple[str, Object]]) -> Question | None:
    """Asks only along an axis on which the two differ."""
    pairs = list(itertools.permutations(named, 2))
    horizontal = [(a, b, 0) for a, b in pairs if a[1].column != b[1].column]
    vertical = [(a, b, 2) for a, b in pairs if a[1].row != b[1].row]
    if not horizontal + vertical:
        return None
    (word, subject), (other, target), axis = _choose(rng, horizontal + vertical)
    yes = rng.random() < 0.5
    relation = next(r for r in RELATIONS[axis : axis + 2] if _holds(r, subject, target) == yes)
    return Question(
        "position",
        f"is the {word} object {relation} the {other} object?",
        "yes" if yes else "no",
        "is the W object R the W object?",
    )


def _position(rng: np.random.Generator, scene: Scene) -> Question | None:
    named = _unique(scene)
    if not named:
        return None
    if rng.random() < 0.5:
        question = _relative(rng, named)
        if question is not None:
            return question
    word, thing = _choose(rng, named)
    return Question("position", f"where is the {word} object?", CELL_NAMES[thing.cell], "where is the W object?")


def _comparison(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Half yes, half no, few ties; half of the pairs are both there where such pairs exist."""
    first_fills = rng.random() < 0.5
    yes, tie, hard = rng.random(3) < (0.5, _TIE_SHARE, 0.5)
    for fills in (first_fills, not first_fills):
        tallies = _tallies(scene, fills)
        pairs = list(itertools.permutations(tallies, 2))
        more = [(a, b) for a, b in pairs if tallies[a] > tallies[b]]
        if not more:
            continue
        close = [(a, b) for a, b in more if tallies[b] > 0]
        even = [(a, b) for a, b in pairs if tallies[a] == tallies[b] > 0]
        if tie and not yes and even:
            first, second = _choose(rng, even)
        else:
            first, second = _choose(rng, close if hard and close else more)
            if not yes:
                first, second = second, first
        kind = "F" if fills else "C"
        template = f"are there more {kind} objects than {kind} objects?"
        return Question(
            "comparison", f"are there more {first} than {second}?", "yes" if yes else "no", template
        )
    return None


_MAKERS: dict[str, Callable[[np.random.Generator, Scene], Question | None]] = {
    "color": _color,
    "count": _count,
    "existence": _existence,
    "position": _position,
    "comparison": _comparison,
}


def sample_questions(
    rng: np.random.Generator, scene: Scene, n: int, kinds: Sequence[str] | None = None
) -> list[Question]:
    """`n` questions, going round `kinds` (default: all five) in random order; a kind may be listed twice.

    Kinds that the scene cannot support are left out; if none is left, the list is empty.
    """
    wanted = list(KINDS if kinds is None else kinds)
    questions: list[Question] = []
    while wanted and len(questions) < n:
        for index in rng.permutation(len(wanted)).tolist():
            question = _MAKERS[wanted[index]](rng, scene)
            if question is not None:
                questions.append(question)
            else:
                wanted[index] = ""
        wanted = [kind for kind in wanted if kind]
    return questions[:n]


def describe(scene: Scene, shapes: bool = True) -> str:
    """Every object with its place, in reading order: "striped red circle top left, dotted blue square center"."""
    things = [(f"{o.look} {o.shape}" if shapes else o.look, CELL_NAMES[o.cell]) for o in scene.objects]
    return ", ".join(f"{thing} {cell}" for thing, cell in things)


# Kind -> `chance_levels()`, which takes seconds and is the same in every run.
CHANCE = {
    "color": 0.1745, "count": 0.34425, "existence": 0.5055, "position": 0.2646239554317549, "comparison": 0.51025,
}  # fmt: skip


def chance_levels(seed: int = 0, n: int = 4000) -> dict[str, float]:
    """Kind -> accuracy of a guesser that sees no image and gives each template's most frequent answer.

    Measured on `n` evaluation scenes, one question of each kind a scene.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    answers: dict[str, dict[str, Counter[str]]] = {kind: defaultdict(Counter) for kind in KINDS}
    for _ in range(n):
        scene = sample_scene(rng, "evaluation")
        for kind in KINDS:
            for question in sample_questions(rng, scene, 1, [kind]):
                answers[kind][question.template][question.answer] += 1
    return {
        kind: sum(max(tally.values()) for tally in templates.values())
        / sum(tally.total() for tally in templates.values())
        for kind, templates in answers.items()
    }


def answers() -> tuple[str, ...]:
    """Every answer that a question can have."""
    return (*COLOUR_NAMES, *(str(number) for number in range(MAX_OBJECTS + 1)), "yes", "no", *CELL_NAMES)


def all_texts() -> tuple[str, ...]:
    """Strings that together hold every word of every question, answer and description."""
    phrases = [*(f"{word} objects" for word in _WORDS), "objects"]
    return (
        *(f"what color is the {place} object?" for place in CELL_NAMES),
        *(f"how many {phrase} are there?" for phrase in phrases),
        *(f"is there a {word} object?" for word in _WORDS),
        *(f"where is the {word} object?" for word in _WORDS),
        *(f"is the {word} object {relation} the {word} object?" for word in _WORDS for relation in RELATIONS),
        *(f"are there more {phrase} than {phrase}?" for phrase in phrases),
        *(f"{LOOKS[0]} {shape} {cell}, {LOOKS[0]} {shape} {cell}" for shape in SHAPES for cell in CELL_NAMES),
        *answers(),
    )
