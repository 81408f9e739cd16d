"""Bad recipes: each problem with its line, all of them at once, none with a traceback."""

from __future__ import annotations

import time

import pytest
from pydantic import ValidationError
from recipe_fakes import parse

from umcompress.documents.training_options import TrainingOptions
from umcompress.errors import ModelError, Problem, RecipeError

GOOD = """\
model: m
evaluate: [quiz]
steps:
  - pass: cut
    component: understanding
    keep_ratio: 0.5
"""


def problems(text: str, overrides: tuple[str, ...] = (), **more: object) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as caught:
        parse(text, overrides, **more)
    return caught.value.problems


def only(text: str, overrides: tuple[str, ...] = (), **more: object) -> Problem:
    found = problems(text, overrides, **more)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


@pytest.mark.parametrize(
    ("find", "replace", "line", "path", "message", "hint"),
    [
        ("model: m", "model: m\nsede: 1", 2, "sede", "unknown key", "did you mean 'seed'?"),
        ("model: m", "seed: 1", 1, "model", "is missing", "text"),
        ("model: m", "model: 7", 1, "model", "found 7", "allowed: text"),
        ("model: m", "model: ''", 1, "model", "at least 1 character", "text"),
        ("model: m", "model: m\nseed: -1", 2, "seed", "greater than or equal to 0; found -1", "at least 0"),
        ("model: m", "model: m\nseed: true", 2, "seed", "valid integer; found true", "whole number"),
        ("model: m", "model: m\ndevice: gpu", 2, "device", 'found "gpu"', "cuda:N"),
        ("model: m", "model: m\ndtype: float23", 2, "dtype", 'found "float23"', "did you mean 'float32'?"),
        ("model: m", "model: m\ncalibration: 3", 2, "calibration", "found 3", "samples"),
        (
            "model: m",
            "model: m\ncalibration:\n  sample: 3",
            3,
            "calibration.sample",
            "unknown key",
            "'samples'",
        ),
        ("model: m", "model: m\ncalibration: {samples: 0}", 2, "calibration.samples", "found 0", "above 0"),
        ("model: m", "model: m\nexport: {}", 2, "export", "says nothing to write", ""),
        ("model: m", "model: m\nexport: {too: vllm}", 2, "export.too", "unknown key", "did you mean 'to'?"),
        ("model: m", "model: m\nexport: vllm", 2, "export", 'found "vllm"', "to"),
        ("model: m", "model: m\nmodel: n", 2, "model", "twice (first on line 1)", "keep one"),
        ("model: m", "model: m\n? [a]\n: 1", 2, "", "a key must be a word", ""),
        ("[quiz]", "quiz", 2, "evaluate", 'found "quiz"', "[scenes]"),
        ("[quiz]", "[quizz]", 2, "evaluate.0", "no evaluation 'quizz'", "did you mean 'quiz'?"),
        ("[quiz]", "[quiz, quiz]", 2, "evaluate.1", "named twice", ""),
        ("[quiz]", "[[quiz]]", 2, "evaluate.0", "should be a name", "- scenes"),
        ("[quiz]", "[quiz: 7]", 2, "evaluate.0.quiz", "should be a mapping, found 7", "limit"),
        ("[quiz]", "[quiz: {limit: 0}]", 2, "evaluate.0.quiz.limit", "greater than 0", "above 0"),
        ("[quiz]", "[quiz: {limt: 1}]", 2, "evaluate.0.quiz.limt", "unknown key", "'limit'"),
        ("pass: cut", "pass: cutt", 4, "steps.0.pass", "there is no pass 'cutt'", "did you mean 'cut'?"),
        ("pass: cut", "pass: 4", 4, "steps.0.pass", "found 4", ""),
        ("pass: cut", "pas: cut", 4, "steps.0", "names no pass", "'pas'"),
        ("understanding", "undrestanding", 5, "steps.0.component", "undrestanding", "mean 'understanding'?"),
        ("    component: understanding\n", "", 4, "steps.0.component", "is missing", "one of understanding"),
        ("keep_ratio: 0.5", "keep_ratio: 1.5", 6, "steps.0.keep_ratio", "found 1.5", "at most 1 (Share"),
        ("keep_ratio: 0.5", "keep_ratio: 0", 6, "steps.0.keep_ratio", "greater than 0", "above 0"),
        ("keep_ratio: 0.5", "keep_ratio: .nan", 6, "steps.0.keep_ratio", "found NaN", "above 0"),
        ("keep_ratio: 0.5", "keep_ratio: '0.5'", 6, "steps.0.keep_ratio", 'found "0.5"', "number above 0"),
        ("keep_ratio: 0.5", "keep_ration: 0.5", 6, "steps.0.keep_ration", "unknown key", "'keep_ratio'"),
        ("0.5", "0.5\n    layers: {}", 7, "steps.0.layers", "is not allowed; found {}", "text or list"),
        ("0.5", "0.5\n    layers: [1, x]", 7, "steps.0.layers", "", "list of whole number"),
        ("0.5", "0.5\n    first: 10", 4, "steps.0", "first (10) lies behind last (9)", ""),
        ("0.5", "0.5\n    name: baseline", 7, "steps.0.name", "not a name", "taken"),
        ("0.5", "0.5\n    name: a/b", 7, "steps.0.name", "not a name", "letters"),
        ("0.5", "0.5\n    stop_if: {}", 7, "steps.0.stop_if", "limits nothing", "understanding_drop"),
        (
            "0.5",
            "0.5\n    stop_if: {generation_drop: 2}",
            7,
            "steps.0.stop_if.generation_drop",
            "found 2",
            "at most 1",
        ),
        (
            "0.5",
            "0.5\n    stop_if: {drop: 2}",
            7,
            "steps.0.stop_if.drop",
            "unknown key",
            "understanding_drop",
        ),
    ],
)
def test_problem(find: str, replace: str, line: int, path: str, message: str, hint: str) -> None:
    assert find in GOOD
    found = problems(GOOD.replace(find, replace, 1))
    first = next(problem for problem in found if (problem.file, problem.line) == ("r.yaml", line))
    assert first.path == path
    assert message in first.message
    assert hint in first.hint
    # A key that is missing because another was misspelt is the only second problem.
    assert all("is missing" in other.message for other in found if other is not first), [
        str(problem) for problem in found
    ]


