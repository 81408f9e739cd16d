"""The JSON Schema of recipes agrees with what the parser takes."""

from __future__ import annotations

from typing import Any

import pytest
from recipe_fakes import EVALUATIONS, Cut, Mend

from umcompress.documents.gate import Gate
from umcompress.documents.schema import field_names, field_text, model_at, recipe_schema, type_text
from umcompress.recipe.recipe import RecipeHead

SCHEMA = recipe_schema(RecipeHead, Gate, {"cut": Cut, "mend": Mend}, EVALUATIONS)


def test_steps_are_a_union_over_the_passes() -> None:
    cut, mend, own = SCHEMA["properties"]["steps"]["items"]["anyOf"]
    assert cut["properties"]["pass"] == {"const": "cut"}
    assert cut["required"] == ["pass", "component", "keep_ratio"]
    assert cut["additionalProperties"] is False
    assert {"name", "stop_if", "keep_ratio"} <= cut["properties"].keys()
    assert mend["properties"]["how"]["enum"] == ["bias", "none"]
    assert own["properties"]["pass"]["pattern"].startswith("^.+\\.py:")
    assert SCHEMA["required"] == ["model", "steps"]
    assert SCHEMA["additionalProperties"] is False


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for item in value.values() for ref in references(item)]
    return [ref for item in value for ref in references(item)] if isinstance(value, list) else []


def test_every_reference_resolves() -> None:
    found = references(SCHEMA)
    assert found
    assert {ref.removeprefix("#/$defs/") for ref in found} <= SCHEMA["$defs"].keys()


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("component", "one of understanding, generation, shared"),
        ("keep_ratio", "number above 0, at most 1 (Share that stays.)"),
        ("layers", "text or list of whole number"),
        ("calibration", "mapping with task, samples, seed, source, data, memory"),
        ("first", "whole number"),
        ("nothing", ""),
    ],
)
def test_fields_in_words(field: str, text: str) -> None:
    assert field_text(Cut, field) == text


def test_unusual_schemas_have_words_too() -> None:
    assert type_text({}) == "any value"
    assert type_text({"type": "array"}) == "list"
    assert type_text({"const": "all"}) == "all"
    assert type_text({"$ref": "#/$defs/Gone"}) == "mapping"


def test_the_document_at_a_path() -> None:
    assert model_at(Cut, ("calibration",)) is not None
    assert model_at(Cut, ("calibration", "seed")) is None
    assert model_at(Cut, ("nothing", "seed")) is None
    assert "keep_ratio" in field_names(Cut)
