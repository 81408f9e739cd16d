"""lm-eval over our models, in our evaluation and on its own command line.  Reported as skipped where it is missing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hf_models import write_folder, write_recipe
from tiny_bagel import write_tiny_bagel
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("lm_eval", reason="lm-eval is not installed: make test installs it")

from umcompress.cli.main import main
from umcompress.errors import UsageError
from umcompress.evals.text._lm import cut, greedy_settings, identity, language_model
from umcompress.evals.text._lm_scores import interval, scored
from umcompress.evals.text.lm_eval_tasks import SHIPPED, LmEval
from umcompress.lm_eval import TASKS, __main__, register
from umcompress.models.source import open_source

WORDS = ("cat sat", "dog ran", "red hat", "sun set", "old man", "big box")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of lm-eval's own is looked through: that takes ten seconds, and none of it is named here."""
    from lm_eval import tasks

    known = tasks.TaskManager

    def ours(*args: Any, **kwargs: Any) -> Any:
        return known(*args, **kwargs | {"include_defaults": False})

    monkeypatch.setattr(tasks, "TaskManager", ours)
    monkeypatch.setattr("umcompress.evals.text._lm_tasks.TaskManager", ours)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )
    return write_folder(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bagel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("bagel") / "model")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks with a few documents: choices, an answer, the likelihood of whole texts."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"text": f"{i} the {word}", "choices": list(WORDS), "right": i} for i, word in enumerate(WORDS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"""dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
"""
    (folder / "pick.yaml").write_text(common + """task: pico_pick
output_type: multiple_choice
doc_to_text: "{{text}}:"
doc_to_choice: choices
doc_to_target: right
metric_list: [{metric: acc}, {metric: acc_norm}]
""")
    (folder / "say.yaml").write_text(common + """task: pico_say
output_type: generate_until
doc_to_text: text
doc_to_target: "{{choices[right]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
""")
    (folder / "read.yaml").write_text(common + """task: pico_read
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""")
    return folder


PICO = ("pico_pick", "pico_say", "pico_read")


def command(function: Any, monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> dict[str, Any]:
    """lm-eval's command line in this process; what it wrote to its output folder."""
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments, "--output_path", str(out)])
    function()
    files = sorted(out.rglob("results_*.json"))
    assert len(files) == 1
    found: dict[str, Any] = json.loads(files[0].read_text())["results"]
    return found


def peer(monkeypatch: pytest.MonkeyPatch, model: Path, tasks: Path, out: Path) -> dict[str, Any]:
    from lm_eval.__main__ import cli_evaluate

    settings = ("--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu", "--include_path", str(tasks))
    return command(cli_evaluate, monkeypatch, out, *settings, "--tasks", ",".join(PICO))


def test_the_evaluation_of_a_compressed_model_is_the_peers_of_its_folder(
    llama: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"tasks": list(PICO), "include_path": str(local)}
    step = {"pass": "layer_drop", "unit": "block", "drop_count": 1, "score": "last"}
    recipe = write_recipe(tmp_path, llama, step, evaluate=[{"lm_eval": options}])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 0
    steps = json.loads((tmp_path / "run" / "report.json").read_text())["steps"]
    before, after = (step["evaluations"]["lm_eval"]["understanding"]["numbers"] for step in steps)
    found = peer(monkeypatch, tmp_path / "run" / "model", local, tmp_path / "peer")
    for task in PICO:
        for name, value in found[task].items():
            metric, _, chosen = name.partition(",")
            if chosen and not metric.endswith("_stderr"):
                assert after[f"{task}: {metric}"]["value"] == pytest.approx(value, rel=1e-6)
    assert before["pico_read: bits_per_byte"]["value"] != pytest.approx(found["pico_read"]["bits_per_byte,none"])


def test_an_untied_output_layer_stays_untied(llama: Path) -> None:
    """The peer's class ties the weights of whatever it is given."""
    source = open_source(str(llama))
    model: Any = source.load()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    language_model(source.runner(model))
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert "tie_weights" not in vars(model)


