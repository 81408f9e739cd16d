"""Passes and evaluations that are nothing but options, to read recipes with."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from umcompress.documents.base import Component, Document, Ratio
from umcompress.errors import UsageError, did_you_mean
from umcompress.recipe.recipe import Calibration, Recipe, parse_recipe


class Cut(Document):
    """Cut something. The rest stays."""

    name: ClassVar[str] = "cut"
    component: Component
    keep_ratio: Ratio = Field(description="Share that stays.")
    layers: str | tuple[int, ...] = "all"
    calibration: Calibration | None = None
    first: int = 0
    last: int = 9

    @model_validator(mode="after")
    def _ordered(self) -> Cut:
        if self.first > self.last:
            raise ValueError(f"first ({self.first}) lies behind last ({self.last})")
        return self


class Mend(Document):
    """Mend it."""

    name: ClassVar[str] = "mend"
    how: Literal["bias", "none"] = "none"
    strength: float = 1.0


class Quiz(Document):
    """Ask."""

    name: ClassVar[str] = "quiz"
    limit: int | None = Field(default=None, gt=0)


PASSES: dict[str, type[Document]] = {"cut": Cut, "mend": Mend, "own.py:Cut": Cut}
EVALUATIONS: dict[str, type[Document]] = {"quiz": Quiz}


def find_pass(name: str) -> type[Document]:
    if name not in PASSES:
        raise ValueError(f"there is no pass {name!r}; {did_you_mean(name, PASSES)}")
    return PASSES[name]


def find_evaluation(name: str) -> type[Document]:
    if name not in EVALUATIONS:
        raise UsageError(f"there is no evaluation {name!r}", do=did_you_mean(name, EVALUATIONS))
    return EVALUATIONS[name]


def parse(text: str, overrides: tuple[str, ...] = (), **more: object) -> Recipe:
    return parse_recipe(text, "r.yaml", find_pass, find_evaluation, overrides, **more)  # type: ignore[arg-type]
