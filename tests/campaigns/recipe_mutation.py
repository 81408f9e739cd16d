"""Recipes by mutation: whatever stands in one, reading it ends well or in a RecipeError.

`python tests/campaigns/recipe_mutation.py --count 10000 --seed 0` prints what escaped and how many were tried.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from recipe_fakes import parse

from umcompress.errors import RecipeError

GOOD = """\
model: m
seed: 1
calibration: {samples: 3, task: generation}
evaluate: [quiz: {limit: 2}]
steps:
  - {pass: cut, name: first, component: understanding, keep_ratio: 0.5, layers: [0, 2], stop_if: {generation_drop: 0.1}}
  - {pass: mend, after: first, how: bias}
"""
ODD = (
    "!!int ''", "!!bool x", "!!float ''", '"\\UFFFFFFFF"', '"\\0"', "9" * 5000, "0x" + "f" * 5000, "1e999", ".nan", "~",
    "[" * 60, "{" * 60, "- " * 60, "&a [*a]", "<<: 3", "? [a]", "!!binary x", "%YAML 9.9", "\t", "'", "\u2028",
    "\ud800", "[]", "{}", "-1", "true", "2001-01-01", "*none", "---", "...", "|", ">", "#", "!", "@", "`", ": ", ", ",
)  # fmt: skip


def mutated(draw: random.Random) -> str:
    """The good recipe with one to three of its places replaced, doubled or cut."""
    text = GOOD
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice((0, 1, 3, 9, 30)))
        text = text[:start] + draw.choice((*ODD, "", text[start:end] * 2)) + text[end:]
    return text


def escaped(count: int, seed: int) -> list[tuple[str, str]]:
    """Recipes, as files or by an option, that ended otherwise than well or in words: the error and the text."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        text = mutated(draw)
        option = f"{draw.choice(('seed', 'steps.0.keep_ratio', 'steps.9.x', 'no.such', 'evaluate'))}={draw.choice(ODD)}"
        for file, overrides in ((text, ()), (GOOD, (option,))):
            try:
                parse(file, overrides)
            except RecipeError as error:
                str(error)
            except Exception as error:  # what the campaign looks for
                found.append((f"{type(error).__name__}: {error}"[:200], overrides[0] if overrides else file))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    bad = escaped(given.count, given.seed)
    for error, text in bad:
        print(error, repr(text[:300]), sep="\n  ")
    print(f"{2 * given.count} recipes and options, {len(bad)} escaped")
    sys.exit(bool(bad))
