"""A small share of the campaign in tests/campaigns/recipe_mutation.py."""

from __future__ import annotations

import sys

from places import ROOT

sys.path.insert(0, str(ROOT / "tests" / "campaigns"))

from recipe_mutation import escaped


def test_no_recipe_by_mutation_escapes() -> None:
    assert escaped(100, seed=3) == []
