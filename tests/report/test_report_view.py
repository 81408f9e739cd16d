"""Printed reports: what they say, that they fit 80 columns, and Markdown."""

from __future__ import annotations

import io
import re

import pytest
from report_fakes import report, step, task_score
from rich.text import Text

from umcompress.documents.plan import (
    Declined,
    DropBlock,
    DropBranch,
    Evidence,
    KeepHeads,
    Plan,
    SplitExperts,
)
from umcompress.documents.previews import Inspection, PlanReport, PlanStep, SiteChange, SiteInfo
from umcompress.documents.removed import site_results
from umcompress.documents.report import CheckpointResult, Report, Size, Stopped, step_report
from umcompress.documents.scores import Change, Score, change, mean_score
from umcompress.report import markdown, terminal
from umcompress.report.plan_view import inspection_view, plan_view
from umcompress.report.removed_view import removed_tables
from umcompress.report.report_view import report_view
from umcompress.report.scores_view import scores_tables, tone_of
from umcompress.report.table import Cell, Column, Table, seconds, short_number


def printed(shown: Report, run: str = "runs/quickstart") -> str:
    view = report_view(shown, run)
    tables = terminal.text(tuple(part for part in view if isinstance(part, Table)))
    assert max(map(len, tables.splitlines())) <= 80
    return terminal.text(view)


def row(text: str, start: str) -> list[str]:
    return next(line for line in text.splitlines() if line.strip().startswith(start)).split()


def test_report_says_scores_changes_sizes_and_speeds() -> None:
    text = printed(report())
    understanding, generation = text.split("\nGeneration\n")
    assert row(understanding, "baseline") == ["baseline", "0.960", "0.943", "to", "0.969"]
    assert row(generation, "02-channel") == [
        "02-channel_prune", "0.600", "0.572", "to", "0.627", "-0.320*", "-0.351", "to", "-0.287",
    ]  # fmt: skip
    assert row(text, "chance") == ["chance", "0.250"]
    assert "02-channel_prune   4.70M  18.8MB   2.35M   1.57M   2.35M   1.57M    783k" in text
    assert "1.00x!" in text
    assert "! less work than the step that it started from, yet no faster beyond noise" in text
    assert "samples: runs/quickstart/steps/baseline/samples.png and " in text
    assert text.rstrip().endswith("next: umcompress compare runs/quickstart")


def loss(*items: float) -> Score:
    return Score(**mean_score(items).model_dump(), lower_is_better=True, items=items, items_of="the same")


def test_losses_with_relative_changes_fit_80_columns() -> None:
    """Where names leave no room, the intervals of the losses go, never those of the changes."""
    start, end = loss(0.01, 0.02, 0.06123), loss(0.02, 0.05, 0.11456)
    steps = [
        step("baseline", None, (0.9, 0.9), 10, (1.0, 1.0)).model_copy(update={
            "evaluations": {"task_loss": {"understanding": start}},
        }),
        step("01-x", "x", (0.9, 0.9), 8, (1.0, 1.0)).model_copy(update={
            "evaluations": {"task_loss": {"understanding": end}},
            "evaluation_changes": {"task_loss": {"understanding": change(end, start)}},
        }),
    ]  # fmt: skip
    short, *_ = scores_tables(steps, ["baseline", "└ half"])
    long, *_ = scores_tables(steps, ["baseline", "└ generation-half-refit"])
    assert [column.name for column in short.columns].count("95 % interval") == 2
    assert [column.name for column in long.columns] == ["step", "loss", "change", "95 % interval", "relative"]
    assert long.rows[1][-2] == short.rows[1][-2] and any("report.json" in note for note in long.notes)
    assert max(map(len, terminal.text((short, long)).splitlines())) <= 80


def test_kinds_have_a_column_a_step() -> None:
    text = printed(report())
    assert row(text, "color attribution") == ["color", "attribution", "0.920", "0.920", "0.600", "0.25"]


