"""Janus, Emu3 and Chameleon on both tasks, against transformers' own generation and steps without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig
from unified_models import BEGIN, END_OF_ROW, FIRST_CODE, GRIDS, NAMES, WRAPPER, whole, write_unified

from umcompress.documents.plan import DropBlock, DropBranch, Plan
from umcompress.errors import ModelError, UsageError
from umcompress.models.hf.paint.sampling import Sampling, draw, generator_of, paint
from umcompress.models.hf.paint.unified_runner import UnifiedRunner
from umcompress.models.items import GenerationItem, TextSample, UnderstandingItem
from umcompress.models.source import open_source
from umcompress.rewrite.apply import rewrite

PAINTERS = ("janus", "emu3")
PROMPTS = ["a red dot", "two cats on a mat", "x"]
RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, size, dtype=np.uint8) for size in ((20, 30, 3), (16, 16, 3), (9, 14, 3))]
QUESTIONS = ["what is it?", "how many?", "hm"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_unified(name, tmp_path_factory.mktemp(name)) for name in NAMES}


def opened(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    source = open_source(str(folder))
    model = source.load().to(dtype)
    return source.family.runner(model, source.folder)


@pytest.fixture(scope="module")
def runners(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: opened(folder) for name, folder in folders.items()}


# -- understanding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_answers_about_pictures_are_those_of_transformers(name: str, runners: dict[str, Any]) -> None:
    runner = runners[name]
    together = runner.answer(PICTURES, QUESTIONS, 5)
    for picture, question, answer in zip(PICTURES, QUESTIONS, together, strict=True):
        assert runner.answer([picture], [question], 5) == [answer]
        processor = runner.pictures.processor
        made = processor(text=[f"<image>{question}"], images=[[picture]], return_tensors="pt")
        made["pixel_values"] = made["pixel_values"].double()
        settings = GenerationConfig(do_sample=False, max_new_tokens=5)
        out = runner.model.generate(**made, generation_config=settings)[0, made["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(out, skip_special_tokens=True).strip() == answer
    assert len(set(together)) > 1
    mixed = runner.answer([None, PICTURES[0], PICTURES[:2]], [QUESTIONS[1], QUESTIONS[0], "same?"], 5)
    assert mixed[0] == runner.answer([None], [QUESTIONS[1]], 5)[0] and mixed[1] == together[0]
    assert mixed[2] == runner.answer([PICTURES[:2]], ["same?"], 5)[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_greedy_answer_is_scored_as_the_likeliest(name: str, runners: dict[str, Any]) -> None:
    runner = runners[name]
    texts = ["no", "yes", "b"]
    found = runner.score([PICTURES[0], None, PICTURES[1]], ["a?", "b?", "c?"], [texts, ["no"], ["yes"]])
    assert [len(row) for row in found] == [3, 1, 1]
    for text, likely in zip(texts, found[0], strict=True):
        seen = runner.preparer.prepare([PICTURES[0]], "a?")
        ids, more = seen.ids, [ord(character) - 28 for character in text]
        call = {key: value.double() if value.is_floating_point() else value for key, value in seen.pictures.items()}
        with torch.no_grad():
            logits = runner.model(input_ids=torch.tensor([ids + more]), **call).logits[0, len(ids) - 1 : -1]
        wanted = torch.log_softmax(logits, -1)[range(len(more)), more].sum()
        assert likely.nats == pytest.approx(float(wanted), rel=1e-5)
        assert likely.greedy == (logits.argmax(-1).tolist() == more)


# -- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_each_step_with_a_cache_is_the_step_without(name: str, padded: bool, runners: dict[str, Any]) -> None:
    runner = runners[name]
    branches = [runner.pictures.prompt_ids(prompt) for prompt in PROMPTS]
    seen: list[Tensor] = []
    sampling = Sampling(2.5, temperature=0.7, top_k=5)
    codes = paint(
        runner.pictures, [asked for asked, _ in branches], [without for _, without in branches], sampling,
        [generator_of(3, place) for place in range(3)], steps=14, padded=padded, watch=seen.append,
    )  # fmt: skip
    assert len(seen) == 14 and codes.unique().numel() > 4
    for row, (asked, without) in enumerate(branches):
        noise = generator_of(3, row)
        for step in range(14):
            before = codes[row, :step].tolist()
            yes, no = (whole(runner, name, ids, before, GRIDS[name][1]) for ids in (asked, without))
            wanted = 2.5 * yes - 1.5 * no
            torch.testing.assert_close(seen[step][row], wanted, rtol=1e-5, atol=1e-6)
            chances = torch.full_like(wanted, -torch.inf)
            top = wanted.topk(5).indices
            chances[top] = wanted[top] / 0.7
            gumbel = -torch.empty(len(wanted)).exponential_(generator=noise).log()
            assert int((chances.float() + gumbel).argmax()) == int(codes[row, step])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_model_without_its_first_attentions_paints_with_a_cache(name: str, folders: dict[str, Path]) -> None:
    source = open_source(str(folders[name]))
    model = source.load().double()
    stack = source.family.stacks(model)["main"]
    edits = (DropBlock(block=f"{stack}.0"), DropBranch(block=f"{stack}.1", component="shared", branch="attention"))
    rewrite(model, source.family, [Plan(pass_name="test", edits=edits)])
    runner: Any = source.family.runner(model, source.folder)
    asked, without = runner.pictures.prompt_ids(PROMPTS[0])
    seen: list[Tensor] = []
    codes = paint(runner.pictures, [asked], [without], Sampling(2.0), [generator_of(0, 0)], steps=8, watch=seen.append)
    for step in range(8):
        yes, no = (whole(runner, name, ids, codes[0, :step].tolist(), GRIDS[name][1]) for ids in (asked, without))
        torch.testing.assert_close(seen[step][0], 2 * yes - no, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_greedy_codes_of_janus_are_those_of_transformers(runners: dict[str, Any]) -> None:
    runner = runners["janus"]
    made = runner.pictures.processor(text=PROMPTS, generation_mode="image", padding=True, return_tensors="pt")
    theirs = runner.model.generate(**made, generation_mode="image", do_sample=False, guidance_scale=4)
    branches = [runner.pictures.prompt_ids(prompt) for prompt in PROMPTS]
    assert branches[0] == ([*(ord(character) - 28 for character in PROMPTS[0]), BEGIN], [0] * 9 + [BEGIN])
    asked, without = zip(*branches, strict=True)
    ours = paint(runner.pictures, asked, without, Sampling(4, sample=False), [generator_of(0, 0)] * 3)
    assert ours.tolist() == theirs.tolist() and len(ours.unique()) > 2


@torch.no_grad()
def test_greedy_codes_of_emu3_are_those_of_transformers(runners: dict[str, Any]) -> None:
    runner = runners["emu3"]
    model, (height, width) = runner.model, GRIDS["emu3"]
    words = model.vocabulary_mapping.image_tokens

    def allowed(batch: int, ids: Tensor) -> list[int]:
        place = len(ids) - int((ids == WRAPPER).nonzero()[0, 0])
        return [END_OF_ROW] if place % (width + 1) == 0 else words

    for prompt in PROMPTS[:2]:
        asked, without = runner.pictures.prompt_ids(prompt)
        assert asked[-5:] == [97, *(ord(character) - 28 for character in f"{height}*{width}"), WRAPPER]
        settings = GenerationConfig(do_sample=False, max_new_tokens=height * (width + 1), guidance_scale=3.0)
        theirs = model.generate(
            input_ids=torch.tensor([asked]), prefix_allowed_tokens_fn=allowed, generation_config=settings,
            negative_prompt_ids=torch.tensor([without]), attention_mask=torch.ones(1, len(asked)),
            negative_prompt_attention_mask=torch.ones(1, len(without)),
        )[0, len(asked) :].view(height, width + 1)  # fmt: skip
        assert (theirs[:, -1] == END_OF_ROW).all()
        ours = paint(runner.pictures, [asked], [without], Sampling(3.0, sample=False), [generator_of(0, 0)])
        assert (ours + FIRST_CODE).view(height, width).tolist() == theirs[:, :-1].tolist()


@pytest.mark.parametrize("name", PAINTERS)
def test_a_picture_does_not_depend_on_what_shares_the_batch(name: str, runners: dict[str, Any]) -> None:
    runner = runners[name]
    together = runner.generate(PROMPTS, 5)
    height, width = (side * 2 for side in GRIDS[name])
    assert [picture.shape for picture in together] == [(height, width, 3)] * 3
    assert together[0].dtype == np.uint8 and together[0].std() > 0
    for place, prompt in enumerate(PROMPTS):
        (alone,) = runner.generate([prompt], 5, places=[place])
        assert np.abs(alone.astype(int) - together[place]).max() <= 1
    (other,) = runner.generate(PROMPTS[:1], 6)
    (moved,) = runner.generate(PROMPTS[:1], 5, places=[1])
    assert np.abs(other.astype(int) - together[0]).max() > 1 and np.abs(moved.astype(int) - together[0]).max() > 1


@pytest.mark.parametrize("name", PAINTERS)
@torch.no_grad()
def test_pixels_are_those_of_the_processor(name: str, runners: dict[str, Any]) -> None:
    runner, (height, width) = runners[name], GRIDS[name]
    codes = torch.arange(height * width)[None] % 16
    decoded = runner.pictures.decode(codes, (height, width))
    if name == "janus":
        theirs = runner.model.decode_image_tokens(codes).permute(0, 3, 1, 2)
    else:
        rows = torch.cat([codes.view(height, width) + FIRST_CODE, torch.full((height, 1), END_OF_ROW)], 1).view(1, -1)
        rows = torch.cat([rows, torch.zeros(1, 3, dtype=torch.long)], 1)
        theirs = runner.model.decode_image_tokens(image_tokens=rows, height=height, width=width)
    assert torch.equal(decoded, theirs)
    rule = runner.pictures.processor.image_processor
    picture = rule.postprocess([decoded[0].float().numpy()], return_tensors="PIL.Image.Image")["pixel_values"][0]
    assert np.abs(np.asarray(picture).astype(int) - runner.pictures.to_pixels(decoded[0])).max() <= 1


def test_codes_are_drawn_by_their_chances() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
    wanted = torch.softmax(torch.tensor([2.0, 1.0, 0.0]) / 0.8, 0)
    generator = generator_of(0, 0)
    drawn = torch.stack([draw(logits[None], Sampling(1, temperature=0.8, top_k=3), [generator]) for _ in range(4000)])
    found = torch.bincount(drawn.flatten(), minlength=5) / 4000
    assert found[3:].sum() == 0
    # 4.5 standard deviations of the largest count
    torch.testing.assert_close(found[:3], wanted, rtol=0, atol=0.035)
    kept = torch.stack([draw(logits[None], Sampling(1, top_p=0.5), [generator]) for _ in range(50)])
    assert kept.unique().tolist() == [0]


def test_the_folders_settings_go_first() -> None:
    config = GenerationConfig(guidance_scale=7.0, temperature=0.5, do_sample=False)
    assert Sampling(3.0, top_k=9).of(config) == Sampling(7.0, False, 0.5, 9, 1.0)
    assert Sampling(3.0).of(None) == Sampling(3.0)


# -- calibration and counting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_calibration_sends_tokens_and_no_padding(name: str, runners: dict[str, Any]) -> None:
    runner = runners[name]
    stack = open_source(str(runner.folder)).family.stacks(runner.model)["main"]
    seen: list[int] = []

    def note(module: Any, inputs: Any, kwargs: Any, out: Any) -> None:
        seen.append((inputs[0] if inputs else kwargs["hidden_states"]).shape[:2].numel())

    handle = runner.model.get_submodule(f"{stack}.3").register_forward_hook(note, with_kwargs=True)
    questions = [UnderstandingItem(p, q, "an answer") for p, q in zip(PICTURES, QUESTIONS, strict=True)]
    runner.feed([*questions, TextSample("some text")])
    rows = [len(runner.preparer.prepare([item.image], item.question).ids) + 9 for item in questions]
    assert sum(seen) == sum(rows) + 9
    seen.clear()
    times: list[float] = []
    runner.feed([GenerationItem(prompt, 4) for prompt in PROMPTS], times.append)
    handle.remove()
    height, width = GRIDS[name]
    painted = height * width - 1 + (height - 1 if name == "emu3" else 0)
    prompts = [len(ids) for prompt in PROMPTS for ids in runner.pictures.prompt_ids(prompt)]
    assert sum(seen) == sum(prompts) + 6 * painted
    assert times[0] == 1 and times == sorted(times, reverse=True) and 0 < times[-1] < 0.1


def test_guidance_can_be_set_and_steps_cannot(folders: dict[str, Path]) -> None:
    runner = opened(folders["janus"])
    (before,) = runner.generate(["a"], 0)
    runner.settings(guidance=1.0)
    (without,) = runner.generate(["a"], 0)
    assert np.abs(before.astype(int) - without).max() > 1
    assert runner.pass_tokens("generation") == 8 + 15
    with pytest.raises(UsageError, match="a token a step"):
        runner.settings(steps=3)


def test_chameleon_says_that_it_cannot_paint(runners: dict[str, Any]) -> None:
    runner = runners["chameleon"]
    assert runner.tasks == ("understanding",)
    assert all(runners[name].tasks == ("understanding", "generation") for name in PAINTERS)
    with pytest.raises(ModelError, match="without the decoder"):
        runner.generate(["a cat"], 0)
    codes = runner.codes(["a cat"], [generator_of(0, 0)])
    assert codes.shape == (1, 64) and int(codes.max()) < 16 and codes.unique().numel() > 4


@pytest.mark.parametrize("name", NAMES)
def test_counting_needs_no_values_and_no_words(name: str, folders: dict[str, Path], runners: dict[str, Any]) -> None:
    source = open_source(str(folders[name]))
    skeleton = source.family.runner(source.skeleton(), folders[name] / "nowhere")
    height, width = GRIDS[name]
    # Four by four codes are looked at, of Emu3 with the ends of their rows.
    looked = {"janus": 16, "emu3": 4 * 5, "chameleon": 64}[name]
    begun = min(height * width, 64) - 1
    begun += (begun // width if name == "emu3" else 0)
    for runner in (skeleton, runners[name]):
        assert runner.pass_tokens("understanding") == looked + 6
        assert runner.pass_tokens("generation") == 2 * (8 + begun)
    for task in runners[name].tasks:
        work = runners[name].workload(task)
        assert work.seconds > 0 and all(value > 0 for value in work.measures.values())
    assert isinstance(skeleton, UnifiedRunner)


def test_without_a_processor_pictures_are_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    source = open_source(str(folders["janus"]))
    runner = source.family.runner(source.load(), tmp_path)
    with pytest.raises(ModelError, match=r"processor_config\.json"):
        runner.answer([PICTURES[0]], ["what?"])
    assert set(runner.probe()) >= {"text.logits", "question.hidden", "generation.logits", "generation.image"}
