"""Models that bring their own Python code: refused without consent, with it edited, saved and loaded like any other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from hf_models import write_recipe
from remote_models import own_model, write_seeing_toy, write_toy
from safetensors.torch import load_file

import umcompress
from umcompress.cli.main import main
from umcompress.documents.plan import CompressionRecord, DropBlock, DropBranch, Edit, KeepChannels, KeepHeads, Plan
from umcompress.documents.report import Report, read_report
from umcompress.errors import ModelError
from umcompress.models.hf.ask.processors import open_processor
from umcompress.models.plain_folder import Plain
from umcompress.models.remote_code import code_files, references
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import Source, open_source
from umcompress.rewrite.apply import rewrite

NARROW = {"pass": "channel_prune", "keep_ratio": 0.5, "score": "magnitude", "repair": "none"}
HEADS = {"pass": "head_prune", "keep_ratio": 0.5, "score": "magnitude"}
SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
assert "umcompress" not in sys.modules
assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
torch.save(model(torch.arange(4, 15)[None], use_cache=False).logits, sys.argv[2])
"""


@pytest.fixture(autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where transformers copies code to before it imports it: not the user's cache, here and in fresh processes."""
    cache = tmp_path_factory.mktemp("modules")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
    monkeypatch.setenv("HF_MODULES_CACHE", str(cache))
    path, known = list(sys.path), set(sys.modules)
    yield cache
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("transformers_modules") and name not in known]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Written by the model's code when it is imported."""
    monkeypatch.setenv("TOY_MARKER", str(tmp_path / "it-ran"))
    return tmp_path / "it-ran"


def opened(folder: Path) -> Source:
    return open_source(str(folder), trust_remote_code=True)


def run(home: Path, model: Path, *steps: dict[str, Any], name: str = "run", **keys: Any) -> Report:
    """A run of these steps by the command line."""
    recipe = write_recipe(home, model, *steps, trust_remote_code=True, **keys)
    assert main(["apply", str(recipe), "-o", str(home / name)]) == 0
    return read_report(home / name)


def by_transformers(folder: Path, out: Path) -> torch.Tensor:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: torch.Tensor = torch.load(out)
    return found


