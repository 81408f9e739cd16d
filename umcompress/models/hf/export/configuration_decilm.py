"""Configuration of a Llama whose layers differ: each says how wide its feed-forward is, and what it does not have.

umcompress copies this file into the folders that it writes in this layout; servers run it with trust_remote_code.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


class Fields(dict[str, Any]):
    """An object of a JSON file whose keys are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """A Llama's, and for every layer what its attention and its feed-forward are."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, dict[str, Any]]] | None = None, **fields: Any) -> None:
        # Before the other fields: their checks may look at the layers.
        layers = block_configs or []
        self.block_configs = [Fields({part: Fields(said) for part, said in layer.items()}) for layer in layers]
        super().__init__(**fields)