def test_many_steps_with_long_names_still_fit() -> None:
    first = report().baseline
    steps = [first]
    for index in range(12):
        one = step(f"{index:02d}-a_rather_long_name", "x", (0.9, 0.9), 14_607_260_128, (12.1, 0.9))
        steps.append(step_report(one, first, steps[-1]))
    text = printed(report(steps=tuple(steps)))
    assert "7 steps left out" in text
    assert "14.6G" in text


def test_stop_refusals_and_checkpoint_are_told() -> None:
    baseline, first, second = report().steps
    declined = tuple(Declined(site=f"layers.{n}.mlp", component="generation", reason="odd width") for n in range(5))
    undone = second.model_copy(update={"stopped": True, "declined": declined})
    saved = CheckpointResult(path="model", parameters=5_900_000, bytes=23_600_000, reload_equal=True)
    stopped = Stopped(step="02-channel_prune", reason="generation fell by 0.320, more than 0.050")
    text = printed(report(steps=(baseline, first, undone), stopped=stopped, checkpoint=saved))
    assert "02-channel_prune (undone)" in text
    assert "stopped at 02-channel_prune, which was undone: generation fell by 0.320" in text
    assert row(text, "layers.*.mlp") == ["layers.*.mlp,", "generation", "left", "alone:", "odd", "width", "0-4"]
    assert "5,900,000 parameters, 23.6MB stored, 23.6MB in memory, computes the same in a fresh process" in text


def test_a_task_that_was_not_scored_shows_as_a_dash() -> None:
    only = {"understanding": task_score("understanding", 0.9)}
    alone = report().baseline.model_copy(
        update={"scores": only, "speed": {}, "macs_per_token": {}, "samples": None}
    )
    text = printed(report(steps=(alone,)))
    assert row(text, "baseline") == ["baseline", "0.900", "0.878", "to", "0.915"] and "\nGeneration" not in text
    assert "samples:" not in text


def test_what_was_removed_is_answered_by_layer() -> None:
    """Blocks with their similarities, also of those that stay; heads and channels by layer; experts in words."""
    blocks = Plan(
        pass_name="layer_drop", edits=(DropBlock(block="m.layers.2"),),
        evidence=tuple(
            Evidence(site=f"m.layers.{n}", component="shared", scores=(0.5 + n / 10,), note="") for n in range(4)
        ),
    )  # fmt: skip
    attentions = [f"m.layers.{n}.attn" for n in (0, 1, 3)]
    heads = Plan(
        pass_name="head_prune",
        edits=tuple(KeepHeads(site=site, component="shared", key_value_groups=(0, 3)) for site in attentions),
        evidence=tuple(
            Evidence(site=site, component="shared", scores=(1, 0, 0, 1), kept=(0, 3)) for site in attentions
        ),
    )  # fmt: skip
    split = SplitExperts(site="m.layers.0.mlp", experts=((0, 1), (2, 3), (4, 5)), shared=(6,), active=1)
    experts = Plan(pass_name="moe_split", edits=(split,))
    baseline, first, second = report().steps
    third = second.model_copy(update={"name": "03-moe_split", "sites": site_results(experts), "declined": ()})
    first = first.model_copy(update={"sites": site_results(blocks)})
    second = second.model_copy(update={"sites": site_results(heads)})
    tables = removed_tables([baseline, first, second, third])
    text = " ".join(" ".join(row) for table in tables for row in table.rows)
    assert [table.title for table in tables] == [f"Removed by {one.name}" for one in (first, second, third)]
    assert "m.layers.*, shared 1 of 4 blocks dropped 2 (0.700)" in text
    assert "m.layers.*, shared 3 of 4 blocks kept 0 (0.500), 1 (0.600), 3 (0.800)" in text
    assert "m.layers.*.attn, shared 2 of 4 key-value groups kept 0-1, 3" in text
    assert "m.layers.*.mlp 3 of 7 channels at work (3 experts of 2, 1 active, 1 shared) 0" in text


