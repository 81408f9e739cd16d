"""The golden folder of BAGEL: understanding, text to image, editing, a batch of two, training, resizing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from golden.bagel_train import check_train
from golden.checker import ABSOLUTE, Checker, Golden, pixels_close
from umcompress.models.bagel.context import STREAMS, Cache
from umcompress.models.bagel.load import load_bagel
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.preprocess import resized_size
from umcompress.models.bagel.sampling import (
    Contexts,
    Guidance,
    decode_images,
    denoise,
    guided_velocity,
    timesteps,
    to_pixels,
)

FILES = ("understanding", "t2i", "edit", "batch2", "train")


def check(folder: Path, checker: Checker) -> None:
    """Every file of the folder that is there; the model must be."""
    meta = json.loads((folder / "meta.json").read_text())
    model = load_bagel(folder / "model", dtype=torch.float32)
    checks = {
        "understanding": check_understanding, "t2i": check_t2i, "edit": check_edit, "batch2": check_batch,
        "train": check_train,
    }
    check_keys(folder / "model" / "keys_ema.json", model, checker)
    checker.all_files_seen(folder, [f"{name}.safetensors" for name in FILES])
    for name in FILES:
        if (folder / f"{name}.safetensors").exists():
            checks[name](model, checker, checker.open(f"{name}.safetensors"), meta)
    if (folder / "resize_sizes.json").exists():
        check_resize(json.loads((folder / "resize_sizes.json").read_text()), checker)


def check_keys(path: Path, model: Bagel, checker: Checker) -> None:
    if path.exists():
        ours = {k: list(v.shape) for k, v in model.state_dict().items() if not k.startswith("vae.")}
        checker.equal("model: names and shapes", ours, json.loads(path.read_text()))


@torch.no_grad()
def check_understanding(model: Bagel, checker: Checker, golden: Golden, meta: dict[str, Any]) -> None:
    image = golden["in.image"]
    patches, ids = model.patchify(image)
    checker.close(golden, "mid.vit_patches", patches)
    checker.same(golden, "mid.vit_position_ids", ids)
    seen, _ = model.encode_vision([image])
    checker.close(golden, "mid.vit_embeds_to_llm", seen)
    cache = Cache(1)
    rows, _ = model.absorb_vision(cache, [image])
    checker.close(golden, "out.image_prefill_hidden", rows)
    rows, _ = model.absorb_text(cache, [golden["in.prompt_ids"]])
    checker.close(golden, "out.text_prefill_hidden", rows)
    checker.close(golden, "out.text_prefill_logits", model.logits(rows))
    for name in golden.names("out.cache_k."):
        layer = int(name.rsplit(".", 1)[1])
        checker.close(golden, name, cache.keys[layer, STREAMS][0])
        checker.close(golden, f"out.cache_v.{layer}", cache.values[layer, STREAMS][0])
    checker.equal("understanding: kv_len", cache.length(), meta["und"]["kv_len"])
    checker.equal("understanding: next_rope", cache.positions[0], meta["und"]["next_rope"])
    stepped = cache.fork()
    logits = []
    # The official loop feeds bos, then each token that it has chosen.
    chosen = [model.config.tokens.bos_token_id]
    for _ in range(len(golden["out.step_logits"])):
        rows, _ = model.absorb_text(stepped, [torch.tensor(chosen[-1:])], wrap=False)
        logits.append(model.logits(rows)[0])
        chosen.append(int(logits[-1].argmax()))
    checker.close(golden, "out.step_logits", torch.stack(logits))
    count = len(golden["out.generated_ids"])
    decoded = model.decode_text(cache, count + 1)[0]
    checker.same(golden, "out.generated_ids", torch.tensor(decoded[1:]))
    checker.equal("understanding: generated", decoded, meta["und"]["generated"][: len(decoded)])
    rows, _ = model.absorb_text(Cache(1), [golden["in.text_only_ids"]])
    checker.close(golden, "out.text_only_logits", model.logits(rows))


def _size(model: Bagel, meta: dict[str, Any]) -> tuple[int, int]:
    side = model.config.latent_downsample
    height, width = meta["image_hw"]
    return height // side, width // side


def _guidance(meta: dict[str, Any], **changes: Any) -> Guidance:
    values = {
        "text_scale": meta["cfg_text_scale"], "image_scale": meta.get("cfg_img_scale", 1.0),
        "interval": tuple(meta["cfg_interval"]), "renorm_type": meta["cfg_renorm_type"],
        "renorm_min": meta.get("cfg_renorm_min", 0.0),
    }
    return Guidance(**(values | changes))


@torch.no_grad()
def check_t2i(model: Bagel, checker: Checker, golden: Golden, meta: dict[str, Any]) -> None:
    meta = meta["t2i"]
    size, t, noise = _size(model, meta), meta["velocity_t"], golden["in.init_noise"]
    contexts = Contexts.empty(1)
    contexts.add_text(model, [golden["in.prompt_ids"]])
    checker.same(golden, "mid.latent_position_ids", model.latent_pos_embed.ids(*size))
    times = timesteps(meta["num_timesteps"], meta["timestep_shift"])
    checker.close(golden, "mid.timesteps", times)
    for name in golden.names("mid.time_embed_t"):
        time = float(name.removeprefix("mid.time_embed_t"))
        checker.close(golden, name, model.time_embedder(torch.tensor([time])))
    checker.close(golden, "out.velocity_nocfg", model.velocity(contexts.full, noise, t, [size]))
    checker.close(golden, "out.velocity_uncond", model.velocity(contexts.text_cfg, noise, t, [size]))
    on = [meta["cfg_interval"][0] < float(x) <= meta["cfg_interval"][1] for x in times[:-1]]
    checker.equal("t2i: steps with guidance", on, meta["cfg_on"])
    # At a single time the goldens show the guided velocity itself: the interval must not switch it off.
    whole = (-1.0, 2.0)
    for name in golden.names("out.velocity_cfg4_"):
        kind, _, least = name.removeprefix("out.velocity_cfg4_").partition("_min")
        rule = _guidance(meta, renorm_type=kind, interval=whole)
        if least:
            rule = _guidance(meta, renorm_type=kind, interval=whole, renorm_min=float(least))
        checker.close(golden, name, guided_velocity(model, contexts, noise, t, [size], rule))
    settings = meta["num_timesteps"], meta["timestep_shift"]
    plain = denoise(model, contexts, noise, [size], *settings, _guidance(meta, text_scale=1.0))
    checker.close(golden, "out.latents_nocfg", plain)
    latents = denoise(model, contexts, noise, [size], *settings, _guidance(meta))
    checker.close(golden, "out.latents_cfg4", latents)
    image = decode_images(model, latents, [size])[0]
    checker.close(golden, "out.image_cfg4_float", image)
    golden.checked.add("out.image_cfg4_uint8")
    checker.line(
        pixels_close(torch.from_numpy(to_pixels(image)), golden["out.image_cfg4_uint8"]),
        f"{golden.name}: out.image_cfg4_uint8", "within one grey level",
    )


@torch.no_grad()
def check_edit(model: Bagel, checker: Checker, golden: Golden, meta: dict[str, Any]) -> None:
    meta = meta["edit"]
    size, t, noise = _size(model, meta), meta["velocity_t"], golden["in.init_noise"]
    image = golden["in.vae_image"][None]
    moments = model.vae.encoder(image)
    checker.close(golden, "mid.vae_moments", moments[0])
    latent = model.vae.encode(image, golden["in.vae_posterior_noise"][None])[0]
    checker.close(golden, "mid.vae_latent", latent)
    contexts = Contexts.empty(1)
    _check_edit_prefill(model, checker, golden, latent)
    contexts.add_image(model, [latent], [golden["in.vit_image"]])
    contexts.add_text(model, [golden["in.prompt_ids"]])
    names = {"full": contexts.full, "text_cfg": contexts.text_cfg, "img_cfg": contexts.image_cfg}
    for name, cache in names.items():
        assert cache is not None, f"{name} was not read"
        checker.equal(f"edit: {name} kv_len", cache.length(), meta["kv_lens"][name])
        checker.equal(f"edit: {name} rope", cache.positions[0], meta["ropes"][name])
        out = "out.velocity_full" if name == "full" else f"out.velocity_{name}_branch"
        checker.close(golden, out, model.velocity(cache, noise, t, [size]))
    for name in golden.names("out.velocity_cfg_"):
        rule = _guidance(meta, renorm_type=name.removeprefix("out.velocity_cfg_"), interval=(-1.0, 2.0))
        checker.close(golden, name, guided_velocity(model, contexts, noise, t, [size], rule))
    latents = denoise(
        model, contexts, noise, [size], meta["num_timesteps"], meta["timestep_shift"], _guidance(meta)
    )
    checker.close(golden, "out.latents", latents)


def _check_edit_prefill(model: Bagel, checker: Checker, golden: Golden, latent: Tensor) -> None:
    cache = Cache(1)
    und, gen = model.absorb_latents(cache, [latent])
    checker.close(golden, "mid.vae_prefill_hidden", torch.cat([und[:1], gen, und[1:]]))
    rows, _ = model.absorb_vision(cache, [golden["in.vit_image"]])
    checker.close(golden, "mid.vit_prefill_hidden", rows)


@torch.no_grad()
def check_batch(model: Bagel, checker: Checker, golden: Golden, meta: dict[str, Any]) -> None:
    meta = meta["batch2"]
    prompts = golden.names("in.prompt_")
    size = _size(model, meta)
    contexts = Contexts.empty(len(prompts))
    contexts.add_text(model, [golden[name] for name in prompts])
    sizes = [size] * len(prompts)
    latents = denoise(
        model, contexts, golden["in.init_noise"], sizes, meta["num_timesteps"], meta["timestep_shift"],
        _guidance(meta),
    )
    for name, part in zip(prompts, latents.chunk(len(prompts)), strict=True):
        checker.close(golden, f"out.latents_{name.removeprefix('in.prompt_')}", part)


def check_resize(table: dict[str, Any], checker: Checker) -> None:
    """Each row: picture size in, expected (height, width) of the three input paths."""
    vae = {"max_size": 1024, "min_size": 512, "stride": 16}
    vit = {"max_size": 980, "min_size": 224, "stride": 14}
    for row in table["rows"]:
        size = row["h"], row["w"]
        first = resized_size(size, **vae)
        ours = [list(first), list(resized_size(size, **vit)), list(resized_size(first, **vit))]
        theirs = [row["vae_hw"], row["vit_hw_direct"], row["vit_hw_after_vae_resize"]]
        checker.equal(f"resize {row['w']}x{row['h']}", ours, theirs)


__all__ = ["ABSOLUTE", "check"]
