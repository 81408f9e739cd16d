"""What a field allows, in words and as JSON Schema: for errors, `umcompress passes` and editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from umcompress.documents.base import Document

Schema = dict[str, Any]
_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false",
          "null": "null", "object": "mapping", "array": "list"}  # fmt: skip
_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}
_FILE_PATTERN = r"^.+\.py:[A-Za-z_][A-Za-z0-9_]*$"


def type_text(schema: Schema, defs: Schema | None = None) -> str:
    """A property's JSON Schema in a few words: `number above 0, at most 1`, `one of all, last`."""
    if "$ref" in schema:
        return type_text((defs or {}).get(schema["$ref"].rpartition("/")[2], {"type": "object"}), defs)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            # null stands for a key that is left out; it says nothing about what to write.
            members = [member for member in schema[union] if member.get("type") != "null"]
            return " or ".join(dict.fromkeys(type_text(member, defs) for member in members))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items")
        return f"list of {type_text(items, defs)}" if isinstance(items, dict) and items else "list"
    if kind == "object" and schema.get("properties"):
        return "mapping with " + ", ".join(schema["properties"])
    bounds = [f"{word} {schema[key]:g}" for key, word in _BOUNDS.items() if key in schema]
    return " ".join([_WORDS.get(str(kind), "any value"), ", ".join(bounds)]).strip()


def field_text(model: type[BaseModel], field: str) -> str:
    """What `model` allows for `field` (its name in a file), with its meaning when it has a description."""
    schema = model.model_json_schema(by_alias=True)
    prop = schema.get("properties", {}).get(field)
    if prop is None:
        return ""
    meaning = prop.get("description")
    allowed = type_text(prop, schema.get("$defs"))
    return f"{allowed} ({meaning})" if meaning else allowed


def field_names(model: type[BaseModel]) -> list[str]:
    """The keys that `model` takes in a file."""
    return [_file_name(name, info) for name, info in model.model_fields.items()]


def model_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The document class that validates the value at `path` below `model`; None when it is not a document."""
    here: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int):
            continue
        if here is None:
            return None
        fields = here.model_fields.items()
        info = next((info for name, info in fields if _file_name(name, info) == part), None)
        here = _model_inside(info.annotation) if info is not None else None
    return here


def _file_name(name: str, info: Any) -> str:
    alias = info.validation_alias or info.alias
    return alias if isinstance(alias, str) else name


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inside = (_model_inside(argument) for argument in get_args(annotation))
    return next((model for model in inside if model is not None), None)


def recipe_schema(
    head: type[Document],
    gate: type[Document],
    passes: Mapping[str, type[Document]],
    evaluations: Mapping[str, type[Document]],
) -> Schema:
    """JSON Schema of a whole recipe: its steps are a union over `passes`, plus a user's `file.py:Class`."""
    classes = dict.fromkeys([head, gate, *passes.values(), *evaluations.values()])
    references, top = models_json_schema(
        [(model, "validation") for model in classes], ref_template="#/$defs/{model}"
    )
    defs: Schema = dict(top.get("$defs", {}))

    def take(model: type[Document]) -> Schema:
        name = references[(model, "validation")]["$ref"].rpartition("/")[2]
        schema: Schema = dict(defs[name])
        return schema

    common = {
        "name": {"type": "string", "description": "How the report names the step (default: NN-<pass>)."},
        "after": {"type": "string", "description": "Starts from that step's model, or from `baseline`."},
        "stop_if": {"$ref": references[(gate, "validation")]["$ref"]},
    }
    steps = [_step(name, take(model), common) for name, model in passes.items()]
    own: Schema = {"type": "string", "pattern": _FILE_PATTERN, "description": "Your own: FILE.py:CLASS."}
    steps.append({"type": "object", "properties": {"pass": own, **common}, "required": ["pass"]})
    entries: list[Schema] = [{"enum": list(evaluations)}, own]
    for name, model in evaluations.items():
        entries.append({"type": "object", "properties": {name: take(model)}, "required": [name],
                        "additionalProperties": False})  # fmt: skip
    root = take(head)
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    root["title"] = "umcompress recipe"
    root["properties"] = {
        **root["properties"],
        "evaluate": {"type": "array", "items": {"anyOf": entries}, "description": "What scores the model."},
        "steps": {"type": "array", "minItems": 1, "items": {"anyOf": steps},
                  "description": "The passes, in order."},
    }  # fmt: skip
    root["required"] = [*root.get("required", []), "steps"]
    root["$defs"] = defs
    return root


def _step(name: str, schema: Schema, common: Schema) -> Schema:
    properties = {"pass": {"const": name}, **common, **schema.get("properties", {})}
    return {**schema, "properties": properties, "required": ["pass", *schema.get("required", [])]}
