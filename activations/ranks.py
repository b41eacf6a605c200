"""Processes that ``torchrun`` or ``accelerate launch`` started together."""

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

# A rank may wait for as long as another one's share takes.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int
    world: int
    local: int
    """Number of this process on its machine."""


@dataclass(frozen=True)
class Group:
    """The processes, and which of them write to one disk."""

    ranks: Ranks
    leader: int
    """Rank of the process that makes this disk's store."""

    @property
    def leads(self) -> bool:
        """Whether this process is the one."""
        return self.ranks.rank == self.leader

    def wait(self) -> None:
        """Go on when all processes have come here."""
        dist.barrier()


def ranks_from_environment() -> Ranks | None:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; None for a process on its own."""
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

    Gloo, on whatever device the model runs: only signals go between the processes, no states.
    """
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Group(ranks, _leader(ranks, folder))
    finally:
        dist.destroy_process_group()


def _leader(ranks: Ranks, folder: Path) -> int:
    """Lowest rank that sees the same disk: one after another leaves a mark and others look."""
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
    """Give each process of a machine a GPU of its own where ``auto`` is asked for."""
    if device == "map":
        raise UsageError(
            "--device map spreads one model over all cards and needs a process of its own; start "
            "it without torchrun or accelerate launch."
        )
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{ranks.local % torch.cuda.device_count()}"
    return device
