"""What passes are promised: common options, discovery, and errors that name file and class."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import DOCS
from pydantic import ValidationError

from umcompress import plugins as discover
from umcompress.cli.main import main
from umcompress.errors import UsageError
from umcompress.extend.pass_base import Pass, SitePass, parse_layers
from umcompress.extend.registry import all_evaluations, all_passes, evaluations, find_evaluation, find_pass, passes
from umcompress.passes.layer_drop import LayerDrop


@given(st.sets(st.integers(0, 60), min_size=1))
def test_layers_survive_being_written_as_a_list(layers: set[int]) -> None:
    assert parse_layers(",".join(map(str, sorted(layers)))) == frozenset(layers)
    assert parse_layers(f"{min(layers)} - {max(layers)}") == frozenset(range(min(layers), max(layers) + 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", None), ("3", {3}), ("2-4", {2, 3, 4}), ("1,3,5-7", {1, 3, 5, 6, 7}), ("0-0", {0})],
)
def test_layers(text: str, expected: set[int] | None) -> None:
    assert parse_layers(text) == expected


@pytest.mark.parametrize("text", ["", "5-2", "1-2-3", "-1", "1,,2", "a", "1.5", "1-", "²", "0-9999999999"])
def test_layers_that_mean_nothing(text: str) -> None:
    with pytest.raises(ValueError):
        parse_layers(text)
    with pytest.raises(ValidationError):
        LayerDrop(layers=text, drop_count=1)


@pytest.mark.parametrize(("given", "text"), [(3, "3"), ([1, 2], "1,2"), ("2-4", "2-4")])
def test_layers_may_be_written_as_numbers(given: Any, text: str) -> None:
    assert LayerDrop.model_validate({"layers": given, "drop_count": 1}).layers == text


@pytest.mark.parametrize("given", [True, [], [True], 1.5, -2, None])
def test_layers_of_other_types_are_refused(given: Any) -> None:
    with pytest.raises(ValidationError):
        LayerDrop.model_validate({"layers": given, "drop_count": 1})


def test_a_users_pass_stays_frozen_and_closed() -> None:
    class Mine(SitePass):
        name: ClassVar[str] = "mine"

        def plan(self, graph: Any, statistics: Any) -> Any: ...

    with pytest.raises(ValidationError, match="frozen"):
        Mine().layers = "1"
    with pytest.raises(ValidationError, match="extra"):
        Mine(shere=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="frozen"):

        class Open(Pass):
            name: ClassVar[str] = "open"
            model_config = {"frozen": False, "extra": "allow"}


def test_every_name_that_is_offered_is_there() -> None:
    """Those too that are imported late, since they bring torch or numpy."""
    from umcompress import extend

    assert [name for name in extend.__all__ if not hasattr(extend, name)] == []
    with pytest.raises(AttributeError, match="has no Pas"):
        extend.Pas  # noqa: B018


def test_shipped_passes_are_found_like_anybodys() -> None:
    assert {"channel_prune", "head_prune", "layer_drop"} <= set(passes())
    assert "scenes" in evaluations()
    assert find_pass("layer_drop") is LayerDrop


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown pass 'layer_dorp'[\s\S]*did you mean 'layer_drop'"):
        find_pass("layer_dorp")
    with pytest.raises(UsageError, match=r"unknown evaluation 'scene'[\s\S]*did you mean 'scenes'"):
        find_evaluation("scene")


def test_listing_and_validating_load_no_torch() -> None:
    code = (
        "import sys; from umcompress.extend import passes, find_pass;"
        "[find_pass(name).model_json_schema() for name in passes() if name in"
        " ('layer_drop', 'head_prune', 'channel_prune')];"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_pass_by_path() -> None:
    cls = find_pass("my_pass.py:QuietChannels", DOCS)
    assert cls.name == "quiet_channels" and cls is find_pass("docs/my_pass.py:QuietChannels", DOCS.parent)
    assert find_pass(f"{DOCS}/my_pass.py:QuietChannels") is cls


def write(folder: Path, text: str) -> Path:
    (folder / "mine.py").write_text(text)
    return folder


PASS = """
from typing import ClassVar
from umcompress.extend import Pass

class Mine(Pass):
    name: ClassVar[str] = "mine"
    share: float = {share}
    def plan(self, graph, statistics): ...
