"""Losses: published ways to train a student on weak labels, as functions and ready for a trainer.

All take logits (B, C), columns class 0 first, and targets (B, C) of class probabilities or (B,) of
class numbers, compute in float32 (float64 stays) and return (1/B) Σ w_i · loss_i with the weights
``weight`` (B,), 1 where there are none. ``progress`` is the share of the training steps done,
``step`` their number. With coefficient 0 every auxiliary loss is ``xent`` bit for bit. The
definitions and their sources are in docs/methods/students.md.

``make_loss("logconf", total_steps=300, weak=labels)`` holds what a loss needs besides the batch:
its schedule, statistics of the whole training set, the latest predictions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from probekit.errors import UsageError, did_you_mean
from probekit.kinds import Flag, Kind, Number, SettingError, Whole, Words, check, checked

__all__ = [
    "Loss",
    "RecentPredictions",
    "check_loss",
    "cut_at_level",
    "entropy",
    "entropy_additive",
    "entropy_eleuther",
    "kl",
    "logconf",
    "logconf_eleuther",
    "logconf_openai",
    "logconf_paper",
    "loss_names",
    "loss_options",
    "make_loss",
    "midweak_radius",
    "product",
    "reverse_kl",
    "warm_up",
    "window",
    "xent",
]

Weight = Tensor | None
BUFFER_SIZE = 32
"""Number of rows that EleutherAI's buffer is declared to hold."""


def xent(logits: Tensor, targets: Tensor, *, weight: Weight = None) -> Tensor:
    """Cross-entropy, -Σ_c t_c log p_c."""
    z, t = _prepared(logits, targets)
    return _mean(_xent(z, t), weight)


def kl(logits: Tensor, targets: Tensor, *, weight: Weight = None) -> Tensor:
    """KL(t ‖ p): cross-entropy less the entropy of the targets; the same gradient."""
    z, t = _prepared(logits, targets)
    return _mean(_xent(z, t) + torch.xlogy(t, t).sum(dim=1), weight)


def reverse_kl(
    logits: Tensor, targets: Tensor, *, floor: float = 1e-6, weight: Weight = None
) -> Tensor:
    """KL(p ‖ t), which seeks modes; targets below ``floor`` count as it.

    Source: https://arxiv.org/abs/2502.11107.
    """
    z, t = _prepared(logits, targets)
    log_p = log_softmax(z, dim=1)
    return _mean((log_p.exp() * (log_p - t.clamp_min(floor).log())).sum(dim=1), weight)


def logconf(
    logits: Tensor,
    targets: Tensor,
    *,
    prior: Tensor,
    recent: RecentPredictions,
    progress: float,
    a_max: float = 0.5,
    warmup: float = 0.2,
    weight: Weight = None,
    training: bool = True,
) -> Tensor:
    """Log-confidence loss: (1-a) of the target, a of the student's own hardened prediction.

    ``prior`` (C,) is the mean weak label of the whole training set, ``recent`` this run's buffer of
    predictions; together they set the threshold, so that batches of one row work and class shares
    are the weak labels'. a rises linearly to ``a_max`` over the share ``warmup`` of the steps.

    Source: https://arxiv.org/abs/2312.09390, with the buffer of https://github.com/EleutherAI/w2s.
    """
    z, t = _prepared(logits, targets)
    p = _own(z)
    hard = harden_to_prior(p, recent.joined(p, keep=training), prior)
    return _mean(_xent(z, _mixed(t, _hot(hard, z), warm_up(progress, warmup, a_max))), weight)


def logconf_paper(
    logits: Tensor,
    targets: Tensor,
    *,
    progress: float,
    a_max: float = 0.5,
    warmup: float = 0.2,
    weight: Weight = None,
) -> Tensor:
    """Log-confidence loss as https://arxiv.org/abs/2312.09390 gives it, for balanced binary tasks.

    The threshold is the batch's median, so that half of it is class 1 (½ for a batch of one row);
    linear warm-up. The paper's largest students take ``a_max`` 0.75.
    """
    z, t = _prepared(logits, targets, binary="logconf_paper")
    p1 = _own(z)[:, 1]
    threshold = torch.quantile(p1, 0.5) if len(p1) > 1 else 0.5
    hard = (p1 > threshold).long()
    return _mean(_xent(z, _mixed(t, _hot(hard, z), warm_up(progress, warmup, a_max))), weight)


