"""How many labels are wrong: an unbiased estimate with an interval, from rows drawn by suspicion.

Suspicious rows are asked about more often and count for less (active statistical inference, Zrnic &
Candès 2024, https://arxiv.org/abs/2403.03208); the suspicion q of all other rows, tuned on the
answers, stands in for their answers (PPI++, Angelopoulos et al. 2023,
https://arxiv.org/abs/2311.01453). docs/methods/audit.md has the formulas and what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Share", "Shares", "ask_order", "asking_rates", "chances", "estimate_shares"]

# Part of the draw that is uniform: no row's answer counts for more than twice its share.
UNIFORM = 0.5
# The variance observed in the answers counts as much as the one that the tuned suspicion leads to
# expect at this number of wrong labels seen (or right ones, if fewer); the least share expected.
EXPECTED, RAREST = 12, 0.02
# Number of answers at which a stratum's offset is half the mean of its residuals.
OFFSET = 10
# Below these numbers of answers, and of wrong (or right) labels among them, the interval is Clopper
# and Pearson's.
EXACT_BELOW, EXACT_BELOW_RARER = 50, 8
LEVEL = 0.95
Z = 1.959963984540054


def asking_rates(suspicion: ArrayLike) -> NDArray[np.float64]:
    """Rates (n,) at which to ask about rows, summing to 1: half uniform, half by rank.

    A rank, unlike √(q (1 − q)), does not depend on the scale of q, and the probe's is that of the
    weak labels: where a quarter of them is wrong, no q is near 0.

    Parameters
    ----------
    suspicion : array-like of shape (n,)
        q, larger where the label is more likely wrong.
    """
    from scipy.stats import rankdata

    rank = rankdata(suspicion)
    return np.asarray(UNIFORM / len(rank) + (1 - UNIFORM) * rank / rank.sum())


def ask_order(
    rates: NDArray[np.float64], uniform: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Order (n,) to ask about rows in, and their keys u / rate (n,) in this order.

    ``uniform`` (n,) holds one independent uniform number u of each row. Every beginning of the
    order is a sample; :func:`chances` has its inclusion probabilities (priority sampling, Duffield,
    Lund & Thorup 2007, https://arxiv.org/abs/cs/0509026). Answers decide nothing about the order,
    so it can be stopped and resumed anywhere.
    """
    key = uniform / rates
    order = np.argsort(key, kind="stable")
    return order, key[order]


def chances(rates: NDArray[np.float64], threshold: ArrayLike) -> NDArray[np.float64]:
    """Inclusion probabilities π = min(1, rate · τ), for rates (…, m) of the rows asked about.

    τ (…) is the key of the first row that was not asked about, infinite if there is none: given τ,
    rows are in the sample independently, with these probabilities.
    """
    tau = np.asarray(threshold, np.float64)
    return np.asarray(np.minimum(1.0, rates * tau[..., None]))


@dataclass(frozen=True, slots=True)
class Share:
    """An estimated share of wrong labels and its 95 % interval."""

    value: float
    low: float
    high: float
    answers: int
    """Number of answers of the rows that it is a share of; without any, the value is NaN."""
    rows: int
    """Number of those rows."""

    def __str__(self) -> str:
        """Show percentages: ``12.3 % [8.1, 17.9]``."""
        if not self.answers:
            return "no answer yet"
        return f"{self.value:.1%} [{100 * self.low:.1f}, {100 * self.high:.1f}]".replace("%", " %")


