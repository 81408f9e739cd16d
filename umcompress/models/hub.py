"""Models by hub id: from the local cache where they are in it, else fetched, weights as safetensors only."""

from __future__ import annotations

from pathlib import Path

from umcompress.errors import ModelError
from umcompress.models.remote_code import missing_code
from umcompress.progress import say

# No pickled weights: what a folder needs to be loaded here. Code only where it is trusted.
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")
CODE = ("*.py",)


def hub_folder(model: str, code: bool = False) -> Path:
    """The folder of a model in the local cache of huggingface_hub.  ModelError where it is not to be had.

    code: with the Python files that come with it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*FILES, *(CODE if code else ())]
    try:
        folder = Path(snapshot_download(model, allow_patterns=patterns, local_files_only=True))
        # It may have been fetched without its code before.
        if not (code and missing_code(folder)):
            return folder
        say(f"fetching the code of {model} from the hub")
    except (LocalEntryNotFoundError, HFValidationError):
        say(f"there is no folder {model}: fetching a model of that name from the hub")
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the model {model}", f"no folder of that name, and the hub does not give it: {lines[0][:200]}",
            "check the spelling, the connection and your access to it; or give the path of a model folder",
        ) from error
