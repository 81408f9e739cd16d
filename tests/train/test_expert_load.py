"""The load of experts: counted right, by task and time, and drawn so that it fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_models import ACTIVE, EXPERTS, split

from umcompress.documents.base import Task
from umcompress.documents.expert_load import ExpertLoad, Experts
from umcompress.models.items import GenerationItem, UnderstandingItem
from umcompress.models.source import open_source
from umcompress.report import markdown, terminal
from umcompress.report.experts_view import experts_tables, load_shift, strip
from umcompress.rewrite.nn.experts import SparseFeedForward
from umcompress.train.expert_load import expert_load

PROMPTS: list[object] = [GenerationItem("a red circle", 1), GenerationItem("a blue square", 2)]


def test_shares_against_every_call(tiny_bagel: Path) -> None:
    """Chosen experts taken from `route` by a hook of its own, over the whole sampling run."""
    source = open_source(str(tiny_bagel))
    model = split(source)
    runner = source.runner(model)
    loads = expert_load(model, source.family, runner, {"generation": PROMPTS})
    assert loads is not None and len(loads.sites) == 3
    for site in loads.sites:
        module = model.get_submodule(site.site)
        assert isinstance(module, SparseFeedForward) and module.watcher is None
        seen: list[Tensor] = []

        hook = module.register_forward_pre_hook(lambda m, inputs, seen=seen: seen.append(m.route(inputs[0])[1]) or None)
        runner.feed(PROMPTS)  # type: ignore[arg-type]
        hook.remove()
        chosen = torch.cat(seen)
        counts = torch.bincount(chosen.flatten(), minlength=EXPERTS) / len(chosen)
        assert site.by_task["generation"] == pytest.approx(counts.tolist())
        assert sum(site.by_task["generation"]) == pytest.approx(ACTIVE) == site.active
        assert site.tokens == {"generation": len(chosen)} and site.component == "generation"
    assert [site.index for site in loads.sites] == [0, 1, 2]


def test_time_bins_follow_the_sampler(tiny_bagel: Path) -> None:
    """Three steps: three bins; the bins together are the whole."""
    source = open_source(str(tiny_bagel))
    model = split(source)
    loads = expert_load(model, source.family, source.runner(model), {"generation": PROMPTS})
    assert loads is not None
    assert [first for first, _ in loads.times] == sorted((t for t, _ in loads.times), reverse=True)
    assert len(loads.times) == 3 and loads.times[0] == (1.0, 1.0)
    for site in loads.sites:
        means = torch.tensor(site.by_time)
        # Guidance is off in the last step here, so that it has half of the tokens of the others.
        weights = torch.tensor([2.0, 2.0, 2.0 if loads.times[-1][0] > 0.4 else 1.0])
        mean = (means * weights[:, None]).sum(0) / weights.sum()
        assert site.by_task["generation"] == pytest.approx(mean.tolist(), abs=1e-6)


def test_by_task_and_without_experts(tiny_bagel: Path) -> None:
    source = open_source(str(tiny_bagel))
    picture = torch.zeros(36, 36, 3, dtype=torch.uint8).numpy()
    items: dict[Task, list[object]] = {
        "understanding": [UnderstandingItem(picture, "how many circles are there?", "0")], "generation": PROMPTS,
    }  # fmt: skip
    model = split(source, "understanding")
    loads = expert_load(model, source.family, source.runner(model), items)
    assert loads is not None
    for site in loads.sites:
        assert set(site.by_task) == {"understanding", "generation"} and site.component == "understanding"
        assert site.by_task["understanding"] != site.by_task["generation"]
    dense = source.load()
    assert expert_load(dense, source.family, source.runner(dense), items) is None


def test_strips_by_hand() -> None:
    assert strip((0.0, 0.01, 0.5, 0.97, 1.0)) == "·▁▄██"
    assert strip((0.0, 1.0) * 32) == "▄" * 32
    site = ExpertLoad(
        site="layers.3.mlp", index=3, component="generation", active=2,
        by_time=((1.0, 1.0, 0.0, 0.0), (0.5, 1.0, 0.5, 0.0)),
    )  # fmt: skip
    assert load_shift(site) == pytest.approx(0.25)


@pytest.mark.parametrize("experts", [16, 32, 64])
def test_tables_fit_eighty_columns(experts: int) -> None:
    shares = tuple(index / experts for index in range(experts))
    sites = tuple(
        ExpertLoad(
            site=f"layers.{index}.mlp", index=index, component="generation", active=experts // 2,
            by_task={"understanding": shares, "generation": shares}, by_time=(shares, shares, shares, shares),
        )
        for index in (0, 27)
    )  # fmt: skip
    times = ((1.0, 0.89), (0.86, 0.71), (0.67, 0.46), (0.4, 0.1))
    view = tuple(experts_tables(Experts(times=times, sites=sites), "04-a_long_name_of_a_step"))
    text = terminal.text(view)
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines()), text
    half, whole = strip(shares, 16), strip(shares)
    rows = [line for line in text.splitlines() if line.startswith("27 gen.")]
    assert len(rows) == 2 and rows[0].count(half) == 2 and rows[1].count(whole) == (4 if experts == 16 else 2)
    assert "t 0.40-0.10" in text and whole in markdown.text(view)
