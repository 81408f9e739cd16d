"""Recipes by schema: what the JSON Schema of recipes allows, drawn at random, with some values beside it.

`python tests/campaigns/recipe_schema.py --count 10000` reads so many with the shipped passes and evaluations, and plans
those that are right on a small model. None may end otherwise than well or in words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from damage import ODD, odd_value
from small_runs import campaign

from umcompress.documents.gate import Gate
from umcompress.documents.schema import recipe_schema
from umcompress.errors import UmcompressError
from umcompress.extend.registry import all_evaluations, all_passes, find_evaluation, find_pass

WORDS = ("all", "inner", "2", "1-2", "0,2", "model.layers", "model.layers.1", "text.txt", "x", "baseline", "*.mlp.*")


class Drawn:
    """Values that a schema allows; one in `odd` is another one."""

    def __init__(self, schema: Mapping[str, Any], draw: random.Random, odd: float) -> None:
        self.whole, self.draw, self.odd = schema, draw, odd

    def value(self, schema: Any, depth: int = 0) -> Any:
        draw = self.draw
        if draw.random() < self.odd:
            return draw.choice(ODD)
        if not isinstance(schema, Mapping):
            return draw.choice(WORDS)
        if "$ref" in schema:
            return self.value(self.whole["$defs"][schema["$ref"].rpartition("/")[2]], depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return draw.choice(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self.value(draw.choice(schema[key]), depth)
        return self._typed(schema, depth)

    def _typed(self, schema: Mapping[str, Any], depth: int) -> Any:
        draw, kind = self.draw, schema.get("type")
        if kind == "object" or "properties" in schema:
            return self._mapping(schema, depth)
        if kind == "array":
            fewest = schema.get("minItems", 0)
            return [self.value(schema.get("items"), depth + 1) for _ in range(draw.randint(fewest, max(3, fewest)))]
        if kind in ("integer", "number"):
            least = schema.get("minimum", schema.get("exclusiveMinimum", -2))
            most = schema.get("maximum", schema.get("exclusiveMaximum", max(least, 1) * 4))
            return draw.randint(int(least), int(most)) if kind == "integer" else draw.uniform(least, most)
        if kind == "boolean":
            return draw.random() < 0.5
        return None if kind == "null" else draw.choice(WORDS)

    def _mapping(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        needed, chance = set(schema.get("required", ())), 0.6 if depth == 0 else 0.25
        properties = schema.get("properties", {})
        found = {
            key: self.value(part, depth + 1)
            for key, part in properties.items() if key in needed or self.draw.random() < chance
        }  # fmt: skip
        more = schema.get("additionalProperties")
        if isinstance(more, Mapping) and depth < 4:
            found[self.draw.choice(WORDS)] = self.value(more, depth + 1)
        return found


def recipes(home: Path, count: int, seed: int = 0) -> tuple[str, list[str]]:
    """So many recipes; a line of figures, and a line for each that escaped."""
    from umcompress.plan.dry_run import plan_recipe
    from umcompress.recipe.recipe import RecipeHead, parse_recipe

    def refuse(error: UmcompressError) -> None:
        raise error

    schema = recipe_schema(RecipeHead, Gate, all_passes(refuse), all_evaluations(refuse))
    faults, planned = list[str](), 0
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        content = Drawn(schema, draw, draw.choice((0.0, 0.0, 0.02, 0.1))).value(schema)
        if isinstance(content, dict):
            content |= {"model": str(home / "model"), "device": "cpu"}
            if draw.random() < 0.7:
                content |= {"evaluate": [], "calibration": {"data": str(home / "texts.jsonl"), "samples": 2}}
        if draw.random() < 0.1:
            content = odd_value(content, draw)
        text = json.dumps(content)
        try:
            recipe = parse_recipe(text, "drawn.yaml", lambda n: find_pass(n, home), lambda n: find_evaluation(n, home))
            if Path(recipe.model) == home / "model":
                planned += 1
                plan_recipe(recipe, "drawn")
        except UmcompressError as error:
            str(error)
        except Exception as error:  # what the campaign looks for
            faults.append(f"case {number}: {type(error).__name__}: {str(error)[:300]}\n  {text[:600]}")
    return f"{count} recipes by schema, {planned} of them right and planned", faults


if __name__ == "__main__":
    campaign(__doc__, recipes, 10_000)
