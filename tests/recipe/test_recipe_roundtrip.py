"""Good recipes: what they become, that nothing is lost, and that overrides say what they say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ConfigDict, ValidationError
from recipe_fakes import Cut, Mend, Quiz, parse
from ruamel.yaml import YAML as PlainYaml

from umcompress.documents.base import Document
from umcompress.documents.gate import Gate
from umcompress.errors import RecipeError, UsageError
from umcompress.recipe.files import find_recipe, load_recipe, recipe_names
from umcompress.recipe.recipe import Calibration, Recipe
from umcompress.recipe.yaml_lines import YamlText
from umcompress.recipe.yaml_writer import yaml_text

TEXT = """\
model: m                       # a comment
calibration: {task: generation, samples: 8}
evaluate: [quiz: {limit: 3}]
steps:
  - pass: cut
    component: understanding
    keep_ratio: 1
    layers: [1, 2]
    calibration: {seed: 4}
  - {pass: mend, name: last, stop_if: {generation_drop: 0.1}}
"""


def test_recipe_becomes_documents() -> None:
    recipe = parse(TEXT)
    cut, mend = recipe.steps
    assert cut.name == "01-cut"
    assert cut.pass_ == Cut(
        component="understanding",
        keep_ratio=1.0,
        layers=(1, 2),
        calibration=Calibration(task="generation", samples=8, seed=4),
    )
    assert (mend.name, mend.pass_, mend.stop_if) == ("last", Mend(), Gate(generation_drop=0.1))
    assert recipe.evaluate == (Quiz(limit=3),)
    assert (recipe.device, recipe.dtype, recipe.seed, recipe.output) == ("cpu", None, 0, None)


def test_resolved_has_every_default_and_leaves_the_recipe_alone() -> None:
    recipe = parse(TEXT)
    before = recipe.model_dump_json()
    resolved = recipe.resolved()
    assert resolved["evaluate"] == [{"quiz": {"limit": 3}}]
    assert resolved["steps"][0]["calibration"] == {
        "task": "generation",
        "samples": 8,
        "seed": 4,
        "source": None,
        "data": None,
        "memory": 4.0,
    }
    assert resolved["steps"][1] == {
        "name": "last",
        "pass": "mend",
        "how": "none",
        "strength": 1.0,
        "stop_if": {"understanding_drop": None, "generation_drop": 0.1},
    }
    assert recipe.model_dump_json() == before
    assert parse(yaml_text(resolved)) == recipe


def test_a_pass_by_path_keeps_its_reference() -> None:
    recipe = parse(TEXT.replace("pass: cut", "pass: own.py:Cut"))
    assert recipe.steps[0].reference == "own.py:Cut"
    assert recipe.steps[0].name == "01-cut"
    assert recipe.resolved()["steps"][0]["pass"] == "own.py:Cut"


def test_overrides_and_settings() -> None:
    recipe = parse(
        TEXT,
        (
            "steps.0.keep_ratio=0.25",
            "steps.0.calibration.samples=2",
            "components.understanding=[model.visual.*]",
            "evaluate=[quiz]",
        ),
        settings={"device": "cuda:1"},
    )
    cut = recipe.steps[0].pass_
    assert isinstance(cut, Cut)
    assert cut.keep_ratio == 0.25
    assert cut.calibration == Calibration(task="generation", samples=2, seed=4)
    assert recipe.components == {"understanding": ("model.visual.*",)}
    assert recipe.component_globs() == {"model.visual.*": "understanding"}
    assert parse(yaml_text(recipe.resolved())) == recipe
    assert recipe.evaluate == (Quiz(),)
    assert recipe.device == "cuda:1"


def test_later_override_wins() -> None:
    assert parse(TEXT, ("seed=1", "seed=2")).seed == 2


def test_documents_are_frozen() -> None:
    recipe = parse(TEXT)
    with pytest.raises(ValidationError):
        recipe.seed = 3


@pytest.mark.parametrize("config", [ConfigDict(extra="allow"), ConfigDict(frozen=False)])
def test_a_document_cannot_be_opened(config: ConfigDict) -> None:
    with pytest.raises(TypeError, match="stays frozen"):
        type("Open", (Document,), {"model_config": config, "__module__": __name__})


ratios = st.floats(0.001, 1, allow_nan=False)
cuts = st.fixed_dictionaries(
    {"pass": st.sampled_from(["cut", "own.py:Cut"]), "keep_ratio": ratios,
     "component": st.sampled_from(["understanding", "shared"])},
    optional={"layers": st.one_of(st.just("2-20"), st.lists(st.integers(0, 99), min_size=1)),
              "calibration": st.fixed_dictionaries({}, optional={"samples": st.integers(1, 10**9)}),
              "stop_if": st.fixed_dictionaries({"understanding_drop": st.floats(0, 1)})},
)  # fmt: skip
mends = st.fixed_dictionaries({"pass": st.just("mend")}, optional={"strength": st.floats(-1e300, 1e300)})
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
recipes = st.fixed_dictionaries(
    {"model": words, "steps": st.lists(st.one_of(cuts, mends), min_size=1, max_size=4),
     "evaluate": st.sampled_from([["quiz"], [{"quiz": {"limit": 5}}]])},
    optional={"seed": st.integers(0, 2**63 - 1), "output": words,
              "dtype": st.sampled_from(["float32", "bfloat16"]),
              "calibration": st.fixed_dictionaries({}, optional={"seed": st.integers(0, 2**40)})},
)  # fmt: skip


@given(recipes)
def test_any_recipe_survives_the_round_trip(data: dict[str, Any]) -> None:
    recipe: Recipe = parse(yaml_text(data))
    again = parse(yaml_text(recipe.resolved()))
    assert again == recipe
    assert again.resolved() == recipe.resolved()


whole = st.integers(-(2**63) + 1, 2**63 - 1)  # larger ones are refused
values = st.recursive(
    st.one_of(st.none(), st.booleans(), whole, st.floats(allow_nan=False), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(words, values))
@example({":0": [":", "- a", "#", "", " ", "no", "1e3", "0x1", "~", "1:2", "\ud7ff\u2028\x85😀\t"]})
@example({"a": [[[]], [{}], {"b": [1]}, 1e-05, 1e300, float("inf"), -0.0]})
def test_yaml_reads_as_it_was_written(value: Any) -> None:
    source = YamlText(yaml_text(value), "x.yaml")
    assert source.data == value
    assert not source.problems
    assert PlainYaml(typ="safe", pure=True).load(yaml_text(value)) == value


def test_resolved_recipe_as_text() -> None:
    text = yaml_text(parse(TEXT).resolved())
    assert text.startswith("model: m\ncalibration:\n  task: generation\n  samples: 8\n")
    assert 'steps:\n  - name: "01-cut"\n    pass: cut\n' in text
    with pytest.raises(TypeError, match="no place"):
        yaml_text({"a": object()})


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_problems(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert str(caught.value)


def test_recipes_by_name_and_path(tmp_path: Any) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT)
    assert find_recipe(str(file)) == file
    loaded = load_recipe(str(file), lambda name, base: Cut if base == tmp_path else Mend, lambda *_: Quiz,
                         ("steps.1={pass: cut, component: shared, keep_ratio: 1}",))  # fmt: skip
    assert (loaded.text, loaded.file) == (TEXT, file)
    assert len(loaded.recipe.steps) == 2
    for name in recipe_names():
        assert find_recipe(name).is_file()
    for wrong in (str(tmp_path), "quikstart"):
        with pytest.raises(UsageError):
            find_recipe(wrong)
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(str(tmp_path / "bad.yaml"), lambda *_: Cut, lambda *_: Quiz)


@pytest.mark.parametrize(
    ("common", "own"), [("source: quiz", "data: f"), ("data: f", "source: quiz"), ("data: g", "data: f")]
)
def test_a_steps_own_origin_takes_the_place_of_the_recipes(common: str, own: str) -> None:
    step = f"{{pass: cut, component: shared, keep_ratio: 0.5, calibration: {{{own}}}}}"
    text = f"model: m\ncalibration: {{samples: 3, {common}}}\nsteps:\n- {step}"
    cut = parse(text).steps[0].pass_
    key, _, value = own.partition(": ")
    assert isinstance(cut, Cut)
    assert cut.calibration == Calibration.model_validate({"samples": 3, key: value})
    assert parse(yaml_text(parse(text).resolved())).steps == parse(text).steps
