"""Pipelines of diffusers in training: what they minimise, against computations in float64 that call no pipeline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_models import pixart, qwen_image, z_image
from torch import Tensor
from training_models import names_of, quick, split

from umcompress.data.training_file import TrainingFile
from umcompress.documents.sampling import Sampling
from umcompress.errors import ModelError, PlanError, UsageError
from umcompress.models.items import GenerationItem, ImageText, TrainingItem, UnderstandingItem
from umcompress.models.pipelines.prediction import visited
from umcompress.models.source import Source, open_source
from umcompress.models.trainer import TrainingBatch
from umcompress.passes.router_train import RouterTrain
from umcompress.train.batches import StepTotals
from umcompress.train.losses import _rows_of_step
from umcompress.train.progress import CURVE, Curve
from umcompress.train.step import check_learning, run_training

pytest.importorskip("diffusers")

PROMPT, STEPS, DRAWN = "a red cat", 4, 5
MEAN, DEVIATION = [0.3, -0.2, 0.1, 0.5], [1.5, 0.5, 2.0, 1.0]
SHIFTED = {
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192,
    "shift_terminal": 0.02, "time_shift_type": "exponential",
}  # fmt: skip


def picture(height: int, width: int) -> Any:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scaled(image: Any) -> Tensor:
    """(1, 3, h, w) from -1 to 1."""
    return torch.from_numpy(image.astype(np.float64) / 127.5 - 1).permute(2, 0, 1)[None]


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the released model's schedule, and an autoencoder whose latents are not centred."""
    folder = qwen_image(tmp_path_factory.mktemp("pipelines") / "qwen")
    change(folder / "vae" / "config.json", latents_mean=MEAN, latents_std=DEVIATION)
    change(folder / "scheduler" / "scheduler_config.json", **SHIFTED)
    return folder


def opened(folder: Path) -> Source:
    return open_source(str(folder), sampling=Sampling(steps=STEPS, height=16, width=24))


def in_float64(folder: Path) -> tuple[Any, Any]:
    source = opened(folder)
    model = source.load().double()
    return source.trainer(model), model


def drawn(shape: tuple[int, ...], seed: int = DRAWN) -> tuple[float, float, Tensor]:
    """What a training draws for an item: whether its prompt goes, its time, its noise."""
    draw = np.random.default_rng(seed)
    first, raw = draw.random(), float(draw.standard_normal())
    return first, 1 / (1 + math.exp(-raw)), torch.from_numpy(draw.standard_normal(shape, dtype=np.float32)).double()


def qwen_sigma(time: float) -> float:
    """The share of noise at a time: shifted by size, stretched to its end, straight between the steps."""
    shift = 0.5 + (0.9 - 0.5) * (6 - 256) / (8192 - 256)
    grid = [math.exp(shift) / (math.exp(shift) + 1 / (step / STEPS) - 1) for step in range(STEPS, 0, -1)]
    stretch = (1 - grid[-1]) / (1 - 0.02)
    stretched = [1 - (1 - one) / stretch for one in grid]
    return float(np.interp(1 - time, [step / STEPS for step in range(STEPS + 1)], [*stretched, 0.0]))


