"""What must hold of one architecture: laws that know no graph, and cuts by the shipped passes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _block_scores import otherwise
from _pico import pico, randomise
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from umcompress.documents.plan import CompressionRecord, DropBlock, KeepChannels, KeepHeads, Plan
from umcompress.errors import PlanError
from umcompress.extend import Statistics
from umcompress.graph.linears import is_conv1d
from umcompress.graph.lower import lower
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.models.hf.ask.carried_state import carried_state
from umcompress.models.hf.inputs import fixed_inputs, picture
from umcompress.models.hf.load.skeleton import CONFIG_ERRORS
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import Source, open_source
from umcompress.passes.channel_prune import ChannelPrune
from umcompress.passes.head_prune import HeadPrune
from umcompress.passes.layer_drop import LayerDrop
from umcompress.plan.inspect import inspect_model
from umcompress.rewrite.apply import rewrite

IDS = torch.tensor([[7, 31, 15, 42, 9, 27, 51, 33, 12, 44, 19]])
Outputs = dict[str, Tensor]


class NotBuilt(Exception):
    """transformers itself makes no such pico model here."""


def look(cls: str, folder: Path, found: dict[str, Any]) -> None:
    """Fill in `found`; raises what is raised."""
    theirs = built(cls, folder / "source")
    source = open_source(str(folder / "source"))
    inspect_model(str(folder / "source"), None)
    model = source.load()
    outputs = run(source, model)
    if apart(outputs, run(source, theirs)) > 1e-5:
        found.setdefault("wrong", []).append("loads otherwise than transformers does")
    graph = trace_model(model, source.family)
    describe(graph, found)
    if not graph.stacks:
        return
    twin = copy.deepcopy(model)
    for block in graph.blocks(stack="all"):
        if graph.block(block.path).untraced is None:
            lower(twin.get_submodule(block.path), graph.block_graph(block.path))
    for key, value in run(source, twin).items():
        if not torch.equal(value.nan_to_num(0), outputs[key].nan_to_num(0)):
            found.setdefault("wrong", []).append(f"the lowered model computes other {key}")
    for line in otherwise(graph, model, lambda: run(source, model)):
        found.setdefault("wrong", []).append(line)
    if twice := sensitive(model):
        found["cache"] = twice
    for title, planner in PASSES.items():
        cut(title, planner(), source, model, graph, outputs, folder, found)


PASSES: dict[str, Callable[[], Any]] = {
    "blocks": lambda: LayerDrop(drop=(1,)),
    "channels": lambda: ChannelPrune(keep_ratio=0.5, score="magnitude"),
    "heads": lambda: HeadPrune(keep_ratio=0.5, score="magnitude"),
}


def built(cls: str, folder: Path) -> Any:
    """A pico model, saved by transformers and loaded by it."""
    import transformers

    known = getattr(transformers, cls)
    try:
        model = known(pico(known.config_class)).eval()
        randomise(model)
        if no_numbers(model):
            raise NotBuilt("its outputs are no numbers")
        model.save_pretrained(folder)
        return known.from_pretrained(folder).eval()
    except (*CONFIG_ERRORS, NotImplementedError) as error:
        raise NotBuilt(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


@torch.no_grad()
def no_numbers(model: Any) -> bool:
    """What does not run on text and a picture is left to the tool to refuse."""
    try:
        out = model(**fixed_inputs(model, IDS, picture(model)))
    except (TypeError, ValueError):
        return False
    return any(value.isnan().any() for value in out.values() if isinstance(value, Tensor))


def run(source: Source, model: nn.Module) -> Outputs:
    return source.runner(model).probe()


def apart(ours: Outputs, theirs: Outputs) -> float:
    """Largest difference, over the size of what is compared; forbidden tokens apart."""
    worst = 0.0 if ours.keys() == theirs.keys() else float("inf")
    for key in ours.keys() & theirs.keys():
        one, other = (part.double().nan_to_num(0).clamp(min=-1e6) for part in (ours[key], theirs[key]))
        if one.shape != other.shape:
            return float("inf")
        seen = other[other > -1e6]
        worst = max(worst, float((one - other).abs().max() / seen.abs().max().clamp(min=1)) if seen.numel() else 0.0)
    return worst


def describe(graph: ModelGraph, found: dict[str, Any]) -> None:
    """Sites of the main stack, and what the others are."""
    found["stacks"] = {name: len(graph.blocks(stack=name)) for name in graph.stacks}
    if not graph.stacks:
        found.setdefault("missing", []).append("no stack of blocks found")
        return
    blocks = graph.blocks()
    found["branches"] = sorted({" + ".join(branch.kind for branch in block.branches) for block in blocks})
    attentions, feed_forwards = graph.attentions(), graph.feed_forwards()
    found["heads"] = sorted({f"{site.query_heads} / {site.key_value_groups}" for site in attentions})
    found["channels"] = sorted({"gated" if site.gated else "plain" for site in feed_forwards})
    found["attentions"], found["feed_forwards"] = len(attentions), len({site.block for site in feed_forwards})
    found["gaps"] = sorted({gap.reason for gap in graph.gaps(graph.family.main_stack)})


# -- cuts -----------------------------------------------------------------------------------------------------------


def cut(
    title: str, planner: Any, source: Source, model: nn.Module, graph: ModelGraph, outputs: Outputs, home: Path,
    found: dict[str, Any],
) -> None:
    """Plan, apply, compare, save, load again."""
    try:
        plan = planner.plan(graph, Statistics()).plan
        edited = rewrite(copy.deepcopy(model), source.family, [plan])
    except PlanError as error:
        found.setdefault("missing", []).append(f"{title}: {' '.join(str(error).split())[:400]}")
        return
    wrong = found.setdefault("wrong", [])
    wanted, ours = run(source, reference(graph, model, plan)), run(source, edited)
    wanted = by_layer(wanted, ours, [edit.block for edit in plan.edits if isinstance(edit, DropBlock)])
    # What else a model keeps, such as states, has one layer less.
    fitting = {key: value for key, value in wanted.items() if key in ours and ours[key].shape == value.shape}
    if (difference := apart({key: ours[key] for key in fitting} or ours, fitting)) > 1e-4:
        wrong.append(f"{title}: {difference:.2g} from the reference")
    if apart(ours, outputs) < 1e-6:
        wrong.append(f"{title}: changes nothing")
    if title == "blocks" and not found.get("cache") and (after := sensitive(edited)):
        # Where models choose tokens to attend to, ties are broken one way or the other: ask the reference, too.
        wrong += [] if sensitive(reference(graph, model, plan)) else [f"{title}: then {after}"]
    found.setdefault("cuts", {})[title] = stored(title, source, edited, plan, ours, home / title, wrong)


def by_layer(wanted: Outputs, ours: Outputs, blocks: list[str]) -> Outputs:
    """Without what a reference gives for each layer, where ours gives it for one layer less."""
    gone = {int(path.rpartition(".")[2]) for path in blocks}
    for name in {key.rpartition(".")[0] for key in wanted if key.rpartition(".")[2].isdigit()}:
        listed = [wanted[key] for key in (f"{name}.{i}" for i in range(len(wanted))) if key in wanted]
        if gone and sum(key.rpartition(".")[0] == name for key in ours) == len(listed) - len(gone):
            kept = [value for index, value in enumerate(listed) if index not in gone]
            others = {key: value for key, value in wanted.items() if key.rpartition(".")[0] != name}
            wanted = others | {f"{name}.{index}": value for index, value in enumerate(kept)}
    return wanted


def reference(graph: ModelGraph, model: nn.Module, plan: Plan) -> nn.Module:
    """The model with what the plan removes made silent: a block's input is handed on, columns are zero."""
    silent = copy.deepcopy(model)
    for edit in plan.edits:
        if isinstance(edit, DropBlock):
            more = handed(silent, edit.block)
            hand_on = functools.partial(_hand_on, more)
            silent.get_submodule(edit.block).register_forward_hook(hand_on, with_kwargs=True)
        elif isinstance(edit, KeepChannels):
            site = next(site for site in graph.feed_forwards(stack="all") if site.path == edit.site)
            gone = sorted(set(range(site.width)) - set(edit.keep))
            _columns(silent.get_submodule(site.consumer))[:, gone] = 0
        elif isinstance(edit, KeepHeads):
            at = next(site for site in graph.attentions(stack="all") if site.path == edit.site)
            per = at.query_heads_per_group * at.head_dim
            weight = _columns(silent.get_submodule(at.output))
            for group in set(range(at.key_value_groups)) - set(edit.key_value_groups or ()):
                weight[:, group * per : (group + 1) * per] = 0
    return silent


