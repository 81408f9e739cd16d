"""The command line without a model: exit codes, messages, speed, and its frozen surface."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import DATA
from report_fakes import report

from umcompress.cli import main as cli
from umcompress.cli import parser as cli_parser
from umcompress.documents.gate import Gate
from umcompress.documents.report import write_report
from umcompress.documents.schema import recipe_schema
from umcompress.recipe.recipe import RecipeHead

LIGHT = (
    ["--help"],
    ["--version"],
    ["passes"],
    ["passes", "channel_prune"],
    ["evaluations"],
    ["evaluations", "clip_score"],
    ["compare", "RUN"],
    ["schema"],
    ["aply"],
)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    write_report(report(), tmp_path)
    return tmp_path


def surface() -> dict[str, Any]:
    """Every command with its arguments: names, defaults, choices."""
    parser = cli_parser.build()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {name: [_argument(action) for action in sub._actions] for name, sub in commands.choices.items()}


def _argument(action: argparse.Action) -> dict[str, Any]:
    name = " ".join(action.option_strings) or str(action.metavar)
    default = None if action.default == argparse.SUPPRESS else action.default
    return {"name": name, "default": default, "choices": action.choices, "nargs": action.nargs}


def head_schema() -> dict[str, Any]:
    return recipe_schema(RecipeHead, Gate, {}, {})


@pytest.mark.parametrize(("name", "found"), [("cli.json", surface), ("recipe_schema.json", head_schema)])
def test_the_public_surface_is_frozen(name: str, found: Any) -> None:
    """To change it on purpose: `make golden`, read the diff, and say so in the changelog."""
    if os.environ.get("UMCOMPRESS_WRITE_GOLDEN"):
        (DATA / name).write_text(json.dumps(found(), indent=1) + "\n", encoding="utf-8")
    assert json.loads(json.dumps(found())) == json.loads((DATA / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_load_no_torch(arguments: list[str], run_folder: Path) -> None:
    arguments = [str(run_folder) if argument == "RUN" else argument for argument in arguments]
    code = (
        "import sys\nfrom umcompress.cli.main import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'scipy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_evaluations_are_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluations", "--format", "json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["evaluations"]}
    assert {"scenes", "perplexity", "geneval"} <= found.keys()
    assert found["geneval"]["tasks"] == ["generation"] and found["scenes"]["tasks"] == ["understanding", "generation"]
    assert cli.main(["evaluations", "clip_score", "--format", "json"]) == 0
    options = {option["name"]: option for option in json.loads(capsys.readouterr().out)["options"]}
    assert "folder of a transformers CLIP" in options["clip"]["meaning"]
    assert cli.main(["evaluations", "clip_score"]) == 0
    assert "evaluate: [clip_score]" in capsys.readouterr().out
    assert cli.main(["evaluations", "clip_scor"]) == 2
    assert "clip_score" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_error() -> None:
    """As `umcompress passes | head -1`: with a pipe that nobody reads from any more."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "umcompress", "passes"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_help_imports_next_to_nothing() -> None:
    """Of what is installed only our own parser, and of Python little: `--help` is there at once."""
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom umcompress.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(done.stderr.split())
    assert found - sys.stdlib_module_names == {"umcompress"} and found.isdisjoint({"dataclasses", "inspect", "json"})


def test_listing_passes_needs_no_documents_of_scores() -> None:
    code = "import sys\nfrom umcompress.cli.main import main\nmain(['passes'])\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(done.stderr.split())
    assert "umcompress.passes.adapt" in found
    assert found.isdisjoint({"umcompress.documents.scores", "umcompress.documents.report"})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["aply"], ["no command 'aply'", "did you mean 'apply'?"]),
        (["compare"], ["the following arguments are required: RUN"]),
        (["compare", "x", "--formt=md"], ["unrecognized arguments", "did you mean --format?"]),
        (["compare", "x", "--format", "html"], ["invalid choice: 'html'", "compare --help"]),
        (["apply", "x", "--device", "gpu"], ["'gpu' is not cpu, cuda or cuda:N"]),
        (["evaluate", "x", "--limit", "0"], ["'0' is not a whole number above 0"]),
        (["evaluate", "x", "--seed", "-1"], ["'-1' is not a whole number"]),
        (["--vers"], ["unrecognized arguments", "did you mean --version?"]),
        (["compare", "/nowhere"], ["the report of /nowhere", "no such file or folder"]),
        (["passes", "chanel_prune"], ["unknown pass 'chanel_prune'", "did you mean 'channel_prune'?"]),
        (["passes", "nowhere.py:X"], ["no file nowhere.py"]),
    ],
)
def test_wrong_command_lines(
    arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    for part in expected:
        assert part in err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "apply" in capsys.readouterr().err


def test_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, "compare", interrupted)
    assert cli.main(["compare", "x"]) == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(run_folder: Path) -> None:
    command = f"{sys.executable} -m umcompress compare {run_folder} {run_folder} | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_compare_in_every_format(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(run_folder), str(run_folder / "report.json"), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["label"] for run in found["runs"]] == ["A", "B"]
    assert found["runs"][0]["steps"][0]["scores"]["generation"]["value"] == 0.92
    assert cli.main(["compare", str(run_folder), "--format", "md"]) == 0
    assert "### A: scores" in capsys.readouterr().out
    assert cli.main(["compare", str(run_folder)]) == 0
    assert "Understanding" in capsys.readouterr().out


def test_passes_tell_types_defaults_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["passes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("layer_drop", "head_prune", "channel_prune"))
    assert cli.main(["passes", "channel_prune"]) == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("keep_ratio"))
    assert "number above 0, at most 1" in line
    assert "required" in line
    assert all(option in shown for option in ("component", "layers", "calibration", "repair", "multiple_of"))


def test_passes_as_json_have_what_the_table_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["passes", "--format", "json"]) == 0
    listed = {one["name"]: one["about"] for one in json.loads(capsys.readouterr().out)["passes"]}
    assert listed["layer_drop"].startswith("Drop the blocks")
    assert cli.main(["passes", "channel_prune", "--format", "json"]) == 0
    options = {one["name"]: one for one in json.loads(capsys.readouterr().out)["options"]}
    ratio, score = options["keep_ratio"], options["score"]
    assert (ratio["required"], ratio["type"]) == (True, "number above 0, at most 1")
    assert (score["required"], score["default"]) == (False, "activation")
    assert cli.main(["passes", "channel_prune", "--format", "md"]) == 0
    assert "| keep_ratio | number above 0, at most 1 | required |" in capsys.readouterr().out.replace("\\", "")


def test_a_test_starts_a_command_for_real_where_libraries_would_read_otherwise() -> None:
    from forked_command import Command

    real, forked = (Command("passes", environment=more) for more in ({"HF_HUB_OFFLINE": "0"}, {"COLUMNS": "80"}))
    assert real.is_real and not forked.is_real
    one, other = real.wait(), forked.wait()
    assert one.returncode == other.returncode == 0 and "channel_prune" in one.stdout
    assert one.stdout == other.stdout