def request(task: str, document: int, *arguments: Any) -> Any:
    return SimpleNamespace(args=arguments, task_name=task, doc_id=document, idx=0)


def test_ours_over_a_text_model_is_the_peers(llama: Path) -> None:
    from umcompress.evals.text._lm import RunnerLM

    source = open_source(str(llama))
    runner: Any = source.runner(source.load())
    theirs, ours = language_model(runner), RunnerLM(runner)
    pairs = [request("t", 0, "a dog ", "ran"), request("t", 0, "a dog ", "sat far"), request("t", 1, "", "cat")]
    for one, other in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-5) and one[1] == other[1]
    texts = [request("t", 0, "nobody knows why"), request("t", 1, "it is")]
    expected = theirs.loglikelihood_rolling(texts)
    # The peer puts the beginning token before a text by itself; its tokenizer adds none here.
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-5)
    asked = [request("t", 0, "the old man", {"until": ["q"], "max_gen_toks": 5, "do_sample": False})]
    assert ours.generate_until(asked) == [text.strip() for text in theirs.generate_until(asked)]


def test_a_folders_settings_of_generation_do_not_count(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "llama"))
    asked = request("t", 0, "a cat sat", {"until": ["$"], "max_gen_toks": 8, "do_sample": False})
    found = []
    for settings in ({}, {"repetition_penalty": 9.0, "suppress_tokens": list(range(4, 80))}):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2} | settings))
        source = open_source(str(folder))
        model: Any = source.load()
        found.append(language_model(source.runner(model)).generate_until([asked]))
        assert model.generation_config.repetition_penalty == settings.get("repetition_penalty")
    assert found[0] == found[1]


def test_settings_of_generation() -> None:
    assert greedy_settings({}) == (256, [])
    assert greedy_settings({"until": "\n", "max_new_tokens": 4, "temperature": 0, "top_p": 0.9}) == (4, ["\n"])
    assert greedy_settings({"do_sample": False, "temperature": 0.7, "max_gen_toks": "8"})[0] == 8
    for refused in ({"do_sample": True}, {"temperature": 0.5}, {"num_beams": 4}, {"repetition_penalty": 1.2}):
        with pytest.raises(UsageError, match="generation_kwargs"):
            greedy_settings(refused)
    assert cut("yes. no\nand", ["\n", ". "]) == "yes"


def test_every_shipped_task_is_known() -> None:
    """lm-eval passes over a task file that it cannot read."""
    from lm_eval.tasks import TaskManager

    assert TASKS == SHIPPED
    names = sorted(path.stem for path in TASKS.glob("*.yaml"))
    assert names == TaskManager(include_path=str(TASKS)).all_subtasks == ["scenes_answer", "scenes_choice"]


