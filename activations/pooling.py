"""One state per row from the states of its tokens, on the device, real tokens only."""

from __future__ import annotations

from collections.abc import Callable

import torch

from probekit.errors import UsageError

__all__ = ["POOLERS", "Pooler", "pooler"]

Pooler = Callable[[torch.Tensor, "torch.Tensor | None"], torch.Tensor]


def pool_last(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """State of the last real token, wherever the padding stands."""
    if mask is None:
        return states[:, -1].clone()  # a view would keep all tokens' states in memory
    width = mask.shape[1]
    return _take(states, width - 1 - mask.flip(1).int().argmax(1))


def pool_first(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """State of the first real token."""
    return states[:, 0].clone() if mask is None else _take(states, mask.int().argmax(1))


def pool_mean(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the real tokens, special ones included (as sentence-transformers does), float32."""
    if mask is None:
        return states.mean(1, dtype=torch.float32)
    # Filled, not multiplied: what stands at a padded place may be inf or NaN.
    filled = states.masked_fill(~mask[:, :, None], 0)
    return filled.sum(1, dtype=torch.float32) / mask.sum(1, dtype=torch.float32)[:, None]


def pool_max(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Largest value of each dimension over the real tokens."""
    if mask is not None:
        states = states.masked_fill(~mask[:, :, None], float("-inf"))
    return states.amax(1)


def _take(states: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return states[torch.arange(len(states), device=states.device), position]


POOLERS: dict[str, Pooler] = {
    "first": pool_first,
    "last": pool_last,
    "max": pool_max,
    "mean": pool_mean,
}


def pooler(name: str) -> Pooler:
    """Function from states (b, s, d) and the mask of real tokens (b, s), or None, to (b, d).

    The mask is boolean; None says that there is no padding.
    """
    if name not in POOLERS:
        raise UsageError(f"Pooling is one of {', '.join(sorted(POOLERS))}, not {name!r}.")
    return POOLERS[name]
