"""vLLM's plug-in: `pip install umcompress` beside vLLM, and it serves results that it has no number for.

vLLM calls `register` as it starts, in each of its processes (entry points `vllm.general_plugins` and
`vllm_omni.general_plugins`).  Importing this needs no vLLM.  What it adds:

* DeciLM folders (Llama, Mistral and Qwen2 whose layers differ) without `--trust-remote-code`;
* Qwen2 language models, and with them BAGEL, whose configuration lists `umcompress_layers`: for each layer whether it
  has an attention, and how many channels its feed-forward has (0: none).  Without the list they are built as ever.
"""

from __future__ import annotations

ARCHITECTURE = "Qwen2ForCausalLM"
LAYERS = "umcompress_layers"


def register() -> None:
    """Make the two known to vLLM."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from umcompress.models.hf.export.configuration_decilm import DeciLMConfig

    AutoConfig.register(DeciLMConfig.model_type, DeciLMConfig, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, "umcompress.models.vllm_layers:LayeredQwen2ForCausalLM")