def test_a_layout_that_the_model_cannot_be_written_in() -> None:
    text = GOOD + "export:\n  to: vlm\n"
    problem = only(text, layouts=lambda model: ("bagel", "vllm"))
    assert (problem.line, problem.path, problem.hint) == (8, "export.to", "did you mean 'vllm'?")
    assert 'm cannot be written as "vlm"' in problem.message
    assert parse(text.replace("vlm", "vllm"), layouts=lambda model: ("vllm",)).export is not None


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: [1\nb: 2\n", 2, "a bracket that is not closed"),
        ("model: m\n\tsteps: 1\n", 2, "a tab where a value begins"),
        ("model: 'm\n", 2, "a quote that is not closed"),
        ("model: m\n  steps: []\n", 2, "no `key: value` can be here"),
        ("steps:\n  - pass: a\n   keep: 1\n", 3, "indented otherwise than those it belongs to"),
        ("steps:\n  - pass: a\n- pass: b\n", 3, "indented otherwise than those it belongs to"),
        ("steps:\n- pass: a\n  keep_ratio 0.5\n  x: 1\n", 4, "a key without `: `"),
        ("model: m\n---\nmodel: n\n", 2, "not valid YAML"),
        ('model: m\nsteps:\n- {pass: "\\U00110000"}\n', 3, "U00110000 is no character"),
        ("model: *nothing\n", 1, "undefined alias"),
        ("model: &x [*x]\n", 1, "contains itself"),
        ("model: \x00\n", None, "not valid YAML"),
    ],
)
def test_yaml_that_does_not_parse(text: str, line: int | None, message: str) -> None:
    problem = only(text)
    assert problem.line == line
    assert message in problem.message
    assert "\n" not in problem.message


def test_aliases_cannot_blow_up() -> None:
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert "far too many values" in only(f"a0: &a0 [1]\n{levels}").message


@pytest.mark.parametrize("text", ["", "# nothing\n", "null\n"])
def test_empty_recipe(text: str) -> None:
    assert only(text).message == "the recipe is empty"


