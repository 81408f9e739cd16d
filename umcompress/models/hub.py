"""Models by hub id: from the local cache where they are in it, else fetched, weights as safetensors only."""

from __future__ import annotations

import re
from pathlib import Path

from umcompress.errors import ModelError
from umcompress.say import say

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# No pickled weights, and no code: what a folder needs to be loaded here.
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")


def is_hub_id(model: str) -> bool:
    """Whether a name that is no folder looks like `organisation/name`, and not like a misspelt path."""
    return _ID.fullmatch(model) is not None and not Path(model).parent.is_dir()


def hub_folder(model: str) -> Path:
    """The folder of a model in the local cache of huggingface_hub.  ModelError where it is not to be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(FILES), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        say(f"fetching {model} from the hub")
    try:
        return Path(snapshot_download(model, allow_patterns=list(FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the model {model}", f"no folder of that name, and the hub does not give it: {lines[0][:200]}",
            "check the spelling, the connection and your access to it; or give the path of a model folder",
        ) from error
