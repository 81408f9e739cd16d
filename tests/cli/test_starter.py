"""`umcompress init`: a recipe that fits the model, whatever it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmark_data import write_pope
from hf_models import write_folder
from hf_zoo import ZOO
from hypothesis import given
from hypothesis import strategies as st
from seeing_models import write_seeing

from umcompress.cli.init import left_out
from umcompress.cli.main import main
from umcompress.documents.base import Task
from umcompress.documents.previews import Inspection, SiteInfo
from umcompress.documents.report import Size, read_report
from umcompress.plan.suggest import Starter, recipe_text, suggest


def sites(stack: str, component: str, blocks: int, width: int | None) -> Iterator[SiteInfo]:
    for index in range(blocks):
        place: dict[str, Any] = {"component": component, "stack": stack, "index": index}
        yield SiteInfo(path=f"{stack}.{index}", kind="block", shape="attention + feed_forward", **place)
        if width:
            yield SiteInfo(path=f"{stack}.{index}.mlp", kind="feed_forward", shape=f"{width} channels, gelu", **place)


def model(*parts: tuple[str, str, int, int | None]) -> Inspection:
    """(stack, component, blocks, channels) each."""
    size = Size(total=8, by_component={component: 4 for _, component, _, _ in parts})  # type: ignore[misc]
    stacks = {stack: blocks for stack, _, blocks, _ in parts}
    found = tuple(site for part in parts for site in sites(*part))
    return Inspection(model="m", family="f", stacks=stacks, parameters=size, bytes=size, sites=found)


BOTH: tuple[Task, ...] = ("understanding", "generation")


def passes(starter: Starter) -> list[tuple[str, str, str | None]]:
    steps = [one.step for one in starter.suggestions]
    return [(step["pass"], step["component"], step.get("stack")) for step in steps]


def test_understanding_is_cut_and_generation_split() -> None:
    decoder = ("decoder", "understanding", 8, 512), ("decoder", "generation", 8, 512)
    starter = suggest(model(*decoder, ("vision", "understanding", 2, 90)), BOTH)
    assert passes(starter) == [
        ("layer_drop", "understanding", None), ("channel_prune", "understanding", None),
        ("moe_split", "generation", None), ("channel_prune", "understanding", "vision"),
    ]  # fmt: skip
    assert [one.task for one in starter.suggestions] == [*BOTH[:1], *BOTH, *BOTH[:1]]
    assert starter.suggestions[1].step["multiple_of"] == 64
    assert "multiple_of" not in starter.suggestions[3].step
    assert "uniform" not in starter.suggestions[1].step


def test_a_model_of_one_part_stays_plain() -> None:
    drop, prune = suggest(model(("main", "shared", 8, 48)), ["understanding"]).suggestions
    assert drop.step["unit"] == "block"
    assert prune.step["uniform"] is True


def test_layers_that_differ_from_the_start_are_not_asked_to_be_alike() -> None:
    _, prune = suggest(model(("main", "shared", 4, 48), ("main", "shared", 2, 24)), ["understanding"]).suggestions
    assert "uniform" not in prune.step
    assert "24 and 48 wide" in prune.why


def test_deepseek_has_layers_of_two_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("some words to read\n" * 1000)
    write_folder(ZOO["deepseek_v3"].build(), tmp_path / "m")
    assert main(["init", "m", "--evaluation", "perplexity:data=text.txt"]) == 0
    text = Path("recipe.yaml").read_text()
    assert [step["pass"] for step in yaml.safe_load(text)["steps"]] == ["layer_drop", "channel_prune"]
    assert "Left out" not in text


def test_the_note_of_a_step_names_its_pass_once() -> None:
    assert left_out("one", "one: all of it\n  found: none\n  do: less") == "one: all of it; found: none; do: less"
    assert left_out("one", "calibration data\n  found: none") == "one: calibration data; found: none"


def test_what_cannot_be_calibrated_is_left_out_with_its_reason() -> None:
    starter = suggest(model(("decoder", "generation", 8, 512)), ["understanding"])
    assert starter.suggestions == ()
    assert starter.notes == ("generation in decoder: no calibration data for generation; no evaluation here has any",)


def test_widths_that_experts_do_not_divide_are_not_split() -> None:
    starter = suggest(model(("decoder", "generation", 8, 90)), BOTH)
    assert starter.suggestions == () and "generation in decoder" in starter.notes[0]


WIDTH = st.one_of(st.none(), st.integers(1, 2048))
PART = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["shared", *BOTH]), st.integers(1, 12), WIDTH)


@given(st.lists(PART, min_size=1, max_size=4, unique_by=lambda part: part[:2]), st.sampled_from([BOTH, BOTH[:1]]))
def test_any_text_reads_back_as_what_was_suggested(
    parts: list[tuple[str, str, int, int | None]], tasks: tuple[Task, ...]
) -> None:
    starter = suggest(model(*parts), tasks)
    assert starter.suggestions or starter.notes
    sources: dict[Task, str] = {"understanding": "one", "generation": "two"}
    text = recipe_text("m: #x", starter, {"one": {"data": "a: b"}, "two": {}}, sources)
    read = yaml.safe_load(text)
    assert read["model"] == "m: #x"
    assert read["evaluate"] == [{"one": {"data": "a: b"}}, "two"]
    steps = read["steps"] or []
    assert len(steps) == len(starter.suggestions)
    for step, one in zip(steps, starter.suggestions, strict=True):
        wanted = step.pop("calibration", read["calibration"])
        assert step == one.step
        assert wanted["task"] == one.task
        assert wanted.get("source", "one") == ("one" if one.task == "understanding" else "two")


def test_a_plain_language_model_from_init_to_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(ZOO["llama"].build(), tmp_path / "llama")
    Path("text.txt").write_text("A line of words, and one more. " * 200 + "\n" + "Other words to score. " * 200)
    named = "perplexity:data=text.txt,window=32,sample_characters=100"
    assert main(["init", "llama", "--evaluation", named, "-o", "mine.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "next: umcompress plan mine.yaml; then umcompress apply mine.yaml" in printed
    assert main(["plan", "mine.yaml"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: umcompress apply mine.yaml"
    assert main(["apply", "mine.yaml", "-o", "out"]) == 0
    report = read_report(Path("out"))
    assert [step.pass_ for step in report.steps] == [None, "layer_drop", "channel_prune"]
    assert report.checkpoint is not None and report.checkpoint.loads_with == "transformers"


def test_steps_that_a_model_has_nothing_for_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mixtral's feed-forwards are experts already: its layers can go, its channels cannot."""
    monkeypatch.chdir(tmp_path)
    write_folder(ZOO["mixtral"].build(), tmp_path / "mixtral")
    Path("text.txt").write_text("A line of words, and one more.\n" * 300)
    assert main(["init", "mixtral", "--evaluation", "perplexity:data=text.txt,window=32"]) == 2
    assert "a sample has 2000" in capsys.readouterr().err
    named = "perplexity:data=text.txt,window=32,sample_characters=100"
    assert main(["init", "mixtral", "--evaluation", named]) == 0
    assert [step["pass"] for step in yaml.safe_load(Path("recipe.yaml").read_text())["steps"]] == ["layer_drop"]
    assert main(["plan", "recipe.yaml"]) == 0