@pytest.mark.parametrize("text", ["- a\n", "word\n", "3\n"])
def test_recipe_that_is_no_mapping(text: str) -> None:
    assert "a recipe is a mapping" in only(text).message


@pytest.mark.parametrize("steps", ["", "steps: []\n", "steps:\n", "steps: 3\n", "steps: {pass: cut}\n"])
def test_recipe_without_steps(steps: str) -> None:
    problem = only(f"model: m\n{steps}")
    assert problem.path == "steps"
    assert "at least one step" in problem.message


def test_step_that_is_no_mapping() -> None:
    problem = only("model: m\nsteps:\n  - cut\n")
    assert (problem.line, problem.message) == (3, 'a step is a mapping, found "cut"')


def test_two_steps_of_one_name() -> None:
    twice = GOOD.replace("0.5\n", "0.5\n    name: x\n") + "  - pass: mend\n    name: x\n"
    problem = only(twice)
    assert (problem.line, problem.path) == (9, "steps.1.name")
    assert "names step 0 already" in problem.message


def test_gate_without_evaluation() -> None:
    text = GOOD.replace("evaluate: [quiz]\n", "").replace("0.5", "0.5\n    stop_if: {generation_drop: 0.1}")
    problem = only(text)
    assert (problem.line, problem.path) == (6, "steps.0.stop_if")
    assert "evaluates nothing" in problem.message


def test_unknown_model_joins_the_other_problems() -> None:
    def models(name: str) -> None:
        raise ModelError(f"the model {name!r}", "no such folder", "did you mean 'bagel-mini'?")

    found = problems(GOOD.replace("0.5", "2"), models=models)
    assert [(problem.line, problem.path) for problem in found] == [(1, "model"), (6, "steps.0.keep_ratio")]
    assert "no such folder" in found[0].message
    assert "bagel-mini" in found[0].hint


def test_all_problems_at_once_in_the_order_of_the_file() -> None:
    text = """\
modle: x
seed: no
evaluate: [quizz]
steps:
  - pass: cutt
  - pass: cut
    component: generation
    keep_ratio: 3
    keep_ratio: 4
"""
    found = problems(text, ("steps.7.x=1", "nonsense"))
    lines = [problem.line for problem in found]
    assert lines == [1, 1, 2, 3, 5, 8, 9, None, None]
    assert str(RecipeError(found)).startswith("the recipe has 9 problems:\n  r.yaml:1: ")


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("steps.0.keep_ratio=2", "found 2", "at most 1"),
        ("steps.0.keep_ratio=", "found null", "above 0"),
        ("steps.0.keep_ration=1", "unknown key", "'keep_ratio'"),
        ("steps.1.keep_ratio=1", "there is no number 1", "steps.0 to steps.0"),
        ("steps.first.keep_ratio=1", "'first' is not an index", "count from 0"),
        ("model.x=1", "model is a single value", ""),
        ("seed", "PATH=VALUE", "steps.1.keep_ratio"),
        ("=1", "PATH=VALUE", ""),
        ("seed=[", "not valid YAML", ""),
        ("seed={a: 1, a: 2}", "twice", ""),
        ("calibration.samples=none", 'found "none"', "above 0"),
        ("evaluate=[nothing]", "no evaluation 'nothing'", "quiz"),
    ],
)
def test_problem_of_an_override_names_the_option(override: str, message: str, hint: str) -> None:
    problem = only(GOOD, (override,))
    assert (problem.file, problem.line) == (f"--set {override}", None)
    assert message in problem.message
    assert hint in problem.hint


def test_problem_of_a_setting_names_its_option() -> None:
    assert only(GOOD, settings={"device": "gpu"}).file == "--device gpu"


