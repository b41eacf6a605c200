"""Losses by name: published ways to train a student on weak labels, ready for a trainer.

``make_loss("logconf", total_steps=300, weak=labels)`` holds what a loss needs besides the batch:
its schedule, what it knows of the whole training set, the latest predictions. The same losses as
plain functions are exported here too, for loops that keep these things themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probekit.errors import UsageError, did_you_mean
from probekit.kinds import Flag, Kind, Number, SettingError, Whole, Words, check, checked
from probekit.students.loss_functions import (
    BUFFER_SIZE,
    RecentPredictions,
    entropy,
    entropy_additive,
    entropy_eleuther,
    inside_window,
    kl,
    logconf,
    logconf_eleuther,
    logconf_openai,
    logconf_paper,
    midweak_radius,
    product,
    reverse_kl,
    window,
    xent,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "Loss",
    "RecentPredictions",
    "check_loss",
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
    "window",
    "xent",
]

MIDWEAK = "window_midweak"
RADIUS = inspect.signature(window).parameters["radius"].default
PLAIN: tuple[Callable[..., Tensor], ...] = (
    *(entropy, entropy_additive, entropy_eleuther, kl, product, reverse_kl, window, xent),
    *(logconf, logconf_eleuther, logconf_openai, logconf_paper),
)
FUNCTIONS = {function.__name__: function for function in PLAIN} | {MIDWEAK: window}

# Filled in by Loss; every other keyword of a function is an option of the loss.
GIVEN = {"weight", "training", "step", "progress", "recent", "prior"}

# Option -> what its value may be.
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
        Where there is no such loss.
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
    """Refuse a loss, an option or a value that there is not, naming the nearest.

    Raises
    ------
    UsageError
        A ``SettingError`` where an option is wrong.
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
    """Make a loss for one training.

    Parameters
    ----------
    name
        One of :func:`loss_names`.
    total_steps
        Optimizer steps of the whole training: schedules are shares of it.
    weak
        All training labels (n, C), for losses that know the whole set (``logconf``, midweak).
    options
        See :func:`loss_options`; the arguments of the function of the same name.

    Raises
    ------
    UsageError
        Where the name, an option or its value is unknown (it names the nearest), or ``weak`` is
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
    """A loss of one training run, made by :func:`make_loss`.

    Its state changes in training steps only; ``state_dict`` carries it over a restart. Each process
    of a distributed training holds its own.
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
        # Rows that training has seen, and those of them in the window.
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
        """Mean loss of a batch, (1/B) Σ w_i · loss_i, as a scalar.

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
            False: the value that training would give, without any change of state.
        """
        given = {
            "weight": weight,
            "training": training,
            "step": step,
            "progress": step / self.total_steps,
            "recent": self.recent,
            "prior": self.prior,
        }
        fitting = {name: value for name, value in given.items() if name in self._takes}
        if training and self.windowed is not None:
            radius, strict = self.options.get("radius", RADIUS), self.options.get("strict", False)
            self.windowed[0] += len(logits)
            self.windowed[1] += int(inside_window(logits, radius, strict=strict).sum())
        return self._function(logits, targets, **fitting, **self.options)

    def state_dict(self) -> dict[str, Tensor]:
        """What a continued training needs; empty for losses without a state."""
        if self.windowed is not None:
            return {"windowed": torch.tensor(self.windowed)}
        return {} if self.recent is None else self.recent.state_dict()

    @property
    def notes(self) -> list[str]:
        """What is to be said of a training that is over: a window that let all rows in, or none."""
        if self.windowed is None or not self.windowed[0]:
            return []
        seen, inside = self.windowed
        radius = self.options.get("radius", RADIUS)
        if not inside:
            return [
                f"The loss {self.name} trained on no row: the student was never unsure enough "
                f"(radius {radius:g}); take a larger radius, or another loss."
            ]
        if inside == seen:
            return [
                f"The loss {self.name} left no row out: the student was never sure enough (radius "
                f"{radius:g}), so that this was xent."
            ]
        return []

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a ``state_dict`` of the same loss.

        Raises
        ------
        UsageError
            Where it comes from another loss.
        """
        known = {"windowed"} if self.windowed is not None else set()
        strange = set(state) - ({"rows"} if self.recent is not None else known)
        if strange:
            raise UsageError(
                f"This state ({', '.join(sorted(strange))}) is not one of the loss {self.name}; "
                "continue with the loss that the training began with."
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
