"""Names of models that are no paths: built in, or ids of the hub."""

from __future__ import annotations

import re
from pathlib import Path

# Each with its folder in `umcompress.models`.
BUILT_IN = {"bagel-mini": "bagel_mini"}
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(model: str, seen_from: Path | None = None) -> bool:
    """Whether a name that is no folder looks like `organisation/name`, and not like a misspelt path.

    seen_from: where a path would begin; None: in the current folder.
    """
    return _ID.fullmatch(model) is not None and not ((seen_from or Path()) / model).parent.is_dir()
