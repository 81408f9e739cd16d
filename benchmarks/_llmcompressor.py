"""Quantize a folder with llm-compressor, run by quantized.py in an environment that has it: MODEL OUT.

OUT/packed is what it writes; OUT/values the same values as an ordinary folder, which any program reads.
"""

import sys
from pathlib import Path


def main() -> None:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

    model, out = sys.argv[1], Path(sys.argv[2])
    group = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    recipe = QuantizationModifier(
        config_groups={"all": {"targets": ["Linear"], "weights": group}}, ignore=["lm_head"]
    )
    oneshot(model=model, recipe=recipe, output_dir=str(out / "packed"))
    whole = AutoModelForCausalLM.from_pretrained(
        out / "packed", dtype="float32", quantization_config=CompressedTensorsConfig(run_compressed=False)
    )
    before = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    values = whole.state_dict()
    before.load_state_dict({name: values[name] for name in before.state_dict()})
    before.save_pretrained(out / "values")
    AutoTokenizer.from_pretrained(model).save_pretrained(out / "values")


if __name__ == "__main__":
    main()
