"""The base of every document (recipe, edits, plan, report), and the words that they share. No torch."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Component = Literal["understanding", "generation", "shared"]
Task = Literal["understanding", "generation"]
TASKS: tuple[Task, ...] = ("understanding", "generation")
Ratio = Annotated[float, Field(gt=0, le=1)]


def explain(error: ValidationError) -> str:
    """A validation error as text: a line for each problem, with where it is and what was expected."""
    lines = []
    for details in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in details["loc"])
        message = details["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {message}" if where else message)
    return "\n    ".join(lines)


class Document(BaseModel):
    """Frozen, and closed to unknown keys: a misspelt key is an error, never a silent default.

    A subclass that says otherwise is refused when it is defined (TypeError), so a user's pass cannot forget.
    """

    # Validators are built on first use: a command that reads no document should not pay for all of them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=(), defer_build=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.model_config.get("frozen") is not True or cls.model_config.get("extra") != "forbid":
            raise TypeError(f"{cls.__name__}: a document stays frozen=True and extra='forbid'")

    def json_values(self) -> dict[str, Any]:
        """The document as JSON-ready values, under the names that it has on disk."""
        value: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        return value