def qwen_clean(model: Any, image: Any) -> Tensor:
    """(1, 6, 16): patches of 2 x 2 of the latents, channels first."""
    mode = model.vae.encode(scaled(image)[:, :, None]).latent_dist.mode()[0, :, 0]
    latents = (mode - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    patches = [
        latents[:, row : row + 2, column : column + 2].flatten() for row in range(0, 4, 2) for column in range(0, 6, 2)
    ]
    return torch.stack(patches)[None]


def qwen_velocity(model: Any, trainer: Any, prompt: str, states: Tensor, sigma: float) -> Tensor:
    pipeline = trainer.painter.pipeline()
    text, begin = pipeline.prompt_template_encode.format(prompt), pipeline.prompt_template_encode_start_idx
    ids = pipeline.tokenizer([text], return_tensors="pt").input_ids
    read = model.text_encoder.model.language_model(ids).last_hidden_state[:, begin:]
    found: Tensor = model.transformer(
        hidden_states=states, timestep=torch.tensor([sigma], dtype=torch.float64), encoder_hidden_states=read,
        encoder_hidden_states_mask=None, img_shapes=[[(1, 2, 3)]], return_dict=False,
    )[0]
    return found


@torch.no_grad()
def test_the_loss_of_a_flow_is_that_of_its_transformer_alone(qwen: Path) -> None:
    trainer, model = in_float64(qwen)
    image, times = picture(16, 24), (0.25, 0.6, 0.95)
    (found,) = trainer.losses([ImageText(image, PROMPT)], [np.random.default_rng(DRAWN)], times)
    clean, noise = qwen_clean(model, image), torch.from_numpy(
        np.random.default_rng(DRAWN).standard_normal((1, 6, 16), dtype=np.float32)
    ).double()
    for time, loss in zip(times, found, strict=True):
        sigma = qwen_sigma(time)
        velocity = qwen_velocity(model, trainer, PROMPT, (1 - sigma) * clean + sigma * noise, sigma)
        assert float(loss) == pytest.approx(float(((velocity - (noise - clean)) ** 2).mean()), rel=1e-5)


def test_gradients_are_those_of_the_transformer_alone(qwen: Path) -> None:
    """Of a weight that denoises, and of one that reads the prompt."""
    trainer, model = in_float64(qwen)
    image = picture(16, 24)
    names = ["transformer.transformer_blocks.1.img_mlp.net.2.weight",
             "text_encoder.model.language_model.layers.1.mlp.up_proj.weight"]
    batch = trainer.batch([ImageText(image, PROMPT)], [np.random.default_rng(DRAWN)])
    assert batch.rows == {"flow": 6, "velocity": 6}
    trainer.forward(batch).losses["flow"].mean().backward()
    ours = [model.get_parameter(name).grad.clone() for name in names]
    model.zero_grad()
    first, time, noise = drawn((1, 6, 16))
    assert first > 0.1
    sigma, clean = qwen_sigma(time), qwen_clean(model, image).detach()
    velocity = qwen_velocity(model, trainer, PROMPT, (1 - sigma) * clean + sigma * noise, sigma)
    ((velocity - (noise - clean)) ** 2).mean().backward()
    for name, gradient in zip(names, ours, strict=True):
        direct = model.get_parameter(name).grad
        assert direct is not None and float(direct.abs().max()) > 0
        # The pipeline keeps its times in float32.
        assert float((gradient - direct).abs().max()) < 1e-4 * float(direct.abs().max())


@pytest.mark.parametrize(("kind", "scheduler"), [
    ("epsilon", "DDPMScheduler"), ("v_prediction", "DDIMScheduler"), ("sample", "DDPMScheduler"),
])  # fmt: skip
@torch.no_grad()
def test_the_target_is_that_of_the_scheduler(kind: str, scheduler: str, tmp_path: Path) -> None:
    trainer, model = in_float64(pixart(tmp_path / "pixart", scheduler, prediction_type=kind))
    image = picture(208, 304)  # the nearest of the sizes that PixArt was made for
    (found,) = trainer.losses([ImageText(image, PROMPT)], [np.random.default_rng(DRAWN)], (0.3, 0.9))
    clean = model.vae.encode(scaled(image)).latent_dist.mode() * 0.4
    noise = torch.from_numpy(np.random.default_rng(DRAWN).standard_normal((1, 4, 26, 38), dtype=np.float32)).double()
    pipeline = trainer.painter.pipeline()
    words = pipeline.tokenizer([PROMPT], padding="max_length", max_length=300, return_tensors="pt")
    read = model.text_encoder(words.input_ids, attention_mask=words.attention_mask)[0]
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    steps = [1000 * step // STEPS for step in reversed(range(STEPS))]
    if scheduler == "DDIMScheduler":
        steps = [step + pipeline.scheduler.config.steps_offset for step in steps]
    for time, loss in zip((0.3, 0.9), found, strict=True):
        step = steps[int((1 - time) * STEPS)]
        signal, share = math.sqrt(kept[step]), math.sqrt(1 - kept[step])
        said = model.transformer(
            signal * clean + share * noise, encoder_hidden_states=read, encoder_attention_mask=words.attention_mask,
            timestep=torch.tensor([step]), added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )[0].chunk(2, dim=1)[0]  # fmt: skip
        target = {"epsilon": noise, "v_prediction": signal * noise - share * clean, "sample": clean}[kind]
        assert float(loss) == pytest.approx(float(((said - target) ** 2).mean()), rel=1e-5)


@torch.no_grad()
def test_a_pipeline_whose_velocity_runs_the_other_way(tmp_path: Path) -> None:
    """Z-Image: lists of pictures, time from noise to picture, the velocity negated, a schedule shifted by 3."""
    trainer, model = in_float64(z_image(tmp_path / "z"))
    image = picture(16, 24)
    (found,) = trainer.losses([ImageText(image, PROMPT)], [np.random.default_rng(DRAWN)], (0.5,))
    clean = (model.vae.encode(scaled(image)).latent_dist.mode() - 0.1) * 0.4
    noise = torch.from_numpy(np.random.default_rng(DRAWN).standard_normal((1, 4, 8, 12), dtype=np.float32)).double()
    tokenizer = trainer.painter.pipeline().tokenizer
    ids = torch.tensor([tokenizer(f"<|im_start|>{PROMPT}<|im_end|>").input_ids])
    read = model.text_encoder(ids, output_hidden_states=True).hidden_states[-2][0]
    sigma = float(trainer.canvas.noises[2])
    assert sigma == pytest.approx(0.75)
    states = (1 - sigma) * clean + sigma * noise
    said = model.transformer([states[0][:, None]], torch.tensor([1 - sigma], dtype=torch.float64), [read])[0][0]
    error = float(((-said[:, 0] - (noise - clean)[0]) ** 2).mean())
    assert float(found[0]) == pytest.approx(error, rel=1e-5)


@torch.no_grad()
def test_prompts_alone_meet_the_pipeline_on_its_way(qwen: Path) -> None:
    trainer, _ = in_float64(qwen)
    heard: list[Tensor] = []

    def keep(_: Any, __: int, ___: Any, given: dict[str, Any]) -> dict[str, Any]:
        heard.append(given["latents"].clone())
        return given

    generator = torch.Generator().manual_seed(7)
    found = visited(trainer.painter, PROMPT, generator, trainer.runner.sampling, {1, 3})
    trainer.painter.pipeline()(
        PROMPT, negative_prompt=" ", num_inference_steps=STEPS, height=16, width=24, callback_on_step_end=keep,
        generator=torch.Generator().manual_seed(7), output_type="latent",
    )  # fmt: skip
    # Where a step begins is where the one before has ended.
    assert torch.equal(found[0][0], heard[0]) and torch.equal(found[1][0], heard[2])
    batch = trainer.batch([GenerationItem(PROMPT, 0)], [np.random.default_rng(DRAWN)])
    done = trainer.forward(batch)
    assert not done.losses and done.outputs["velocity"].shape == (STEPS * 6, 16)
    assert batch.rows == {"velocity": STEPS * 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows: list[dict[str, str]] = []
    for place in range(3):
        Image.fromarray(picture(16 + place, 24)).save(folder / f"{place}.png")
        rows.append({"image": f"{place}.png", "prompt": ["a red cat", "two dogs on a mat", "x"][place]})
        rows.append({"image": f"{place}.png", "question": "what?", "answer": ["no", "yes", "a cat"][place]})
    (folder / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.txt").write_text("a red cat\ntwo dogs\n")
    return folder


def trained(planner: RouterTrain, source: Source, out: Path, component: str | None) -> tuple[dict[str, Tensor], Curve]:
    model = split(source, component)
    assert planner.data is not None
    values = run_training(
        planner, names_of(planner, model, source), model, source, TrainingFile(data=planner.data), out, lambda _: None,
        "training",
    )  # fmt: skip
    curve = Curve(out / CURVE)
    curve.read()
    return values, curve


ROUTERS: dict[str, Any] = {"steps": 2, "batch_size": 4, "warm_up": 0, "learning_rate": 1e-2, "ema": 0.0}


def test_routers_of_both_halves_learn_and_parts_add_up(qwen: Path, data: Path, tmp_path: Path) -> None:
    source = opened(qwen)
    planner = RouterTrain(data=data / "both.jsonl", **ROUTERS)
    whole, one = trained(planner, source, tmp_path / "a", None)
    parts, two = trained(planner.model_copy(update={"gradient_accumulation": 2}), source, tmp_path / "b", None)
    assert {"flow", "velocity", "cross_entropy", "logits", "blocks", "balance"} <= set(one.rows[0]["losses"])
    assert all(name.endswith("gate.weight") for name in whole)
    assert {name.split(".")[0] for name in whole} == {"text_encoder", "transformer"}
    before = split(source, None)
    assert sum(not torch.equal(value, before.get_parameter(name)) for name, value in whole.items()) >= len(whole) - 1
    for a, b in zip(one.rows, two.rows, strict=True):
        assert b["losses"] == pytest.approx(a["losses"], rel=2e-4, abs=1e-6)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-4)


def test_prompts_alone_are_learned_from_the_unpruned_model(qwen: Path, data: Path, tmp_path: Path) -> None:
    planner = RouterTrain(data=data / "prompts.txt", component="generation", **ROUTERS | {"batch_size": 2, "steps": 4})
    values, curve = trained(planner, opened(qwen), tmp_path, "generation")
    assert {"velocity", "blocks"} <= set(curve.rows[0]["losses"]) and "flow" not in curve.rows[0]["losses"]
    assert values and curve.rows[-1]["losses"]["blocks"] < curve.rows[0]["losses"]["blocks"]


def test_the_unpruned_model_has_nothing_to_learn_from_itself(qwen: Path, data: Path, tmp_path: Path) -> None:
    source = opened(qwen)
    planner = quick(parameters=["transformer.transformer_blocks.1.*"], data=data / "prompts.txt", batch_size=2, steps=1,
                    tasks={"generation": 1})  # fmt: skip
    model = source.load()
    run_training(planner, names_of(planner, model, source), model, source, TrainingFile(data=data / "prompts.txt"),
                 tmp_path, lambda _: None, "training")  # fmt: skip
    curve = Curve(tmp_path / CURVE)
    curve.read()
    assert curve.rows[0]["losses"]["velocity"] == 0 and curve.rows[0]["losses"]["blocks"] == 0


@pytest.mark.parametrize(("rows", "options", "said"), [
    ([{"prompt": "a cat"}], {"parameters": ["transformer.*"], "losses": {"distill_output": 0, "distill_blocks": 0}},
     "without pictures"),
    ([{"prompt": "a cat"}], {"parameters": ["vae.decoder.*"]}, "no task reaches"),
    ([{"prompt": "a cat"}], {"parameters": ["transformer.*", "vae.*"]}, "go through the autoencoder"),
    ([{"text": "a cat"}], {"parameters": ["transformer.*"], "tasks": {"understanding": 1}}, "no prompts are trained"),
    ([{"prompt": "a cat"}], {"parameters": ["text_encoder.lm_head.weight"], "tasks": {"generation": 1}},
     "no questions are trained"),
])  # fmt: skip
def test_what_cannot_learn_is_refused_on_shapes(
    rows: list[dict[str, str]], options: dict[str, Any], said: str, qwen: Path, tmp_path: Path
) -> None:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    planner, source = quick(data=tmp_path / "data.jsonl", **options), opened(qwen)
    shapes, data = source.skeleton(), TrainingFile(data=tmp_path / "data.jsonl")
    with pytest.raises(PlanError, match=said):
        check_learning(planner, names_of(planner, shapes, source), shapes, source, data)


def test_a_scheduler_whose_noise_is_unknown_is_refused(tmp_path: Path) -> None:
    source = opened(pixart(tmp_path / "pixart", "EulerDiscreteScheduler", timestep_spacing="leading"))
    with pytest.raises(ModelError, match="EulerDiscreteScheduler"):
        source.trainer(source.skeleton())


def test_prompts_without_pictures_have_no_loss_of_pictures(data: Path) -> None:
    with pytest.raises(UsageError, match="have no pictures"):
        TrainingFile(data=data / "prompts.txt").held_out_items("generation", 2, 0)


def test_rows_of_a_block_that_returns_fewer_tensors() -> None:
    """The last block of Stable Diffusion 3 returns the picture alone: 7 rows here, of 20 in the step."""
    batch, totals = TrainingBatch(None, {}, (3, 7, 9)), StepTotals({}, (8, 20, 30))
    assert _rows_of_step(0, torch.zeros(3, 2), batch, totals) == 8
    assert _rows_of_step(0, torch.zeros(7, 2), batch, totals) == 20


def test_an_item_of_another_kind_is_refused(tmp_path: Path) -> None:
    source = opened(pixart(tmp_path / "pixart"))
    items: list[TrainingItem] = [UnderstandingItem(picture(8, 8), "what?", "a cat")]
    with pytest.raises(ModelError, match="continues no text"):
        source.trainer(source.skeleton()).check(items)
