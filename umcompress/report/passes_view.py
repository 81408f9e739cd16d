"""What `umcompress passes` and `umcompress evaluations` say: which there are, and the options of one, by its schema."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from umcompress.documents.base import Document
from umcompress.documents.listings import EvaluationInfo, EvaluationList, OptionInfo, PassInfo, PassList
from umcompress.documents.schema import type_text
from umcompress.report.table import Table, View, text_column

if TYPE_CHECKING:
    from umcompress.extend.evaluation_base import Evaluation


def list_passes(passes: Mapping[str, type[Document]]) -> PassList:
    """Each in one sentence."""
    return PassList(passes=tuple(PassInfo(name=name, about=summary(cls)) for name, cls in passes.items()))


def describe_pass(name: str, cls: type[Document]) -> PassInfo:
    """What a pass does, and each option with its type, default and meaning."""
    return PassInfo(name=name, about=inspect.cleandoc(cls.__doc__ or ""), options=_options(cls))


def list_evaluations(evaluations: Mapping[str, type[Evaluation]]) -> EvaluationList:
    """Each in one sentence."""
    found = (EvaluationInfo(name=name, about=summary(cls), tasks=cls.tasks) for name, cls in evaluations.items())
    return EvaluationList(evaluations=tuple(found))


def describe_evaluation(name: str, cls: type[Evaluation]) -> EvaluationInfo:
    """What an evaluation scores and how, and each option with its type, default and meaning."""
    about = inspect.cleandoc(cls.__doc__ or "")
    return EvaluationInfo(name=name, about=about, tasks=cls.tasks, options=_options(cls))


def _options(cls: type[Document]) -> tuple[OptionInfo, ...]:
    schema = cls.model_json_schema(by_alias=True)
    required = schema.get("required", [])
    return tuple(
        OptionInfo(
            name=option, type=type_text(prop, schema.get("$defs")), required=option in required,
            default=prop.get("default"), meaning=prop.get("description", ""),
        )
        for option, prop in schema.get("properties", {}).items()
    )  # fmt: skip


def passes_view(found: PassList) -> View:
    """One line a pass."""
    rows = tuple((one.name, one.about) for one in found.passes)
    table = Table("Passes", (text_column("pass"), text_column("what it does")), rows)
    return (table, "next: umcompress passes NAME shows the options of one")


def pass_view(found: PassInfo) -> View:
    """A row an option, and how a recipe names the pass."""
    example = ", ".join([f"pass: {found.name}", *_required(found.options)])
    return (f"{found.name}: {found.about}", _options_table(found.options), f"in a recipe: steps: [{{{example}}}]")


def evaluations_view(found: EvaluationList) -> View:
    """One line an evaluation."""
    rows = tuple((one.name, " and ".join(one.tasks), one.about) for one in found.evaluations)
    table = Table("Evaluations", (text_column("evaluation"), text_column("of"), text_column("what it scores")), rows)
    return (table, "next: umcompress evaluations NAME shows the options of one")


def one_evaluation_view(found: EvaluationInfo) -> View:
    """A row an option, and how a recipe names the evaluation."""
    options = ", ".join(_required(found.options))
    example = f"evaluate: [{found.name}: {{{options}}}]" if options else f"evaluate: [{found.name}]"
    return (
        f"{found.name}: {found.about}", f"scores {' and '.join(found.tasks)}", _options_table(found.options),
        f"in a recipe: {example}",
    )  # fmt: skip


def _required(options: Iterable[OptionInfo]) -> list[str]:
    return [f"{option.name}: ..." for option in options if option.required]


def _options_table(options: Iterable[OptionInfo]) -> Table:
    rows = tuple(
        (option.name, option.type, "required" if option.required else _default(option.default), option.meaning)
        for option in options
    )
    return Table("", (text_column("option"), text_column("type"), text_column("default"), text_column("meaning")), rows)


def summary(cls: type[Document]) -> str:
    """The first sentence of a class's docstring."""
    lines = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split("\n")
    return " ".join(" ".join(lines).split()).split(". ")[0].rstrip(".")


def _default(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)
