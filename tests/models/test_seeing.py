"""Questions about pictures, against transformers' own processors, generation and forwards."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_data import write_pope
from hf_models import write_recipe
from hf_subject import FAMILY, Subject, passes, zeroed
from hf_zoo import Entry
from PIL import Image
from safetensors.torch import load_file
from seeing_models import KINDS, by_hand, model_of, write_seeing
from torch import Tensor
from transformers import GenerationConfig

from umcompress.calibrate.collect import collect
from umcompress.calibrate.declare import ChannelActivation, Scope
from umcompress.cli.main import main
from umcompress.documents.plan import DropBlock
from umcompress.errors import ModelError, PlanError, UsageError
from umcompress.evals.answers.pope import Pope
from umcompress.graph.model_graph import trace_model
from umcompress.models.hf.ask.processors import FILES
from umcompress.models.hf.ask.vision_runner import VisionLanguageRunner
from umcompress.models.hf.load.run_on_shapes import OnShapes
from umcompress.models.items import TextSample, UnderstandingItem
from umcompress.models.measure import weigh
from umcompress.models.source import open_source
from umcompress.run.verify import save_outputs

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, size, dtype=np.uint8) for size in ((20, 30, 3), (16, 16, 3), (33, 14, 3))]
QUESTIONS = ["what is it?", "how many?", "hm"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_seeing(name, tmp_path_factory.mktemp(name)) for name in KINDS}


@pytest.fixture(scope="module")
def runners(folders: dict[str, Path]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        source = open_source(str(folder))
        model: Any = source.load().double()
        # Grouped products know no float64.
        model.set_experts_implementation("eager")
        found[name] = source.family.runner(model, source.folder)
        assert isinstance(found[name], VisionLanguageRunner)
    return found


def prepared(name: str, pictures: list[Any], question: str) -> dict[str, Tensor]:
    """What the processor gives, with pictures in double precision."""
    made = by_hand(name, pictures, question)
    return {key: value.double() if value.is_floating_point() else value for key, value in made.items()}


@pytest.mark.parametrize("name", KINDS)
def test_answers_are_those_of_transformers(name: str, runners: dict[str, Any]) -> None:
    runner = runners[name]
    images: list[Any] = [*PICTURES, PICTURES[:2]]
    questions = [*QUESTIONS, "same?"]
    together = runner.answer(images, questions, 5)
    settings = GenerationConfig(do_sample=False, max_new_tokens=5)
    for image, question, answer in zip(images, questions, together, strict=True):
        assert runner.answer([image], [question], 5) == [answer]
        made = prepared(name, image if isinstance(image, list) else [image], question)
        out = runner.model.generate(**made, generation_config=settings)[0, made["input_ids"].shape[1] :]
        assert runner.tokenizer.text(out).strip() == answer
    assert len(set(together)) > 1


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_scores_are_those_of_plain_forwards(name: str, runners: dict[str, Any]) -> None:
    runner = runners[name]
    texts = ["no", "yes!", "b"]
    found = runner.score([PICTURES[0], None, PICTURES[2]], ["a?", "b?", "cd?"], [texts, ["no"], ["yes"]])
    assert [len(row) for row in found] == [3, 1, 1]
    for text, likely in zip(texts, found[0], strict=True):
        made = prepared(name, [PICTURES[0]], "a?")
        start, more = made["input_ids"].shape[1], [ord(character) - 28 for character in text]
        nats, greedy = 0.0, True
        # Read anew for each token: no padding, no neighbours, no tokens after it.
        for place, token in enumerate(more):
            call = lengthened(name, made, more[:place])
            chances = torch.log_softmax(runner.model(**call, use_cache=False).logits[0, start + place - 1], -1)
            nats += float(chances[token])
            greedy = greedy and int(chances.argmax()) == token
        assert likely.nats == pytest.approx(nats, rel=1e-5)
        assert likely.greedy == greedy


def lengthened(name: str, made: dict[str, Tensor], more: list[int]) -> dict[str, Tensor]:
    """With text after it: text is 0 everywhere but in PaliGemma, where answers are 1."""
    call = dict(made)
    for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if key in made:
            plain = {"input_ids": more, "attention_mask": [1] * len(more)}
            after = plain.get(key, [int(name == "paligemma")] * len(more))
            call[key] = torch.cat([made[key], torch.tensor([after], dtype=made[key].dtype)], dim=1)
    return call


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_batch_reads_as_single_questions_do(name: str, runners: dict[str, Any]) -> None:
    runner = runners[name]
    asked = [runner.preparer.prepare([picture], text) for picture, text in zip(PICTURES, QUESTIONS, strict=True)]
    found = list(runner._batches(dict(enumerate(asked)), 0))
    assert len(found) < 3 or name in ("internvl", "aya_vision", "idefics3", "llava_onevision")
    for part in found:
        together = runner._logits([asked[place] for place in part])
        for place, rows in zip(part, together, strict=True):
            made = prepared(name, [PICTURES[place]], QUESTIONS[place])
            alone = runner.model(**made, use_cache=False).logits[0]
            torch.testing.assert_close(rows[: len(alone)], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_the_picture_is_seen(name: str, runners: dict[str, Any]) -> None:
    runner = runners[name]
    blank = np.full_like(PICTURES[0], 128)
    turned = np.ascontiguousarray(PICTURES[0][::-1, ::-1])
    last = [runner._logits([runner.preparer.prepare([one], "what?")])[0, -1] for one in (PICTURES[0], blank, turned)]
    assert min(float((last[0] - other).abs().max()) for other in last[1:]) > 1e-3


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_statistics_are_those_of_hooks_on_plain_forwards(name: str, runners: dict[str, Any]) -> None:
    """Of vision tower and language model; items of one length share a batch, the others do not."""
    runner = runners[name]
    model = runner.model
    graph = trace_model(model, open_source(str(runner.folder)).family)
    sites = graph.feed_forwards(stack="all")
    assert {site.component for site in sites} == {"understanding", "shared"}
    pictured = [UnderstandingItem(PICTURES[0], "what?", "yes"), UnderstandingItem(PICTURES[2], "why??", "an eye"),
                UnderstandingItem(PICTURES[0], "whom?", "no!")]  # fmt: skip
    declared = ChannelActivation(Scope(stack="all"))
    measured = collect(graph, [declared], lambda: runner.feed([*pictured, TextSample("some text")]))[declared]
    seen: dict[str, list[Tensor]] = {site.path: [] for site in sites}
    handles = [
        model.get_submodule(site.consumer).register_forward_pre_hook(
            lambda module, inputs, path=site.path: seen[path].append(inputs[0].flatten(0, -2))
        )
        for site in sites
    ]  # fmt: skip
    for item in pictured:
        more = [ord(character) - 28 for character in item.answer]
        model(**lengthened(name, prepared(name, [item.image], item.question), more), use_cache=False)
    model(input_ids=torch.tensor([[ord(character) - 28 for character in "some text"]]), use_cache=False)
    for handle in handles:
        handle.remove()
    for site in sites:
        rows = torch.cat(seen[site.path])
        assert measured[site].tokens == len(rows)
        torch.testing.assert_close(measured[site].mean_abs, rows.abs().mean(0), rtol=1e-6, atol=1e-8)


# -- sizes and speed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_sizes_are_counted_with_a_picture_and_from_shapes_alone(name: str, folders: dict[str, Path]) -> None:
    source = open_source(str(folders[name]))
    model, skeleton = source.load(), source.skeleton()
    any_model: Any = model
    # Grouped products are unknown to the counter.
    any_model.set_experts_implementation("batched_mm")
    weighed = weigh(model, source.family, source.family.runner(model, folders[name]))
    planned = weigh(skeleton, source.family, source.family.runner(skeleton, folders[name] / "nowhere"))
    assert weighed == planned
    # Weights that are used by none of the modules that have them.
    apart = re.compile(r"head\.attention\.out|newline|embeddings\.position_embedding")
    idle = [value.numel() for name, value in model.named_parameters() if apart.search(name)]
    # Two of four experts.
    idle += [value.numel() // 2 for name, value in model.named_parameters() if ".experts." in name]
    total = weighed.parameters.total
    assert total - sum(idle) <= weighed.parameters.active["understanding"] <= total
    assert set(weighed.parameters.by_component) == {"understanding", "shared"}
    tower = sum(value.numel() for name, value in model.named_parameters() if re.search(r"vision|visual", name))
    assert weighed.parameters.by_component["understanding"] >= tower > 0
    if name != "qwen3_vl":
        return
    runner = source.family.runner(model, folders[name])
    work = runner.workload("understanding")
    assert work.seconds > 0 and all(value > 0 for value in work.measures.values())
    probe, again = runner.probe(), runner.probe()
    assert "question.logits" in probe and all(torch.equal(value, again[key]) for key, value in probe.items())


def test_values_that_follow_from_no_parameter_are_there_on_shapes() -> None:
    weight = torch.empty(8, 4, device="meta")
    ids = torch.tensor([[1, 5, 1]])
    with OnShapes():
        rows = torch.nn.functional.embedding(ids, weight)
        chosen = rows[ids == 1]
        ahead = torch.arange(3, device=rows.device)
        rows[ids == 5] = torch.zeros(1, 4)
    assert rows.is_meta and chosen.is_meta and chosen.shape == (2, 4)
    assert ahead.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", KINDS)
def test_what_a_fresh_process_is_to_compute_can_be_written(name: str, runners: dict[str, Any], tmp_path: Path) -> None:
    """Some models give one tensor under two names."""
    outputs = runners[name].probe()
    save_outputs(outputs, tmp_path / "expected.safetensors")
    stored = load_file(tmp_path / "expected.safetensors")
    assert stored.keys() == outputs.keys() and all(torch.equal(stored[key], outputs[key]) for key in outputs)


# -- edits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"glm4v", "qwen3_vl_moe"}))
@torch.no_grad()
def test_edits_answer_about_pictures_as_zeroed_models_do(name: str, folders: dict[str, Path]) -> None:
    model: Any = FAMILY.adopt(model_of(name).double())
    model.set_experts_implementation("eager")
    subject = Subject(name, Entry(KINDS[name].model), model)
    made = prepared(name, PICTURES[:1], "what?")
    settings = GenerationConfig(do_sample=False, max_new_tokens=3)
    for stack in FAMILY.stacks(model):
        last = len(subject.stack(stack)) - 1
        planned: list[Any] = [
            edit for kind in ("channel_prune", "head_prune") for edit in subject.plan(passes(stack)[kind]()).edits
        ]
        edits = [edit for edit in planned if f".{last}." not in edit.site]
        if not name.startswith("qwen3_vl") or stack == "main":
            edits.append(DropBlock(block=subject.stack(stack)[last]))
        edited, zero = subject.edited(*edits), zeroed(subject, edits)
        assert torch.allclose(edited(**made).logits, zero(**made).logits, rtol=0, atol=1e-9)
        answers = [one.generate(**made, generation_config=settings).tolist() for one in (edited, zero)]
        assert answers[0] == answers[1] and float((edited(**made).logits - model(**made).logits).abs().max()) > 1e-4


@pytest.mark.parametrize("tap", [-2, 2])
@torch.no_grad()
def test_a_connector_reads_what_it_read_when_blocks_above_go(tap: int) -> None:
    model: Any = model_of("llava").double()
    model.config.vision_feature_layer = tap
    subject = Subject("llava", Entry(KINDS["llava"].model), FAMILY.adopt(model))
    made = prepared("llava", PICTURES[:1], "what?")
    before = model(**made).logits
    for block in range(3):
        edits = [DropBlock(block=f"model.vision_tower.encoder.layers.{block}")]
        after = subject.edited(*edits)(**made).logits
        torch.testing.assert_close(after, zeroed(subject, edits)(**made).logits, rtol=0, atol=1e-9)
        read = block < (tap if tap > 0 else 4 + tap)
        assert torch.equal(after, before) != read


@pytest.mark.parametrize(("stack", "fed"), [("main", 1), ("model.visual.blocks", 0)])
def test_blocks_that_hand_the_picture_on_stay(stack: str, fed: int) -> None:
    subject = Subject("qwen3_vl", Entry(KINDS["qwen3_vl"].model), FAMILY.adopt(model_of("qwen3_vl")))
    with pytest.raises(PlanError, match="0, 1 one to one"):
        subject.edited(DropBlock(block=subject.stack(stack)[fed]))
    subject.edited(DropBlock(block=subject.stack(stack)[2]))


# -- what is missing --------------------------------------------------------------------------------------------------


def test_without_a_processor_texts_are_answered_and_pictures_are_an_error(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["qwen2_5_vl"], tmp_path / "bare")
    for name in FILES:
        (tmp_path / "bare" / name).unlink()
    source = open_source(str(tmp_path / "bare"))
    runner = source.runner(source.load())
    assert len(runner.score([None], ["a"], [["b"]])[0]) == 1
    with pytest.raises(ModelError, match=r"no processor_config\.json or preprocessor_config\.json"):
        runner.answer([PICTURES[0]], ["what?"])
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        runner.feed([UnderstandingItem(PICTURES[0], "what?", "x")])
    (tmp_path / "bare" / "processor_config.json").write_text('{"processor_class": "PixtralProcessor"}')
    runner = source.runner(source.load())
    with pytest.raises(ModelError, match="the processor of"):
        runner.answer([PICTURES[0]], ["what?"])


def test_places_of_pictures_in_the_question_are_kept(runners: dict[str, Any]) -> None:
    preparer = runners["llava"].preparer
    inside = preparer.prepare(PICTURES[:2], "one <image> two <image>?")
    assert inside.ids.count(96) == 32 and inside.ids[-4] != 96
    first, second = (place for place in range(len(inside.ids) - 1) if inside.ids[place : place + 2] == [4, 96])
    assert second - first == 16 + len(" two ")
    with pytest.raises(UsageError, match="LlavaProcessor"):
        preparer.prepare(PICTURES[:1], "one <image> two <image>?")


def test_questions_without_pictures_are_put_by_the_processors_template(runners: dict[str, Any]) -> None:
    runner = runners["llava"]
    assert runner.question_ids("hm") == [1, *(ord(character) - 28 for character in "user:hm;a:")]
    assert runners["paligemma"].question_ids("hm") == [ord(character) - 28 for character in "hm"]


# -- through the command line -----------------------------------------------------------------------------------------


def test_a_recipe_calibrates_and_scores_with_pictures(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Narrowed by what pictures do to the vision tower; out of core by the same plan."""
    monkeypatch.setattr(Pope, "new_tokens", 4)
    write_pope(tmp_path / "pope", each=2)
    rows = []
    for place, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{place}.png")
        rows.append(json.dumps({"image": f"{place}.png", "question": QUESTIONS[place], "answer": "a dot"}))
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    calibration = {"samples": 3, "data": str(tmp_path / "own.jsonl")}
    stack = "model.visual.blocks"
    steps = [
        {"pass": "channel_prune", "component": "understanding", "stack": stack, "keep_ratio": 0.5, "repair": "none"},
        {"pass": "channel_prune", "component": "shared", "keep_ratio": 0.75, "repair": "none"},
    ]  # fmt: skip
    evaluate = [{"pope": {"data": str(tmp_path / "pope")}}]
    ways = {"in": (evaluate, []), "out": ([], ["--out-of-core"])}
    for way, (scored, more) in ways.items():
        recipe = write_recipe(tmp_path, folders["qwen2_5_vl"], *steps, evaluate=scored, calibration=calibration)
        assert main(["apply", str(recipe), "-o", str(tmp_path / way), *more]) == 0
        report = json.loads((tmp_path / way / "report.json").read_text())
        assert report["checkpoint"]["reload_equal"] is True
        # Though it has answered: what is kept from a call is no setting.
        assert report["checkpoint"]["loads_with"] == "transformers"
    plans = [json.loads((tmp_path / way / "plan.json").read_text()) for way in ways]
    edits = [[plan["edits"] for plan in one.values()] for one in plans]
    assert edits[0] == edits[1] and edits[0][0]
    report = json.loads((tmp_path / "in" / "report.json").read_text())
    first, narrowed, _ = report["steps"]
    assert narrowed["parameters"]["active"]["understanding"] < first["parameters"]["active"]["understanding"]
    assert narrowed["macs_per_token"]["understanding"] < first["macs_per_token"]["understanding"]
    assert set(narrowed["scores"]["understanding"]["by_kind"]) == {"random", "popular", "adversarial"}
    source = open_source(str(tmp_path / "in"))
    pruned = source.runner(source.load())
    assert {block.mlp.down_proj.in_features for block in pruned.model.get_submodule(stack)} == {24}
    assert len(pruned.answer([PICTURES[0]], ["what?"], 3)) == 1


def test_tasks_of_lm_eval_show_their_pictures(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from umcompress.evals.text.lm_eval_tasks import LmEval

    source = open_source(str(folders["llava"]))
    runner: Any = source.runner(source.load())
    seen: list[Any] = []
    score = runner.score

    def noted(images: Any, *more: Any) -> Any:
        seen.extend(images)
        return score(images, *more)

    runner.score = noted
    found = LmEval(tasks=("scenes_choice",), limit=2).run(runner, tmp_path, print)["understanding"]
    assert len(seen) == 2 and all(image is not None for image in seen) and found.value in (0, 0.5, 1)