def test_a_branch_of_one_stream_is_one_row() -> None:
    """Of a block whose component goes branch by branch, and of single branches."""
    gone = Plan(
        pass_name="layer_drop",
        edits=(
            DropBranch(block="layers.1", branch="attention", component="understanding"),
            DropBranch(block="layers.1", branch="feed_forward", component="understanding"),
        ),
        evidence=(
            Evidence(site="layers.0", component="understanding", scores=(0.1,)),
            Evidence(site="layers.1", component="understanding", scores=(0.9,)),
        ),
    )  # fmt: skip
    assert [(row.site, row.unit, row.after, row.score) for row in site_results(gone)] == [
        ("layers.0", "block", 1, 0.1), ("layers.1", "block", 0, 0.9),
    ]  # fmt: skip
    branch = Plan(
        pass_name="layer_drop", edits=(DropBranch(block="layers.1", branch="attention", component="understanding"),),
        evidence=(Evidence(site="layers.1.attention", component="understanding"),),
    )  # fmt: skip
    (row_,) = site_results(branch)
    assert (row_.site, row_.unit, row_.before, row_.after) == ("layers.1.attention", "attention", 1, 0)


def test_alternatives_are_drawn_as_a_tree() -> None:
    first = report().baseline
    steps = [first]
    for name, after in (("half", None), ("quarter", "baseline"), ("half-more", "half")):
        steps.append(step_report(step(name, "x", (0.9, 0.9), 5_000_000, (1, 1), after=after), first))
    text = printed(report(steps=tuple(steps), written="half"))
    heads = [line[:13].rstrip() for line in text.split("Size\n")[1].splitlines()[2:6]]
    assert heads == ["baseline", "├ half", "│ └ half-more", "└ quarter"]
    for name in ("half", "quarter", "half-more"):
        assert f"samples of {name}: runs/quickstart/steps/{name}/samples.png" in text
    assert report(steps=tuple(steps), written="half").result.name == "half"
    assert report(steps=tuple(steps)).result.name == "half-more"


def test_no_word_and_no_path_is_broken() -> None:
    path = "a.long.path.of.modules.that.is.longer.than.half.a.line.layers.mlp"
    columns = (Column("where", False, True), Column("why", False, True))
    table = Table("T", columns, ((path, "some words " * 9),), ("many notes " * 30,))
    narrow, piped = terminal.text((table,), 40), io.StringIO()
    words = set(narrow.replace("─", "").split())
    assert words == {path, "some", "words", "where", "why", "many", "notes", "T"}
    terminal.show((table,), piped)
    assert f"{path}  {('some words ' * 9)}".rstrip() in piped.getvalue()
    assert len(piped.getvalue().splitlines()) == 5


def test_markdown_escapes_and_keeps_columns() -> None:
    table = Table("T", (Column("a|b", right=False), Column("n")), (("x_y*", "1"), ("`z`\n", "2")), ("note_",))
    assert markdown.text((table, "li*ne")) == (
        "### T\n\n| a\\|b | n |\n| --- | ---: |\n"
        "| x\\_y\\* | 1 |\n| \\`z\\`<br> | 2 |\n\nnote\\_\n\nli\\*ne\n"
    )


def test_every_table_of_a_report_is_markdown() -> None:
    text = markdown.text(report_view(report(), "runs/quickstart"))
    widths = {
        line.replace("\\|", "").count("|") for line in text.split("### Size")[1].split("\n\n")[1].splitlines()
    }
    assert widths == {9}
    assert text.count("### ") == 6


def test_amounts_and_times() -> None:
    cases = {
        0: "0",
        999: "999",
        1000: "1.00k",
        9_996: "10.0k",
        99_960: "100k",
        999_900: "1.00M",
        14_607_260_128: "14.6G",
    }
    assert {count: short_number(count) for count in cases} == cases
    assert [seconds(t) for t in (0, 99.94, 99.96, 245, 5999, 7800)] == [
        "0.0s", "99.9s", "1m40s", "4m05s", "99m59s", "2h10m",
    ]  # fmt: skip