def logconf_openai(
    logits: Tensor,
    targets: Tensor,
    *,
    progress: float,
    a_max: float = 0.5,
    warmup: float = 0.1,
    weight: Weight = None,
) -> Tensor:
    """Log-confidence loss as released: https://github.com/openai/weak-to-strong; binary.

    The threshold is the batch's quantile at its mean weak label. The warm-up is the released one,
    which jumps from ``a_max * warmup`` to ``a_max``.
    """
    z, t = _prepared(logits, targets, binary="logconf_openai")
    p = _own(z)
    hard = cut_at_level(p, p, t[:, 1].mean())
    a = warm_up_with_jump(progress, warmup, a_max)
    return _mean(_xent(z, _mixed(t, _hot(hard, z), a)), weight)


def logconf_eleuther(
    logits: Tensor,
    targets: Tensor,
    *,
    recent: RecentPredictions,
    step: int,
    a_max: float = 0.5,
    warmup_steps: float = 100,
    balance_batch: bool = False,
    weight: Weight = None,
    training: bool = True,
) -> Tensor:
    """Log-confidence loss of https://github.com/EleutherAI/w2s; binary.

    The threshold is the quantile of ``recent``, this batch included, at the batch's mean weak label
    (½ for a batch of one row). ``balance_batch`` centres the batch's weak log-odds and takes ½.
    Unlike the reference, evaluation leaves the buffer alone.
    """
    z, t = _prepared(logits, targets, binary="logconf_eleuther")
    p = _own(z)
    alone = balance_batch or len(t) == 1
    t = _balanced(t) if balance_batch else t
    hard = cut_at_level(p, recent.joined(p, keep=training), 0.5 if alone else t[:, 1].mean())
    return _mean(_xent(z, _mixed(t, _hot(hard, z), warm_up(step, warmup_steps, a_max))), weight)


def entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    progress: float = 1.0,
    a_max: float = 0.5,
    warmup: float = 0.2,
    weight: Weight = None,
) -> Tensor:
    """(1-a) cross-entropy + a · entropy of the prediction, with the entropy's own gradient.

    ∂H/∂z_c = -p_c (log p_c + H); a rises linearly as in :func:`logconf`. The formula of
    EleutherAI's "Experiments in Weak-to-Strong Generalization" (2024).
    """
    z, t = _prepared(logits, targets)
    a = warm_up(progress, warmup, a_max)
    return _mean((1 - a) * _xent(z, t) + a * _entropy(z), weight)


def entropy_eleuther(
    logits: Tensor,
    targets: Tensor,
    *,
    step: int,
    a_max: float = 0.5,
    warmup_steps: float = 100,
    balance_batch: bool = False,
    weight: Weight = None,
) -> Tensor:
    """The "entropy" loss released in https://github.com/EleutherAI/w2s.

    The prediction is detached, so its gradient is (1-a) times that of cross-entropy: a scaled
    learning rate and no entropy loss. ``balance_batch`` as in :func:`logconf_eleuther`; binary.
    """
    z, t = _prepared(
        logits, targets, binary="entropy_eleuther with balance_batch" if balance_batch else None
    )
    t = _balanced(t) if balance_batch else t
    return _mean(_xent(z, _mixed(t, _own(z), warm_up(step, warmup_steps, a_max))), weight)


def entropy_additive(
    logits: Tensor,
    targets: Tensor,
    *,
    strength: float = 0.5,
    temperature: float = 1.0,
    weight: Weight = None,
) -> Tensor:
    """Cross-entropy + ``strength`` · entropy of softmax(z / ``temperature``), with its gradient."""
    z, t = _prepared(logits, targets)
    return _mean(_xent(z, t) + strength * _entropy(z / temperature), weight)