def test_a_shipped_task_on_lm_evals_command_line(bagel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our command line, lm-eval's own, and our evaluation give one number."""
    from lm_eval.__main__ import cli_evaluate

    model = ("--model", "umcompress", "--model_args", f"pretrained={bagel}", "--limit", "10")
    ours = command(__main__.main, monkeypatch, tmp_path / "a", *model, "--tasks", "scenes_choice,scenes_answer")
    files = [str(TASKS / f"{name}.yaml") for name in ("scenes_choice", "scenes_answer")]
    plain = command(cli_evaluate, monkeypatch, tmp_path / "b", *model, "--tasks", *files)
    source = open_source(str(bagel))
    evaluation = LmEval(tasks=("scenes_choice", "scenes_answer"), limit=10)
    score = evaluation.run(source.runner(source.load()), tmp_path / "c", print)["understanding"]
    for task, metric in (("scenes_choice", "acc"), ("scenes_answer", "exact_match")):
        value = score.numbers[f"{task}: {metric}"].value
        assert ours[task][f"{metric},none"] == plain[task][f"{metric},none"] == value
    assert score.partial == "20 of 1000"
    assert score.by_kind["scenes_choice"].chance == pytest.approx(0.28, abs=0.05)


def test_pictures_decide(bagel: Path, tmp_path: Path) -> None:
    """Files, bytes and decoded pictures are one picture; another picture changes the likelihood."""
    from PIL import Image

    source = open_source(str(bagel))
    lm = language_model(source.runner(source.load()))
    picture, other = (Image.effect_noise((36, 36), sigma) for sigma in (20, 120))
    picture.save(tmp_path / "p.png")
    stored = (tmp_path / "p.png").read_bytes()
    shown = [str(tmp_path / "p.png"), stored, picture, {"bytes": stored, "path": None}, other]
    asked = [request("t", i, "what color is the circle?", " red", {"visual": [one]}) for i, one in enumerate(shown)]
    nats = [value for value, _ in lm.loglikelihood(asked)]
    assert nats[:4] == pytest.approx([nats[0]] * 4, abs=1e-5)
    assert nats[4] != pytest.approx(nats[0], abs=1e-4)
    assert identity(asked[2:3]) != identity([request("t", 2, "what color is the circle?", " red", {"visual": [other]})])
    with pytest.raises(UsageError, match="audio"):
        lm.loglikelihood([request("t", 0, "a", "b", {"audio": [0]})])


def test_it_resumes(bagel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(bagel))
    runner: Any = source.runner(source.load())
    evaluation = LmEval(tasks=("scenes_choice",), limit=4)
    first = evaluation.run(runner, tmp_path, print)["understanding"]
    path = tmp_path / "loglikelihood.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]))
    asked: list[int] = []
    score = runner.score

    def noted(images: Any, prompts: Any, continuations: Any) -> Any:
        asked.append(sum(map(len, continuations)))
        return score(images, prompts, continuations)

    monkeypatch.setattr(runner, "score", noted)
    again = evaluation.run(runner, tmp_path, print)["understanding"]
    assert asked == [2] and again.value == first.value
    rows, before = ([json.loads(line) for line in some] for some in (path.read_text().splitlines(), lines))
    assert [row["id"] for row in rows] == [row["id"] for row in before] and rows[:-2] == before[:-2]
    for row, other in zip(rows, before, strict=True):
        assert row["said"] == [pytest.approx(other["said"][0], abs=1e-4), other["said"][1]]
    model = next(iter(runner.model.parameters()))
    model.data += 1
    evaluation.run(runner, tmp_path, print)
    assert sum(asked) == 2 + len(lines)


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "torn.yaml").write_text("task: torn\n  output_type: [\n")
    (tmp_path / "far.yaml").write_text("task: far\ndataset_path: nobody/nothing\noutput_type: generate_until\n")
    (tmp_path / "odd.yaml").write_text("task: odd\nno_such_key: 1\noutput_type: generate_until\n")
    yield tmp_path


@pytest.mark.parametrize(
    ("name", "says"),
    [("torn", r"torn\.yaml is not readable"), ("far", "the tasks far"), ("odd", "no_such_key"),
     ("scenes_choise", "did you mean 'scenes_choice'")],
)  # fmt: skip
def test_wrong_tasks_are_explained(broken: Path, name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=says):
        LmEval(tasks=(name,), include_path=broken).check()


def test_a_text_model_is_shown_no_pictures(llama: Path, tmp_path: Path) -> None:
    source = open_source(str(llama))
    with pytest.raises(UsageError, match="shows pictures"):
        LmEval(tasks=("scenes_choice",), limit=1).run(source.runner(source.load()), tmp_path, print)
    with pytest.raises(UsageError, match="no pretrained"):
        register()
        from umcompress.lm_eval.model import Umcompress

        Umcompress()


