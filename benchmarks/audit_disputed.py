"""The audit before this one: true labels of rows where probe and weak label differ, and no others.

Relabel if the probe wins the majority of them, else filter if more than 45 % of their weak labels
are wrong, else leave. Kept for comparison.
"""

from __future__ import annotations

from functools import cache

import numpy as np

__all__ = ["conclude"]

FILTER_WRONG = 0.45
EXACT_ROWS = 5000


@cache
def conclude(won: int, lost: int, neither: int, disputed: int) -> str:
    """The action from the number of rows on which the probe, the weak label or neither is right."""
    known = won + lost + neither
    left = disputed - known
    contest = (won + lost + 2) / (known + (3 if neither else 2))
    undecided = round(left * contest)
    if _exceeds(won, lost, undecided, (won + lost + undecided) / 2) > 0.5 + 1e-9:
        return "relabel"
    wrong = _exceeds(won + neither, lost, left, FILTER_WRONG * (known + left))
    return "filter" if wrong > 0.5 else "leave"


def _exceeds(yes: int, no: int, left: int, bound: float) -> float:
    """P(yes + X > bound), ties half, X of ``left`` rows being beta-binomial after yes and no."""
    from scipy.special import betainc, betaln, gammaln

    spare = bound - yes
    if left > EXACT_ROWS:
        return float(1 - betainc(1 + yes, 1 + no, min(max(spare / left, 0.0), 1.0)))
    k = np.arange(left + 1)
    choose = gammaln(left + 1) - gammaln(k + 1) - gammaln(left - k + 1)
    chance = np.exp(choose + betaln(k + 1 + yes, left - k + 1 + no) - betaln(1 + yes, 1 + no))
    above, tie = k > spare + 1e-9, np.abs(k - spare) <= 1e-9
    return float(min(1.0, chance[above].sum() + 0.5 * chance[tie].sum()))
