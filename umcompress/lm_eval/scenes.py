"""Documents of the shipped tasks: questions about pictures of the built-in world, drawn here, nothing downloaded."""

from __future__ import annotations

from functools import cache
from typing import Any

from umcompress.evals.scenes import world
from umcompress.evals.scenes.evaluation import Asked, Scenes
from umcompress.lm_eval import register

QUESTIONS = 500

# lm-eval reads this module while it looks for a task, before it looks for the model.
register()


@cache
def _asked() -> tuple[Asked, ...]:
    return tuple(Scenes(questions=QUESTIONS).asked())


@cache
def _choices() -> dict[str, list[str]]:
    """The kind of question and how it begins -> all answers to it."""
    numbers = [str(number) for number in range(world.MAX_OBJECTS + 1)]
    return {"what": list(world.COLOUR_NAMES), "how": numbers, "where": list(world.CELL_NAMES)}


def documents(**_: Any) -> dict[str, Any]:
    """{"test": questions}: each with its answers to choose from and the place of the right one."""
    from datasets import Dataset

    rows = []
    for index, item in enumerate(_asked()):
        question = item.question
        choices = _choices().get(question.text.split()[0], ["yes", "no"])
        rows.append({
            "index": index, "kind": question.kind, "question": question.text, "choices": choices,
            "answer": question.answer, "target": choices.index(question.answer),
        })  # fmt: skip
    return {"test": Dataset.from_list(rows)}


def pictures(document: dict[str, Any]) -> list[Any]:
    """The picture that a question is about."""
    from PIL import Image

    return [Image.fromarray(world.render(_asked()[document["index"]].scene))]
