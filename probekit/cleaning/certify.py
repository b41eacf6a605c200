"""Certify labels: people label as few rows as needed for at most B wrong ones to be left.

First a random sample, then the most doubtful rows, some at each sitting: after it the ensemble is
fitted again with the labels that people gave, and the rest is put into a new order. The labels of
sampled rows that are still in the file are not used for that, which keeps the bound exact
(:mod:`probekit.cleaning.bound`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.base import clone

from probekit.cleaning.answers import UNSURE
from probekit.cleaning.bound import Plan, failure, least_wrong, plan_sample
from probekit.cleaning.predict import score_rows
from probekit.cleaning.review import QUESTION, merge_review
from probekit.cleaning.trust import UNKNOWN
from probekit.cleaning.trusted import join_trusted
from probekit.cuts import by_id, count_of, disagreement_of
from probekit.errors import DataError, UsageError, first_few
from probekit.kinds import COUNT, KINDS, Maybe, Number, check, checked
from probekit.labels import WeakLabels
from probekit.probes.pairs import PairProbe
from probekit.strings import taken
from probekit.verdicts import Verdicts

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.scored import Scored
    from probekit.cleaning.trusted import Trusted

Matrix = NDArray[np.float64]

__all__ = ["LEAST_ROWS", "Certification", "Certifier", "certify"]

LEAST_ROWS = 100
# Share of the rows that a sitting takes before the ensemble is fitted again.
SITTING = 0.03
# For the cost beforehand. P(wrong) is learned from weak labels and not from the truth: it counts
# errors at random too often, and those of a model, which a probe imitates, hardly at all. So it is
# right in neither case: two of three guesses are that errors are random, so that this share of the
# count is wrong and the log-odds grow by this factor until the end of the review; one is that a
# model made them, so that at least this share of all labels is wrong and the order stays as it is.
AT_RANDOM, GROWTH, BY_MODEL = 0.6, 8.0, 0.25
# With as many trusted labels P(wrong) counts about right: up to these factors.
ENOUGH, AROUND = 30, (0.75, 1.0, 1.33)
# Once true labels of this share of the rows are learned from, log-odds hardly grow any more.
SETTLED = 0.09
COMPONENTS, COMPONENT_SCALE, FIT_STEPS = 40, 0.1, 60
BETWEEN = (1e-6, 1 - 1e-6)
OPEN, CANNOT_TELL = -1, -2


@dataclass(frozen=True, eq=False)
class Certification:
    """How far a certificate is: the rows to label now, or the verdicts."""

    stage: Literal["sample", "review", "done"]
    ask: tuple[str, ...]
    """Ids of the rows to label now; a class, or ``"?"`` for "cannot tell"."""
    labelled: int
    """Rows with an answer."""
    more: int
    """Rows that still wait for an answer, those of ``ask`` included: an estimate."""
    rows: int
    """n."""
    max_wrong: int
    """B, the wrong labels that may be left."""
    plan: Plan
    certificate: Mapping[str, Any] | None = None
    """Counts, settings and fingerprints, once it holds."""
    verdicts: Verdicts | None = None
    """People's labels and the others, with the certificate in their provenance."""


