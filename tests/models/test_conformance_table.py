"""docs/support.md says what the other conformance tests hold: it is made from the same models, never by hand.

`UMCOMPRESS_WRITE_GOLDEN=1 python -m pytest tests/models/test_conformance_table.py` writes it.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

from hf_subject import FAMILY, Subject, channels_of, heads_of, subject, traced_as
from hf_zoo import ZOO
from places import DOCS

from umcompress.documents.plan import DropBlock, Edit, KeepChannels, KeepHeads, SplitExperts
from umcompress.models.hf.export.ordinary import plain_config

DOCUMENT = DOCS / "support.md"
HEAD = """# Models of transformers

This table is written by the test run
(`UMCOMPRESS_WRITE_GOLDEN=1 python -m pytest tests/models/test_conformance_table.py`);
a test fails when it is out of date. For each row the tests in `tests/models/test_conformance.py` and
`tests/models/test_conformance_experts.py` hold, on small random models:

* the traced blocks compute the same bits as the model's own;
* `layer_drop` (blocks, attentions, feed-forwards), `channel_prune` and `head_prune` (groups, query heads) do what zeros
  in the weights would, to 1e-5;
* `moe_split` gives the dense model where all experts run; where some do, what the dense model gives whose channels are
  weighed token by token as the routers say, to 1e-5; `router_train` and `adapt` then lower the loss on text;
* with blocks or attentions gone, or experts in place of feed-forwards, decoding with a cache gives what decoding
  without one gives, in chunks and with padding on the left, sliding windows included;
* every parameter that learned before the edit still learns, `deepcopy` copies, and what was saved loads to the same
  bits: in transformers alone where the last column says so.

Heads: query heads / key-value groups. "none" says why. A row holds for the whole architecture, not for a size.

Experts: a feed-forward whose channels can be cut can be split, gated, fused or plain, biases and shared channels
included. "as" names the model that transformers loads by itself, given `weighting: softmax`, `shared: 0` and, but for
Qwen3, `layers: all`. It must have the same attention, norms and positions, weigh the chosen experts by a softmax over
them, and have nothing beside them: so Mixtral for Llama and Mistral, Qwen3-MoE for Qwen3, FlexOlmo for OLMo 2.
Elsewhere `umcompress.load` loads the result, and transformers refuses it rather than fill in weights at random. Most
of these architectures have no relative with experts; Qwen2-MoE adds one that is always on behind a gate, PhiMoE has
another router, GraniteMoE would fit and is not written yet.

[architectures.md](architectures.md) has every other language model type of transformers, less deeply.

| model | stack | traced | feed-forward | experts | heads | plain after a cut of |
|---|---|---|---|---|---|---|
"""


def cuts(one: Subject, stack: str) -> dict[str, list[Edit]]:
    """Even cuts of a whole stack."""
    half: list[Edit] = [
        KeepChannels(site=s.path, keep=tuple(range(0, s.width, 2))) for s in one.graph.feed_forwards(stack=stack)
    ]
    groups: list[Edit] = [
        KeepHeads(
            site=s.path, component=s.component, key_value_groups=tuple(range(0, s.key_value_groups, 2))  # type: ignore[arg-type]
        )
        for s in one.graph.attentions(stack=stack)
    ]
    return {"blocks": [DropBlock(block=one.stack(stack)[-1])], "channels": half, "heads": groups}


def plain_after(one: Subject, stack: str) -> str:
    """What can be cut evenly so that transformers alone loads the result; of the rest, the reason."""
    good, bad = [], []
    for title, edits in cuts(one, stack).items():
        if not edits:
            continue
        model = one.edited(*edits)
        _, reasons = plain_config(copy.deepcopy(model), FAMILY)
        if reasons:
            bad.append(f"not {title}: {reasons[0]}")
        else:
            good.append(title)
    return "; ".join([", ".join(good) or "nothing", *bad])


def experts_of(one: Subject, stack: str) -> str:
    """Whether all feed-forwards of a stack can be split, and what transformers loads then."""
    sites = one.graph.feed_forwards(stack=stack)
    if not sites:
        return "none: they are experts already"
    dealt = {site.path: tuple(tuple(range(site.width))[e::4] for e in range(4)) for site in sites}
    edits = [SplitExperts(site=path, experts=experts, active=2, weighting="softmax") for path, experts in dealt.items()]
    found = FAMILY.plain(one.edited(*edits), Path(), [])
    if not isinstance(found, str):
        return f"as {found.note.removeprefix('model/ is a plain ').split(';')[0]}"
    blocks = len(one.stack(stack))
    return "split" if len(sites) == blocks else f"split in {len(sites)} of {blocks} layers, the others have experts"


def row(name: str, stack: str) -> str:
    """One line of the table."""
    one = subject(name)
    kind = type(one.model).__name__
    cells = [f"{name} ({kind})", f"`{stack}`", traced_as(one, stack), channels_of(one, stack), experts_of(one, stack)]
    return f"| {' | '.join([*cells, heads_of(one, stack), plain_after(one, stack)])} |\n"


def test_the_support_table_is_what_the_models_say() -> None:
    text = HEAD + "".join(row(name, stack) for name, entry in ZOO.items() for stack in entry.stacks)
    if os.environ.get("UMCOMPRESS_WRITE_GOLDEN"):
        DOCUMENT.write_text(text, encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == text
