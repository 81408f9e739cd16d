"""Error messages: three parts, nearest names, exit codes."""

from __future__ import annotations

import pytest

from umcompress.errors import (
    CheckError,
    ModelError,
    PlanError,
    Problem,
    RecipeError,
    UmcompressError,
    UsageError,
    did_you_mean,
    nearest,
)


def test_nearest_ignores_case_and_gives_up_on_strangers() -> None:
    assert nearest("Keep_Ration", ["layers", "keep_ratio"]) == "keep_ratio"
    assert nearest("zzz", ["layers", "keep_ratio"]) is None
    assert nearest("x", []) is None


def test_hint_lists_the_options_when_none_is_near() -> None:
    assert did_you_mean("keep_rati", ["keep_ratio", "layers"]) == "did you mean 'keep_ratio'?"
    assert did_you_mean("zzz", ["b", "a", "a"]) == "known: a, b"
    assert did_you_mean("zzz", map(str, range(12))).endswith("... (12 in all)")
    assert did_you_mean("zzz", []) == ""


def test_message_has_only_the_parts_that_are_there() -> None:
    assert str(UmcompressError("load x")) == "load x"
    assert str(UmcompressError("load x", "no file", "make it")) == "load x\n  found: no file\n  do: make it"


def test_notes_are_part_of_the_message() -> None:
    error = PlanError("drop a block", "none left")
    error.add_note("in step 02-layer_drop")
    assert str(error).endswith("\nin step 02-layer_drop")


@pytest.mark.parametrize(
    ("cls", "code"), [(UmcompressError, 1), (CheckError, 1), (UsageError, 2), (ModelError, 2), (PlanError, 2)]
)
def test_exit_codes(cls: type[UmcompressError], code: int) -> None:
    assert cls("x").exit_code == code


def test_recipe_error_shows_every_problem() -> None:
    error = RecipeError(
        [Problem("a.yaml", 3, "steps.0", "bad", "mend it"), Problem("--set x=1", None, "x", "no")]
    )
    assert error.exit_code == 2
    assert str(error) == (
        "the recipe has 2 problems:\n  a.yaml:3: steps.0: bad\n      mend it\n  --set x=1: x: no"
    )
