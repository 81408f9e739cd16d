"""How a model paints while a recipe runs: steps, guidance, size. No torch."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from umcompress.documents.base import Document


class Sampling(Document):
    """Settings of painting; what is left out is as the model has it."""

    steps: PositiveInt | None = Field(default=None, description="denoising steps")
    guidance: NonNegativeFloat | None = Field(default=None, description="scale of the guidance by the prompt")
    height: PositiveInt | None = Field(default=None, description="of a picture, in pixels; pipelines only")
    width: PositiveInt | None = Field(default=None, description="of a picture, in pixels; pipelines only")
    negative_prompt: str | None = Field(
        default=None, description="what a pipeline that guides by a second prompt is to keep away from"
    )

    def given(self) -> dict[str, Any]:
        """What is said, by name."""
        return {name: value for name, value in self.json_values().items() if value is not None}
