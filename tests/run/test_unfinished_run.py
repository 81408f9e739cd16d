"""The folder of a run that stopped, named where a model or a report is wanted: it says so, and how the run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hf_models import write_folder, write_recipe
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from umcompress.cli.main import main

STOPS = '''
from pathlib import Path
from typing import ClassVar
from umcompress.extend import DropBlock, Pass, Plan, PlanError, Proposal

class Stops(Pass):
    """Drops a block, unless told to stop by a file."""
    name: ClassVar[str] = "stops"

    def plan(self, graph, statistics):
        if not statistics.dry and Path("stop").exists():
            raise PlanError("stops", "as was wanted", "go on")
        return Proposal(Plan(pass_name=self.name, edits=(DropBlock(block=graph.blocks()[1].path),)))
'''


def test_it_says_so_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, vocab_size=96
    )
    write_folder(LlamaForCausalLM(config), tmp_path / "llama")
    (tmp_path / "own.py").write_text(STOPS, encoding="utf-8")
    Image.new("RGB", (8, 8)).save("grey.png")
    halve = {"pass": "head_prune", "component": "shared", "keep_ratio": 0.5, "score": "magnitude"}
    recipe = write_recipe(tmp_path, Path("llama"), halve, {"pass": "own.py:Stops"})
    Path("stop").touch()
    begun = ["apply", str(recipe), "-o", "my run"]
    assert main(begun) == 2
    capsys.readouterr()
    Path("again").mkdir()
    other = write_recipe(Path("again"), Path("../my run"), halve)
    ask, init = ["ask", "grey.png", "what?"], ["init", "-o", "x.yaml"]
    wanted = {
        "model": (["inspect"], ["evaluate"], ask, ["generate", "a cat"], init),
        "report": (["report"], ["compare"]),
    }
    for lacks, commands in wanted.items():
        for name, *rest in commands:
            assert main([name, "my run", *rest]) == 2
            said = capsys.readouterr().err
            found = f"a run that is not finished: the {lacks} comes at its end; done so far: baseline, 01-head_prune\n"
            assert found in said, said
            assert "umcompress apply 'my run/recipe.resolved.yaml' -o 'my run': it goes on" in said
    assert main(["apply", str(other), "-o", "other"]) == 2
    assert "model: the model my run; found the output folder of a run that is not finished" in capsys.readouterr().err
    # What it says to do helps.
    Path("stop").unlink()
    assert main(["apply", "my run/recipe.resolved.yaml", "-o", "my run"]) == 0
    assert "01-head_prune: done before" in capsys.readouterr().err
    assert main(["inspect", "my run"]) == 0
    # The recipe that the run keeps is the same one, although the code that it names lies elsewhere.
    assert main(begun) == 0
    assert "nothing is left to do" in capsys.readouterr().err
    # A folder that merely has a file of that name is no run.
    Path("not ours").mkdir()
    Path("not ours/run.json").write_text("{}", encoding="utf-8")
    assert main(["inspect", "not ours"]) == 2
    assert "no known kind" in capsys.readouterr().err
