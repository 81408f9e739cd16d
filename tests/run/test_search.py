"""`umcompress search`: the program against all combinations, sizes against runs, numbers of layers, resuming."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import pytest
import torch
from hf_models import write_folder, write_recipe
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import umcompress
from umcompress.cli.main import main
from umcompress.documents.base import Task
from umcompress.documents.previews import PlanReport
from umcompress.documents.report import read_report
from umcompress.documents.scores import Change, KindScore
from umcompress.documents.search import ChoiceScore, FrontPoint, Search
from umcompress.errors import UsageError
from umcompress.passes.channel_prune import ChannelPrune
from umcompress.plan.command import _load
from umcompress.run.alone import Alone
from umcompress.run.budgets import budgets_of
from umcompress.run.composed import composed_steps, planned_sizes, with_steps
from umcompress.run.front import priced
from umcompress.run.knapsack import Option, choose
from umcompress.run.output_distance import mean_distance
from umcompress.run.search import _numbers, _to_run
from umcompress.run.sensitivity import held_out_loss, shared_source
from umcompress.run.uniform import uniform_recipe

STEPS = [
    {"pass": "layer_drop", "name": "no-attention", "unit": "attention", "drop_count": 1},
    {"pass": "layer_drop", "name": "no-block", "drop_count": 1},
    {"pass": "head_prune", "name": "heads", "keep_ratio": 0.5},
    {"pass": "channel_prune", "name": "half", "keep_ratio": 0.5, "repair": "least_squares"},
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )
    model = write_folder(LlamaForCausalLM(config), folder / "llama")
    for name, texts in {"held": ["one two", "a longer text", "hm!", "the end"], "own": ["to calibrate", "on"]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return write_recipe(
        folder, model, *STEPS, evaluate=[{"task_loss": {"data": str(folder / "held.jsonl")}}],
        calibration={"data": str(folder / "own.jsonl"), "samples": 2},
    )


@pytest.fixture(scope="module")
def searched(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "search"
    assert main(["search", str(recipe), "--budget", "parameters=0.7", "--run", "all", "-o", str(out)]) == 0
    return out / "parameters=0.7"


def read(folder: Path) -> Search:
    return Search.model_validate_json((folder / "search.json").read_text())


@pytest.mark.parametrize("seed", range(8))
def test_the_program_finds_what_trying_all_finds(seed: int) -> None:
    draw = random.Random(seed)
    options = [
        Option(frozenset(draw.sample("abcde", draw.choice([1, 1, 2]))), draw.random(),
               {"size": float(draw.randint(1, 9)), "work": draw.random()}, {"g": draw.randint(0, 1)})
        for _ in range(9)
    ]  # fmt: skip
    needed, most = {"size": 14.0, "work": 1.1}, {"g": 2}
    best, names = float("inf"), None
    for picked in itertools.product([0, 1], repeat=9):
        own = [option for option, taken in zip(options, picked, strict=True) if taken]
        places = [place for option in own for place in option.places]
        if len(set(places)) < len(places) or sum(option.groups["g"] for option in own) > 2:
            continue
        if any(sum(option.savings[measure] for option in own) < value for measure, value in needed.items()):
            continue
        if (cost := sum(option.cost for option in own)) < best:
            best, names = cost, [number for number, taken in enumerate(picked) if taken]
    assert choose(options, needed, most) == names


def test_sizes_are_those_of_the_runs_and_uniform_is_no_smaller(searched: Path) -> None:
    found = read(searched)
    whole = found.sizes.parameters.total
    for point in found.front:
        report = read_report(searched / "runs" / point.name)
        assert point.shares == {"parameters": report.result.parameters.total / whole}
        assert point.shares["parameters"] <= 0.7
        alone = [choice for choice in found.choices if choice.name in point.choices]
        assert point.expected == {"understanding": sum(choice.changes["understanding"].value for choice in alone)}
        assert point.result == report.result and point.result.changes["understanding"].paired
        assert point.uniform is not None and point.uniform.result is not None
        # One channel of three layers is 3 * 3 * 32 parameters.
        left = point.uniform.result.parameters.total - report.result.parameters.total
        assert 0 <= left < 3 * 3 * 32
        assert point.uniform.shares["parameters"] == point.uniform.result.parameters.total / whole


def test_a_choice_scored_by_loss_costs_what_its_own_run_costs(recipe: Path, tmp_path: Path) -> None:
    """Scored on the calibration's items, as the recipe's own judge the result."""
    command = ["search", str(recipe), "--budget", "parameters=0.7", "--score", "loss", "-o", str(tmp_path / "by-loss")]
    assert main(command) == 0
    found = read(tmp_path / "by-loss" / "parameters=0.7")
    assert found.score == "loss" and not any(one.distances for one in found.choices)
    choice = next(one for one in found.choices if (one.step, one.layers) == (3, (1,)))
    own = json.loads(recipe.read_text())
    loss = {**found.loss, "limit": None}
    del loss["source"]
    alone = write_recipe(
        tmp_path, Path(own["model"]), {**STEPS[3], "layers": "1"}, evaluate=[{"task_loss": loss}],
        calibration=own["calibration"],
    )
    assert main(["apply", str(alone), "-o", str(tmp_path / "run")]) == 0
    step = read_report(tmp_path / "run").steps[-1]
    assert step.changes == choice.changes
    assert choice.sizes is not None and choice.sizes.parameters == step.parameters


def test_a_choice_costs_how_far_its_outputs_are(recipe: Path, searched: Path, tmp_path: Path) -> None:
    """Against logits that transformers computes of the folder that the choice alone writes, in float64."""
    found = read(searched)
    choice = next(one for one in found.choices if (one.step, one.layers) == (3, (1,)))
    own = json.loads(recipe.read_text())
    alone = write_recipe(tmp_path, Path(own["model"]), {**STEPS[3], "layers": "1"}, calibration=own["calibration"])
    assert main(["apply", str(alone), "-o", str(tmp_path / "run")]) == 0
    unpruned, changed = (
        umcompress.load(folder).double() for folder in (own["model"], tmp_path / "run" / "model")
    )
    texts = [json.loads(line)["text"] for line in Path(own["calibration"]["data"]).read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(own["model"])
    rows, losses = list[float](), list[float]()
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            wanted, mine = (model(input_ids=ids).logits[0, :-1].log_softmax(-1) for model in (unpruned, changed))
        rows.append(float((wanted.exp() * (wanted - mine)).sum(-1).mean()))
        losses.append(float((wanted - mine).gather(-1, ids[0, 1:, None]).mean()))
    distance = choice.distances["understanding"]
    assert distance.n == 2 and distance.value == pytest.approx(sum(rows) / 2, rel=1e-3) and distance.value > 0
    assert choice.changes["understanding"].value == pytest.approx(sum(losses) / 2, abs=1e-6)


def test_distances_by_hand() -> None:
    """Velocities by their squares; distributions by the divergence from the unpruned model's, not to it."""
    wanted = {"velocity": torch.zeros(100, 4)}
    mine = {"velocity": torch.arange(400.0).reshape(100, 4)}
    assert mean_distance(mine, wanted) == pytest.approx(sum(value**2 for value in range(400)) / 400)
    unpruned, changed = [[0.5, 0.5], [0.9, 0.1]], [[0.75, 0.25], [0.1, 0.9]]
    by_hand = sum(p * math.log(p / q) for one, other in zip(unpruned, changed, strict=True)
                  for p, q in zip(one, other, strict=True)) / 2  # fmt: skip
    logits = ({"logits": torch.tensor(rows).log() + 3} for rows in (changed, unpruned))
    assert mean_distance(*logits) == pytest.approx(by_hand)


