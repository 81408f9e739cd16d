"""vLLM's plug-in: `pip install umcompress` beside vLLM, and it serves results that it has no number for.

vLLM calls `register` as it starts, vLLM-Omni `register_omni`, in each of their processes (entry points
`vllm.general_plugins` and `vllm_omni.general_plugins`).  Importing this needs neither.  What it adds:

* DeciLM folders (Llama, Mistral and Qwen2 whose layers differ) without `--trust-remote-code`;
* Qwen2 language models, and with them BAGEL, whose configuration lists `umcompress_layers`: for each layer whether it
  has an attention, how many channels its feed-forward has (0: none), or which experts;
* in vLLM-Omni, BAGEL whose list says so of both streams.

Without a list all of them are built as ever.
"""

from __future__ import annotations

ARCHITECTURE = "Qwen2ForCausalLM"
PIPELINE = "BagelPipeline"
LAYERS = "umcompress_layers"
# In an entry of the list: what the stream that generates has.
GENERATION = "generation"


def register() -> None:
    """Make DeciLM's configuration and the Qwen2 of such layers known to vLLM."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from umcompress.models.hf.export.configuration_decilm import DeciLMConfig

    AutoConfig.register(DeciLMConfig.model_type, DeciLMConfig, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, "umcompress.models.vllm_layers:LayeredQwen2ForCausalLM")


def register_omni() -> None:
    """What `register` does, and the BAGEL of such layers for vLLM-Omni."""
    from vllm_omni.diffusion.registry import register_diffusion_model

    register()
    register_diffusion_model(PIPELINE, "umcompress.models.omni_layers", "LayeredBagelPipeline")
