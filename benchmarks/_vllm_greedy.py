"""Greedy tokens of several folders with vLLM, run by consumers.py in an environment that has it.

Reads a JSON list of {folder, trust, prompts, count}; prints a line `RESULT {...}` for each.
"""

import json
import sys
import traceback
from typing import Any


def tokens(job: dict[str, Any]) -> list[list[int]]:
    from vllm import LLM, SamplingParams

    model = LLM(
        job["folder"], skip_tokenizer_init=True, enforce_eager=True, dtype="float32", max_model_len=128,
        trust_remote_code=job["trust"], max_num_seqs=4, kv_cache_memory_bytes=1 << 27,
    )  # fmt: skip
    greedy = SamplingParams(temperature=0, max_tokens=job["count"], ignore_eos=True, detokenize=False)
    found = model.generate([{"prompt_token_ids": prompt} for prompt in job["prompts"]], greedy)
    return [list(one.outputs[0].token_ids) for one in found]


def main() -> None:
    import vllm

    for job in json.load(sys.stdin):
        try:
            said: dict[str, Any] = {"tokens": tokens(job)}
        except Exception as error:  # whatever a server makes of a folder is the result
            traceback.print_exc()
            said = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        print("RESULT " + json.dumps({"folder": job["folder"], "vllm": vllm.__version__, **said}), flush=True)


if __name__ == "__main__":
    main()