class Certifier:
    """Rows and labels to certify; arguments as :func:`certify`.

    Attributes
    ----------
    base : Verdicts
        The labels as they are.
    plan : Plan
        Size of the sample, and the estimated number of rows to label.
    notes : tuple of str
        What is to be said about the trusted labels.
    """

    def __init__(
        self,
        store: ActivationStore,
        labels: WeakLabels | Verdicts,
        *,
        max_error: float = 0.05,
        confidence: float = 0.95,
        sample: int | None = None,
        sitting: int | None = None,
        seed: int = 0,
        only_labelled: bool = False,
        trusted: Trusted | None = None,
    ) -> None:
        check(store=store, seed=seed, only_labelled=only_labelled)
        checked(("max_error",), KINDS["max_error"], max_error)
        checked(("confidence",), Number(0.5, 1, below=True), confidence)
        checked(("sample",), Maybe(COUNT), sample)
        checked(("sitting",), Maybe(COUNT), sitting)
        scored = _scored(store, labels, seed=seed, only_labelled=only_labelled)
        self.base = labels if isinstance(labels, Verdicts) else _as_they_are(scored)
        self.ids = tuple(scored.labels.ids)
        """n ids of the rows that the certificate is about."""
        self.hashes = tuple(scored.hashes)
        n = len(self.ids)
        _check_size(n)
        self.sitting = max(20, round(SITTING * n)) if sitting is None else sitting
        place = {name: i for i, name in enumerate(self.base.ids)}
        self._given = self.base.hard[[place[name] for name in self.ids]]
        self._weak = scored.labels.probs
        self._fit, components = _refits(scored)
        self._features = np.column_stack([np.eye(len(self.base.classes))[self._given], components])
        self._fitted: dict[bytes, Matrix] = {}  # of the sittings before
        self._ties = scored.ties
        self._true = np.full(n, UNKNOWN, np.int64)
        self.notes: tuple[str, ...] = ()
        if trusted is not None:
            self._true, self.notes = join_trusted(trusted, store.keys, scored.labels, scored.groups)
        self._known = self._true != UNKNOWN
        self.doubt = _doubt(scored.proba, self._given)
        self._guesses = _guesses(self.doubt, self._known)
        if self._known.any():
            self.doubt = self._doubt_after(self._true, self._known)
        if self._known.sum() >= ENOUGH:
            self._guesses = _guesses_of_some(self.doubt, self._known)
        self.draw(max_error, confidence, sample, seed)

    def draw(self, max_error: float, confidence: float, sample: int | None, seed: int) -> None:
        """Choose the size of the sample unless it is given, and draw it."""
        self.max_error, self.confidence, self.seed = max_error, confidence, seed
        n, alpha = len(self.ids), 1 - confidence
        self.max_wrong = count_of(max_error, n)
        _check_error(n, self.max_wrong, max_error, sample)
        self.plan = plan_sample(self._guesses, self.max_wrong, alpha, sample)
        if self.plan.allowed < 0:
            least = least_wrong(n, self.plan.sample, alpha)
            raise UsageError(
                f"A sample of {sample:,} of {n:,} rows cannot certify an error of {max_error:g} "
                f"with confidence {confidence:g}; the smallest possible is {_share(least, n)}, or "
                "draw a larger sample, or leave its size out."
            )
        # Uniform without replacement, and the same rows in whatever order they come.
        order = np.argsort(by_id(self.ids, seed=seed), kind="stable")
        self._drawn_rows = order[np.random.default_rng(seed).permutation(n)[: self.plan.sample]]
        self._drawn = np.zeros(n, bool)
        self._drawn[self._drawn_rows] = True

    @property
    def settings(self) -> dict[str, Any]:
        """What a certificate that was begun depends on."""
        provenance, known = self.base.provenance, np.flatnonzero(self._known)
        return {
            "max_error": self.max_error,
            "confidence": self.confidence,
            "seed": self.seed,
            "sample": self.plan.sample,
            "sitting": self.sitting,
            "rows": len(self.ids),
            "store": provenance.get("store", {}).get("fingerprint"),
            "labels": self._fingerprint(np.arange(len(self.ids)), self._given),
            "trusted": self._fingerprint(known, self._true[known]) if len(known) else None,
        }

    @property
    def trusted(self) -> dict[str, str]:
        """Id -> true class of the rows that are trusted."""
        names = self.base.classes
        return {self.ids[i]: names[self._true[i]] for i in np.flatnonzero(self._known).tolist()}

    def _fingerprint(self, rows: NDArray[np.int64], codes: NDArray[np.int64]) -> str:
        """Of rows and their class numbers."""
        names = self.base.classes
        ids = [self.ids[i] for i in rows.tolist()]
        return WeakLabels(ids, None, np.eye(len(names))[codes], names).fingerprint

    def status(self, answers: Mapping[str, str], *, source: str = "answers") -> Certification:
        """Say what to label next, or certify, from answers (id -> class, or ``"?"``).

        Answers of rows that were not asked about do no harm; ``source`` names them in the
        provenance.

        Raises
        ------
        DataError
            If an answer is of an unknown row or not a class.
        """
        code = np.where(self._known, self._true, self._codes(answers))
        waiting = [i for i in self._drawn_rows.tolist() if code[i] == OPEN]
        if waiting:
            answered = int(((code != OPEN) & (self._drawn | ~self._known)).sum())
            more = max(self.plan.expected - answered, len(waiting))
            return self._now("sample", waiting, code, more)
        # e_i = 1: another label than people's. Known of drawn and of reviewed rows only.
        wrong = code != self._given
        # Rows still in the file. The trusted ones leave first, drawn or not: to choose among them
        # by whether they were drawn would break the bound.
        inside = ~self._known
        left = int(wrong[self._drawn & inside].sum())  # drawn errors still in the file
        doubt = self.doubt
        while left > self.plan.allowed:
            if not inside.all():
                doubt = self._doubt_after(code, ~inside)
            order = np.flatnonzero(inside)
            order = order[np.lexsort((self._ties[order], -doubt[order]))]
            # Rows leave from the most doubtful one on, until this many wait for people,
            to_label = np.cumsum(~self._drawn[order])
            leaving = order[: int(np.searchsorted(to_label, self.sitting)) + 1]
            # or until at most s drawn errors are left, which their answers already show.
            hits = np.cumsum(self._drawn[leaving] & wrong[leaving])
            if hits[-1] >= left - self.plan.allowed:
                end = int(np.searchsorted(hits, left - self.plan.allowed)) + 1
                leaving, hits = leaving[:end], hits[:end]
            waiting = [i for i in leaving.tolist() if code[i] == OPEN]
            if waiting:
                more = self._more(doubt, order, left, code)
                return self._now("review", waiting, code, max(more, len(waiting)))
            inside[leaving] = False
            left -= int(hits[-1])
        return self._certified(code, left, source)

    def _codes(self, answers: Mapping[str, str]) -> NDArray[np.int64]:
        """Class number of each row's answer (n,), OPEN without one."""
        place = {name: i for i, name in enumerate(self.ids)}
        known = set(self.base.ids)
        if foreign := [name for name in answers if name not in known]:
            raise DataError(
                f"{len(foreign)} answers are for ids without a label to certify (ids "
                f"{first_few(foreign)}); leave them out."
            )
        numbers = {name: c for c, name in enumerate(self.base.classes)} | {UNSURE: CANNOT_TELL}
        code = np.full(len(self.ids), OPEN)
        for name, answer in answers.items():
            if answer not in numbers:
                raise DataError(
                    f"The answer for the id {name!r} is {answer!r}; allowed are "
                    f"{first_few(self.base.classes, 20)}, or {UNSURE!r} for cannot tell."
                )
            if name in place:
                code[place[name]] = numbers[answer]
        return code

    def _doubt_after(
        self, code: NDArray[np.int64], known: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """P(wrong) (n,) by the ensemble on the true labels of rows that left, and weak ones.

        What it misses is learned from the rows that left: which class P and the label to certify
        mean there, and directions of the states.
        """
        told = np.where(known & (code >= 0), code, OPEN)
        key = told.tobytes()
        if key not in self._fitted:
            rows = np.flatnonzero(told != OPEN)
            Y = self._weak.copy()
            Y[rows] = np.eye(Y.shape[1])[told[rows]]
            P = corrected(self._fit(Y), self._features, Y, rows)
            self._fitted[key] = _doubt(P, self._given)
        return self._fitted[key]

    def _more(
        self,
        doubt: NDArray[np.float64],
        order: NDArray[np.int64],
        left: int,
        code: NDArray[np.int64],
    ) -> int:
        """Expected number of rows to label until s drawn errors are left."""
        # As large a share of the rows that are left is wrong as of the drawn ones among them.
        growth = _growth(len(doubt) - len(order), len(doubt))
        q = sharpened(doubt[order], growth, left / self._drawn[order].sum())
        # The i-th of k drawn errors stands at about i / (k + 1) of all.
        share = (left - self.plan.allowed) / (left + 1)
        leaving = order[: int(np.searchsorted(np.cumsum(q), share * q.sum())) + 1]
        return int((code[leaving] == OPEN).sum())

    def _now(
        self,
        stage: Literal["sample", "review", "done"],
        waiting: list[int],
        code: NDArray[np.int64],
        more: int,
        **result: Any,
    ) -> Certification:
        return Certification(
            stage=stage,
            ask=tuple(self.ids[i] for i in waiting),
            labelled=int((code != OPEN).sum()),
            more=more,
            rows=len(self.ids),
            max_wrong=self.max_wrong,
            plan=self.plan,
            **result,
        )

    def _certified(self, code: NDArray[np.int64], left: int, source: str) -> Certification:
        plan, n, names = self.plan, len(self.ids), self.base.classes
        unsure = [self.ids[i] for i in np.flatnonzero(code == CANNOT_TELL).tolist()]
        certificate = {
            **{k: v for k, v in self.settings.items() if k != "trusted"},
            "max_wrong": self.max_wrong,
            "bound": "hypergeometric, without replacement",
            "failure": float(failure(n, plan.sample, self.max_wrong, plan.allowed)),
            "allowed_in_sample": plan.allowed,
            "wrong_in_sample": int((code != self._given)[self._drawn].sum()),
            "left_in_sample": left,
            "labelled": int((code != OPEN).sum()),
            "unreviewed": int((code == OPEN).sum()),
            "trusted": int(self._known.sum()),
            "corrected": int(((code >= 0) & (code != self._given)).sum()),
            "cannot_tell": len(unsure),
            "estimated": plan.expected,
        }
        labelled = np.flatnonzero(code >= 0).tolist()
        given = [
            {"id": self.ids[i], "text_hash": None, "text": None, QUESTION: names[code[i]]}
            for i in labelled
        ]
        merged = merge_review(self.base, given, source=source)
        # A row of which nobody can tell the label is not trained on.
        keep = merged.keep & ~np.isin(np.array(merged.ids, object), unsure)
        verdicts = replace(
            merged, keep=keep, provenance={**merged.provenance, "certificate": certificate}
        )
        return self._now("done", [], code, 0, certificate=certificate, verdicts=verdicts)


def certify(
    store: ActivationStore,
    labels: WeakLabels | Verdicts,
    answers: Mapping[str, str],
    *,
    max_error: float = 0.05,
    confidence: float = 0.95,
    sample: int | None = None,
    sitting: int | None = None,
    seed: int = 0,
    only_labelled: bool = False,
    trusted: Trusted | None = None,
) -> Certification:
    """Ask for true labels until at most a share of a file's labels is wrong, with a confidence.

    Call it with the answers so far until ``stage`` is ``"done"``; ``ask`` has the rows to label
    next. The guarantee is exact for any order of the rows, if people are right: with probability
    ``confidence``, at most ⌊``max_error`` · n⌋ of the n labels are wrong. A :class:`Certifier`
    does the same and reads the states once.

    Parameters
    ----------
    labels
        Weak labels, or verdicts, whose kept rows and new labels are certified.
    answers : mapping of str to str
        Id -> true class, or ``"?"`` if it cannot be told: a wrong label, and a row that the
        verdicts leave out.
    max_error : float, default=0.05
        ε, in (0, 1).
    confidence : float, default=0.95
        1 − α, in [0.5, 1).
    sample : int, optional
        Size of the random sample; by default that with the least expected number of rows to label.
    sitting : int, optional
        Rows to label before the order of the others is chosen again; by default 3 % of the rows.
    seed : int, default=0
        Seed of the sample. Choose it and all others before the first answer.
    trusted : WeakLabels, path or mapping of id to class, optional
        True labels of some rows that are known before the sample is drawn, such as the answers of
        an audit, and that nobody has to give again: the order of the others is learned from them
        from the start. Not answers to this sample, which would break the bound.

    Raises
    ------
    UsageError
        If ``max_error`` is below one label or below what the sample allows.
    DataError
        If there are fewer than 100 rows, or an answer is of an unknown row or not a class.
    LabelsError, StatesError, ProbeError
        As :func:`probekit.score_rows`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from probekit import ActivationStore, WeakLabels, certify
    >>> from probekit.activations.create import Plan
    >>> from probekit.activations.writer import StoreWriter
    >>> rng = np.random.default_rng(0)
    >>> truth = np.arange(1000) % 2
    >>> X = np.float32(rng.normal(size=(1000, 8)) + 2 * truth[:, None])
    >>> weak = np.where(rng.random(1000) < 0.2, 1 - truth, truth)  # a fifth of them is wrong
    >>> ids = [f"r{i}" for i in range(1000)]
    >>> path = Path(tempfile.mkdtemp()) / "acts.h5"
    >>> with StoreWriter.open(
    ...     path, Plan(spec={}, ids=ids, hashes=ids, widths={0: 8}, store_dtype="float32")
    ... ) as writer:
    ...     tokens, truncated = np.ones(1000, "int32"), np.zeros(1000, bool)
    ...     writer.write(np.arange(1000), {0: X}, tokens, truncated)
    ...     writer.finish()
    >>> store, labels = ActivationStore(path), WeakLabels(ids, None, np.eye(2)[weak], ("0", "1"))
    >>> answers = {}
    >>> while (now := certify(store, labels, answers, max_error=0.05)).stage != "done":
    ...     answers |= {name: str(truth[ids.index(name)]) for name in now.ask}
    >>> len(answers) < 400, int((now.verdicts.hard != truth).sum()) <= 50
    (True, True)
    """
    certifier = Certifier(
        store,
        labels,
        max_error=max_error,
        confidence=confidence,
        sample=sample,
        sitting=sitting,
        seed=seed,
        only_labelled=only_labelled,
        trusted=trusted,
    )
    return certifier.status(answers)


def _scored(
    store: ActivationStore, labels: WeakLabels | Verdicts, *, seed: int, only_labelled: bool
) -> Scored:
    """The ensemble on the weak labels of the rows that are in the file."""
    if isinstance(labels, Verdicts):
        kept = np.flatnonzero(labels.keep)
        _check_size(len(kept))
        name = Path(str(labels.provenance.get("labels", {}).get("source", "the verdicts"))).name
        weak = WeakLabels(
            taken(labels.ids, kept),
            taken(labels.hashes, kept),
            labels.weak[kept].astype(np.float64),
            labels.classes,
            source=name,
            key=labels.keys.take(kept),
        )
        return score_rows(store, weak, "ensemble", seed=seed, only_labelled=True)
    check(labels=labels)
    return score_rows(store, labels, "ensemble", seed=seed, only_labelled=only_labelled)


def _as_they_are(scored: Scored) -> Verdicts:
    """Verdicts that keep every row with its weak label."""
    verdicts = scored.filter(threshold=1.0)
    provenance = {k: v for k, v in verdicts.provenance.items() if k != "threshold"}
    return replace(verdicts, provenance={**provenance, "action": "leave"})


def _refits(scored: Scored) -> tuple[Callable[[Matrix], Matrix], Matrix]:
    """P (n, C) of the ensemble as a function of other labels (n, C), and components (n, p)."""
    if not scored.provenance.get("pairs"):
        refits = scored.probe.refits()
        return refits, COMPONENT_SCALE * refits.components(COMPONENTS)
    mirrored = PairProbe(clone(scored.probe))  # P(−x) = 1 − P(x), as in the first fit

    def refit(Y: Matrix) -> Matrix:
        return np.asarray(clone(mirrored).fit(scored.X, Y, groups=scored.groups).oof_proba_)

    return refit, np.empty((len(scored.X), 0))


def corrected(P: Matrix, features: Matrix, Y: Matrix, rows: NDArray[np.int64]) -> Matrix:
    """Class probabilities (n, C) that explain the true labels of some rows better than P.

    softmax(log P + F W) with features F = [1, centred log P, features], W by least cross-entropy
    plus ½ ‖W‖² on these rows: without much evidence W = 0, and P stands.

    Parameters
    ----------
    Y
        Labels (n, C), true ones in ``rows``.
    """
    log_p = np.log(np.maximum(P, 1e-6))
    F = np.column_stack([np.ones(len(P)), log_p - log_p.mean(axis=1, keepdims=True), features])
    X, offset, truth = F[rows], log_p[rows], Y[rows]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        W = flat.reshape(F.shape[1], -1)
        log_q = log_softmax(offset + X @ W, axis=1)
        gradient = X.T @ (np.exp(log_q) - truth) + W
        return float(0.5 * (W**2).sum() - (truth * log_q).sum()), gradient.ravel()

    start = np.zeros(F.shape[1] * P.shape[1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": FIT_STEPS})
    return np.asarray(softmax(log_p + F @ found.x.reshape(F.shape[1], -1), axis=1))


def _guesses(doubt: NDArray[np.float64], known: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """P(wrong) (n,), ascending, as it may turn out, from that of the first fit."""
    # Trusted rows leave first and cost nothing: as if they had no error.
    planned = np.sort(np.where(known, 0, doubt))
    counted = float(planned.mean())
    at_random = sharpened(planned, GROWTH, AT_RANDOM * counted)
    by_model = sharpened(planned, 1.0, max(counted, BY_MODEL))
    return [at_random, at_random, by_model]


def _guesses_of_some(
    doubt: NDArray[np.float64], known: NDArray[np.bool_]
) -> list[NDArray[np.float64]]:
    """The same from P(wrong) that trusted labels have corrected."""
    planned, growth = np.sort(np.where(known, 0, doubt)), _growth(int(known.sum()), len(known))
    return [sharpened(planned, growth, f * planned.mean()) for f in AROUND]


def _growth(learned: int, n: int) -> float:
    """What the log-odds of a fit grow by until the end, with true labels of some of n rows."""
    return 1 + max(0.0, 1 - learned / (SETTLED * n))


def sharpened(doubt: NDArray[np.float64], growth: float, mean: float) -> NDArray[np.float64]:
    """P(wrong) (n,) with log-odds ``growth`` times as large, shifted to this mean."""
    z = growth * logit(np.clip(doubt, *BETWEEN))
    target = float(np.clip(mean, *BETWEEN))
    reach = 2 * growth * logit(BETWEEN[1]) + 40.0  # beyond the largest shift that can be needed
    return np.asarray(expit(z + brentq(lambda b: expit(z + b).mean() - target, -reach, reach)))


def _doubt(proba: NDArray[np.float64], given: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 − P(the label to certify) (n,)."""
    return disagreement_of(proba, np.eye(proba.shape[1])[given])


def _check_size(n: int) -> None:
    """Raise for fewer rows than a certificate is worth its sample."""
    if n < LEAST_ROWS:
        raise DataError(
            f"There are {n} rows to certify, and at least {LEAST_ROWS} are needed; let people "
            "label all of them (`probekit review`)."
        )


def _check_error(n: int, max_wrong: int, max_error: float, sample: int | None) -> None:
    """Raise for an error below one label, or a sample that is larger than the file."""
    if max_wrong < 1:
        raise UsageError(
            f"An error of {max_error:g} of {n:,} rows is less than one label; the smallest "
            f"possible is {_share(1, n)}, one wrong label."
        )
    if sample is not None and sample > n:
        raise UsageError(f"A sample of {sample:,} of {n:,} rows is not possible; draw fewer.")


def _share(count: int, n: int) -> str:
    """A share that is at least count / n, with six decimals."""
    return f"{np.ceil(1e6 * count / n - 1e-9) / 1e6:g}"


def provenance_of(certification: Certification) -> dict[str, Any]:
    """The state as JSON holds it."""
    result = {k: v for k, v in vars(certification).items() if k not in ("verdicts", "ask", "plan")}
    return {**result, **asdict(certification.plan), "ask": len(certification.ask)}