class Shares(NamedTuple):
    """Estimates of several draws: value, bounds and numbers of answers, of any one shape."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    answers: NDArray[np.int64]


def estimate_shares(
    wrong: ArrayLike,
    asked: ArrayLike,
    chance: ArrayLike,
    suspicion: ArrayLike,
    within: ArrayLike | None = None,
    *,
    strata: ArrayLike | None = None,
) -> Shares:
    """Estimate the share of wrong labels from one or more draws of rows.

    Parameters
    ----------
    wrong : array-like of shape (…, m)
        e of the rows asked about: 1 if the label is wrong, else 0.
    asked : array-like of shape (…, m)
        Numbers of these rows, each once in a draw.
    chance : array-like of shape (…, m)
        π, their inclusion probabilities.
    suspicion : array-like of shape (n,)
        q of all rows, on any scale.
    within : array-like of shape (n,), default=None
        Rows whose share is wanted (a class, what a filter keeps); None: all.
    strata : array-like of shape (n,), default=None
        Groups from 0 in which q may be off in different ways, such as weak classes; None: one.

    Raises
    ------
    DataError
        If shapes differ, or a probability is not in (0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from probekit.cleaning.shares import ask_order, asking_rates, chances, estimate_shares
    >>> rng = np.random.default_rng(0)
    >>> q = rng.random(2000) ** 2
    >>> wrong = rng.random(2000) < q  # a third of the labels
    >>> rates = asking_rates(q)
    >>> order, key = ask_order(rates, rng.random(2000))
    >>> asked = order[:100]
    >>> found = estimate_shares(wrong[asked], asked, chances(rates[asked], key[100]), q)
    >>> bool(found.low < wrong.mean() < found.high)
    True
    """
    from scipy.special import betaincinv, stdtrit

    e, rows, p = np.asarray(wrong, np.float64), np.asarray(asked, np.int64), np.asarray(chance)
    q = np.asarray(suspicion, np.float64)
    d = np.ones(len(q)) if within is None else np.asarray(within, np.float64)
    if not e.shape == rows.shape == p.shape or d.shape != q.shape:
        raise DataError(
            f"Answers of shape {e.shape}, rows of {rows.shape} and chances of {p.shape} do not fit."
        )
    if not ((p > 0) & (p <= 1)).all():
        raise DataError("Inclusion probabilities must lie in (0, 1].")
    w = 1 / p
    intercept, slope = _tuned(e, q[rows], w, float(q.var()))
    # f = a + b q + c of the stratum, the tuned suspicion, for the rows asked about.
    f = intercept[..., None] + slope[..., None] * q[rows]
    n_within = max(float(d.sum()), 1.0)
    mean_f = intercept + slope * float((q * d).sum() / n_within)
    parameters: NDArray[np.float64] = np.full(mean_f.shape, 2.0)
    if strata is not None:
        stratum = np.asarray(strata, np.int64)
        v, left = w / w.mean(-1, keepdims=True), e - f
        for k, size in enumerate(np.bincount(stratum, d)):
            mine = v * (stratum[rows] == k)
            held = mine.sum(-1) + OFFSET
            c = (mine * left).sum(-1) / held
            f = f + c[..., None] * (mine > 0)
            mean_f = mean_f + c * size / n_within
            parameters = parameters + mine.sum(-1) / held
    inside = d[rows]
    weight = w * inside
    total = np.maximum(weight.sum(-1), 1e-12)
    number = inside.sum(-1)
    bias = (weight * (e - f)).sum(-1) / total
    # θ̂ = mean of f over all rows within + weighted mean of the residuals.
    theta = np.clip(mean_f + bias, 0.0, 1.0)
    residual = (e - f - bias[..., None]) * inside
    spread = (1 - p) * w**2
    seen = (spread * residual**2).sum(-1) / total**2 * number / np.maximum(number - parameters, 1)
    # A few equal answers have no variance by chance; the one that f leads to expect has.
    fitted = np.clip(f + bias[..., None], RAREST, 1 - RAREST)
    expected = (spread * fitted * (1 - fitted) * inside).sum(-1) / total**2
    seen_wrong = (e * inside).sum(-1)
    rarer = np.minimum(seen_wrong, number - seen_wrong)
    variance = (rarer * seen + EXPECTED * expected) / (rarer + EXPECTED)
    # The size of a simple random sample with this variance.
    middle = np.clip(theta, RAREST, 1 - RAREST)
    size = middle * (1 - middle) / np.maximum(variance, 1e-12)
    # Few answers: Clopper and Pearson at the effective size (Korn & Graubard 1998).
    few = np.maximum(size * (Z / stdtrit(np.maximum(number - 1, 1), (1 + LEVEL) / 2)) ** 2, 1e-9)
    hits = theta * few
    low = _beta_quantile(betaincinv, hits, few - hits + 1, (1 - LEVEL) / 2, 0.0)
    high = _beta_quantile(betaincinv, hits + 1, few - hits, (1 + LEVEL) / 2, 1.0)
    # Many: Wilson's interval at the effective size, with Student's quantile.
    t = stdtrit(np.maximum(number - parameters, 1), (1 + LEVEL) / 2)
    centre = (theta + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t / (1 + t**2 / size) * np.sqrt(theta * (1 - theta) / size + t**2 / (4 * size**2))
    many = (number >= EXACT_BELOW) & (rarer >= EXACT_BELOW_RARER)
    known = variance <= 1e-12  # every row was asked about
    low = np.where(known, theta, np.where(many, centre - half, low))
    high = np.where(known, theta, np.where(many, centre + half, high))
    # A share may be 0 as long as no wrong label was seen, and 1 as long as no right one was.
    low = np.where((seen_wrong == 0) & ~known, 0.0, low)
    high = np.where((seen_wrong == number) & ~known, 1.0, high)
    none = number == 0
    return Shares(
        np.where(none, np.nan, theta),
        np.where(none, 0.0, np.clip(low, 0, 1)),
        np.where(none, 1.0, np.clip(high, 0, 1)),
        number.astype(np.int64),
    )


def _tuned(
    e: NDArray[np.float64], q: NDArray[np.float64], w: NDArray[np.float64], scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intercept a and slope b (PPI++'s λ) of the answers on q, both (…).

    Weighted least squares; the slope is shrunk to 1, the probe as it is, by one row's worth.
    """
    v = w / w.mean(-1, keepdims=True)
    total = v.sum(-1)
    mean_q, mean_e = (v * q).sum(-1) / total, (v * e).sum(-1) / total
    deviation = q - mean_q[..., None]
    square = (v * deviation**2).sum(-1)
    product = (v * deviation * (e - mean_e[..., None])).sum(-1)
    slope = (product + scale) / np.maximum(square + scale, 1e-12)
    return mean_e - slope * mean_q, slope


def _beta_quantile(
    inverse: Any, a: NDArray[np.float64], b: NDArray[np.float64], level: float, limit: float
) -> NDArray[np.float64]:
    """Quantile of Beta(a, b), which degenerates to ``limit`` if a or b is 0."""
    proper = (a > 0) & (b > 0)
    values = inverse(np.where(proper, a, 1.0), np.where(proper, b, 1.0), level)
    return np.asarray(np.where(proper, values, limit))
