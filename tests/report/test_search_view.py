"""Searches as tables."""

from __future__ import annotations

from report_fakes import step

from umcompress.documents.alone import Sizes
from umcompress.documents.report import Size
from umcompress.documents.search import Candidate, ChoiceScore, FrontPoint, Search
from umcompress.report.search_view import front_table


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
