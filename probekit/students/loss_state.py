"""What auxiliary losses need besides a batch: warm-up, thresholds, the latest predictions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "RecentPredictions",
    "cut_at_level",
    "harden_to_prior",
    "warm_up",
    "warm_up_with_jump",
]

BUFFER_SIZE = 32
"""Rows that EleutherAI's buffer is declared to hold."""


def warm_up(done: float, length: float, a_max: float) -> float:
    """Coefficient that rises linearly from 0 to ``a_max`` while ``done`` rises to ``length``.

    Both are counted in the same unit, steps or shares of all steps; length 0 means no warm-up.
    """
    return a_max if done >= length else a_max * done / length


def warm_up_with_jump(progress: float, length: float, a_max: float) -> float:
    """Coefficient as released in https://github.com/openai/weak-to-strong: a slope, then a jump.

    It climbs to ``a_max * length`` and then jumps to ``a_max``; 0.05 and 0.5 as published.
    """
    return a_max if progress > length else a_max * progress


class RecentPredictions:
    """Class probabilities of the last ``size`` training rows, the newest last."""

    def __init__(self, size: int = BUFFER_SIZE) -> None:
        self.size = size
        self.rows: Tensor | None = None

    def joined(self, probs: Tensor, *, keep: bool = True) -> Tensor:
        """Return the last rows (at most ``size``, C), those of ``probs`` (B, C) included.

        Without ``keep`` nothing is remembered: evaluation must not move a training threshold.
        """
        probs = probs.detach()
        before = probs[:0] if self.rows is None else self.rows.to(probs)
        # A copy: a slice would hold the memory of the whole batch.
        rows = torch.cat([before, probs])[-self.size :].clone()
        if keep:
            self.rows = rows
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        """Return what continues this buffer elsewhere, on the CPU; empty before the first rows."""
        return {} if self.rows is None else {"rows": self.rows.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue another buffer."""
        self.rows = state["rows"].clone() if "rows" in state else None


def cut_at_level(probs: Tensor, among: Tensor, level: Tensor | float) -> Tensor:
    """Harden (B, 2) so that a share ``level`` of ``among`` (m, 2) is class 1: class numbers (B,).

    Class 0 iff p0 is at least the linearly interpolated quantile of ``among``'s p0 at ``level``.
    """
    level = torch.as_tensor(level, dtype=among.dtype, device=among.device).clamp(0, 1)
    threshold = torch.quantile(among[:, 0], level)
    return (probs[:, 0] < threshold).long()


def harden_to_prior(probs: Tensor, recent: Tensor, prior: Tensor) -> Tensor:
    """Harden (B, C) towards the class shares ``prior`` (C,): class numbers (B,).

    Two classes are cut at the quantile, which meets the shares; more take the largest
    p_c · prior_c / (mean recent p_c), which only comes closer to them.
    """
    prior = prior.to(probs)
    if probs.shape[1] == 2:
        return cut_at_level(probs, recent, prior[1])
    mean = recent.mean(dim=0).clamp_min(torch.finfo(recent.dtype).tiny)
    return (probs * (prior / mean)).argmax(dim=1)