def test_a_search_goes_on_and_shows_the_same(
    recipe: Path, searched: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [path.name for path in searched.iterdir() if path.suffix in (".json", ".yaml", ".svg", ".html")]
    before = {name: (searched / name).read_bytes() for name in names}
    monkeypatch.setattr(Alone, "_measured", lambda *arguments: pytest.fail("measured again"))
    command = ["search", str(recipe), "--budget", "parameters=0.7", "--run", "all", "-o", str(searched.parent)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "front-1" in shown and "uniform-1" in shown and "next: umcompress compare" in shown
    assert before == {name: (searched / name).read_bytes() for name in before}
    assert (searched / "search.png").read_bytes().startswith(b"\x89PNG")


def test_uniform_widths_are_those_of_the_stack_that_is_cut(tmp_path: Path) -> None:
    """Other stacks may be wider: a share of their widths may be none of these."""
    path = write_recipe(tmp_path, Path("bagel-mini"), STEPS[3])
    recipe = _load(str(path), (), {}).recipe
    source = shared_source(recipe.model, None, "cpu", False)
    graph = Alone(recipe, source, held_out_loss({}), tmp_path).graph
    own = {site.width for site in graph.feed_forwards()}
    assert len(own) == 1 and {site.width for site in graph.feed_forwards(stack="all")} != own
    choices = [
        ChoiceScore(name=component, step=0, component=component, stack="decoder", layers=(0,),
                    branches=(f"x feed_forward {component}",))
        for component in ("understanding", "generation")
    ]  # fmt: skip
    for share in (0.999, 0.9):
        made = uniform_recipe(recipe, source, graph, choices, "parameters", share)
        assert made is not None
        steps, shares = made
        cuts = [step.pass_ for step in steps if isinstance(step.pass_, ChannelPrune)]
        assert len(cuts) in (0, 2) and all((cut.keep_ratio * min(own)).is_integer() for cut in cuts)
        assert shares["parameters"] >= share


def test_blocks_that_go_renumber_later_steps(recipe: Path) -> None:
    loaded = _load(str(recipe), (), {})
    source = shared_source(loaded.recipe.model, None, "cpu", False)
    graph = Alone(loaded.recipe, source, held_out_loss({}), recipe.parent).graph

    def pick(step: int, layer: int, *kinds: str, dropped: bool = True) -> ChoiceScore:
        names = tuple(f"model.layers.{layer} {kind} shared" for kind in kinds)
        return ChoiceScore(name=f"{step}-{layer}", step=step, component="shared", stack="main", layers=(layer,),
                           branches=names, dropped=names if dropped else ())  # fmt: skip

    swapped = loaded.recipe.model_copy(update={"steps": (loaded.recipe.steps[1], *loaded.recipe.steps)})
    cut = pick(4, 1, "feed_forward", dropped=False)
    picked = [pick(0, 0, "attention", "feed_forward"), pick(1, 2, "attention"), cut]
    steps = composed_steps(swapped, graph, picked)
    assert [(step.pass_.name, getattr(step.pass_, "drop", None)) for step in steps] == [  # type: ignore[attr-defined]
        ("channel_prune", None), ("layer_drop", (0,)), ("layer_drop", (1,))
    ]  # fmt: skip
    sizes = planned_sizes(with_steps(swapped, steps), source)
    whole = planned_sizes(with_steps(swapped, ()), source).parameters.total
    attention, channel, norm = 32 * 32 * 2 + 32 * 16 * 2, 3 * 32, 32
    gone = (attention + 48 * channel + 2 * norm) + (attention + norm) + 24 * channel
    assert whole - sizes.parameters.total == gone


@pytest.mark.parametrize(("texts", "said"), [
    ([], "no budget"), (["parameters"], "MEASURE=SHARE"), (["active.genertion=0.5"], "active.generation"),
    (["bytes=1.5"], "share"), (["bytes=0.5", "bytes=0.6"], "already"),
])  # fmt: skip
def test_what_is_no_budget(texts: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        budgets_of(texts)


def test_a_budget_out_of_reach_says_what_is_in_reach(
    recipe: Path, searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(recipe), "--budget", "parameters=0.01", "-o", str(searched.parent)]) == 2
    assert "reach parameters=0." in capsys.readouterr().err
    assert main(["search", str(recipe), "--budget", "active.generation=0.5", "-o", str(searched.parent)]) == 2
    assert "no generation" in capsys.readouterr().err


def test_plain_results_have_all_layers_alike(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, out = ["--set", f"steps={json.dumps([STEPS[1], STEPS[3]])}"], tmp_path / "out"
    budget = ["--budget", "parameters=0.5", "--uniform"]
    assert main(["search", str(recipe), *steps, *budget, "-o", str(out)]) == 0
    found = read(out / "parameters=0.5_uniform")
    assert [choice.layers for choice in found.choices] == [(0,), (1,), (2,), (0, 1, 2)]
    (point,) = found.front
    assert point.shares["parameters"] <= 0.5 and point.result is None and point.uniform is None
    # Neither half of the channels nor a block is enough.
    assert len(point.choices) > 1
    capsys.readouterr()
    assert main(["plan", str(out / "parameters=0.5_uniform" / point.recipe), "--format", "json"]) == 0
    plan = PlanReport.model_validate_json(capsys.readouterr().out)
    assert plan.loads_with == "transformers"
    assert plan.steps[-1].after.total == round(point.shares["parameters"] * found.sizes.parameters.total)
    beyond = ["--budget", "parameters=0.01", "--uniform"]
    assert main(["search", str(recipe), *steps, *beyond, "-o", str(out)]) == 2
    assert "reach parameters=0." in capsys.readouterr().err
    assert main(["search", str(recipe), *budget, "-o", str(tmp_path / "parts")]) == 2
    assert "no-attention" in capsys.readouterr().err


def test_training_is_no_choice(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = json.dumps([{"pass": "adapt", "name": "learn", "steps": 1}])
    command = ["search", str(recipe), "--set", f"steps={steps}", "--budget", "bytes=0.5", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert "learn" in capsys.readouterr().err


def test_a_noisy_score_costs_what_it_may_be() -> None:
    """The lower of two values is the dearer one where its interval reaches higher; a sure gain costs nothing."""

    def choice(value: float, half: float) -> ChoiceScore:
        changed = Change(value=value, low=value - half, high=value + half, beyond_noise=abs(value) > half)
        return ChoiceScore(name="c", step=0, component="shared", stack="main", layers=(0,),
                           changes={"understanding": changed})  # fmt: skip

    noisy, sure, gain = priced([choice(0.01, 0.2), choice(0.05, 0.01), choice(-0.1, 0.05)], {"understanding": 1.0})
    assert noisy > sure > gain > 0 and gain == pytest.approx(1e-6)


def test_a_distance_goes_before_a_loss() -> None:
    """Two choices that change the loss alike by luck, and their outputs unlike."""
    changed = Change(value=0.0, low=-0.1, high=0.1, beyond_noise=False)
    near, far = (
        ChoiceScore(
            name="c", step=0, component="shared", stack="main", layers=(0,), changes={"understanding": changed},
            distances={"understanding": KindScore(value=value, low=0, high=1, n=2)},
        )
        for value in (0.1, 0.4)
    )  # fmt: skip
    assert priced([near, far], {"understanding": 1.0}) == pytest.approx([0.4 + 1e-6, 1.6 + 1e-6])


def test_the_middle_weighs_the_tasks_most_alike() -> None:
    weights: list[dict[Task, float]] = [
        {"understanding": 0.1, "generation": 0.9}, {"understanding": 0.3, "generation": 0.7},
    ]  # fmt: skip
    front = [FrontPoint(name="", recipe="", weights=one, choices=()) for one in weights]
    assert _numbers(_to_run("middle"), front) == {2}
    assert _numbers(_to_run("all"), front) == {1, 2} and _numbers(_to_run("2"), front) == {2}
    for wrong in ("0", "1,0", "-1", "first", "1,"):
        with pytest.raises(UsageError, match="numbers of the front"):
            _to_run(wrong)
