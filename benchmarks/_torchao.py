"""Quantize a folder with torchao, run by quantized.py in an environment that has it: MODEL OUT.

torchao quantizes a model that is loaded, linear by linear; OUT/values holds the values that its weights stand for as an
ordinary folder, which any program reads.
"""

import sys
from pathlib import Path
from typing import Any


def main() -> None:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, out = sys.argv[1], Path(sys.argv[2])
    quantized = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    # The head is left as it is, as llm-compressor's script leaves it.
    four_bits: Any = torch.int4  # type: ignore[attr-defined]
    quantize_(quantized.model, IntxWeightOnlyConfig(weight_dtype=four_bits, granularity=PerGroup(32)))
    values = {
        name: tensor.dequantize() if type(tensor.data) is not torch.Tensor else tensor
        for name, tensor in quantized.state_dict(keep_vars=True).items()
    }
    if not sum(type(tensor.data) is not torch.Tensor for tensor in quantized.parameters()):
        raise SystemExit("no weight was quantized")
    before = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    before.load_state_dict(values)
    before.save_pretrained(out / "values")
    AutoTokenizer.from_pretrained(model).save_pretrained(out / "values")


if __name__ == "__main__":
    main()
