"""The processor of a folder: pictures and text to what a model reads. Opened when pictures are first needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoProcessor, ProcessorMixin
from transformers.models.auto import processing_auto
from transformers.utils.import_utils import is_torchvision_available

from umcompress.documents.files import read_json
from umcompress.errors import ModelError
from umcompress.models.bare_errors import bare_as_value_error
from umcompress.models.hf.load.own_code import errors_of
from umcompress.models.hf.load.skeleton import CONFIG_ERRORS
from umcompress.models.hf.names import CONFIG
from umcompress.models.remote_code import references, require_local_code, untrusted_code

FILES = ("processor_config.json", "preprocessor_config.json")
COPY = "copy the processor and tokenizer files of the model into its folder"
_VIDEO = "video_processor"


def has_processor(folder: Path) -> bool:
    """Whether a folder has the files of one."""
    return any((folder / name).is_file() for name in FILES)


def open_processor(folder: Path, trust: bool = False) -> Any:
    """As transformers opens it. trust: consent to run Python code that comes with the folder. ModelError.

    Processors of videos need torchvision. Where that is not installed they are left out: videos are no task here.
    """
    if not has_processor(folder):
        raise ModelError(f"the processor of {folder}", f"no {' or '.join(FILES)}", COPY)
    kind: Any = None if is_torchvision_available() else _class_of(folder)
    try:
        if kind is not None and _VIDEO in kind.get_attributes():
            return without_videos(kind).from_pretrained(folder)
        auto: Any = AutoProcessor
        if trust:
            require_local_code(folder)
        with errors_of(folder, only_inside=True), bare_as_value_error():
            found = auto.from_pretrained(folder, trust_remote_code=trust)
    except CONFIG_ERRORS as error:
        if not trust and any("rocessor" in name for name in references(folder)):
            raise untrusted_code(folder, "the processor") from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ModelError(f"the processor of {folder}", lines[0][:200], COPY) from error
    if not hasattr(found, "image_processor"):
        raise ModelError(f"the processor of {folder}", f"{type(found).__name__} takes no pictures", COPY)
    return found


def without_videos(kind: Any) -> Any:
    """A class of processors without its processor of videos."""
    return type(kind.__name__, (_Stills, kind), {"__module__": kind.__module__})


class _Stills(ProcessorMixin):
    """Put in front of a class of processors: the same without its processor of videos."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        named: list[str] = super().get_attributes()  # type: ignore[no-untyped-call]
        return [name for name in named if name != _VIDEO]

    @classmethod
    def _get_arguments_from_pretrained(cls, *args: Any, **options: Any) -> list[Any]:
        found: list[Any] = super()._get_arguments_from_pretrained(*args, **options)  # type: ignore[no-untyped-call]
        named: list[str] = super().get_attributes()  # type: ignore[no-untyped-call]
        found.insert(named.index(_VIDEO), None)
        return found

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **options: Any) -> Any:
        kept = {name: value for name, value in processor_dict.items() if name != _VIDEO}
        return super().from_args_and_dict(args, kept, **options)


def _class_of(folder: Path) -> type[ProcessorMixin] | None:
    """By the name in a folder's files, else by the kind of model."""
    contents = [_read(folder / name) for name in (*FILES, "tokenizer_config.json")]
    named = next((content["processor_class"] for content in contents if content.get("processor_class")), None)
    known: Any = processing_auto
    by_kind = known.PROCESSOR_MAPPING_NAMES.get(_read(folder / CONFIG).get("model_type", ""))
    found = getattr(transformers, str(named or by_kind), None)
    return found if isinstance(found, type) and issubclass(found, ProcessorMixin) else None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