def test_the_built_in_model_needs_no_options_and_commands_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "bagel-mini", "-o", "my first.yaml"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "next: umcompress plan 'my first.yaml'; then umcompress apply 'my first.yaml'"
    assert main(["plan", "my first.yaml"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: umcompress apply 'my first.yaml'"
    before = Path("my first.yaml").read_bytes()
    assert main(["init", "bagel-mini", "-o", "my first.yaml"]) == 2
    assert Path("my first.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bagel-mini", "-o", "no/such/recipe.yaml"], "there is no folder"),
        (["bagel-mini", "--evaluation", "perplexity:data=nothing.txt"], "nothing.txt"),
        (["no-such-model"], "no such built-in model"),
        (["bagel-mini", "--evaluation", "clip_score"], "clip_score"),
        (["bagel-mini", "--evaluation", "perplexity:data={text}"], "it scores plain text"),
    ],
)
def test_what_cannot_be_begun_is_said(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words.\n" * 2000)
    monkeypatch.chdir(tmp_path)
    assert main(["init", *(argument.format(text=text) for argument in arguments)]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [text]


def test_evaluations_that_the_model_cannot_take_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe with them would end at its first evaluation."""
    monkeypatch.chdir(tmp_path)
    write_folder(ZOO["llama"].build(), tmp_path / "llama")
    write_folder(ZOO["siglip"].build(), tmp_path / "siglip")
    Path("text.txt").write_text("Some words.\n" * 2000)
    text = "perplexity:data=text.txt"
    assert main(["init", "llama"]) == 2
    assert "it shows pictures, and LlamaForCausalLM" in (said := capsys.readouterr().err)
    assert "--evaluation perplexity:data=FILE" in said
    assert main(["init", "llama", "--evaluation", text, "--evaluation", "scenes"]) == 2
    assert "with scenes" in capsys.readouterr().err
    assert main(["init", "siglip", "--evaluation", text]) == 2
    assert "evaluate: []" in capsys.readouterr().err
    assert not Path("recipe.yaml").exists()
    assert main(["evaluate", "siglip", "--evaluation", text]) == 2
    assert "SiglipVisionModel does not generate text" in capsys.readouterr().err


def test_a_benchmark_that_gives_nothing_to_calibrate_on_is_joined_by_the_built_in_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_seeing("llava", tmp_path / "llava")
    write_pope(tmp_path / "pope", each=2)
    assert main(["init", "llava", "--evaluation", "pope:data=pope"]) == 0
    text = Path("recipe.yaml").read_text()
    read = yaml.safe_load(text)
    assert read["calibration"] == {"task": "understanding", "samples": 64, "source": "scenes"}
    assert read["evaluate"] == [{"pope": {"data": "pope"}}] and len(read["steps"]) >= 3
    assert "data: FILE" in text
    assert main(["plan", "recipe.yaml"]) == 0
