"""BAGEL beyond the goldens: released shapes, loading, caches, batches, streams that lost their attention."""

from __future__ import annotations

import copy
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from places import DATA
from safetensors.torch import load_file, save_file
from torch import Tensor

from umcompress.errors import ModelError
from umcompress.models.bagel.attention import BagelAttention
from umcompress.models.bagel.config import BagelConfig, TextConfig, VisionConfig
from umcompress.models.bagel.context import Cache, Context, causal
from umcompress.models.bagel.load import load_bagel, skeleton
from umcompress.models.bagel.model import Bagel, PictureLayout
from umcompress.models.bagel.sampling import Contexts, Guidance, denoise, guided_velocity, timesteps

GOLDEN = DATA / "golden_bagel" / "model"


@pytest.fixture(scope="module")
def model() -> Bagel:
    return load_bagel(GOLDEN)


def test_the_released_shapes() -> None:
    text = TextConfig(
        hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        intermediate_size=18944, vocab_size=152064,
    )
    vision = VisionConfig(
        hidden_size=1152, num_hidden_layers=27, num_attention_heads=16, intermediate_size=4304, patch_size=14,
        image_size=980,
    )
    tensors = skeleton(BagelConfig(text=text, vision=vision)).state_dict()
    stored = {name: value for name, value in tensors.items() if not name.startswith("vae.")}
    assert len(stored) == 1223
    assert sum(value.numel() for value in stored.values()) == 14_607_260_128
    assert len(tensors) - len(stored) == 244
    assert sum(value.numel() for name, value in tensors.items() if name not in stored) == 83_819_683
    assert all(value.is_meta for value in tensors.values())


def test_loading_lists_everything_that_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN, folder)
    tensors = load_file(folder / "ema.safetensors")
    del tensors["llm2vae.bias"], tensors["connector.fc1.weight"]
    tensors["surprise"] = torch.zeros(1)
    tensors["vae2llm.bias"] = torch.zeros(3)
    save_file(tensors, folder / "ema.safetensors")
    with pytest.raises(ModelError) as raised:
        load_bagel(folder)
    message = str(raised.value)
    lacking = "missing llm2vae.bias", "missing connector.fc1.weight"
    for part in (*lacking, "unexpected surprise", "vae2llm.bias is [3]"):
        assert part in message


def test_bfloat16_keeps_the_autoencoder_in_float32() -> None:
    model = load_bagel(GOLDEN, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32}
    cache = Cache(1)
    rows, _ = model.absorb_text(cache, [torch.arange(5)])
    assert rows.dtype == torch.bfloat16
    exact, _ = load_bagel(GOLDEN).absorb_text(Cache(1), [torch.arange(5)])
    assert (rows.float() - exact).abs().max() < 0.15 * exact.abs().max()


@torch.no_grad()
def test_a_batch_equals_its_members(model: Bagel) -> None:
    texts = [torch.arange(3), torch.arange(10, 17), torch.tensor([5])]
    images = [torch.rand(3, 28, 42) * 2 - 1, torch.rand(3, 56, 28) * 2 - 1, torch.rand(3, 14, 14) * 2 - 1]
    sizes = [(2, 3), (3, 1), (1, 1)]
    noise = [torch.randn(rows * columns, model.config.latent_channels) for rows, columns in sizes]
    together = Cache(3)
    model.absorb_vision(together, images)
    rows, packing = model.absorb_text(together, texts)
    velocity = model.velocity(together, torch.cat(noise), 0.5, sizes).split([6, 3, 1])
    for index, part in enumerate(packing.split(rows)):
        alone = Cache(1)
        model.absorb_vision(alone, images[index : index + 1])
        single, _ = model.absorb_text(alone, texts[index : index + 1])
        torch.testing.assert_close(part, single, atol=2e-5, rtol=0)
        one = model.velocity(alone, noise[index], 0.5, sizes[index : index + 1])
        torch.testing.assert_close(velocity[index], one, atol=2e-5, rtol=0)
    decoded = model.decode_text(together.fork(), 6)
    for index in range(3):
        alone = Cache(1)
        model.absorb_vision(alone, images[index : index + 1])
        model.absorb_text(alone, texts[index : index + 1])
        assert model.decode_text(alone, 6)[0] == decoded[index]


