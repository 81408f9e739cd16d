"""Printed reports: what they say, that they fit 80 columns, and Markdown."""

from __future__ import annotations

from report_fakes import report, step, task_score

from umcompress.documents.plan import Declined
from umcompress.documents.previews import Inspection, PlanReport, PlanStep, SiteChange, SiteInfo
from umcompress.documents.report import CheckpointResult, Report, Size, Stopped, step_report
from umcompress.report import markdown, terminal
from umcompress.report.plan_view import inspection_view, plan_view
from umcompress.report.report_view import report_view
from umcompress.report.table import Column, Table, seconds, short_number


def printed(shown: Report, run: str = "runs/quickstart") -> str:
    view = report_view(shown, run)
    tables = terminal.text(tuple(part for part in view if isinstance(part, Table)))
    assert max(map(len, tables.splitlines())) <= 80
    return terminal.text(view)


def row(text: str, start: str) -> list[str]:
    return next(line for line in text.splitlines() if line.strip().startswith(start)).split()


def test_report_says_scores_changes_sizes_and_speeds() -> None:
    text = printed(report())
    assert row(text, "baseline") == ["baseline", "0.960", "±0.013", "0.920", "±0.016"]
    assert row(text, "02-channel") == [
        "02-channel_prune", "0.950", "±0.014", "-0.010", "0.600", "±0.027", "-0.320*",
    ]  # fmt: skip
    assert row(text, "chance") == ["chance", "0.250", "0.250"]
    assert "02-channel_prune   4.70M  18.8MB   2.35M   1.57M   2.35M   1.57M    783k" in text
    assert "1.00x!" in text
    assert "! less work than in the row above, yet no faster beyond noise" in text
    assert "samples: runs/quickstart/steps/baseline/samples.png and " in text
    assert text.rstrip().endswith("next: umcompress compare runs/quickstart")


def test_kinds_have_a_column_a_step() -> None:
    text = printed(report())
    assert row(text, "color attribution") == ["color", "attribution", "0.920", "0.920", "0.600", "0.25"]


def test_many_steps_with_long_names_still_fit() -> None:
    first = report().baseline
    steps = [first]
    for index in range(12):
        one = step(f"{index:02d}-a_rather_long_name_of_a_step", "x", (0.9, 0.9), 14_607_260_128, (12.1, 0.9))
        steps.append(step_report(one, first, steps[-1]))
    text = printed(report(steps=tuple(steps)))
    assert "6 steps left out" in text
    assert "14.6G" in text


def test_stop_refusals_and_checkpoint_are_told() -> None:
    baseline, first, second = report().steps
    declined = tuple(
        Declined(site=f"layers.{n}.mlp", component="generation", reason="odd width") for n in range(5)
    )
    undone = second.model_copy(update={"stopped": True, "declined": declined})
    saved = CheckpointResult(path="model", parameters=5_900_000, bytes=23_600_000, reload_equal=True)
    stopped = Stopped(step="02-channel_prune", reason="generation fell by 0.320, more than 0.050")
    text = printed(report(steps=(baseline, first, undone), stopped=stopped, checkpoint=saved))
    assert "02-channel_prune (undone)" in text
    assert "stopped at 02-channel_prune, which was undone: generation fell by 0.320" in text
    assert "left layers.2.mlp alone: odd width" in text
    assert "layers.3.mlp" not in text
    assert "left 5 sites alone" in text
    assert "5,900,000 parameters, 23.6MB, computes the same in a fresh process" in text


def test_a_task_that_was_not_scored_shows_as_a_dash() -> None:
    only = {"understanding": task_score("understanding", 0.9)}
    alone = report().baseline.model_copy(
        update={"scores": only, "speed": {}, "macs_per_token": {}, "samples": None}
    )
    text = printed(report(steps=(alone,)))
    assert row(text, "baseline") == ["baseline", "0.900", "±0.019", "-"]
    assert "samples:" not in text


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
    assert text.count("### ") == 5


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