def window(
    logits: Tensor,
    targets: Tensor,
    *,
    radius: float = 0.15,
    strict: bool = False,
    weight: Weight = None,
) -> Tensor:
    """Cross-entropy of the rows that the student is unsure of: max p ≤ ½ + ``radius``.

    The sum is divided by B, not by the rows left; without any the loss and its gradient are 0.
    ``strict`` leaves rows on the edge out, as https://github.com/EleutherAI/w2s does; their post
    leaves out what is above it. Their "midweak" radius is :func:`midweak_radius`.
    """
    z, t = _prepared(logits, targets)
    unsure = inside_window(z, radius, strict=strict)
    return _mean(torch.where(unsure, _xent(z, t), 0.0), weight)


def inside_window(logits: Tensor, radius: float, *, strict: bool = False) -> Tensor:
    """Mark the rows (B,) that :func:`window` trains on."""
    most = _own(logits if logits.dtype == torch.float64 else logits.float()).max(dim=1).values
    return most < 0.5 + radius if strict else most <= 0.5 + radius


def midweak_radius(weak: Tensor) -> float:
    """Radius for :func:`window` from all weak labels (n, C): lower median of max_c t_c - ½.

    For two classes that is |y - ½|.
    """
    weak = weak.float()
    distance = (weak[:, 1] - 0.5).abs() if weak.shape[1] == 2 else weak.amax(dim=1) - 0.5
    return float(distance.median())


def product(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    weight: Weight = None,
) -> Tensor:
    """Cross-entropy to the target p^beta · t^alpha, renormalised and without gradient.

    A row where that is 0 for every class keeps its target. Source:
    https://github.com/openai/weak-to-strong.
    """
    z, t = _prepared(logits, targets)
    both = _own(z) ** beta * t**alpha
    total = both.sum(dim=1, keepdim=True)
    return _mean(_xent(z, torch.where(total > 0, both / total, t)), weight)


def _prepared(
    logits: Tensor, targets: Tensor, *, binary: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return both as (B, C) in at least float32; raises UsageError if the shapes do not fit."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UsageError(
            f"A loss takes logits of shape (B, C) with at least two classes, got "
            f"{tuple(logits.shape)}; write one output s as the columns [0, s]."
        )
    if binary and logits.shape[1] != 2:
        raise UsageError(
            f"{binary} is defined for two classes and the logits have {logits.shape[1]}; "
            "logconf and entropy take any number."
        )
    z = logits if logits.dtype == torch.float64 else logits.float()
    if targets.ndim == 1 and not targets.is_floating_point() and len(targets) == len(z):
        targets = one_hot(targets.long(), z.shape[1])
    if targets.shape != z.shape:
        raise UsageError(
            f"Targets have the shape {tuple(targets.shape)} for logits of {tuple(z.shape)}; give "
            "class probabilities (B, C) or whole class numbers (B,)."
        )
    return z, targets.to(z)


def _xent(z: Tensor, t: Tensor) -> Tensor:
    return -(t * log_softmax(z, dim=1)).sum(dim=1)


