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
from umcompress.evals.scenes.glyphs import PLURALS

seeds = st.integers(0, 2**32 - 1)


def _many(kind: str, count: int = 400, split: world.Split = "training") -> list[prompts.Prompt]:
    rng = np.random.default_rng(5)
    return [prompts.sample_prompt(rng, kind, split) for _ in range(count)]


def _truth(scene: world.Scene) -> list[geneval_rules.Detection]:
    found = []
    for thing in scene.objects:
        left, top, right, bottom = map(float, thing.box)
        found.append(geneval_rules.Detection(thing.shape, (left, top, right, bottom), 1.0, thing.look))
    return found


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_enough_strings_are_for_evaluation_and_none_for_both(kind: str) -> None:
    training = {prompt.text for prompt in _many(kind)}
    evaluation = {prompt.text for prompt in _many(kind, split="evaluation")}
    assert len(evaluation) >= 80
    assert not training & evaluation


def test_a_string_belongs_to_one_prompt_only() -> None:
    known: dict[str, prompts.Prompt] = {}
    for kind in prompts.KINDS:
        for prompt in _many(kind, 2000):
            assert known.setdefault(prompt.text, prompt) == prompt


@settings(max_examples=60)
@given(seeds, st.sampled_from([None, *prompts.KINDS]), st.sampled_from(["training", "evaluation"]))
def test_sampling_keeps_to_its_split_and_kind_and_repeats(
    seed: int, kind: str | None, split: world.Split
) -> None:
    prompt = prompts.sample_prompt(np.random.default_rng(seed), kind, split)
    assert prompts.is_evaluation_prompt(prompt.text) == (split == "evaluation")
    assert prompt.kind == prompt.metadata["tag"] == (kind or prompt.kind)
    assert prompt == prompts.sample_prompt(np.random.default_rng(seed), kind, split)


def test_metadata_has_genevals_form() -> None:
    assert prompts.KINDS == geneval_rules.TAGS
    for kind in prompts.KINDS:
        for prompt in _many(kind):
            assert set(prompt.metadata) - {"exclude"} == {"tag", "include", "prompt"}
            assert prompt.metadata["prompt"] == prompt.text
            assert ("exclude" in prompt.metadata) == (kind == "counting")
            include = prompt.metadata["include"]
            classes = [clause["class"] for clause in include]
            assert len(classes) == len(set(classes))
            looks = [clause["color"] for clause in include if "color" in clause]
            assert len(looks) == (0 if kind in ("single_object", "two_object") else len(include))
            assert len(set(looks)) == len(looks)
            assert set(looks) <= set(world.LOOKS)


def test_texts_say_what_the_metadata_ask_for() -> None:
    for prompt in _many("position"):
        target, subject = prompt.metadata["include"]
        relation, place = subject["position"]
        assert place == 0
        assert f"{subject['color']} {subject['class']} {relation} a" in prompt.text
        assert f"{target['color']} {target['class']}" in prompt.text.split(relation)[1]
    for prompt in _many("counting"):
        (clause,) = prompt.metadata["include"]
        number = prompts.NUMBERS[clause["count"]]
        assert f"{number} {clause['color']} {PLURALS[clause['class']]}" in prompt.text
        assert prompt.metadata["exclude"] == [{"class": clause["class"], "count": clause["count"] + 1}]
    texts = {prompt.text for prompt in _many("single_object", 2000)}
    assert {"a circle", "show me a leaf please", "an arrow"} & texts


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
        assert len({o.look for o in scene.objects}) == 1
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
    with pytest.raises(ValueError, match="unknown kind of prompt"):
        prompts.sample_prompt(np.random.default_rng(0), "style")


def test_the_prompts_stay_as_they_are() -> None:
    """Shipped weights are trained on these strings and on this split."""
    digest = hashlib.sha256()
    for kind in prompts.KINDS:
        for prompt in _many(kind):
            digest.update(repr((prompt, prompts.is_evaluation_prompt(prompt.text))).encode())
    rng = np.random.default_rng(0)
    for _ in range(200):
        digest.update(repr(prompts.scene_for_prompt(rng, prompts.sample_prompt(rng))).encode())
    assert digest.hexdigest()[:16] == "f787e4fea690cccf"
