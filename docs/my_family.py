"""A model family of your own: a small language model over bytes, in a folder layout of its own."""

import json
import time
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from umcompress.checkpoint.fill import fill
from umcompress.models.family import Family
from umcompress.models.runner import Likelihood, Runner, Work, likelihood

CONFIG, WEIGHTS = "byte_model.json", "byte_model.safetensors"


class Attention(nn.Module):
    """Causal self-attention.  B texts, T bytes, H hidden.  (B, T, H) -> (B, T, H)."""

    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.inputs, self.output = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x):
        query, key, value = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Two residual branches.  Their linears, norms and the add are what umcompress finds by itself."""

    def __init__(self, hidden, heads, width):
        super().__init__()
        self.attention, self.norm_1, self.norm_2 = Attention(hidden, heads), nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.up, self.down = nn.Linear(hidden, width), nn.Linear(width, hidden)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class ByteModel(nn.Module):
    """(B, T) bytes -> (B, T, 256) logits."""

    def __init__(self, hidden, heads, width, layers):
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, hidden), nn.Linear(hidden, 256)
        self.blocks = nn.ModuleList(Block(hidden, heads, width) for _ in range(layers))

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ByteRunner(Runner):
    """Runs one model.  Only what the tasks need: this one answers in text."""

    tasks = ("understanding",)

    def __init__(self, model, folder):
        self.model, self.folder = model, folder

    @torch.no_grad()
    def next_bytes(self, text):
        """(T, 256), T bytes of the text."""
        return self.model(torch.tensor([list(text.encode())]))[0]

    def answer(self, images, questions, max_new_tokens=16):
        answers = []
        for text in questions:
            answer = ""
            for _ in range(max_new_tokens):
                answer += chr(int(self.next_bytes(text + answer)[-1, :128].argmax()))
            answers.append(answer)
        return answers

    def score(self, images, prompts, continuations) -> list[list[Likelihood]]:
        pairs = zip(prompts, continuations, strict=True)
        return [[self._likelihood(prompt or "\n", text) for text in texts] for prompt, texts in pairs]

    def _likelihood(self, prompt, text):
        ids = torch.tensor(list(text.encode()))
        return likelihood(self.next_bytes(prompt + text)[-len(ids) - 1 : -1], ids)

    def feed(self, items, at_time=None):
        for item in items:
            self.next_bytes(item.text)

    @torch.no_grad()
    def pass_tokens(self, task):
        self.model(torch.zeros(1, 64, dtype=torch.long, device=self.model.head.weight.device))
        return 64

    def workload(self, task):
        start = time.perf_counter()
        self.next_bytes("a" * 64)
        seconds = time.perf_counter() - start
        return Work(seconds, {"tokens_per_second": 64 / seconds})

    def probe(self):
        return {"logits": self.next_bytes("the same text before and after")}


class ByteFamily(Family):
    """Which folders hold a byte model, and how one is built, filled and run."""

    name: ClassVar[str] = "bytes"
    main_stack: ClassVar[str] = "main"

    def matches(self, folder: Path):
        return (folder / CONFIG).is_file()

    def skeleton(self, folder):
        with torch.device("meta"):
            return ByteModel(**json.loads((folder / CONFIG).read_text())).eval()

    def fill(self, model, folder, dtype, device):
        fill(model, folder, self.weight_files(model), dtype, device)
        model.eval()

    def weight_files(self, model):
        return {WEIGHTS: {name: name for name in model.state_dict()}}

    def stacks(self, model):
        return {"main": "blocks"}

    def component_of(self, path):
        return "shared"

    def runner(self, model, folder):
        return ByteRunner(model, folder)