def test_intervals_and_directions() -> None:
    share = interval(0.75, [1.0, 1.0, 0.0, 1.0], lambda values: 0.0)
    assert share.low < 0.75 < share.high and share.n == 4
    assert interval(2.0, [1.0, 3.0], lambda values: 0.0).high > 3.0
    # A jackknife of a mean is the textbook standard error.
    values = [(2.0, 1.0), (4.0, 1.0), (9.0, 1.0)]
    found = interval(math_e := 5.0 + 1e-3, values, lambda some: sum(a for a, _ in some) / len(some))
    spread = (sum((a - 5.0) ** 2 for a, _ in values) / 2 / 3) ** 0.5
    assert found.high - math_e == pytest.approx(1.959963984540054 * spread)
    results = {
        "results": {"t": {"word_perplexity,none": 4.0}}, "higher_is_better": {"t": {"word_perplexity": False}},
        "groups": {},
    }
    score = scored(results, {"t": {("word_perplexity", "none"): [(1.0, 2.0)]}}, {"t": {}})
    assert score.value == 0.25 and score.numbers["t: word_perplexity"].value == 4.0


def test_options_on_the_command_line() -> None:
    from umcompress.extend.evaluation_options import chosen

    (found,) = chosen(["lm_eval:tasks=scenes_choice,scenes_answer,batch=2"], 0, 5)
    assert isinstance(found, LmEval) and found.names == ("scenes_choice", "scenes_answer")
    assert (found.batch, found.limit) == (2, 5) and LmEval.model_validate(found.json_values()) == found
    with pytest.raises(UsageError, match="named twice"):
        chosen(["lm_eval:tasks=a,a"], 0, None)


@pytest.mark.slow
def test_the_command_lines_as_they_are(llama: Path, bagel: Path, local: Path, tmp_path: Path) -> None:
    """In processes of their own, with all of lm-eval's tasks looked through."""
    import subprocess

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    hf = ["-m", "lm_eval", "--model", "hf", "--device", "cpu", "--model_args", f"pretrained={llama}"]
    hf += ["--include_path", str(local), "--tasks", "pico_pick"]
    own = ["-m", "umcompress.lm_eval", "--model", "umcompress", "--model_args", f"pretrained={bagel}", "--limit", "3"]
    own += ["--tasks", "scenes_choice"]
    for task, arguments in (("pico_pick", hf), ("scenes_choice", own)):
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and task in done.stdout, done.stderr


def test_groups_and_filters_keep_their_numbers() -> None:
    """A group's number is lm-eval's; its interval is that of the parts together."""
    marks = {"a": [1.0] * 30 + [0.0] * 10, "b": [1.0] * 5 + [0.0] * 5}
    results = {
        "results": {name: {"acc,strict": sum(found) / len(found)} for name, found in marks.items()},
        "higher_is_better": {},
        "groups": {"both": {"alias": "both", "acc,strict": 0.7, "acc_stderr,strict": "N/A"}},
        "group_subtasks": {"both": ["inner", "b"], "inner": ["a"]},
    }
    score = scored(results, {name: {("acc", "strict"): found} for name, found in marks.items()}, {"a": {}, "b": {}})
    assert score.value == pytest.approx((0.75 + 0.5) / 2)
    group = score.numbers["both: acc (strict)"]
    halves = [(score.numbers[f"{name}: acc (strict)"].high - score.numbers[f"{name}: acc (strict)"].low) / 2
              for name in marks]
    assert (group.value, group.n) == (0.7, 50)
    assert group.high - group.value == pytest.approx(((0.8 * halves[0]) ** 2 + (0.2 * halves[1]) ** 2) ** 0.5)


@pytest.mark.parametrize("name", ["pico_pick", "pico_say"])
def test_a_tokenizer_with_more_words_than_the_model_is_refused(
    name: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    folder = write_folder(LlamaForCausalLM(small), tmp_path / "model")
    assert main(["evaluate", str(folder), "--evaluation", f"lm_eval:tasks={name},include_path={local}"]) == 2
    assert "the model has 40 embeddings" in capsys.readouterr().err
