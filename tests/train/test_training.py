"""Training as such: what changes, what the losses are, and that parts add up to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from training_models import ACTIVE, EXPERTS, names_of, quick, run, split

from umcompress.documents.base import Task
from umcompress.documents.plan import DropBlock, Plan
from umcompress.documents.training_options import LossWeights, TrainingOptions
from umcompress.errors import UsageError
from umcompress.evals.scenes.evaluation import Scenes
from umcompress.models.items import ImageText, UnderstandingItem
from umcompress.models.source import open_source
from umcompress.models.trainer import TrainingBatch
from umcompress.passes.router_train import RouterTrain
from umcompress.rewrite.apply import rewrite
from umcompress.rewrite.nn.experts import ExpertShape, SparseFeedForward
from umcompress.train.batches import Feed, StepTotals, split_by_share
from umcompress.train.losses import Routers
from umcompress.train.schedule import average_decay, learning_rate, peak_rate
from umcompress.train.state import FILE


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_rates_by_hand() -> None:
    options = TrainingOptions(steps=6, warm_up=2)
    half = [0.02 + 0.98 * (1 + c) / 2 for c in (1.0, 2**-0.5, 0.0, -(2**-0.5))]
    assert [learning_rate(step, options, 1.0) for step in range(6)] == pytest.approx([0.5, 1.0, *half])
    constant = TrainingOptions(steps=6, warm_up=1, learning_rate=0.25, schedule="constant")
    assert [learning_rate(step, constant, peak_rate(constant, 7)) for step in range(3)] == [0.25, 0.25, 0.25]
    assert peak_rate(options, 200) == pytest.approx(1e-3) and peak_rate(options, 4000) == pytest.approx(5e-5)


def test_the_mean_of_the_weights_by_hand(tiny_bagel: Path, tmp_path: Path) -> None:
    """The weights after every step, read from checkpoints, averaged anew in float64."""
    model = split(open_source(str(tiny_bagel)))
    mean = {name: tensor.double() for name, tensor in state(model).items() if name.endswith("gate.weight")}
    for steps in range(1, 5):
        planner = RouterTrain(
            steps=steps, batch_size=4, warm_up=0, learning_rate=0.01, schedule="constant", ema=0.25, checkpoint_every=1
        )
        values, _ = run(planner, tiny_bagel, tmp_path)
        held = load_file(tmp_path / FILE)
        share = min(0.25, steps / (steps + 9))
        assert average_decay(steps - 1, 0.25) == share
        for name, old in mean.items():
            mean[name] = share * old + (1 - share) * held[f"parameter/{name}"].double()
            torch.testing.assert_close(values[name].double(), mean[name], rtol=0, atol=1e-7)
            assert not torch.equal(values[name], held[f"parameter/{name}"])


def test_only_routers_learn_and_each_does(tiny_bagel: Path, tmp_path: Path) -> None:
    model = split(open_source(str(tiny_bagel)))
    before = state(model)
    flags = {name: tensor.requires_grad for name, tensor in model.named_parameters()}
    values, _ = run(RouterTrain(steps=2, batch_size=4, warm_up=0, learning_rate=0.01), tiny_bagel, tmp_path, model)
    assert len(values) == 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in values), name
    # All gradients of the first router came through the frozen experts of the blocks above it.
    assert all(not torch.equal(values[name], before[name]) for name in values)
    assert {name: tensor.requires_grad for name, tensor in model.named_parameters()} == flags
    assert not any(tensor.grad is not None for tensor in model.parameters())


def test_a_loss_far_above_reaches_the_first_router(tiny_bagel: Path, tmp_path: Path) -> None:
    """Without the losses at the blocks there is only the way down from the velocity."""
    only = LossWeights(task=1, distill_output=0, distill_blocks=0, balance=0)
    planner = RouterTrain(steps=1, batch_size=4, warm_up=0, losses=only, ema=0)
    model = split(open_source(str(tiny_bagel)))
    before = state(model)
    values, curve = run(planner, tiny_bagel, tmp_path, model)
    first = next(name for name in values if ".layers.0." in name)
    assert not torch.equal(values[first], before[first])
    assert set(curve.rows[0]["losses"]) == {"flow", "loss"}
    assert curve.rows[0]["losses"]["loss"] == pytest.approx(curve.rows[0]["losses"]["flow"])


def test_losses_fall(tiny_bagel: Path, tmp_path: Path) -> None:
    teacher = LossWeights(task=0)
    _, curve = run(quick(steps=20, batch_size=8, learning_rate=3e-3, losses=teacher), tiny_bagel, tmp_path)
    for name in ("blocks", "velocity"):
        values = [row["losses"][name] for row in curve.rows]
        assert np.mean(values[-5:]) < 0.7 * np.mean(values[:5]), name


@pytest.mark.parametrize("selector", [False, True])
def test_parts_add_up_to_the_whole_batch(tiny_bagel: Path, tmp_path: Path, selector: bool) -> None:
    """Both tasks, whose items have unequal numbers of rows, so that a mean of means would differ."""
    options = {"steps": 2, "tasks": {"generation": 1, "understanding": 1}, "ema": 0.0}
    results = []
    for number, parts in enumerate((1, 4)):
        model = split(open_source(str(tiny_bagel)), "understanding", selector)
        planner = quick(batch_size=8, gradient_accumulation=parts, **options)
        results.append(run(planner, tiny_bagel, tmp_path / str(number), model))
    (whole, one), (parts_values, four) = results
    for a, b in zip(one.rows, four.rows, strict=True):
        assert set(a["losses"]) >= {"flow", "cross_entropy", "velocity", "logits", "blocks", "balance"}
        # Where there is a selector, the spread that the balance loss is taken in is that of a part.
        names = [name for name in a["losses"] if not selector or name not in ("balance", "loss")]
        assert [b["losses"][n] for n in names] == pytest.approx([a["losses"][n] for n in names], rel=2e-4), names
    if not selector:
        for name in whole:
            torch.testing.assert_close(parts_values[name], whole[name], rtol=0, atol=3e-5)


def test_computing_blocks_again_changes_nothing(tiny_bagel: Path, tmp_path: Path) -> None:
    plain, _ = run(quick(steps=2), tiny_bagel, tmp_path / "a")
    again, _ = run(quick(steps=2, gradient_checkpointing=True), tiny_bagel, tmp_path / "b")
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], rtol=0, atol=1e-6)


def test_bfloat16_keeps_float32_weights(tiny_bagel: Path, tmp_path: Path) -> None:
    values, curve = run(quick(steps=1, bf16=True), tiny_bagel, tmp_path / "a")
    _, plain = run(quick(steps=1), tiny_bagel, tmp_path / "b")
    assert all(value.dtype == torch.float32 for value in values.values())
    low, high = curve.rows[0]["losses"]["flow"], plain.rows[0]["losses"]["flow"]
    assert low != high and low == pytest.approx(high, rel=0.05)


def test_a_teacher_that_is_the_student_has_nothing_to_teach(tiny_bagel: Path, tmp_path: Path) -> None:
    model = open_source(str(tiny_bagel)).load()
    planner = quick(steps=1, parameters=("*.layers.1.mlp_moe_gen.*",))
    _, curve = run(planner, tiny_bagel, tmp_path, model)
    losses = curve.rows[0]["losses"]
    assert losses["velocity"] == losses["blocks"] == 0.0 and losses["flow"] > 0
    assert "balance" not in losses


def test_without_a_block_only_the_final_output_is_distilled(tiny_bagel: Path, tmp_path: Path) -> None:
    source = open_source(str(tiny_bagel))
    model = split(source)
    dropped = "language_model.model.layers.1"
    rewrite(model, source.family, [Plan(pass_name="drop", edits=(DropBlock(block=dropped),))])
    said: list[str] = []
    values, curve = run(quick(steps=1), tiny_bagel, tmp_path, model, said)
    assert {name.split(".")[3] for name in values} == {"0", "1"}
    assert "blocks" not in curve.rows[0]["losses"] and curve.rows[0]["losses"]["velocity"] > 0
    assert any("2 of 3 blocks" in line and "final output" in line for line in said)


def test_the_tasks_that_reach_what_learns_are_trained(tiny_bagel: Path, tmp_path: Path) -> None:
    _, generation = run(quick(steps=1), tiny_bagel, tmp_path / "a")
    assert "cross_entropy" not in generation.rows[0]["losses"]
    model = open_source(str(tiny_bagel)).load()
    both = quick(steps=1, parameters=("*.layers.1.mlp.*",))
    _, curve = run(both, tiny_bagel, tmp_path / "b", model)
    assert {"cross_entropy", "flow"} <= set(curve.rows[0]["losses"])


def test_balance_by_hand() -> None:
    """E * sum of load times mean probability, of two calls of unequal length, against float64."""
    torch.manual_seed(0)
    shape = ExpertShape(6, 4, 2, 3, ("up",), "down", (False,), False)
    module = SparseFeedForward(shape, nn.ReLU())
    nn.init.normal_(module.gate.weight)
    routers = Routers({"here": module}, torch.device("cpu"))
    load = torch.tensor([0.5, 0.25, 0.25, 0.0])
    routers.load["here"].copy_(load)
    x = torch.randn(10, 6)
    found, gradients = [], []
    for part in (x[:3], x[3:]):
        with routers.listening():
            module(part)
        balance = routers.balance(TrainingBatch(None, {}, (len(part),)), StepTotals({}, (10,)))
        assert balance is not None
        found.append(float(balance.detach()))
        gradients.append(torch.autograd.grad(balance, module.gate.weight)[0].double())
    gate = module.gate.weight.detach().double().requires_grad_()
    logits = x.double() @ gate.T
    wanted = 4 * (load.double() * logits.softmax(-1).mean(0)).sum()
    assert sum(found) == pytest.approx(float(wanted.detach()), rel=1e-6)
    torch.testing.assert_close(sum(gradients), torch.autograd.grad(wanted, gate)[0], rtol=1e-5, atol=1e-7)
    chosen = functional.one_hot(logits.topk(2).indices, 4).sum((0, 1)).double()
    assert torch.equal(routers.counts["here"].double(), chosen)
    routers.end_step()
    expected = 0.9 * load + 0.1 * (chosen / 20).float()
    torch.testing.assert_close(routers.load["here"], expected)
    routers.remove()
    assert module.watcher is None and not module._forward_pre_hooks


def test_the_curve_knows_the_load(tiny_bagel: Path, tmp_path: Path) -> None:
    _, curve = run(quick(steps=2), tiny_bagel, tmp_path)
    low, high = curve.rows[-1]["load"]
    assert 0 <= low < ACTIVE / EXPERTS < high <= 1


class Counting:
    """Makes batches of nothing and notes the first number that each item draws."""

    tasks: tuple[Task, ...] = ("understanding", "generation")

    def batch(self, items: Sequence[Any], draws: Sequence[np.random.Generator]) -> TrainingBatch:
        return TrainingBatch([(item, draw.random()) for item, draw in zip(items, draws, strict=True)], {}, (1,))


def feed(options: TrainingOptions, shares: dict[Task, float], rank: int, world: int) -> Feed:
    """Of items that are no more than their task, place and seed."""

    def items(task: Task, count: int, seed: int) -> Any:
        return [(task, index, seed) for index in range(count)]

    trainer: Any = Counting()
    return Feed(options, shares, items, trainer, rank, world)


def drawn(world: int, parts: int) -> list[Any]:
    """What all processes together get in step 3."""
    options = TrainingOptions(batch_size=12, gradient_accumulation=parts, seed=5)
    feeds = [feed(options, {"generation": 2.0, "understanding": 1.0}, rank, world) for rank in range(world)]
    batches = [batch.data for one in feeds for batch in one.step(3)]
    assert len({len(batch) for batch in batches}) == 1
    # Every part has some of each task.
    assert all(len({item[0] for item, _ in batch}) == 2 for batch in batches)
    return sorted(entry for batch in batches for entry in batch)


def test_what_is_fed_does_not_depend_on_the_processes() -> None:
    alone = drawn(1, 1)
    assert len(alone) == 12 and len({number for _, number in alone}) == 12
    assert drawn(2, 1) == drawn(1, 3) == drawn(2, 2) == alone


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match="no multiple of 5"):
        feed(TrainingOptions(batch_size=12), {"generation": 1.0}, 0, 5)
    with pytest.raises(ValueError, match="gradient_accumulation"):
        TrainingOptions(batch_size=4, gradient_accumulation=3)


def test_shares_of_a_batch() -> None:
    assert split_by_share(10, {"generation": 1.0, "understanding": 3.0}) == {"understanding": 8, "generation": 2}
    assert split_by_share(3, {"generation": 1.0, "understanding": 100.0}) == {"understanding": 2, "generation": 1}
    assert split_by_share(4, {"generation": 0.2}) == {"generation": 4}


def test_training_data_is_none_of_the_evaluation() -> None:
    from umcompress.evals.scenes import prompts, world

    scenes = Scenes(prompts=60, questions=100)
    painted = scenes.training_items("generation", 120, 7)
    read = scenes.training_items("understanding", 120, 7)
    assert len(painted) == len(read) == 120
    texts = [item.prompt for item in painted if isinstance(item, ImageText)]
    assert len(texts) == 120 and not any(map(prompts.is_evaluation_prompt, texts))
    asked = [one.scene for one in scenes.asked()]
    held = {np.asarray(world.render(scene)).tobytes() for scene in asked}
    assert len(held) > 50
    assert all(world.is_evaluation(scene) for scene in asked)
    shown = [item.image for item in (*painted, *read) if isinstance(item, ImageText | UnderstandingItem)]
    assert len(shown) == 240 and not held & {np.asarray(image).tobytes() for image in shown}
    assert all(isinstance(item, UnderstandingItem) for item in read)
    other = scenes.training_items("generation", 120, 8)
    assert [item.prompt for item in other if isinstance(item, ImageText)] != texts


def test_training_pictures_show_what_their_prompts_say() -> None:
    from umcompress.evals.scenes.detector import detect
    from umcompress.evals.scenes.glyphs import PLURALS

    named = 0
    for item in Scenes().training_items("generation", 24, 3):
        assert isinstance(item, ImageText)
        things = detect(np.asarray(item.image))
        assert things
        for thing in things:
            assert thing.score == 1.0
            assert thing.label in item.prompt or PLURALS[thing.label] in item.prompt
            named += f"{thing.color} {thing.label}" in item.prompt
    assert named > 24


def test_names_come_from_the_plan(tiny_bagel: Path) -> None:
    source = open_source(str(tiny_bagel))
    model = split(source, selector=True)
    gates = names_of(RouterTrain(layers="1-2"), model, source)
    assert [name.split(".")[3] for name in gates] == ["1", "2"] and all(n.endswith(".gate.weight") for n in gates)
    learned = names_of(quick(), model, source)
    assert len(learned) == 3 * 4 and not any("selector" in name for name in learned)