THREE = """\
model: m
evaluate: [quiz]
steps:
  - {pass: cut, name: half, component: understanding, keep_ratio: 0.5, stop_if: {understanding_drop: 0.1}}
  - {pass: mend, after: half}
  - {pass: mend, name: last, after: 02-mend}
"""


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        # An evaluation with a mistake in it is an evaluation: the gate has a score.
        ([("[quiz]", "[quizz]")], ["evaluate.0"]),
        ([("[quiz]", "[quiz: {limit: 0}]")], ["evaluate.0.quiz.limit"]),
        ([("[quiz]", "quiz")], ["evaluate"]),
        ([("[quiz]", "[]")], ["steps.0.stop_if"]),
        # Steps come after one with a mistake in it, whatever it is.
        ([("0.5", "5")], ["steps.0.keep_ratio"]),
        ([("pass: cut", "pass: cutt")], ["steps.0.pass"]),
        ([("pass: mend, after: half", "pass: mendd, after: half")], ["steps.1.pass"]),
        ([("02-mend", "03-mend")], ["steps.2.after"]),
        # A wrong `after` is told with the rest: of another step, and of its own.
        ([("0.5", "5"), ("after: half", "after: hal")], ["steps.0.keep_ratio", "steps.1.after"]),
        ([("mend, after: half", "mend, how: no, after: hal")], ["steps.1.how", "steps.1.after"]),
        ([("name: half", "name: last"), ("0.5", "5")], ["steps.0.keep_ratio", "steps.1.after", "steps.2.name"]),
    ],
)
def test_all_at_once_and_none_that_follows_from_another(changes: list[tuple[str, str]], paths: list[str]) -> None:
    text = THREE
    for find, replace in changes:
        assert find in text
        text = text.replace(find, replace, 1)
    assert [problem.path for problem in problems(text)] == paths


MERGED = """\
model: m
evaluate: [quiz]
steps:
  - &first
    pass: cut
    component: understanding
    keep_ratio: 0.5
    calibration: {samples: 3}
  - <<: *first
    keep_ratio: 0.25
  - &mend {pass: mend, how: bias}
  - {<<: [*mend, {strength: 2.0, how: none}], name: third}
"""


def test_merge_keys_bring_what_is_not_said() -> None:
    """As YAML 1.1 defines them: a key of the mapping's own wins, then the first of several."""
    first, second, _, last = (step.resolved() for step in parse(MERGED).steps)
    assert second == first | {"name": "02-cut", "keep_ratio": 0.25}
    assert last == {"name": "third", "pass": "mend", "how": "bias", "strength": 2.0}
    # A mistake is told where it stands.
    low, own = problems(MERGED.replace("0.25", "2").replace("understanding", "all"))[1:]
    assert (low.line, low.path, own.line, own.path) == (6, "steps.1.component", 10, "steps.1.keep_ratio")
    assert problems(MERGED.replace("<<: *first", "<<: 3"))[0].message == "`<<` merges mappings only"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("!!int ''", "not a whole number: ''"), ("!!bool x", "not true or false: 'x'"), ("!!float ''", "not a number"),
        ('"\\UFFFFFFFF"', "is no character"), ("9" * 5000, "not a whole number: '999"),
        ("0x" + "f" * 5000, "too large a number: '0xfff"), (str(2**63), "too large a number"),
        ('"a\\0b"', "a character that no text has: 'a\\x00b'"), ('"\\ud800"', "a character that no text has"),
        ("[" * 4000, "more than 50 levels"), ("{" * 50_000, "more than 50 levels"), ("[" * 60 + "]" * 60, "50 levels"),
        ("\n" + "- " * 60, "50 levels"), ("'" + "x" * 600_000 + "'", "characters; a recipe has up to"),
    ],
)  # fmt: skip
def test_what_yaml_cannot_hold_is_a_problem_and_soon(written: str, message: str) -> None:
    began = time.process_time()  # of work: a busy machine is not slow at reading
    assert any(message in problem.message for problem in problems(GOOD + f"seed: {written}\n"))
    assert any(message in problem.message for problem in problems(GOOD, (f"seed={written}",)))
    assert time.process_time() - began < 20


@pytest.mark.parametrize("option", ["step.0.keep_ratio=0.5", "calibrate.samples=3", "steps.0.calibration.smples=3"])
def test_a_path_that_leads_nowhere_is_the_options_problem(option: str) -> None:
    problem = only(GOOD, (option,))
    assert problem.file == f"--set {option}"
    assert problem.message == "unknown key"


def test_a_training_seed_is_not_below_zero() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        TrainingOptions(seed=-1)
