"""Searches as tables."""

from __future__ import annotations

from report_fakes import step

from umcompress.documents.alone import Sizes
from umcompress.documents.report import Size
from umcompress.documents.search import Candidate, ChoiceScore, FrontPoint, Search
from umcompress.report import terminal
from umcompress.report.search_view import chosen_table, front_table, search_view


def test_a_budget_of_seconds_shows_what_was_measured() -> None:
    """A run that paints 1.25 times as fast takes 0.8 of the time; one that was not run says what adds up."""
    ran = step("01-x", "x", (0.9, 0.9), 8, (1.0, 1.25))
    front = FrontPoint(
        name="front-1", recipe="front-1.yaml", shares={"seconds.generation": 0.75, "parameters": 0.5}, result=ran,
        weights={"generation": 1.0}, choices=(),
        uniform=Candidate(name="uniform-1", recipe="u.yaml", shares={"seconds.generation": 0.7, "parameters": 0.5}),
    )  # fmt: skip
    size = Size(total=10)
    found = Search(
        recipe="r", model="m", budgets={"seconds.generation": 0.75, "parameters": 0.5}, unpruned={"generation": 1.0},
        sizes=Sizes(parameters=size, bytes=size), front=(front,),
        choices=(ChoiceScore(name="c", step=0, component="generation", stack="main", layers=(0,)),),
    )  # fmt: skip
    table = front_table(found)
    assert [row[1:3] for row in table.rows] == [("0.7500, 0.8000", "0.5000"), ("0.7000", "0.5000")]
    assert any("measured of the recipe" in note for note in table.notes)


def choice(name: str, component: str, kind: str, kept: float | None) -> ChoiceScore:
    branch = f"layers.0 {kind} {component}"
    return ChoiceScore(name=name, step=0, component=component, stack="main", layers=(0,), branches=(branch,),
                       dropped=() if kept else (branch,), kept=kept)  # fmt: skip


def test_five_recipes_fit_80_columns_and_what_was_run_is_compared() -> None:
    """One budget is named by the title; what a layer keeps is one short cell for both of its parts."""
    ran = step("01-x", "x", (0.9, 0.9), 8, (1.0, 1.0))
    choices = (choice("a", "understanding", "attention", None), choice("f", "understanding", "feed_forward", 0.75),
               choice("b", "generation", "block", None))  # fmt: skip
    front = [
        FrontPoint(
            name=f"front-{number}", recipe=f"front-{number}.yaml", shares={"active.generation": 0.79}, choices=names,
            weights={"generation": 1.0}, expected={"understanding": -0.000994, "generation": 0.0134},
            result=ran if number == 3 else None,
        )
        for number, names in enumerate([("a", "f"), ("f",), ("b",), ("a",), ()], start=1)
    ]  # fmt: skip
    size = Size(total=10)
    found = Search(
        recipe="r", model="m", budgets={"active.generation": 0.8}, unpruned={"understanding": 1.0, "generation": 1.0},
        sizes=Sizes(parameters=size, bytes=size), front=tuple(front), choices=choices,
    )  # fmt: skip
    assert [row[1:] for row in chosen_table(found).rows] == [("0/0.75", "1/0.75", "-", "0/1", "-"),
                                                             ("-", "-", "0/0", "-", "-")]  # fmt: skip
    text = terminal.text(search_view(found, "out", ["search.png"]))
    assert max(map(len, text.splitlines())) <= 80
    assert text.rstrip().endswith("next: umcompress compare out/runs/front-3")