def test_plan_shows_sites_and_what_cannot_be_done() -> None:
    before, after = Size(total=1000, active={"generation": 500}), Size(total=800, active={"generation": 400})
    site = SiteChange(site="layers.0.mlp", component="generation", unit="channels", before=512, after=256)
    plan = PlanReport(
        model="bagel-mini",
        steps=(
            PlanStep(
                name="01-channel_prune",
                pass_="channel_prune",
                before=before,
                after=after,
                edits=1,
                sites=(site,),
            ),
            PlanStep(
                name="02-head_prune", pass_="head_prune", before=after, after=after, problem="no head left"
            ),
        ),
    )
    text = terminal.text(plan_view(plan))
    assert row(text, "(before)")[1] == "1.00k"
    assert row(text, "layers.0.mlp") == ["layers.0.mlp", "generation", "channels", "512", "256"]
    assert "02-head_prune CANNOT be done: no head left" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_inspection() -> None:
    found = Inspection(
        model="bagel-mini",
        family="bagel",
        stacks={"decoder": 6, "vision": 2},
        parameters=Size(total=10, active={"generation": 7}, by_component={"shared": 4, "generation": 6}),
        bytes=Size(total=40, by_component={"shared": 16, "generation": 24}),
        sites=(
            SiteInfo(path="layers.0.mlp", kind="feed_forward", component="shared", stack="decoder", index=0),
        ),
    )
    text = terminal.text(inspection_view(found))
    assert row(text, "generation") == ["generation", "6", "24B"]
    assert row(text, "vision") == ["vision", "2"]
    assert "layers.0.mlp" in text
    graph = found.model_copy(update={"graph": "[b]block[/b]\n  add"})
    assert terminal.text(inspection_view(graph)) == "[b]block[/b]\n  add\n"


class Screen(io.StringIO):
    """A terminal of some width."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def on_screen(table: Table, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Screen()
    terminal.show((table,), screen, width)
    return screen.getvalue()


def test_a_terminal_shows_colours_and_bars_a_pipe_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (("first", Cell("2.41M", share=1.0), ""), ("half", Cell("1.2M", share=0.5), Cell("+0.3*", "worse")),
            ("less", Cell("1.0M", share=0.001), Cell("-0.3*", "better")), ("none", "-", Cell("+0.1 ", "noise")))
    table = Table("Sizes", (Column("cell", right=False), Column("params"), Column("loss")), rows)
    seen = on_screen(table, 80, monkeypatch)
    lines = Text.from_ansi(seen).plain.splitlines()
    assert [line.count("█") for line in lines if "M" in line] == [6, 3, 1]
    assert lines[-1].split() == ["none", "-", "+0.1"]
    for text, style in (("+0.3*", "31"), ("-0.3*", "32"), ("+0.1 ", "2")):
        assert re.search(rf"\x1b\[{style}m *{re.escape(text.strip())}", seen)
    # Where there is no room, there are no bars.
    narrow = on_screen(table, 22, monkeypatch)
    assert "█" not in narrow and "\x1b[31m" in narrow
    piped = io.StringIO()
    terminal.show((table,), piped)
    assert not {"█", "░", "\x1b"} & set(piped.getvalue())
    assert piped.getvalue() == terminal.text((table,))


@pytest.mark.parametrize("lower", [False, True])
def test_a_rise_is_better_or_worse_as_the_score_is_meant(lower: bool) -> None:
    for value, tone in ((0.5, "worse" if lower else "better"), (-0.5, "better" if lower else "worse")):
        beyond = Change(value=value, low=value - 0.1, high=value + 0.1, beyond_noise=True)
        assert tone_of(beyond, lower) == tone
    assert tone_of(Change(value=0.5, low=-0.1, high=1.1, beyond_noise=False), lower) == "noise"


def test_tables_of_a_run_fit_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [part for part in report_view(report(), "runs/quickstart") if isinstance(part, Table)]
    shown = [Text.from_ansi(on_screen(table, 80, monkeypatch)).plain for table in tables]
    assert max(len(line.rstrip()) for text in shown for line in text.splitlines()) <= 80
    assert any("█" in text for text in shown)