def _entropy(z: Tensor) -> Tensor:
    log_p = log_softmax(z, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def _own(z: Tensor) -> Tensor:
    """Return the student's probabilities, detached."""
    return z.detach().softmax(dim=1)


def _hot(hard: Tensor, like: Tensor) -> Tensor:
    return one_hot(hard, like.shape[1]).to(like)


def _mixed(t: Tensor, own: Tensor, a: float) -> Tensor:
    return (1 - a) * t + a * own


def _balanced(t: Tensor) -> Tensor:
    """Centre the weak log-odds of a batch, as EleutherAI's ``balance_batch``."""
    y = t[:, 1]
    odds = torch.log(y + 1e-7) - torch.log(1 - y + 1e-7)
    y = torch.sigmoid(odds - odds.mean())
    return torch.stack([1 - y, y], dim=1)


def _mean(rows: Tensor, weight: Weight) -> Tensor:
    return (rows if weight is None else rows * weight.to(rows)).mean()


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

        Without ``keep`` the buffer does not change: evaluation must not move a training threshold.
        """
        probs = probs.detach()
        before = probs[:0] if self.rows is None else self.rows.to(probs)
        # A copy: a slice would hold the memory of the whole batch.
        rows = torch.cat([before, probs])[-self.size :].clone()
        if keep:
            self.rows = rows
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        """Return the buffer's state, on the CPU; empty before the first rows."""
        return {} if self.rows is None else {"rows": self.rows.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a buffer's state."""
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


MIDWEAK = "window_midweak"
RADIUS = inspect.signature(window).parameters["radius"].default
PLAIN: tuple[Callable[..., Tensor], ...] = (
    *(entropy, entropy_additive, entropy_eleuther, kl, product, reverse_kl, window, xent),
    *(logconf, logconf_eleuther, logconf_openai, logconf_paper),
)
FUNCTIONS = {function.__name__: function for function in PLAIN} | {MIDWEAK: window}

# Filled in by Loss; every other keyword of a function is an option of the loss.
GIVEN = {"weight", "training", "step", "progress", "recent", "prior"}

# Option -> allowed values.
ALLOWED: dict[str, Kind] = {
    "a_max": Number(0, 1),
    "warmup": Number(0, 1),  # a share of the steps
    "warmup_steps": Number(0, 1e9),
    "buffer_size": Whole(1, 10**7),
    "strength": Number(0, 1e6),
    "temperature": Number(0, 1e6, above=True),
    "alpha": Number(0, 1e6),
    "beta": Number(0, 1e6),
    "floor": Number(0, 1, above=True, below=True),
    "radius": Words("midweak", other=Number(-0.5, 1e6)),
    "balance_batch": Flag(),
    "strict": Flag(),
}


def loss_names() -> list[str]:
    """Names that :func:`make_loss` knows, sorted."""
    return sorted(FUNCTIONS)


def loss_options(name: str) -> dict[str, Any]:
    """Options of a loss and their defaults.

    Raises
    ------
    UsageError
        If the loss does not exist.
    """
    if not isinstance(name, str) or name not in FUNCTIONS:
        raise UsageError(
            f"There is no loss {name!r}{did_you_mean(name, FUNCTIONS)}; there are "
            f"{', '.join(loss_names())}."
        )
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    options = {
        each.name: each.default
        for each in parameters.values()
        if each.kind is each.KEYWORD_ONLY and each.name not in GIVEN
    }
    if "recent" in parameters:
        options["buffer_size"] = BUFFER_SIZE
    if name == MIDWEAK:
        del options["radius"]
    return options


def check_loss(name: str, options: Mapping[str, Any]) -> None:
    """Raise UsageError if a loss, an option or a value is not allowed, naming the nearest.

    Raises
    ------
    UsageError
        A ``SettingError`` if an option is wrong.
    """
    known = loss_options(name)
    for option, value in options.items():
        if option not in known:
            allowed = f"it has {', '.join(known)}" if known else "it has none"
            raise SettingError(
                f": the loss {name} has no option {option!r}{did_you_mean(option, known)}; "
                f"{allowed}.",
                (str(option),),
            )
        checked((option,), ALLOWED[option], value)


def make_loss(
    name: str, *, total_steps: int, weak: ArrayLike | None = None, **options: Any
) -> Loss:
    """Create the loss of one training.

    Parameters
    ----------
    name
        One of :func:`loss_names`.
    total_steps
        Optimizer steps of the whole training; schedules are shares of it.
    weak
        All training labels (n, C), for losses that use the whole set (``logconf``, midweak).
    options
        See :func:`loss_options`; the arguments of the function of the same name.

    Raises
    ------
    UsageError
        If the name, an option or its value is not allowed (it names the nearest), or ``weak`` is
        missing.
    """
    check_loss(name, options)
    check(total_steps=total_steps)
    function = FUNCTIONS[name]
    if name == MIDWEAK or options.get("radius") == "midweak":
        options = {**options, "radius": midweak_radius(_whole_set(name, weak))}
    prior = None
    if "prior" in inspect.signature(function).parameters:
        prior = _whole_set(name, weak).mean(dim=0).float()
    return Loss(name, function, total_steps=int(total_steps), options=options, prior=prior)


class Loss:
    """The loss of one training, created by :func:`make_loss`.

    Its state changes in training steps only; ``state_dict`` carries it over a restart. Each process
    of a distributed training has its own.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Tensor],
        *,
        total_steps: int,
        options: Mapping[str, Any],
        prior: Tensor | None = None,
    ) -> None:
        self.name = name
        self.total_steps = total_steps
        self.prior = prior
        self._function = function
        self._takes = set(inspect.signature(function).parameters)
        self.options = {k: v for k, v in options.items() if k != "buffer_size"}
        self.recent: RecentPredictions | None = None
        # Number of training rows so far, and of those in the window.
        self.windowed = [0, 0] if function is window else None
        if "recent" in self._takes:
            self.recent = RecentPredictions(int(options.get("buffer_size", BUFFER_SIZE)))

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"Loss({self.name}, total_steps={self.total_steps}{options})"

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        step: int,
        weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        """Return the mean loss of a batch, (1/B) Σ w_i · loss_i, as a scalar.

        Parameters
        ----------
        logits
            (B, C), class 0 first; half precision is computed in float32.
        targets
            Class probabilities (B, C) or class numbers (B,).
        step
            Optimizer steps done before this one, from 0.
        weight
            Weights of the rows (B,), of mean 1 over the training set; None: all 1.
        training
            False: the same value as in training, without a change of state.
        """
        given = {
            "weight": weight,
            "training": training,
            "step": step,
            "progress": step / self.total_steps,
            "recent": self.recent,
            "prior": self.prior,
        }
        arguments = {name: value for name, value in given.items() if name in self._takes}
        if training and self.windowed is not None:
            radius, strict = self.options.get("radius", RADIUS), self.options.get("strict", False)
            self.windowed[0] += len(logits)
            self.windowed[1] += int(inside_window(logits, radius, strict=strict).sum())
        return self._function(logits, targets, **arguments, **self.options)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state to resume training with; empty for losses without a state."""
        if self.windowed is not None:
            return {"windowed": torch.tensor(self.windowed)}
        return {} if self.recent is None else self.recent.state_dict()

    @property
    def notes(self) -> list[str]:
        """Notes on a finished training: a window that included all rows, or none."""
        if self.windowed is None or not self.windowed[0]:
            return []
        seen, inside = self.windowed
        radius = self.options.get("radius", RADIUS)
        if not inside:
            return [
                f"The loss {self.name} trained on no row: the student was never unsure enough "
                f"(radius {radius:g}); use a larger radius, or another loss."
            ]
        if inside == seen:
            return [
                f"The loss {self.name} left no row out: the student was never sure enough (radius "
                f"{radius:g}), so this was the same as xent."
            ]
        return []

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a ``state_dict`` of the same loss.

        Raises
        ------
        UsageError
            If the state is of another loss.
        """
        known = {"windowed"} if self.windowed is not None else set()
        unknown = set(state) - ({"rows"} if self.recent is not None else known)
        if unknown:
            raise UsageError(
                f"This state ({', '.join(sorted(unknown))}) is not one of the loss {self.name}; "
                "resume with the loss that the training started with."
            )
        if self.recent is not None:
            self.recent.load_state_dict(dict(state))
        if "windowed" in state:
            self.windowed = state["windowed"].tolist()


def _whole_set(name: str, weak: ArrayLike | None) -> Tensor:
    if weak is None:
        raise UsageError(
            f"The loss {name} needs all weak labels of the training set; give them as `weak` "
            "(n, C)."
        )
    try:
        labels = np.asarray(weak, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(
            f"`weak` holds class probabilities (n, C), got a {type(weak).__name__}."
        ) from None
    if labels.ndim != 2 or labels.shape[1] < 2 or not len(labels):
        raise UsageError(
            f"`weak` holds class probabilities (n, C) of at least one row, got the shape "
            f"{labels.shape}."
        )
    return torch.from_numpy(labels)
