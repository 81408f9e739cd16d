"""The question benchmarks with scripted answers: prompts, scores worked out by hand, resuming, bad data."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import benchmark_data as data
import pytest
from fake_runners import Scripted
from PIL import Image
from report_fakes import report

from umcompress.documents.numbers import number
from umcompress.errors import UsageError
from umcompress.evals.answers._questions import QuestionBenchmark, StoredPicture
from umcompress.evals.answers.mmbench import MmBench
from umcompress.evals.answers.mme import Mme
from umcompress.evals.answers.mmmu import Mmmu
from umcompress.evals.answers.mmvet import MmVet
from umcompress.evals.answers.mmvp import Mmvp
from umcompress.evals.answers.pope import Pope
from umcompress.evals.answers.pope_rules import CATEGORIES
from umcompress.extend import Score
from umcompress.report.html import page
from umcompress.report.lost_answers import lost_answers

WRITERS: dict[type[QuestionBenchmark], Callable[[Path], Path]] = {
    Mme: data.write_mme, Pope: data.write_pope, Mmvp: data.write_mmvp, MmVet: data.write_mmvet, Mmmu: data.write_mmmu,
    MmBench: lambda folder: data.write_mmbench(folder / "mmbench_dev_en.tsv"),
}  # fmt: skip
QUIET: Callable[[str], None] = lambda text: None  # noqa: E731


def run(benchmark: QuestionBenchmark, runner: Any, out: Path, say: Callable[[str], None] = QUIET) -> Score:
    return benchmark.run(runner, out, say)["understanding"]


@pytest.mark.parametrize("kind", [Mme, Pope, Mmvp, Mmmu, MmBench])
def test_numbers_are_made_of_the_items(kind: type[QuestionBenchmark], tmp_path: Path) -> None:
    """So that their changes can be made anew of items that are drawn."""
    runner = Scripted(lambda q: ("Yes", "B", "no", "A", "(a)")[sum(q.encode()) % 5])
    score = run(kind(data=WRITERS[kind](tmp_path / "data")), runner, tmp_path / "out")
    groups = score.item_groups or (len(score.items),)
    assert score.numbers and score.made.keys() == score.numbers.keys()
    for name, made in score.made.items():
        found = number(made, {"items": score.items, **score.columns}, groups)
        assert found == pytest.approx(score.numbers[name].value), name


# -- scores, worked out by hand -----------------------------------------------------------------------------------


def test_mme(tmp_path: Path) -> None:
    """Always yes, but in OCR always right: accuracy 1/2, accuracy+ 0, so 50 points a task and 200 for OCR."""
    runner = Scripted(lambda q: "No" if "Is this No in OCR" in q else "Yes, it is.")
    score = run(Mme(data=data.write_mme(tmp_path / "mme")), runner, tmp_path / "out")
    assert score.numbers["MME"].value == pytest.approx(13 * 50 + 200)
    assert score.numbers["Perception"].value == pytest.approx(9 * 50 + 200)
    assert score.numbers["Cognition"].value == pytest.approx(200)
    assert score.value == pytest.approx(850 / 2800)
    assert score.by_kind["OCR"].value == 1 and score.by_kind["count"].value == pytest.approx(0.25)
    assert score.by_kind["count"].n == 2 and score.n == 28
    assert score.partial == "56 of 2374" and score.seconds is not None
    assert runner.asked[0] == (
        "Is this Yes in existence? Please answer yes or no. Answer the question using a single word or phrase."
    )
    assert runner.tokens == {20}


def test_mme_with_a_list_for_each_picture(tmp_path: Path) -> None:
    """The release itself has two-column files next to the pictures, or in questions_answers_YN."""
    folder = data.write_mme(tmp_path / "mme", images=1)
    for task, place in (("existence", ""), ("count", "questions_answers_YN")):
        (folder / f"{task}.txt").unlink()
        lists = folder / "MME_Benchmark_release_version" / task / place
        lists.mkdir(exist_ok=True)
        (lists / "0000.txt").write_text("Is it?\tYes\nIs it not?\tNo\n", encoding="utf-8")
    first = Mme(data=folder).questions()[:4]
    assert [(item.kind, item.truth) for item in first] == [
        ("existence", "Yes"), ("existence", "No"), ("count", "Yes"), ("count", "No"),
    ]  # fmt: skip
    assert first[0].prompt.startswith("Is it? Answer") and first[0].group == first[1].group
    assert [item.pictures[0].open().size for item in first] == [data.picture(0).size] * 4


def test_mmbench(tmp_path: Path) -> None:
    """Right but for one rotation of the last question: 2 of 3 circular, 3 of 3 vanilla, 8 of 9 rows."""
    rows = data.mmbench_rows()
    answers = {(row["question"], *(row.get(letter) for letter in "ABCD")): row["answer"] for row in rows}
    wrong = next(row for row in rows if row["index"] == "2000012")

    def answer(prompt: str) -> str:
        options = dict(re.findall(r"^([A-D])\. (.*)$", prompt, re.MULTILINE))
        question = next(line for line in prompt.splitlines() if line.startswith("What is shown"))
        key = (question, *(options.get(letter) for letter in "ABCD"))
        if key == (wrong["question"], *(wrong.get(letter) for letter in "ABCD")):
            return "the answer is unclear"
        return answers[key] + "."

    runner = Scripted(answer)
    path = data.write_mmbench(tmp_path / "data" / "mmbench_dev_20230712.tsv", rows)
    score = run(MmBench(data=path.parent), runner, tmp_path / "out")
    assert {name: (part.value, part.n) for name, part in score.numbers.items()} == {
        "circular": (pytest.approx(2 / 3), 3), "vanilla": (1.0, 3), "all_rows": (pytest.approx(8 / 9), 9),
    }  # fmt: skip
    assert score.value == pytest.approx(2 / 3) and score.partial == "9 of 4377"
    assert {name: part.value for name, part in score.by_kind.items()} == {"kind 0": 0.5, "kind 1": 1.0}
    hinted = next(prompt for prompt in runner.asked if prompt.startswith("Look closely."))
    assert hinted == (
        "Look closely.\nWhat is shown in 1?\nA. None\nB. a red circle\nC. a blue square\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_mmbench_without_answers_only_exports(tmp_path: Path) -> None:
    rows = [{**row, "answer": ""} for row in data.mmbench_rows()]
    path = data.write_mmbench(tmp_path / "mmbench_test.tsv", rows)
    said: list[str] = []
    assert MmBench(data=path).run(Scripted("A"), tmp_path / "out", said.append) == {}
    assert (tmp_path / "out" / "answers.jsonl").read_text().count("\n") == 9
    assert "no answers to score against" in said[-1]


def test_mmbench_in_chinese_and_with_pictures_by_index(tmp_path: Path) -> None:
    rows = data.mmbench_rows(1)
    rows[1]["image"] = rows[0]["index"]
    path = data.write_mmbench(tmp_path / "mmbench_dev_cn_20231003.tsv", rows)
    questions = MmBench(data=path).questions()
    assert questions[0].prompt.endswith("请直接回答选项字母。")
    assert questions[0].pictures == questions[1].pictures
    assert questions[1].pictures[0].open().size == data.picture(0).size


def test_pope(tmp_path: Path) -> None:
    """In each category 2 yes and 2 no; the model says no to number 0 and is right otherwise."""
    runner = Scripted(lambda q: "No, there is not." if re.search(r" [013] in", q) else "Yes.")
    score = run(Pope(data=data.write_pope(tmp_path / "pope")), runner, tmp_path / "out")
    values = {name: part.value for name, part in score.numbers.items() if name.startswith("random")}
    assert values == {
        "random accuracy": 0.75, "random precision": 1.0, "random recall": 0.5, "random yes_ratio": 0.25,
        "random f1": pytest.approx(2 / 3),
    }  # fmt: skip
    assert score.value == 0.75 and score.n == 12 and score.chance == 0.5
    assert runner.asked[0] == "Is there a random 0 in the image?\nAnswer the question using a single word or phrase."


def test_mmvp(tmp_path: Path) -> None:
    """Always A is right once a pair, and so never."""
    folder = data.write_mmvp(tmp_path / "mmvp")
    score = run(Mmvp(data=folder), Scripted("A"), tmp_path / "out")
    assert score.value == 0 and score.numbers["single"].value == 0.5 and score.n == 2
    again = Scripted("B. Closed", batch=1)
    assert run(Mmvp(data=folder, limit=2), again, tmp_path / "out 2").numbers["single"].n == 2
    assert len(again.asked) == 2 and again.asked[0] == again.asked[1]


def test_mmvp_with_the_other_spelling(tmp_path: Path) -> None:
    folder = data.write_mmvp(tmp_path / "mmvp", index="Index")
    assert [item.truth for item in Mmvp(data=folder).questions()] == ["A", "B", "A", "B"]


@pytest.mark.parametrize("protocol", ["reference", "lm_eval"])
def test_mmmu(tmp_path: Path, protocol: Literal["reference", "lm_eval"]) -> None:
    """31 questions of letters and one open: "(B)" is a letter to lm-eval alone, "it is twelve" is right to both."""
    runner = Scripted(lambda q: "it is twelve" if q.startswith("How many") else "(B)")
    score = run(Mmmu(data=data.write_mmmu(tmp_path / "mmmu"), protocol=protocol), runner, tmp_path / "out")
    # lm-eval holds the list of answers to be one text, which no phrase contains.
    by_lm_eval, by_reference = 30 / 32, 1 / 32
    own, other = (by_reference, by_lm_eval) if protocol == "reference" else (by_lm_eval, by_reference)
    numbers = {name: part.value for name, part in score.numbers.items()}
    crossed = "reference answers, lm_eval reading" if protocol == "reference" else "lm_eval answers, reference reading"
    assert numbers == {protocol: own, crossed: other, "answers without a letter": 0}
    assert score.value == own and len(score.by_kind) == 30 and score.partial == "32 of 900"
    assert runner.tokens == ({10} if protocol == "reference" else {512})
    two = next(shown for shown, prompt in zip(runner.shown, runner.asked, strict=True) if "hue" in prompt)
    sizes = [picture.size[0] // data.picture(0).size[0] for picture in two]
    assert sizes == ([2, 1] if protocol == "reference" else [1, 1])


def test_mmmu_prompts(tmp_path: Path) -> None:
    folder = data.write_mmmu(tmp_path / "mmmu")
    reference = {item.id: item for item in Mmmu(data=folder).questions()}
    assert reference["validation_Art_2"].prompt == (
        "<image 2> differs from <image 1> in?\nA. hue\nB. size\n"
        "Answer with the option's letter from the given choices directly."
    )
    official = {item.id: item for item in Mmmu(data=folder, protocol="lm_eval").questions()}
    assert official["validation_Art_2"].prompt == (
        "<image> differs from <image> in?\n\n(A) hue\n(B) size\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert [shown.name[-1] for shown in official["validation_Art_2"].pictures] == ["2", "1"]
    assert [shown.name[-1] for shown in reference["validation_Art_2"].pictures] == ["1", "2"]


def test_mmmu_draws_where_no_letter_is_found_and_says_how_often(tmp_path: Path) -> None:
    folder = data.write_mmmu(tmp_path / "mmmu")
    scores = [
        run(Mmmu(data=folder, protocol="lm_eval", seed=seed), Scripted("no idea"), tmp_path / f"{seed} {turn}")
        for seed, turn in ((0, 0), (0, 1), (1, 0))
    ]
    assert scores[0].numbers["answers without a letter"].value == 31 / 32
    assert scores[0].numbers == scores[1].numbers
    assert 0 < scores[0].value < 0.6


def test_mmvet_exports_and_reads_grades(tmp_path: Path) -> None:
    folder, out = data.write_mmvet(tmp_path / "mmvet"), tmp_path / "out"
    said: list[str] = []
    runner = Scripted(lambda q: f"answer to {q}")
    assert MmVet(data=folder).run(runner, out, said.append) == {}
    exported = json.loads((out / "mmvet.json").read_text())
    assert exported["v1_1"] == "answer to What is x in 1?" and len(exported) == 3
    assert "grades" in said[-1]
    grades = tmp_path / "grades.json"
    grades.write_text(json.dumps({"v1_0": {"score": [0.5, 0.7]}, "v1_1": 1, "v1_2": {"score": [0.0]}}))
    score = run(MmVet(data=folder, grades=grades), runner, out)
    assert score.value == pytest.approx((0.6 + 1 + 0) / 3)
    assert {name: part.value for name, part in score.by_kind.items()} == {
        "ocr": pytest.approx(0.3), "math": pytest.approx(0.6), "rec": 1.0,
    }  # fmt: skip
    assert len(runner.asked) == 3  # the second time everything was on disk


@pytest.mark.parametrize(
    ("content", "found"),
    [({"v1_0": 0.5}, "no grade for 2 questions"), ({"v1_0": 2, "v1_1": 1, "v1_2": 1}, "the grade of v1_0 is 2"),
     ({"v1_0": {"score": []}, "v1_1": 1, "v1_2": 1}, "the grade of v1_0"), ([], "not a JSON object")],
)
def test_bad_grades(tmp_path: Path, content: Any, found: str) -> None:
    folder = data.write_mmvet(tmp_path / "mmvet")
    (tmp_path / "grades.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=found):
        MmVet(data=folder, grades=tmp_path / "grades.json").run(Scripted("x"), tmp_path / "out", QUIET)


# -- answers that a report shows -----------------------------------------------------------------------------------


def test_which_answers_are_right_adds_up_to_the_score(tmp_path: Path) -> None:
    """Every benchmark but the one that a judge grades; wrong answers have their pictures."""
    share: dict[type[QuestionBenchmark], Callable[[Score], float]] = {
        Mme: lambda score: 0.5, Mmvp: lambda score: score.numbers["single"].value, Mmmu: lambda score: score.value,
        MmBench: lambda score: score.numbers["all_rows"].value,
        Pope: lambda score: mean(score.numbers[f"{name} accuracy"].value for name in CATEGORIES),
    }  # fmt: skip
    for kind, right in share.items():
        out = tmp_path / kind.name
        score = run(kind(data=WRITERS[kind](out / "data")), Scripted("Yes, A"), out)
        rows = [json.loads(line) for line in (out / "graded.jsonl").read_text().splitlines()]
        assert mean(row["correct"] for row in rows) == pytest.approx(right(score)), kind
        assert {bool(row.get("pictures")) for row in rows if not row["correct"]} == {True}
        assert not any("pictures" in row for row in rows if row["correct"])
    MmVet(data=data.write_mmvet(tmp_path / "vet")).run(Scripted("Yes"), tmp_path / "judged", QUIET)
    assert not (tmp_path / "judged" / "graded.jsonl").exists()


def test_answers_that_a_step_made_wrong_are_shown_with_their_pictures(tmp_path: Path) -> None:
    folder = data.write_pope(tmp_path / "pope")
    for step, answer in (("00-baseline", "Yes"), ("01-layer_drop", "No")):
        run(Pope(data=folder), Scripted(answer), tmp_path / "run" / "steps" / step / "pope")
    steps = tuple(one.model_copy(update={"evaluations": {"pope": one.scores}}) for one in report().steps[:2])
    (lost,) = lost_answers(report(steps=steps), tmp_path / "run")
    questions = Pope(data=folder).questions()
    assert (lost.of, lost.count) == (len(questions), sum(one.truth == "yes" for one in questions))
    first = lost.answers[0]
    assert (first.question, first.expected, first.answer) == (questions[0].question, "yes", "No")
    (shown,) = first.pictures
    stored = Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2])))
    original = questions[0].pictures[0].open()
    assert max(stored.size) == min(160, max(original.size)) and shown in page(report(), lost=[lost])


# -- what all share -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_answers_are_written_as_they_come_and_used_again(kind: type[QuestionBenchmark], tmp_path: Path) -> None:
    benchmark = kind(data=WRITERS[kind](tmp_path / "data"))
    out = tmp_path / "out"
    whole = Scripted("Yes", batch=2)
    benchmark.run(whole, tmp_path / "whole", QUIET)

    class Killed(BaseException):
        pass

    class Dying(Scripted):
        def answer(self, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int = 16) -> list[str]:
            if len(self.asked) >= 2:
                raise Killed
            return super().answer(images, questions, max_new_tokens)

    with pytest.raises(Killed):
        benchmark.run(Dying("Yes", batch=2), out, QUIET)
    assert len((out / "answers.jsonl").read_text().splitlines()) == 2
    rest = Scripted("Yes", batch=2)
    scores = benchmark.run(rest, out, QUIET)
    assert rest.asked == whole.asked[2:]
    assert (out / "answers.jsonl").read_text() == (tmp_path / "whole" / "answers.jsonl").read_text()
    done = Scripted("never asked")
    again = benchmark.run(done, out, QUIET)
    assert not done.asked
    assert [s.value for s in again.values()] == [s.value for s in scores.values()]


@pytest.mark.parametrize("kind", WRITERS)
def test_missing_data_is_one_message(kind: type[QuestionBenchmark], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        kind(data=tmp_path / "nothing").check()
    text = str(caught.value)
    for part in (str(tmp_path / "nothing"), kind.needed.origin, kind.needed.size, kind.needed.files[0]):
        assert part in text
    assert f"{kind.name}:data=PATH" in text


@pytest.mark.parametrize("kind", [Mme, Pope, Mmvp, MmVet])
def test_a_missing_picture_is_named(kind: type[QuestionBenchmark], tmp_path: Path) -> None:
    folder = WRITERS[kind](tmp_path / "data")
    gone = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))[0]
    gone.unlink()
    with pytest.raises(UsageError, match=gone.name):
        kind(data=folder).run(Scripted("Yes"), tmp_path / "out", QUIET)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    folder = data.write_pope(tmp_path / "pope")
    (folder / "val2014" / "COCO_val2014_000000000000.jpg").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"COCO_val2014_000000000000\.jpg"):
        Pope(data=folder).run(Scripted("Yes"), tmp_path / "out", QUIET)


def test_no_picture_is_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotations lie far apart in the file; two questions about a picture may fall into two batches."""
    opened: list[str] = []
    decode = StoredPicture.open

    def noted(picture: StoredPicture) -> Image.Image:
        opened.append(picture.name)
        return decode(picture)

    monkeypatch.setattr(StoredPicture, "open", noted)
    rows = data.mmbench_rows(20)
    path = data.write_mmbench(tmp_path / "mmbench.tsv", rows)
    MmBench(data=path).run(Scripted("A", batch=3), tmp_path / "a", QUIET)
    assert len(opened) == len(set(opened)) == 20
    opened.clear()
    Mme(data=data.write_mme(tmp_path / "mme")).run(Scripted("Yes", batch=3), tmp_path / "b", QUIET)
    assert len(opened) == len(set(opened)) == 28