@torch.no_grad()
def test_denoising_lays_pictures_out_once(model: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks, rotations and markers are made once a picture and branch; every step gives what it gave by itself."""
    made: list[Cache] = []
    layout = Bagel.picture_layout

    def counted(self: Bagel, cache: Cache, *rest: Any, **options: Any) -> PictureLayout:
        made.append(cache)
        return layout(self, cache, *rest, **options)

    monkeypatch.setattr(Bagel, "picture_layout", counted)
    sizes, rule = [(2, 3), (3, 1)], Guidance(4.0, 1.0, (0.4, 1.0))
    contexts = Contexts.empty(2, image_guidance=False)
    contexts.add_text(model, [torch.arange(3), torch.arange(10, 17)])
    x = torch.randn(9, model.config.latent_channels)
    end = denoise(model, contexts, x, sizes, 6, 3.0, rule)
    assert len(made) == 2 and made[0] is contexts.full and made[1] is contexts.text_cfg
    alone = x
    for t, following in pairwise(timesteps(6, 3.0).tolist()):
        contexts = Contexts.empty(2, image_guidance=False)
        contexts.add_text(model, [torch.arange(3), torch.arange(10, 17)])
        alone = alone - guided_velocity(model, contexts, alone, t, sizes, rule) * (t - following)
    assert torch.equal(end, alone)
    # What was read since then counts.
    before = guided_velocity(model, contexts, x, 0.3, sizes, rule)
    contexts.add_text(model, [torch.arange(4), torch.arange(2)])
    assert not torch.equal(guided_velocity(model, contexts, x, 0.3, sizes, rule), before)


@torch.no_grad()
def test_chunks_through_the_cache_equal_one_pass(model: Bagel) -> None:
    ids = torch.arange(20, 31)
    whole, _ = model.absorb_text(Cache(1), [ids], wrap=False)
    cache = Cache(1)
    parts = [model.absorb_text(cache, [part], wrap=False)[0] for part in torch.split(ids, [1, 4, 6])]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)


def _reference(
    attention: BagelAttention, tokens: list[tuple[str, Tensor]], positions: list[int], mask: Tensor
) -> list[Tensor]:
    """One sequence, token by token, head by head, in float64; groups that a stream lost are not there."""
    width = attention.head_dim
    frequencies = 1_000_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)

    def turn(x: Tensor, position: int) -> Tensor:
        angle = position * frequencies
        first, second = x[: width // 2], x[width // 2 :]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin])

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight.double() * x / (x.square().mean() + 1e-6).sqrt()

    rows = []
    for (stream, x), position in zip(tokens, positions, strict=True):
        suffix = "" if stream == "understanding" else "_moe_gen"
        row: dict[str, object] = {"stream": stream, "q": {}, "k": {}, "v": {}}
        if stream in attention.groups:
            q, k, v = (getattr(attention, f"{n}_proj{suffix}") for n in "qkv")
            per = attention.heads_per_group[stream]
            for index, group in enumerate(attention.groups[stream]):
                part = slice(index * width, (index + 1) * width)
                key = k.weight[part].double() @ x + k.bias[part].double()
                row["k"][group] = turn(norm(key, getattr(attention, f"k_norm{suffix}").weight), position)  # type: ignore[index]
                row["v"][group] = v.weight[part].double() @ x + v.bias[part].double()  # type: ignore[index]
                for head in range(per):
                    piece = slice((index * per + head) * width, (index * per + head + 1) * width)
                    query = q.weight[piece].double() @ x + q.bias[piece].double()
                    query = norm(query, getattr(attention, f"q_norm{suffix}").weight)
                    row["q"][group, head] = turn(query, position)  # type: ignore[index]
        rows.append(row)
    out = []
    for i, row in enumerate(rows):
        pieces = []
        for (group, _), query in row["q"].items():  # type: ignore[attr-defined]
            seen = [j for j in range(len(rows)) if mask[i, j] and group in rows[j]["k"]]  # type: ignore[operator]
            scores = torch.stack([query @ rows[j]["k"][group] for j in seen]) / width**0.5  # type: ignore[index]
            values = torch.stack([rows[j]["v"][group] for j in seen])  # type: ignore[index]
            pieces.append(scores.softmax(0) @ values)
        if pieces:
            suffix = "" if row["stream"] == "understanding" else "_moe_gen"
            out.append(getattr(attention, f"o_proj{suffix}").weight.double() @ torch.cat(pieces))
        else:
            out.append(torch.zeros(0))
    return out


def _cut(attention: BagelAttention, case: str) -> None:
    width = attention.head_dim

    def keep(component: str, suffix: str, group: int) -> None:
        per = attention.heads_per_group[component]
        for name, count in (("q_proj", per), ("k_proj", 1), ("v_proj", 1)):
            linear = getattr(attention, name + suffix)
            rows = slice(group * count * width, (group + 1) * count * width)
            linear.weight = torch.nn.Parameter(linear.weight[rows].detach())
            linear.bias = torch.nn.Parameter(linear.bias[rows].detach())
        out = getattr(attention, f"o_proj{suffix}")
        columns = slice(group * per * width, (group + 1) * per * width)
        out.weight = torch.nn.Parameter(out.weight[:, columns].detach())
        attention.keep_heads(component, (group,), None)

    if case == "understanding keeps group 1":
        keep("understanding", "", 1)
    elif case == "streams share nothing":
        keep("understanding", "", 0)
        keep("generation", "_moe_gen", 1)
    elif case.startswith("no "):
        attention.drop_stream(case.removeprefix("no "))


CASES = ["whole", "understanding keeps group 1", "streams share nothing", "no generation", "no understanding"]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_attention_with_lost_groups_against_float64(model: Bagel, case: str) -> None:
    attention = copy.deepcopy(model.language_model.model.layers[1].self_attn)
    assert isinstance(attention, BagelAttention)
    attention.layer_idx = 0
    _cut(attention, case)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(9, 64, generator=generator)
    # Text of three tokens, then an image whose markers are understanding rows.
    streams = ["understanding"] * 4 + ["generation"] * 4 + ["understanding"]
    positions = [0, 1, 2, 3, 3, 3, 3, 3, 3]
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[:3] = torch.ones(3, 9, dtype=torch.bool).tril()
    tokens = [(stream, row.double()) for stream, row in zip(streams, x, strict=True)]
    expected = _reference(attention, tokens, positions, mask)
    cache = Cache(1)
    text = Context([torch.zeros(3, dtype=torch.long)], [torch.arange(3)], causal([3]), cache, append=True)
    kinds = torch.tensor([0, 1, 1, 1, 1, 0])
    got: list[Tensor | None] = []
    for context, rows in ((text, x[:3]), (Context([kinds], [torch.full((6,), 3)], None, cache), x[3:])):
        context.prepare_rope(1_000_000.0, attention.head_dim)
        of = [streams[0]] * 3 if len(rows) == 3 else streams[3:]
        und = torch.stack([r for r, s in zip(rows, of, strict=True) if s == "understanding"])
        others = [r for r, s in zip(rows, of, strict=True) if s != "understanding"]
        gen = torch.stack(others) if others else rows[:0]
        layouts = attention.groups
        und_out, gen_out = attention(
            und if "understanding" in layouts else None, gen if "generation" in layouts else None, context
        )
        u, g = iter(und_out if und_out is not None else ()), iter(gen_out if gen_out is not None else ())
        got += [next(u if s == "understanding" else g, None) for s in of]
    for ours, theirs in zip(got, expected, strict=True):
        if theirs.numel() == 0:
            assert ours is None
        else:
            assert ours is not None
            torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=0)
    stored = {presence: keys.shape[1] for (_, presence), keys in cache.keys.items()}
    if case == "no understanding":
        assert stored == {("generation",): 0}, "nothing of the understanding stream may be cached"
    else:
        assert max(stored.values()) == 3
