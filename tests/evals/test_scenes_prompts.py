"""Generation prompts: the split, GenEval's metadata, and scenes that satisfy them."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umcompress.evals.pictures import geneval_rules
from umcompress.evals.scenes import prompts, world
from umcompress.evals.scenes.detector import detect

seeds = st.integers(0, 2**32 - 1)
EVERYTHING = {kind: list(prompts.all_prompts(kind)) for kind in prompts.KINDS}


def _truth(scene: world.Scene) -> list[geneval_rules.Detection]:
    return [geneval_rules.Detection(o.shape, tuple(map(float, o.box)), 1.0, o.colour) for o in scene.objects]


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_strings_are_distinct_and_enough_are_for_evaluation(kind: str) -> None:
    texts = [prompt.text for prompt in EVERYTHING[kind]]
    assert len(texts) == len(set(texts))
    evaluation = sum(map(prompts.is_evaluation_prompt, texts))
    assert evaluation >= 15
    assert 0.1 < evaluation / len(texts) < 0.3


def test_a_string_belongs_to_one_prompt_only() -> None:
    texts = Counter(prompt.text for kind in prompts.KINDS for prompt in EVERYTHING[kind])
    assert set(texts.values()) == {1}
    assert "a red circle left of a blue square" in texts


@settings(max_examples=60)
@given(seeds, st.sampled_from([None, *prompts.KINDS]), st.sampled_from(["training", "evaluation"]))
def test_sampling_keeps_to_its_split_and_kind_and_repeats(
    seed: int, kind: str | None, split: world.Split
) -> None:
    prompt = prompts.sample_prompt(np.random.default_rng(seed), kind, split)
    assert prompts.is_evaluation_prompt(prompt.text) == (split == "evaluation")
    assert prompt.kind == prompt.metadata["tag"] == (kind or prompt.kind)
    assert prompt in EVERYTHING[prompt.kind]
    assert prompt == prompts.sample_prompt(np.random.default_rng(seed), kind, split)


def test_metadata_has_genevals_form() -> None:
    assert prompts.KINDS == geneval_rules.TAGS
    for kind, everything in EVERYTHING.items():
        for prompt in everything[:200]:
            assert set(prompt.metadata) - {"exclude"} == {"tag", "include", "prompt"}
            assert prompt.metadata["prompt"] == prompt.text
            assert ("exclude" in prompt.metadata) == (kind == "counting")
            classes = [clause["class"] for clause in prompt.metadata["include"]]
            assert len(classes) == len(set(classes))
    by_text = {prompt.text: prompt.metadata for prompt in EVERYTHING["position"] + EVERYTHING["counting"]}
    assert by_text["a red circle left of a blue square"]["include"] == [
        {"class": "square", "count": 1, "color": "blue"},
        {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]},
    ]
    assert by_text["draw three crosses please"] == {
        "tag": "counting",
        "include": [{"class": "cross", "count": 3}],
        "exclude": [{"class": "cross", "count": 4}],
        "prompt": "draw three crosses please",
    }


def test_half_of_the_position_prompts_name_colours() -> None:
    rng = np.random.default_rng(0)
    samples = [prompts.sample_prompt(rng, "position") for _ in range(2000)]
    coloured = sum("color" in prompt.metadata["include"][0] for prompt in samples)
    assert abs(coloured / 2000 - 0.5) < 0.05


@settings(max_examples=300)
@given(seeds, st.sampled_from(prompts.KINDS))
def test_scenes_satisfy_their_prompts_and_show_nothing_else(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    prompt = prompts.sample_prompt(rng, kind)
    scene = prompts.scene_for_prompt(rng, prompt)
    assert not world.is_evaluation(scene)
    assert geneval_rules.judge(prompt.metadata, _truth(scene)).correct
    include = prompt.metadata["include"]
    assert Counter(o.shape for o in scene.objects) == {c["class"]: c["count"] for c in include}
    if kind == "counting":
        assert len({o.colour for o in scene.objects}) == 1
    if kind == "position":
        boxes = {o.shape: o.box for o in scene.objects}
        subject, target = include[1]["class"], include[0]["class"]
        relation = include[1]["position"][0]
        assert geneval_rules.relations(boxes[subject], boxes[target]) == {relation}


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_true_drawings_are_judged_right(kind: str) -> None:
    rng = np.random.default_rng(1)
    right = 0
    for _ in range(150):
        prompt = prompts.sample_prompt(rng, kind, "evaluation")
        image = world.render(prompts.scene_for_prompt(rng, prompt))
        right += geneval_rules.judge(prompt.metadata, detect(image)).correct
    assert right >= 0.99 * 150


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_drawings_of_other_prompts_are_judged_wrong(kind: str) -> None:
    rng = np.random.default_rng(2)
    wrong = total = 0
    for _ in range(150):
        prompt, other = (prompts.sample_prompt(rng, kind) for _ in range(2))
        if prompt.metadata["include"] == other.metadata["include"]:
            continue
        scene = prompts.scene_for_prompt(rng, other)
        verdict = geneval_rules.judge(prompt.metadata, detect(world.render(scene)))
        wrong += not verdict.correct
        total += 1
        assert verdict.correct == geneval_rules.judge(prompt.metadata, _truth(scene)).correct
    assert wrong > 0.7 * total


def test_unknown_kind_is_an_error() -> None:
    with pytest.raises(KeyError):
        prompts.sample_prompt(np.random.default_rng(0), "style")


def test_the_prompts_stay_as_they_are() -> None:
    """Shipped weights are trained on these strings and on this split."""
    digest = hashlib.sha256()
    for kind in prompts.KINDS:
        for prompt in EVERYTHING[kind]:
            digest.update(repr((prompt, prompts.is_evaluation_prompt(prompt.text))).encode())
    rng = np.random.default_rng(0)
    for _ in range(200):
        digest.update(repr(prompts.scene_for_prompt(rng, prompts.sample_prompt(rng))).encode())
    assert digest.hexdigest()[:16] == "429f9fd624a49e5a"