def test_a_limit_is_even_over_the_kinds_keeps_groups_and_follows_the_seed(tmp_path: Path) -> None:
    folder = data.write_mme(tmp_path / "mme", images=3)
    chosen = []
    for seed in (0, 0, 1):
        benchmark = Mme(data=folder, limit=28, seed=seed)
        items = benchmark.drawn(benchmark.questions(), lambda item: item.kind, lambda item: item.group)
        assert len(items) == 28
        kinds = [item.kind for item in items]
        assert {kinds.count(kind) for kind in kinds} == {2}
        assert all(sum(item.group == other.group for other in items) == 2 for item in items)
        chosen.append([item.id for item in items])
    assert chosen[0] == chosen[1] != chosen[2]


def test_raising_the_limit_keeps_what_is_answered(tmp_path: Path) -> None:
    folder, out = data.write_mme(tmp_path / "mme"), tmp_path / "out"
    first, second = Scripted("Yes"), Scripted("Yes")
    Mme(data=folder, limit=28).run(first, out, QUIET)
    Mme(data=folder, limit=42).run(second, out, QUIET)
    assert len(first.asked) == 28 and len(second.asked) == 14


def test_other_questions_do_not_mix_with_old_answers(tmp_path: Path) -> None:
    folder, out = data.write_pope(tmp_path / "pope"), tmp_path / "out"
    run(Pope(data=folder), Scripted("Yes"), out)
    file = folder / "coco_pope_random.json"
    file.write_text(file.read_text().replace("random 0", "other thing"))
    said: list[str] = []
    changed = Scripted("No")
    run(Pope(data=folder), changed, out, said.append)
    assert len(changed.asked) == 12
    assert (out / "answers.jsonl.old").is_file() and any("answers.jsonl.old" in line for line in said)


