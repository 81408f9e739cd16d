"""Quantizers on a compressed folder, and what that costs by our evaluations.

Each in an environment of its own: `python -m venv ar && ar/bin/pip install auto-round`, `python -m venv lc &&
lc/bin/pip install llmcompressor`, `python -m venv ao && ao/bin/pip install torchao transformers`, then
`python benchmarks/quantized.py --work FOLDER --autoround ar/bin/python --llmcompressor lc/bin/python
--torchao ao/bin/python [--record]`.  A pico Llama learns the topics of Python's own help letter by letter, loses
a block and a quarter of its channels, and is quantized to 4 bits in groups of 32; what `umcompress evaluate` finds are
perplexities.  What lies in FOLDER already is taken as it is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
STEPS = [
    {"pass": "layer_drop", "unit": "block", "score": "last", "drop_count": 1},
    {"pass": "channel_prune", "score": "magnitude", "keep_ratio": 0.75, "multiple_of": 32},
]
WINDOW, BATCH, CHARACTERS = 128, 16, 200_000


def text() -> str:
    import pydoc_data.topics

    every = "\n".join(pydoc_data.topics.topics.values())
    return "".join(letter for letter in every if letter == "\n" or " " <= letter <= "~")[:CHARACTERS]


def write_model(folder: Path, learnt: str, steps: int) -> None:
    """A Llama that read `learnt` for a while, with a tokenizer of one token a letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", "\n", *(chr(code) for code in range(32, 127))]
    core = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    ids = torch.tensor(tokenizer(learnt)["input_ids"])
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        starts = torch.randint(len(ids) - WINDOW, (BATCH,))
        batch = torch.stack([ids[start : start + WINDOW] for start in starts])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"learnt to {loss.item():.2f} nats a letter", flush=True)
    model.train(False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def compressed(work: Path, learnt: str, steps: int) -> Path:
    """The folder that `umcompress apply` wrote."""
    from umcompress.cli.main import main as umcompress

    if not (work / "llama").is_dir():
        write_model(work / "llama", learnt, steps)
    recipe = work / "cut.yaml"
    recipe.write_text(json.dumps({"model": str(work / "llama"), "steps": STEPS, "measure": {"speed": "off"}}))
    if umcompress(["apply", str(recipe), "-o", str(work / "run")]):
        raise SystemExit("umcompress apply failed")
    return work / "run" / "model"


def autoround(python: str, model: Path, learnt: str, out: Path) -> Path:
    """By its command.  `fake` writes the quantized values as an ordinary folder, `auto_round` packs the same values."""
    texts = out.parent / "texts.jsonl"
    pieces = [learnt[start : start + 2 * WINDOW] for start in range(0, 64 * WINDOW, 2 * WINDOW)]
    texts.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    if out.is_dir():
        return next(path.parent for path in sorted(out.rglob("config.json")))
    run(
        Path(python).with_name("auto-round"), "--model", model, "--scheme", "W4A16", "--group_size", 32, "--iters", 20,
        "--nsamples", 16, "--seqlen", WINDOW, "--dataset", texts, "--format", "fake", "--output_dir", out,
        "--device_map", "cpu", "--disable_torch_compile",
    )  # fmt: skip
    return next(path.parent for path in sorted(out.rglob("config.json")))


def by_script(script: str, python: str, model: Path, out: Path) -> Path:
    """Of those that have no command: by a script of a few lines."""
    if not out.is_dir():
        run(python, Path(__file__).with_name(script), model, out)
    return out / "values"


def run(*command: object) -> None:
    words = [str(word) for word in command]
    print(" ".join(words), flush=True)
    subprocess.run(words, check=True, stdout=sys.stderr)


def perplexity(model: Path, data: Path) -> float:
    from umcompress.run.evaluate import evaluate

    report = evaluate(str(model), [f"perplexity:data={data},window={WINDOW}"], limit=100)
    return report.steps[0].evaluations["perplexity"]["understanding"].numbers["perplexity"].value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--autoround", metavar="PYTHON")
    parser.add_argument("--llmcompressor", metavar="PYTHON")
    parser.add_argument("--torchao", metavar="PYTHON")
    parser.add_argument("--steps", type=int, default=300, help="how long the Llama learns")
    parser.add_argument("--record", action="store_true", help="append to results.md")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    learnt = text()
    scored = work / "text.txt"
    scored.write_text(learnt)
    cut = compressed(work, learnt, options.steps)
    folders = {"uncut": work / "llama", "a block and a quarter of the channels less": cut}
    if options.autoround:
        folders["the same by AutoRound, W4A16"] = autoround(options.autoround, cut, learnt, work / "autoround")
    if options.llmcompressor:
        found = by_script("_llmcompressor.py", options.llmcompressor, cut, work / "llmcompressor")
        folders["the same by llm-compressor, W4A16"] = found
    if options.torchao:
        found = by_script("_torchao.py", options.torchao, cut, work / "torchao")
        folders["the same by torchao, int4 weights"] = found
    rows = {name: {"perplexity": perplexity(folder, scored)} for name, folder in folders.items()}
    for name, row in rows.items():
        print(f"{name}: perplexity {row['perplexity']:.4f}")
    versions = {
        name: version(python, package)
        for name, python, package in (
            ("AutoRound", options.autoround, "auto-round"), ("llm-compressor", options.llmcompressor, "llmcompressor"),
            ("torchao", options.torchao, "torchao"),
        ) if python
    }  # fmt: skip
    print(versions)
    if options.record:
        from _results import record

        record("quantized", versions | {"steps learnt": options.steps}, rows)
    return 0


def version(python: str, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
