"""Processes started together by ``torchrun`` or ``accelerate launch``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist

from probekit.errors import UsageError

__all__ = ["Group", "Ranks", "joined", "local_device", "ranks_from_environment"]

# A rank may wait as long as another one's share takes.
TIMEOUT = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """Rank of a process and number of processes."""

    rank: int
    world: int
    local: int
    """Rank of this process on its machine."""


@dataclass(frozen=True)
class Group:
    """The processes, and which of them write to one disk."""

    ranks: Ranks
    leader: int
    """Rank of the process that creates this disk's store."""

    @property
    def leads(self) -> bool:
        """Whether this process is the leader."""
        return self.ranks.rank == self.leader

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        dist.barrier()


def ranks_from_environment() -> Ranks | None:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; None for a single process."""
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isdecimal() or int(world) < 2:
        return None
    try:
        rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    except (KeyError, ValueError):
        raise UsageError(
            f"WORLD_SIZE is {world} but RANK is not set; start with torchrun or accelerate launch, "
            "or unset WORLD_SIZE."
        ) from None
    return Ranks(rank, int(world), local)


@contextmanager
def joined(ranks: Ranks, folder: Path) -> Iterator[Group]:
    """Join the processes, and find those that see the same ``folder``.

    Gloo, whatever device the model runs on: processes exchange signals, not states.
    """
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield Group(ranks, _leader(ranks, folder))
    finally:
        dist.destroy_process_group()


def _leader(ranks: Ranks, folder: Path) -> int:
    """Return the lowest rank that sees the same disk: each in turn leaves a mark for the others."""
    mine: int | None = None
    for rank in range(ranks.world):
        settled: list[bool] = [False] * ranks.world
        dist.all_gather_object(settled, mine is not None)
        if all(settled):
            break
        if settled[rank]:
            continue
        name = [f".{uuid4().hex}.rank{rank}" if ranks.rank == rank else ""]
        dist.broadcast_object_list(name, src=rank)
        mark = folder / name[0]
        if ranks.rank == rank:
            mark.touch()
            mine = rank
        dist.barrier()
        if mine is None and mark.exists():
            mine = rank
        dist.barrier()
        if ranks.rank == rank:
            mark.unlink(missing_ok=True)
    assert mine is not None
    return mine


def local_device(device: str, ranks: Ranks) -> str:
    """Give each process of a machine its own GPU if the device is ``auto``."""
    if device == "map":
        raise UsageError(
            "--device map spreads one model over all GPUs in a single process; start it without "
            "torchrun or accelerate launch."
        )
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{ranks.local % torch.cuda.device_count()}"
    return device