def test_a_model_without_understanding_is_refused(tmp_path: Path) -> None:
    runner = Scripted("x")
    runner.tasks = ("generation",)
    with pytest.raises(UsageError, match="answers no questions"):
        Pope(data=data.write_pope(tmp_path / "pope")).run(runner, tmp_path / "out", QUIET)


@pytest.mark.parametrize(
    ("kind", "file", "change", "found"),
    [
        (Mme, "color.txt", lambda text: text.replace("\tYes", "\tperhaps"), r"color.txt:1 is not"),
        (Mme, "color.txt", lambda text: text.rpartition("\n0001")[0] + "\n", "not two questions about color/0001.jpg"),
        (Pope, "coco_pope_popular.json", lambda text: "{\n" + text, "line 1 is not JSON"),
        (Pope, "coco_pope_popular.json", lambda text: text.replace('"label"', '"lable"'), "lacks one of"),
        (Mmvp, "Questions.csv", lambda text: text.replace("Options", "Choices"), "columns Index"),
        (Mmvp, "Questions.csv", lambda text: "\n".join(text.splitlines()[:-1]), "do not make pairs"),
        (MmVet, "mm-vet.json", lambda text: text.replace('"question"', '"ask"'), "v1_0 lacks one of"),
        (MmVet, "mm-vet.json", lambda text: text[:-1], "not JSON"),
        (MmBench, "mmbench_dev_en.tsv", lambda text: text.replace("question\t", "asked\t", 1), "columns A, image"),
        (MmBench, "mmbench_dev_en.tsv", lambda text: text.replace("\n10\t", "\nten\t"), "is not a number"),
        (MmBench, "mmbench_dev_en.tsv", lambda text: text.replace("\n10\t", "\n11\t"), "two items have the same id"),
    ],
)
def test_damaged_data_is_explained(
    kind: type[QuestionBenchmark], file: str, change: Callable[[str], str], found: str, tmp_path: Path
) -> None:
    WRITERS[kind](tmp_path / "data")
    path = tmp_path / "data" / file
    text = path.read_text(encoding="utf-8")
    changed = change(text)
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(UsageError, match=found):
        kind(data=tmp_path / "data").run(Scripted("Yes"), tmp_path / "out", QUIET)


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    folder = data.write_mmmu(tmp_path / "mmmu")
    (folder / "Art" / "validation-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UsageError, match="not readable as parquet"):
        Mmmu(data=folder).questions()