@torch.no_grad()
def handed(model: Any, path: str) -> dict[int, int | str]:
    """What else than the stream a block hands to the next one: place in its output -> argument that it comes from."""
    blocks, place = model.get_submodule(path.rpartition(".")[0]), int(path.rpartition(".")[2])
    given: list[Any] = []
    found: dict[int, int | str] = {}

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given[:] = list(output[1:]) if isinstance(output, tuple | list) else []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for name, value in named:
            found.update({at: name for at, one in enumerate(given, 1) if one is value and isinstance(one, Tensor)})

    if place + 1 < len(blocks):
        hooks = [blocks[place].register_forward_hook(after, with_kwargs=True),
                 blocks[place + 1].register_forward_pre_hook(before, with_kwargs=True)]  # fmt: skip
        model(**fixed_inputs(model, IDS, picture(model)))
        for hook in hooks:
            hook.remove()
    return found


def _hand_on(
    more: dict[int, int | str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    """The stream, and what goes from block to block beside it."""
    stream = args[0] if args else kwargs["hidden_states"]
    if not isinstance(output, tuple | list):
        return stream
    handed_on = {at: args[name] if isinstance(name, int) else kwargs[name] for at, name in more.items()}
    return type(output)((stream, *(handed_on.get(at, one) for at, one in enumerate(output[1:], 1))))


def _columns(linear: Any) -> Tensor:
    weight: Tensor = linear.weight.data
    return weight.t() if is_conv1d(linear) else weight


def stored(
    title: str, source: Source, edited: Any, plan: Plan, ours: Outputs, out: Path, wrong: list[str]
) -> str:
    """`plain`, or why it is not; what is loaded again must compute the same bits."""
    plain = source.family.plain(edited, source.folder, [plan])
    if isinstance(plain, str):
        record = CompressionRecord(base=str(source.folder), family=source.family.name, plans=(plan,))
        save_compressed(edited, source.family, out, record, source.folder)
        if not refused_by_transformers(type(edited), out):
            wrong.append(f"{title}: not plain ({plain[:120]}), and yet transformers loads it")
    else:
        save_plain(plain, out, source.folder)
        there, info = type(edited).from_pretrained(out, output_loading_info=True)
        odd = [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]]
        if odd or apart(run(source, there.eval()), ours) > 1e-6:
            wrong.append(f"{title}: transformers loads it with {odd or 'other outputs'}")
    again = open_source(str(out))
    for key, value in run(again, again.load()).items():
        if not torch.equal(value.nan_to_num(0), ours[key].nan_to_num(0)):
            wrong.append(f"{title}: loaded again it computes other {key}")
    return plain if isinstance(plain, str) else "plain"


def refused_by_transformers(cls: Any, folder: Path) -> bool:
    """Whether transformers refuses a folder that only umcompress loads, rather than fill in weights at random."""
    try:
        cls.from_pretrained(folder)
    except (RuntimeError, ValueError, AttributeError, TypeError, KeyError, StrictDataclassError):
        return True
    return False


@torch.no_grad()
def sensitive(model: Any) -> str:
    """How decoding with a cache, three tokens, one, four, three, differs from reading all at once; "" if not."""
    try:
        whole = model(input_ids=IDS, use_cache=False).logits
        state: dict[str, Any] = {}
        parts = []
        for part in torch.split(IDS, [3, 1, 4, 3], dim=1):
            out = model(input_ids=part, use_cache=True, **state)
            state = carried_state(model, out)
            parts.append(out.logits)
        difference = apart({"": torch.cat(parts, 1)}, {"": whole})
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError) as error:
        return f"a cache is not read in chunks ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
    return f"decoding with a cache differs by {difference:.2g}" if difference > 1e-4 else ""
