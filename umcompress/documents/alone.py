"""Changes of a model, each made by itself: what one does to the losses, and what it saves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from umcompress.documents.base import Component, Document, Task
from umcompress.documents.report import Size
from umcompress.documents.scores import Change, KindScore, Score

Part = Literal["attention", "feed_forward", "block"]
PARTS: tuple[Part, ...] = ("attention", "feed_forward", "block")


class Sizes(Document):
    """What a model weighs and how much it works; seconds: measured, as a share of the unpruned model's."""

    parameters: Size
    bytes: Size
    macs_per_token: dict[Task, NonNegativeInt] = {}
    seconds: dict[Task, NonNegativeFloat] = {}


class AloneScore(Document):
    """The unpruned model with one change, against the unpruned model as it is.

    branches: those that are changed, `PATH kind component`; dropped: those of them that are gone.
    distances: how far the outputs of each task are from the unpruned model's, where a search goes by that.
    refused: why the change cannot be made; nothing was measured then.
    """

    name: str
    branches: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    changes: dict[Task, Change] = {}
    distances: dict[Task, KindScore] = {}
    parameters: NonNegativeInt = 0
    sizes: Sizes | None = None
    refused: str | None = None


class PartScore(AloneScore):
    """A change of one part of one layer: whose it is, and how much of it goes."""

    component: Component
    stack: str
    layer: NonNegativeInt
    part: Part
    change: Literal["dropped", "halved"]


class PartSimilarity(Document):
    """The mean cosine between the stream before a part of a layer and after it, while the model does `task`."""

    task: Task
    component: Component
    stack: str
    layer: NonNegativeInt
    part: Part
    cosine: float


class Sensitivity(Document):
    """What `umcompress sensitivity` writes and prints: of every part of every layer what it costs to go without."""

    format: Literal[1] = 1
    model: str
    evaluation: dict[str, object] = {}
    baseline: dict[Task, Score]
    parameters: NonNegativeInt
    parts: tuple[PartScore, ...] = Field(min_length=1)
    similarities: tuple[PartSimilarity, ...] = ()
