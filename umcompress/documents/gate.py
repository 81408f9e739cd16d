"""The gate of a step: how far scores may fall before a run stops."""

from __future__ import annotations

from pydantic import Field

from umcompress.documents.base import Document


class Gate(Document):
    """The run ends, with the step undone, when a score is worse than the baseline's by more than this, beyond noise.

    That is when the whole 95 % interval of the drop is above the limit.
    """

    understanding_drop: float | None = Field(
        default=None, ge=0, le=1, description="Largest drop of the score; of a loss, largest rise."
    )
    generation_drop: float | None = Field(
        default=None, ge=0, le=1, description="Largest drop of the score; of a loss, largest rise."
    )
