"""Several processes that share a training or an evaluation: which one this is, and what they tell each other.

`accelerate launch` and torchrun start them and say so in the environment; a process by itself is number 0 of 1.
Results are gathered as objects, so the processes need no common folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from umcompress.errors import UmcompressError

T = TypeVar("T")
_by_itself: list[int] = []


@contextmanager
def by_itself() -> Iterator[None]:
    """Within, this process works as if it were the only one: the others may do something else meanwhile.

    What goes wrong is said here, unless this is the first process, whose errors are always shown.
    """
    _by_itself.append(rank())
    try:
        yield
    except UmcompressError as error:
        if _by_itself[0] > 0:
            print(f"{speaker()}{error}", file=sys.stderr, flush=True)
        raise
    finally:
        _by_itself.pop()


def speaker() -> str | None:
    """How this process is called in messages, where several speak; None: it is to be silent, "": no need of a name."""
    if _by_itself and launched() > 1:
        return f"process {_by_itself[0]}: "
    return "" if rank() == 0 else None


def _distributed() -> Any:
    """torch.distributed where a process group exists, else None. Never the one to load torch."""
    if _by_itself or "torch" not in sys.modules:
        return None
    import torch.distributed as distributed

    return distributed if distributed.is_available() and distributed.is_initialized() else None


def launched() -> int:
    """How many processes the launcher says there are."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


def start(device: str | None) -> str | None:
    """Join the others, if there are any; the device for this process (`cuda` becomes a card of its own)."""
    if launched() < 2:
        return device
    import torch
    import torch.distributed as distributed

    if not distributed.is_initialized():
        # Objects go by the CPU, gradients from card to card; while one works alone the others may wait for days.
        backend = "cpu:gloo,cuda:nccl" if device is not None and device.startswith("cuda") else "gloo"
        from datetime import timedelta

        distributed.init_process_group(backend, timeout=timedelta(days=7))
    if device != "cuda":
        return device
    local = int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def stop() -> None:
    """Leave the group that `start` joined."""
    if (distributed := _distributed()) is not None:
        distributed.destroy_process_group()


def rank() -> int:
    """The number of this process; 0 is the one that prints and writes results."""
    if _by_itself:
        return 0
    if (distributed := _distributed()) is not None:
        return int(distributed.get_rank())
    text = os.environ.get("RANK", "0")
    return int(text) if launched() > 1 and text.isdecimal() else 0


def world() -> int:
    """How many processes can be reached."""
    distributed = _distributed()
    return 1 if distributed is None else int(distributed.get_world_size())


def share(items: Sequence[T]) -> list[T]:
    """This process's part of the items: every `world`-th one."""
    return list(items[rank() :: world()] if world() > 1 else items)


def gather(mine: T) -> list[T]:
    """What every process has, in the order of their numbers; known to all of them."""
    distributed = _distributed()
    if distributed is None or distributed.get_world_size() == 1:
        return [mine]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, mine)
    return found


def from_first(value: T) -> T:
    """What process 0 has."""
    return gather(value)[0]


def by_first(work: Callable[[], T]) -> T:
    """What `work` gives in process 0, the only one that does it; the others wait for it."""
    return from_first(work() if rank() == 0 else None)  # type: ignore[return-value]