# -- consent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["apply", "plan", "evaluate", "inspect", "init", "ask", "generate"])
def test_without_consent_nothing_of_it_runs(
    command: str, toy: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, picture = str(write_recipe(tmp_path, toy, NARROW)), tmp_path / "picture.png"
    from PIL import Image

    Image.new("RGB", (4, 4)).save(picture)
    arguments = {
        "apply": [recipe, "-o", str(tmp_path / "run")], "plan": [recipe],
        "evaluate": [str(toy)], "inspect": [str(toy)],
        "init": [str(toy), "-o", str(tmp_path / "first.yaml")],
        "ask": [str(toy), str(picture), "what?"], "generate": [str(toy), "a cat", "-o", str(tmp_path / "cat.png")],
    }[command]  # fmt: skip
    assert main([command, *arguments]) == 2
    said = capsys.readouterr().err
    assert "configuration_toy.py, modeling_toy.py, toy_rotary.py" in said
    assert "trust_remote_code: true" in said and "--trust-remote-code" in said
    assert not marker.exists()


def test_consent_is_heard_and_is_never_asked_for(
    toy: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(ModelError, match="was not run"):
        umcompress.load(toy)
    assert not marker.exists()
    assert type(umcompress.load(toy, trust_remote_code=True)).__name__ == "ToyForCausalLM"
    assert "transformers_modules" in marker.read_text()
    assert main(["inspect", str(toy), "--trust-remote-code"]) == 0
    assert "4 heads of 8, 2 groups" in capsys.readouterr().out


def test_code_of_other_repositories_and_missing_files_are_refused(toy: Path, tmp_path: Path, marker: Path) -> None:
    other = shutil.copytree(toy, tmp_path / "other")
    content = json.loads((other / "config.json").read_text())
    content["auto_map"]["AutoConfig"] = "someone/else--configuration_toy.ToyConfig"
    (other / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="another repository: someone/else"):
        opened(other).skeleton()
    bare = shutil.copytree(toy, tmp_path / "bare")
    (bare / "toy_rotary.py").unlink()
    with pytest.raises(ModelError, match=r"no toy_rotary\.py"):
        opened(bare).skeleton()
    assert not marker.exists()


def test_what_runs_is_read_off_the_folder(toy: Path) -> None:
    assert code_files(toy) == ("configuration_toy.py", "modeling_toy.py", "toy_rotary.py")
    assert "modeling_toy.ToyForCausalLM" in references(toy)
    assert open_source(str(toy)).own_code == () and len(opened(toy).own_code) == 3


def test_a_class_that_transformers_knows_is_taken_without_consent(tmp_path: Path) -> None:
    from hf_models import write_folder
    from hf_zoo import ZOO

    folder = write_folder(ZOO["llama"].build().eval(), tmp_path / "llama")
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"] = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "mine.py").write_text("raise SystemError('it ran')")
    assert type(umcompress.load(folder)).__name__ == "LlamaForCausalLM"
    with pytest.raises(ModelError, match=r"mine\.py, line 1: SystemError: it ran"):
        umcompress.load(folder, trust_remote_code=True)
    content["architectures"] = ["MyModel"]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="was not run"):
        umcompress.load(folder)


# -- what goes wrong in it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "old", "new", "found"), [
    ("modeling_toy.py", "import math", "import math\nimport no_such_package", "no_such_package"),
    ("modeling_toy.py", "self.norm = ", "raise KeyError('x'); self.norm = ", "modeling_toy.py, line"),
    ("configuration_toy.py", "self.theta = theta", "self.theta = 1 / 0", "configuration_toy.py, line"),
    ("modeling_toy.py", "class ToyForCausalLM(", "class Other(", "ToyForCausalLM"),
    ("modeling_toy.py", "hidden_states = inputs_embeds", "hidden_states = inputs_embeds.nothing", "AttributeError"),
    ("modeling_toy.py", "import math", "import math\nimport sys\nsys.exit('no licence')", "SystemExit: no licence"),
    ("modeling_toy.py", "self.norm = ", "raise SystemExit; self.norm = ", "it ends the process: SystemExit\n"),
    ("modeling_toy.py", "hidden_states = inputs_embeds", "raise SystemExit(0)", "it ends the process: SystemExit: 0\n"),
])  # fmt: skip
def test_errors_in_it_name_file_and_reason(
    file: str, old: str, new: str, found: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(toy, tmp_path / "broken")
    text = (broken / file).read_text()
    assert old in text
    (broken / file).write_text(text.replace(old, new))
    assert main(["inspect", str(broken), "--trust-remote-code"]) == 2
    said = capsys.readouterr().err
    assert f"run the code that comes with the model in {broken}" in said and found in said


def test_a_key_error_in_it_ends_no_run_in_a_traceback(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the runner is asked to do; before anything runs `apply` sends a text through the shapes."""
    broken = shutil.copytree(toy, tmp_path / "broken")
    code = broken / "modeling_toy.py"
    code.write_text(code.read_text().replace("hidden_states = inputs_embeds", "raise KeyError('gate')"))
    source = opened(broken)
    runner: Any = source.runner(source.skeleton())
    for work in (runner.pass_text, lambda: runner.pass_tokens("understanding")):
        with pytest.raises(ModelError, match=r"modeling_toy\.py, line \d+: KeyError: 'gate'"):
            work()
    (tmp_path / "texts.txt").write_text("one text\nanother\n")
    drop = {"pass": "layer_drop", "unit": "attention", "drop_count": 1}
    recipe = write_recipe(
        tmp_path, broken, drop, trust_remote_code=True, evaluate=[],
        calibration={"data": str(tmp_path / "texts.txt"), "samples": 2},
    )  # fmt: skip
    assert main(["apply", str(recipe), "-o", str(tmp_path / "out")]) == 2
    assert "KeyError: 'gate'" in capsys.readouterr().err


def test_errors_of_ours_stay_what_they_are(toy: Path) -> None:
    source = opened(toy)
    model: Any = source.load()
    runner = source.runner(model)

    def ours(*_: object) -> None:
        raise ValueError("ours")

    model.model.layers[0].register_forward_hook(ours)
    with pytest.raises(ValueError, match="ours"):
        runner.probe()


# -- edited, saved, loaded ------------------------------------------------------------------------------------


def test_two_passes_end_plain_and_transformers_alone_computes_the_same(toy: Path, tmp_path: Path) -> None:
    report = run(tmp_path, toy, {"pass": "layer_drop", "drop": [1]}, HEADS, NARROW)
    saved, folder = report.checkpoint, tmp_path / "run" / "model"
    assert saved is not None and saved.reload_equal and saved.loads_with == "transformers"
    assert not (folder / "umcompress.json").exists()
    assert {file.name for file in folder.glob("*.py")} == {"configuration_toy.py", "modeling_toy.py", "toy_rotary.py"}
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_toy.ToyForCausalLM"
    assert (config["num_hidden_layers"], config["intermediate_size"], config["num_attention_heads"]) == (3, 24, 2)
    assert any("modeling_toy.py" in note and "sha256" in note for note in report.notes)
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    model: Any = umcompress.load(folder, trust_remote_code=True)
    with torch.no_grad():
        ours = model(torch.arange(4, 15)[None], use_cache=False).logits
    assert torch.equal(by_transformers(folder, tmp_path / "logits.pt"), ours)


def test_a_result_with_plans_asks_for_consent_again(
    toy: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attentions are gone, so caches have slots that nothing fills: cached answers equal those of a whole forward.

    The run goes on with the same code, and with no other.
    """
    source = shutil.copytree(toy, tmp_path / "toy")
    report = run(tmp_path, source, {"pass": "layer_drop", "unit": "attention", "drop": [0, 2]}, {
        "pass": "layer_drop", "unit": "feed_forward", "drop": [1, 2],
    })
    saved, folder = report.checkpoint, tmp_path / "run" / "model"
    assert saved is not None and saved.reload_equal and saved.loads_with == "umcompress"
    assert saved.own_code == ("configuration_toy.py", "modeling_toy.py", "toy_rotary.py")
    again = ["apply", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "run")]
    assert main(again) == 0 and "nothing is left to do" in capsys.readouterr().err
    helper = source / "toy_rotary.py"
    helper.write_text(helper.read_text() + "\n# Changed.\n")
    assert main(again) == 2 and "toy_rotary.py has changed" in capsys.readouterr().err
    marker.unlink()
    with pytest.raises(ModelError, match="was not run"):
        umcompress.load(folder)
    assert not marker.exists()
    model: Any = umcompress.load(folder, trust_remote_code=True)
    assert len(model.model.layers) == 3 and not hasattr(model.model.layers[0], "self_attn")
    ids = torch.arange(4, 15)[None]
    out = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        for length in range(11, 17):
            whole = model(out[:, :length], use_cache=False).logits
            assert int(whole[0, -1].argmax()) == int(out[0, length])


def edited(source: Source, out: Path, *edits: Edit) -> tuple[Any, Plain | str]:
    """The model of a folder, edited in memory and written without a fresh process; what was written."""
    model, plan = source.load(), Plan(pass_name="by hand", edits=edits)
    rewrite(model, source.family, [plan])
    plain: Plain | str = source.family.plain(model, source.folder, [plan])
    if isinstance(plain, str):
        record = CompressionRecord(base="toy", family="transformers", plans=(plan,))
        save_compressed(model, source.family, out, record, source.folder)
    else:
        save_plain(plain, out, source.folder)
    return model, plain


@pytest.mark.parametrize("rest", ["self.hidden_size", "-1", "self.num_heads * self.head_dim"])
def test_heads_are_cut_whatever_the_code_calls_their_width(rest: str, tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "toy", rest=rest)
    sites = [f"model.layers.{layer}.self_attn" for layer in range(4)]
    _, plain = edited(opened(folder), tmp_path / "out", *(
        KeepHeads(site=site, component="shared", key_value_groups=(1,)) for site in sites
    ))
    # A fresh model of the code would take the hidden size for the width of its heads.
    assert isinstance(plain, str) is (rest == "self.hidden_size")
    reference = own_model(folder)
    for site in sites:
        reference.get_submodule(site).o_proj.weight.data[:, :16] = 0
    model: Any = umcompress.load(tmp_path / "out", trust_remote_code=True)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (16, 32)
    ids = torch.arange(4, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-5, atol=1e-6)


def test_dropped_parts_are_those_of_the_model_without_them(toy: Path, tmp_path: Path) -> None:
    """The reference: the folder's own code, imported by Python, with parts that add nothing."""
    edited(
        opened(toy), tmp_path / "out", DropBranch(block="model.layers.1", branch="attention", component="shared"),
        DropBranch(block="model.layers.3", branch="feed_forward", component="shared"),
    )
    reference = own_model(toy)
    reference.model.layers[1].self_attn.o_proj.weight.data.zero_()
    reference.model.layers[3].mlp.down_proj.weight.data.zero_()
    ids = torch.arange(4, 15)[None]
    model: Any = umcompress.load(tmp_path / "out", trust_remote_code=True)
    assert not hasattr(model.model.layers[1], "self_attn") and not hasattr(model.model.layers[3], "mlp")
    with torch.no_grad():
        for options in ({"use_cache": False}, {"use_cache": True}, {"output_attentions": True, "use_cache": True}):
            found, wanted = model(ids, **options), reference(ids, **options)
            torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-5, atol=1e-6)
            assert (found.past_key_values is None) == (wanted.past_key_values is None)