"""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.py", PASS.format(share=1), r"defines Mine[\s\S]*write mine.py:Mine"),
        ("mine.py:Main", PASS.format(share=1), r"has no Main; it defines Mine[\s\S]*write mine.py:Mine"),
        ("mine.py:X", "X = 3", "it is 3[\\s\\S]*derive the class from umcompress.extend.Pass"),
        ("mine.py:X", "class X: pass", "derive the class from umcompress.extend.Pass"),
        (
            "mine.py:X",
            "import no_such_thing",
            "does not import: ModuleNotFoundError: No module named 'no_such",
        ),
        ("mine.py:X", "def f(:", "does not import: SyntaxError"),
        ("mine.py:X", "1 / 0", "does not import: ZeroDivisionError"),
        ("mine.py:Mine", PASS.format(share=1).replace("plan", "paln"), "Mine does not define plan"),
        ("mine.py:Mine", PASS.format(share=1).replace("name:", "title:"), "Mine has no name"),
        ("other.py:Mine", "", r"there is no file .*other.py[\s\S]*relative to the recipe"),
    ],
)
def test_files_that_will_not_do(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_pass(name, write(tmp_path, text))


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    first = find_pass("mine.py:Mine", write(tmp_path, PASS.format(share=1.0)))
    assert find_pass("mine.py:Mine", tmp_path) is first
    second = find_pass("mine.py:Mine", write(tmp_path, PASS.format(share=2.0)))
    assert (first().share, second().share) == (1.0, 2.0)  # type: ignore[attr-defined]


def test_two_files_of_one_name_are_two_passes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write(tmp_path / name, PASS.format(share="float(__file__.endswith('a/mine.py'))"))
    one, other = (find_pass(f"{name}/mine.py:Mine", tmp_path) for name in "ab")
    assert (one().share, other().share) == (1.0, 0.0)  # type: ignore[attr-defined]


def offer(monkeypatch: pytest.MonkeyPatch, *offers: tuple[str, str]) -> None:
    made = [EntryPoint(name, value, "umcompress.passes") for name, value in offers]
    monkeypatch.setattr(discover, "entry_points", lambda group: made if group == "umcompress.passes" else [])
    discover.entries.cache_clear()


@pytest.fixture(autouse=True)
def installed_again() -> Iterator[None]:
    """What a test pretends to be installed is forgotten after it."""
    yield
    discover.entries.cache_clear()


def test_a_broken_plugin_hurts_only_who_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("good", "umcompress.passes.layer_drop:LayerDrop"), ("bad", "no_such_module:Pass"))
    assert passes() == ["bad", "good"]
    assert find_pass("good") is LayerDrop
    with pytest.raises(UsageError, match=r"pass 'bad'[\s\S]*no_such_module:Pass does not import") as refused:
        find_pass("bad")
    told: list[UsageError] = []
    assert all_passes(told.append) == {"good": LayerDrop}
    assert [str(error) for error in told] == [str(refused.value)]


def test_the_listing_names_a_broken_plugin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who has just written one must not look for it in vain."""
    offer(monkeypatch, ("good", "umcompress.passes.layer_drop:LayerDrop"), ("bad", "no_such_module:Pass"))
    assert main(["passes", "--format", "json"]) == 0
    shown = capsys.readouterr()
    assert [one["name"] for one in json.loads(shown.out)["passes"]] == ["good"]
    assert "left out: pass 'bad'" in shown.err and "no_such_module:Pass does not import" in shown.err


def test_one_name_with_two_meanings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("x", "umcompress.passes.layer_drop:LayerDrop"), ("x", "else.where:LayerDrop"))
    with pytest.raises(UsageError, match=r"umcompress.passes.layer_drop:LayerDrop, else.where:LayerDrop"):
        find_pass("x")


def test_the_same_offer_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, *[("x", "umcompress.passes.layer_drop:LayerDrop")] * 2)
    assert find_pass("x") is LayerDrop


def test_no_seed_may_be_negative() -> None:
    """What draws cannot begin with one; the recipe says so before anything runs."""
    told: list[UsageError] = []
    installed = {**all_passes(told.append), **all_evaluations(told.append)}
    assert not told
    seeds = {
        f"{name}.{key}": kind.model_json_schema()["properties"][key].get("minimum")
        for name, kind in installed.items() for key in kind.model_fields if "seed" in key
    }  # fmt: skip
    assert "scenes.seed" in seeds and seeds == dict.fromkeys(seeds, 0)
