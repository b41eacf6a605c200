"""Processes started together by ``torchrun`` or ``accelerate launch``."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from probekit.errors import UsageError

__all__ = ["Ranks", "local_device", "ranks_from_environment"]


@dataclass(frozen=True)
class Ranks:
    """Rank of a process and number of processes."""

    rank: int
    world: int
    local: int
    """Rank of this process on its machine."""


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