def test_code_of_transformers_4_is_mended_and_the_report_says_so(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "toy", tie_word_embeddings=True, post_init=False)
    _, why = edited(opened(folder), tmp_path / "out", DropBlock(block="model.layers.1"))
    assert isinstance(why, str) and "post_init" in why and "lists tied weights" in why
    model: Any = umcompress.load(tmp_path / "out", trust_remote_code=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    reference = own_model(folder, tie_word_embeddings=True)
    del reference.model.layers[1]
    ids = torch.arange(4, 9)[None]
    with torch.no_grad():
        assert torch.equal(model(ids, use_cache=False).logits, reference(ids, use_cache=False).logits)


def test_buffers_that_transformers_leaves_unset_are_no_plain_result(tmp_path: Path) -> None:
    """Otherwise a folder would be called plain that transformers loads with whatever lies in memory."""
    folder = write_toy(tmp_path / "toy", restored=False)
    _, why = edited(opened(folder), tmp_path / "out", DropBlock(block="model.layers.1"))
    assert isinstance(why, str) and "leaves model.layers.0.self_attn.rotary_emb.inv_freq" in why
    model: Any = umcompress.load(tmp_path / "out", trust_remote_code=True)
    reference = own_model(folder)
    del reference.model.layers[1]
    ids = torch.arange(4, 9)[None]
    with torch.no_grad():
        assert torch.equal(model(ids, use_cache=False).logits, reference(ids, use_cache=False).logits)


def test_out_of_core_writes_the_same_weights(toy: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, toy, {"pass": "layer_drop", "unit": "attention", "drop": [1]}, NARROW, trust_remote_code=True
    )
    assert main(["apply", str(recipe), "-o", str(tmp_path / "disk"), "--out-of-core"]) == 0
    report = read_report(tmp_path / "disk")
    assert report.checkpoint is not None and report.checkpoint.reload_equal
    assert any("modeling_toy.py" in note for note in report.notes)
    plans = json.loads((tmp_path / "disk" / "plan.json").read_text())
    source = opened(toy)
    model = source.load()
    rewrite(model, source.family, [Plan.model_validate(plan) for plan in plans.values()])
    wanted, found = model.state_dict(), load_file(tmp_path / "disk" / "model" / "model.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_vision_tower_and_parts_that_nobody_declares(tmp_path: Path) -> None:
    folder = write_seeing_toy(tmp_path / "toy")
    source = opened(folder)
    assert source.family.stacks(source.skeleton()) == {
        "main": "language_model.model.layers", "vision_model.layers": "vision_model.layers",
    }
    channels = [
        KeepChannels(site=f"vision_model.layers.{layer}.mlp", keep=tuple(range(0, 40, 2)))
        for layer in (0, 2)
    ]
    drops = (DropBlock(block="vision_model.layers.1"), DropBlock(block="language_model.model.layers.0"))
    model, plain = edited(source, tmp_path / "out", *channels, *drops)
    assert not isinstance(plain, str) and plain.loads_with == "transformers"
    assert source.runner(model).probe()["image.vision_model.features"].shape == (1, 17, 24)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    call = {"input_ids": torch.tensor([[5] * 16 + list(range(6, 15))]), "pixel_values": torch.rand(1, 3, 16, 16)}
    with torch.no_grad():
        ours, found = model(**call, use_cache=False).logits, theirs(**call, use_cache=False).logits
        blind = model(input_ids=call["input_ids"], use_cache=False).logits
    assert torch.equal(ours, found) and not torch.equal(ours, blind)
    half = [DropBranch(block="vision_model.layers.1", branch="attention", component="understanding")]
    _, why = edited(source, tmp_path / "half", *half)
    assert why == "layers 1 of the stack vision_model.layers have no attention"
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["vision_config"]["per_layer_config"]["1"]["skip"] == ["attention"]


def test_texts_train_it(toy: Path) -> None:
    import numpy as np

    from umcompress.models.items import TextSample

    source = opened(toy)
    model = source.load()
    trainer = source.family.trainer(model, toy)
    forward = trainer.forward(trainer.batch([TextSample("hello world")], [np.random.default_rng(0)]))
    forward.losses["cross_entropy"].mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# -- tokenizers and the hub -----------------------------------------------------------------------------------


def test_a_tokenizer_of_its_own_waits_for_consent(toy: Path, tmp_path: Path, marker: Path) -> None:
    from hf_models import write_folder
    from hf_zoo import ZOO

    folder = write_folder(ZOO["llama"].build().eval(), tmp_path / "llama")
    (folder / "words_toy.py").write_text(
        "import os\nfrom transformers import PreTrainedTokenizerFast\n"
        "open(os.environ['TOY_MARKER'], 'w').close()\n"
        "class ToyTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    content = json.loads((folder / "tokenizer_config.json").read_text())
    content |= {"auto_map": {"AutoTokenizer": ["words_toy.ToyTokenizer", None]}, "tokenizer_class": "ToyTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    for trust in (False, True):
        source = open_source(str(folder), trust_remote_code=trust)
        runner: Any = source.runner(source.load())
        try:
            kind = type(runner.tokenizer.tokenizer).__name__
        except ModelError as error:
            kind = str(error)
        assert (kind == "ToyTokenizer") is trust and marker.exists() is trust, kind


def test_a_processor_of_its_own_waits_for_consent(toy: Path, tmp_path: Path, marker: Path) -> None:
    folder = shutil.copytree(toy, tmp_path / "seeing")
    (folder / "looks_toy.py").write_text(
        "import os\nopen(os.environ['TOY_MARKER'], 'a').close()\n"
        "class ToyProcessor:\n    image_processor = None\n    @classmethod\n"
        "    def register_for_auto_class(cls, *_): pass\n    @classmethod\n"
        "    def from_pretrained(cls, *_, **__): return cls()\n"
    )
    content = {"auto_map": {"AutoProcessor": "looks_toy.ToyProcessor"}, "processor_class": "ToyProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"open the processor.*\n.*was not run: .*looks_toy\.py"):
        open_processor(folder)
    assert not marker.exists()
    assert type(open_processor(folder, trust=True)).__name__ == "ToyProcessor" and marker.exists()
    content["auto_map"] = {"AutoProcessor": "someone/else--looks_toy.ToyProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="another repository: someone/else"):
        open_processor(folder, trust=True)


def test_code_is_fetched_from_the_hub_only_with_consent(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    from umcompress.models.registry import resolve_folder

    asked: list[tuple[list[str], bool]] = []
    bare = shutil.copytree(toy, tmp_path / "bare", ignore=shutil.ignore_patterns("*.py"))

    def download(model: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append((allow_patterns, local_files_only))
        return str(bare if local_files_only else toy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_folder("someone/toy") == bare
    # Fetched before without its code: fetched again for it.
    assert resolve_folder("someone/toy", code=True) == toy
    assert ["*.py" in patterns for patterns, _ in asked] == [False, True, True]
    assert [local for _, local in asked] == [True, True, False]
