"""docs/support.md says what the other conformance tests hold: it is made from the same models, never by hand.

`UMCOMPRESS_WRITE_SUPPORT=1 python -m pytest tests/test_conformance_table.py` writes it.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

from hf_subject import FAMILY, Subject, channels_of, heads_of, subject, traced_as
from hf_zoo import ZOO

from umcompress.edits import DropBlock, Edit, KeepChannels, KeepHeads
from umcompress.models.hf.plain import plain_config

DOCUMENT = Path(__file__).parent.parent / "docs" / "support.md"
HEAD = """# Models of transformers

This table is written by the test run (`UMCOMPRESS_WRITE_SUPPORT=1 python -m pytest tests/test_conformance_table.py`);
a test fails when it is out of date. For each row the tests in `tests/test_conformance.py` hold, on small random models:

* the traced blocks compute the same bits as the model's own;
* `layer_drop` (blocks, attentions, feed-forwards), `channel_prune` and `head_prune` (groups, query heads) do what zeros
  in the weights would, to 1e-5;
* with blocks or attentions gone, decoding with a cache gives what decoding without one gives, in chunks and with
  padding on the left, sliding windows included;
* every parameter that learned before the edit still learns, `deepcopy` copies, and what was saved loads to the same
  bits: in transformers alone where the last column says so.

Heads: query heads / key-value groups. "none" says why. A row holds for the whole architecture, not for a size.

| model | stack | traced | feed-forward | heads | plain after a cut of |
|---|---|---|---|---|---|
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


def row(name: str, stack: str) -> str:
    """One line of the table."""
    one = subject(name)
    kind = type(one.model).__name__
    cells = [f"{name} ({kind})", f"`{stack}`", traced_as(one, stack), channels_of(one, stack), heads_of(one, stack)]
    return f"| {' | '.join([*cells, plain_after(one, stack)])} |\n"


def test_the_support_table_is_what_the_models_say() -> None:
    text = HEAD + "".join(row(name, stack) for name, entry in ZOO.items() for stack in entry.stacks)
    if os.environ.get("UMCOMPRESS_WRITE_SUPPORT"):
        DOCUMENT.write_text(text, encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == text
