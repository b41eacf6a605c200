from __future__ import annotations

import warnings

import h5py
import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from probekit.errors import ProbeError
from probekit.probes import logistic_design
from probekit.probes import logistic_path as module
from probekit.probes.logistic_path import logistic_path

PENALTIES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
EXACT = {"dtype": "float64", "tol": 1e-12}


def problem(n=300, d=12, classes=2, seed=0, soft=False, sharp=2.0):
    """Correlated columns of different size with an offset; labels with logits of size ``sharp``."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * np.geomspace(0.3, 3, d) + 2
    scores = (X - 2) @ rng.standard_normal((d, classes))
    scores *= sharp / scores.std()
    if not soft:
        return X, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    return X, np.exp(log_softmax(scores, axis=1))


def gradient(X, Y, l2, coef, intercept, weight=None):
    """Gradient of the objective as the definition has it: all vectors, all in float64."""
    weight = np.ones(len(X)) if weight is None else weight
    z = X @ coef.T + intercept
    p = expit(z) if len(coef) == 1 else np.exp(log_softmax(z, axis=1))
    residual = p - Y[:, -len(coef) :]
    residual = residual * (weight / weight.sum())[:, None]
    return np.abs(residual.T @ X + 2 * l2 * coef).max(), np.abs(residual.sum(axis=0)).max()


def one_hot(y):
    return np.eye(y.max() + 1)[y]


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_golden_optima(golden, name):
    data = golden(f"eleuther_probes_{name}")
    exact = logistic_path(data["X"], data["y"], data["l2s"], dtype="float64")
    quick = logistic_path(data["X"], data["y"], data["l2s"])
    for i, l2 in enumerate(data["l2s"].tolist()):
        w, b = data[f"opt_w_l{l2}"], data[f"opt_b_l{l2}"]
        # The stated tolerances: 1e-8 for the float64 optimum, 1e-4 in float32.
        assert np.allclose(exact.coef_[i, 0], w, rtol=0, atol=1e-8)
        assert np.allclose(exact.intercept_[i], b, rtol=0, atol=1e-8)
        assert np.allclose(quick.coef_[i, 0], w, rtol=0, atol=1e-4)
        assert np.allclose(quick.intercept_[i], b, rtol=0, atol=1e-4)
        # The reference's own float32 L-BFGS stops early.
        assert np.allclose(exact.coef_[i, 0], data[f"log_w_l{l2}"], rtol=0, atol=3e-3)
        for rows, key in (("X", "log_train"), ("Xq", "log_query")):
            p = expit(data[rows] @ quick.coef_[i, 0] + quick.intercept_[i])
            assert np.allclose(p, data[f"{key}_l{l2}"], rtol=0, atol=1e-3)
        p = expit(data["Xq"] @ exact.coef_[i, 0] + exact.intercept_[i])
        assert np.allclose(p, data[f"opt_query_l{l2}"], rtol=0, atol=1e-8)
        z = data["X"] @ exact.coef_[i, 0].astype(np.float64) + exact.intercept_[i]
        loss = np.mean(np.logaddexp(0, z) - data["y"] * z) + l2 * np.sum(exact.coef_[i] ** 2)
        assert loss == pytest.approx(data[f"opt_obj_l{l2}"].item(), abs=1e-8)


def test_golden_optima_tell_penalties_apart(golden):
    data = golden("eleuther_probes_soft")
    half = logistic_path(data["X"], data["y"], data["l2s"] / 2, dtype="float64")
    for i, l2 in enumerate(data["l2s"].tolist()):
        assert not np.allclose(half.coef_[i, 0], data[f"opt_w_l{l2}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(300, 12), (40, 90)], ids=["tall", "wide"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_vanishes_at_the_optimum(shape, classes, weighted):
    X, Y = problem(*shape, classes=classes, soft=True)
    weight = np.random.default_rng(1).exponential(size=len(X)) if weighted else None
    path = logistic_path(X, Y, PENALTIES, sample_weight=weight, **EXACT)
    for l2, coef, intercept in zip(PENALTIES, path.coef_, path.intercept_, strict=True):
        slope, bias_slope = gradient(X, Y, l2, coef, intercept, weight)
        # tol 1e-12 for columns of size 1; these are up to 20 times larger.
        assert slope < 1e-10
        assert bias_slope < 1e-11
        elsewhere = gradient(X, Y, 1.01 * l2, coef, intercept, weight)[0]
        assert elsewhere == pytest.approx(0.02 * l2 * np.abs(coef).max(), rel=0.1)
    assert path.converged_.all()
    assert (path.grad_max_ <= 1e-12).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_sharp_labels_under_a_small_penalty(classes):
    # p(1 - p) differs by a factor of 1e30 between rows: its mean does not show the curvature.
    X, Y = problem(40, 90, classes=classes, soft=True, sharp=40)
    path = logistic_path(X, Y, [1e-5, 1e-3], **EXACT)
    assert path.converged_.all()
    assert path.n_iter_.max() < 150
    for l2, coef, intercept in zip([1e-5, 1e-3], path.coef_, path.intercept_, strict=True):
        assert gradient(X, Y, l2, coef, intercept)[0] < 1e-10


def test_scikit_learn_hard_labels():
    X, y = problem()
    weight = np.random.default_rng(1).exponential(size=len(X))
    path = logistic_path(X, y, PENALTIES, sample_weight=weight, **EXACT)
    for l2, coef, intercept in zip(PENALTIES, path.coef_, path.intercept_, strict=True):
        C = 1 / (2 * l2 * weight.sum())
        peer = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12)
        peer.fit(X, y, sample_weight=weight)
        # Both stop at a gradient of 1e-12; the smallest curvature here is about 1e-4.
        assert np.allclose(coef, peer.coef_, rtol=0, atol=1e-8)
        assert np.allclose(intercept, peer.intercept_, rtol=0, atol=1e-7)


def test_scikit_learn_soft_labels_by_stacking():
    X, Y = problem(soft=True)
    path = logistic_path(X, Y[:, 1], PENALTIES, **EXACT)
    twice, label = np.vstack([X, X]), np.repeat([1, 0], len(X))
    weight = np.concatenate([Y[:, 1], Y[:, 0]])
    for l2, coef in zip(PENALTIES, path.coef_, strict=True):
        peer = LogisticRegression(C=1 / (2 * l2 * len(X)), solver="newton-cholesky", tol=1e-12)
        assert np.allclose(
            coef, peer.fit(twice, label, sample_weight=weight).coef_, rtol=0, atol=1e-8
        )


@pytest.mark.parametrize("classes", [4, 9, 70])  # rows turned from 8 on, classes apart from 64 on
def test_scikit_learn_more_classes(classes):
    X, y = problem(classes=classes)
    path = logistic_path(X, y, PENALTIES, **EXACT)
    for l2, coef, intercept in zip(PENALTIES, path.coef_, path.intercept_, strict=True):
        peer = LogisticRegression(C=1 / (2 * l2 * len(X)), solver="newton-cholesky", tol=1e-12)
        peer.fit(X, y)
        assert np.allclose(coef, peer.coef_, rtol=0, atol=1e-8)
        # The intercepts' common part is arbitrary; ours sum to 0.
        centred = peer.intercept_ - peer.intercept_.mean()
        assert np.allclose(intercept, centred, rtol=0, atol=1e-7)
        assert abs(intercept.sum()) < 1e-12
        assert np.abs(coef.sum(axis=0)).max() < 1e-12


@pytest.mark.parametrize("classes", [2, 3])
def test_path_is_what_single_fits_are(classes):
    X, y = problem(classes=classes)
    path = logistic_path(X, y, PENALTIES, **EXACT)
    for i, l2 in enumerate(PENALTIES):
        alone = logistic_path(X, y, [l2], **EXACT)
        # Two points with gradients below 1e-12 at curvatures above 1e-4.
        assert np.allclose(path.coef_[i], alone.coef_[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(150, 12), (40, 90)], ids=["tall", "wide"])
def test_folds_are_fits_without_their_rows(classes, shape):
    X, Y = problem(*shape, classes=classes, soft=True)
    rng = np.random.default_rng(1)
    weight = rng.exponential(size=len(X))
    names = rng.choice([3, 7, 20], size=len(X))
    path = logistic_path(X, Y, PENALTIES, sample_weight=weight, folds=names, **EXACT)
    whole = logistic_path(X, Y, PENALTIES, sample_weight=weight, **EXACT)
    assert np.allclose(path.coef_, whole.coef_, rtol=0, atol=1e-8)
    assert np.array_equal(np.array([3, 7, 20])[path.folds], names)
    for place, name in enumerate([3, 7, 20]):
        held_out = names == name
        part = logistic_path(
            X[~held_out], Y[~held_out], PENALTIES, sample_weight=weight[~held_out], **EXACT
        )
        assert np.allclose(path.fold_coef_[:, place], part.coef_, rtol=0, atol=1e-8)
        assert not np.allclose(path.fold_coef_[:, place], whole.coef_, rtol=0, atol=1e-4)
        z = np.einsum("pvd,nd->pnv", part.coef_, X[held_out]) + part.intercept_[:, None]
        assert np.allclose(path.oof_logits[:, held_out], z, rtol=0, atol=1e-7)
        p = np.exp(log_softmax(z if classes > 2 else np.dstack([0 * z, z]), axis=2))
        assert np.allclose(path.oof_proba[:, held_out], p, rtol=0, atol=1e-7)


def test_without_folds_there_is_nothing_out_of_fold():
    X, y = problem()
    path = logistic_path(X, y, [1e-2])
    assert path.oof_logits is None
    assert path.oof_proba is None
    assert path.fold_coef_ is None


@pytest.mark.parametrize("classes", [2, 3])
def test_order_of_rows_does_not_matter(classes):
    X, y = problem(classes=classes)
    turn = np.random.default_rng(2).permutation(len(X))
    one, other = (logistic_path(X[i], y[i], PENALTIES, **EXACT) for i in (np.arange(len(X)), turn))
    assert np.allclose(one.coef_, other.coef_, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(300, 12), (40, 90)], ids=["tall", "wide"])
@pytest.mark.parametrize("standardize", [False, True])
def test_weight_two_is_a_row_twice_and_weight_zero_none(shape, standardize):
    X, y = problem(*shape)
    weight = np.random.default_rng(3).integers(0, 3, size=len(X))
    rows = np.repeat(np.arange(len(X)), weight)
    options = {"standardize": standardize, **EXACT}
    weighted = logistic_path(X, y, PENALTIES, sample_weight=weight, **options)
    repeated = logistic_path(X[rows], y[rows], PENALTIES, **options)
    plain = logistic_path(X, y, PENALTIES, **options)
    assert np.allclose(weighted.coef_, repeated.coef_, rtol=0, atol=1e-8)
    assert not np.allclose(weighted.coef_, plain.coef_, rtol=0, atol=1e-3)


def test_standardized_fit_ignores_shift_and_scale_of_columns():
    X, y = problem()
    rng = np.random.default_rng(4)
    shift, scale = rng.normal(size=12) * 100, rng.uniform(0.01, 100, size=12)
    one = logistic_path(X, y, PENALTIES, standardize=True, **EXACT)
    other = logistic_path(X * scale + shift, y, PENALTIES, standardize=True, **EXACT)
    # Under offsets 10,000 times the spread float64 keeps 12 digits.
    assert np.allclose(one.coef_, other.coef_ * scale, rtol=0, atol=1e-7)
    plain = [logistic_path(Z, y, PENALTIES, **EXACT).coef_ for Z in (X, X * scale + shift)]
    assert not np.allclose(plain[0], plain[1] * scale, rtol=0, atol=1e-2)


def test_standardized_fit_is_the_fit_on_standardized_columns():
    X, y = problem()
    mean, spread = X.mean(axis=0), X.std(axis=0)
    one = logistic_path(X, y, PENALTIES, standardize=True, **EXACT)
    other = logistic_path((X - mean) / spread, y, PENALTIES, **EXACT)
    assert np.allclose(one.coef_ * spread, other.coef_, rtol=0, atol=1e-8)
    shifted = one.intercept_ + np.einsum("pvd,d->pv", one.coef_, mean)
    assert np.allclose(shifted, other.intercept_, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("size", "offset"), [(1e6, 0), (1e-6, 0), (1, 1e6), (1e6, -1e9)])
def test_states_of_any_size_and_offset(size, offset):
    X, y = problem()
    far = X * size + offset
    one = logistic_path(X, y, PENALTIES, standardize=True)
    other = logistic_path(far, y, PENALTIES, standardize=True)
    # Two float32 fits, each to 1e-4 or better of coefficients around 1.
    assert np.allclose(one.coef_, other.coef_ * size, rtol=0, atol=2e-4)
    raw = logistic_path(far, y, [size**2 * 1e-3])  # the same problem in other units
    assert np.allclose(one_penalty(X, y), raw.coef_ * size, rtol=0, atol=2e-4)


def one_penalty(X, y):
    return logistic_path(X, y, [1e-3]).coef_


def test_swapping_two_classes_negates_and_permuting_more_permutes():
    X, Y = problem(soft=True)
    one, other = (logistic_path(X, Y[:, i], PENALTIES, **EXACT) for i in ([0, 1], [1, 0]))
    assert np.allclose(one.coef_, -other.coef_, rtol=0, atol=1e-8)
    assert np.allclose(one.intercept_, -other.intercept_, rtol=0, atol=1e-8)
    X, Y = problem(classes=3, soft=True)
    one, other = (logistic_path(X, Y[:, i], PENALTIES, **EXACT) for i in ([0, 1, 2], [2, 0, 1]))
    assert np.allclose(one.coef_[:, [2, 0, 1]], other.coef_, rtol=0, atol=1e-8)


def test_third_class_that_nobody_has_leaves_two_with_half_the_penalty():
    X, Y = problem(soft=True)
    with_empty = np.column_stack([Y, np.zeros(len(Y))])
    two = logistic_path(X, Y, [1e-2], **EXACT)
    three = logistic_path(X, with_empty, [2e-2], **EXACT)
    # ‖w‖² for two vectors ±w/2 is half of that for one vector w. The empty class keeps the
    # smallest share a class may start with, 1e-6, which moves the others by as little.
    difference = three.coef_[0, 1] - three.coef_[0, 0]
    assert np.allclose(difference, two.coef_[0, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_many_features_agree_with_many_rows(classes):
    X, y = problem(40, 90, classes=classes)
    wide = logistic_path(X, y, PENALTIES, **EXACT)
    tall = logistic_path(np.tile(X, (3, 1)), np.tile(y, 3), PENALTIES, **EXACT)
    # The same problem, once by the rows' inner products, once by the features'; under 1e-4, in
    # units of the columns 2e-6, a gradient of 1e-12 leaves an error of up to 1e-7.
    assert np.allclose(wide.coef_, tall.coef_, rtol=0, atol=1e-7)


def test_duplicates_with_more_features_than_rows():
    X, y = problem(40, 90)
    y = np.concatenate([y, 1 - y[:10]])
    X = np.vstack([X, X[:10]])
    path = logistic_path(X, y, PENALTIES, **EXACT)
    for l2, coef, intercept in zip(PENALTIES, path.coef_, path.intercept_, strict=True):
        assert gradient(X, one_hot(y), l2, coef, intercept)[0] < 1e-10


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("shape", [(300, 12), (40, 90)], ids=["tall", "wide"])
def test_states_come_in_any_container(tmp_path, monkeypatch, shape, standardize):
    X, y = problem(*shape)
    X = X.astype(np.float16)  # exact in every type below
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    file = h5py.File(tmp_path / "x.h5", "w")
    file["x"] = X
    options = {"folds": np.arange(len(X)) % 3, "standardize": standardize, **EXACT}
    want = logistic_path(X, y, PENALTIES, **options)
    containers = {
        "memory map": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "HDF5": file["x"],
        "tensor": torch.as_tensor(X.astype(np.float32)),
        "float64": X.astype(np.float64),
        "list": X.tolist(),
        "other order": np.asfortranarray(X.astype(np.float32)),
    }
    for copy_bytes in (logistic_design.COPY_BYTES, 0):
        # 0: everything is read again in each pass, as if it were larger than memory.
        monkeypatch.setattr(logistic_design, "COPY_BYTES", copy_bytes)
        for name, container in containers.items():
            got = logistic_path(container, y, PENALTIES, **options)
            # Sums over rows may be formed in another order.
            assert np.allclose(got.coef_, want.coef_, rtol=0, atol=1e-8), name
            # Held-out logits near 20 under a penalty of 2e-6 in units of the columns.
            assert np.allclose(got.oof_logits, want.oof_logits, rtol=0, atol=1e-5), name
    file.close()


def test_bfloat16_tensors_are_read_as_the_numbers_they_hold():
    X, y = problem()
    states = torch.as_tensor(X).to(torch.bfloat16)
    got = logistic_path(states, y, PENALTIES)
    want = logistic_path(states.double().numpy(), y, PENALTIES)
    assert np.allclose(got.coef_, want.coef_, rtol=0, atol=1e-5)


class Sliced:
    """States that can only be read a few rows at a time."""

    def __init__(self, X):
        self.X, self.shape, self.longest, self.reads = X, X.shape, 0, 0

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        block = self.X[rows]
        self.longest, self.reads = max(self.longest, len(block)), self.reads + 1
        return block


def test_large_states_are_read_in_chunks_and_not_kept(monkeypatch):
    X, y = problem(1000)
    whole = logistic_path(X, y, PENALTIES, **EXACT)
    sliced = Sliced(X)
    logistic_path(sliced, y, PENALTIES, **EXACT)
    kept = sliced.reads
    monkeypatch.setattr(logistic_design, "COPY_BYTES", 0)
    monkeypatch.setattr(logistic_design, "CHUNK_BYTES", 1 << 13)
    sliced = Sliced(X)
    path = logistic_path(sliced, y, PENALTIES, **EXACT)
    assert sliced.longest <= 85  # 8 KiB of 12 float64
    # Each pass reads all chunks again; before, they were read once.
    assert sliced.reads >= path.n_iter_.max() * (1000 // 85)
    assert kept < 40
    assert np.allclose(path.coef_, whole.coef_, rtol=0, atol=1e-8)


def test_many_columns_are_iterated_in_blocks(monkeypatch):
    X, y = problem(classes=3)
    folds = np.arange(len(X)) % 4
    whole = logistic_path(X, y, PENALTIES, folds=folds, **EXACT)
    monkeypatch.setattr(module, "MAX_COLUMNS", 7)
    blocks = logistic_path(X, y, PENALTIES, folds=folds, **EXACT)
    assert np.allclose(blocks.coef_, whole.coef_, rtol=0, atol=1e-8)
    assert np.allclose(blocks.oof_logits, whole.oof_logits, rtol=0, atol=1e-7)
    # Each starts at the solution of the next stronger penalty.
    assert blocks.n_iter_.sum() < whole.n_iter_.sum()


@pytest.mark.parametrize(("n", "d"), [(300, 12), (60, 90)], ids=["tall", "wide"])
def test_turned_rows_have_the_same_logits(n, d):
    X, _ = problem(n, d)
    weight = np.full(n, 1 / n)
    how = {"standardize": True, "dtype": torch.float64, "device": torch.device("cpu")}
    plain, turned = (
        logistic_design.Design(logistic_design.StandardRows(X, weight, **how), turn=turn)
        for turn in (False, True)
    )
    assert (plain.turned, turned.turned) == (False, True)
    rng = np.random.default_rng(0)
    weights = torch.as_tensor(rng.standard_normal((3, turned.width)))
    bias = torch.as_tensor(rng.standard_normal(3))
    x = torch.cat([x for _, x in turned.chunks(3)])
    coef, intercept = turned.to_states(weights, bias)
    assert np.allclose(X @ coef.T.numpy() + intercept.numpy(), x @ weights.T + bias, atol=1e-8)
    back, back_bias = turned.from_states(coef, intercept)
    assert np.allclose(back, weights, rtol=0, atol=1e-8)
    assert np.allclose(back_bias, bias, rtol=0, atol=1e-8)
    # The second moments are diagonal now, as they were not.
    off = [
        (rows := torch.cat([x for _, x in design.chunks(3)])).T @ rows / n
        for design in (plain, turned)
    ]
    assert torch.allclose(off[1], torch.diag(turned.spread), atol=1e-8)
    assert not torch.allclose(off[0], torch.diag(off[0].diagonal()), atol=1e-2)


def test_gram_matrix_of_a_sample_serves_as_well(monkeypatch):
    X, y = problem(2000)
    whole = logistic_path(X, y, PENALTIES, **EXACT)
    monkeypatch.setattr(logistic_design, "GRAM_ROWS", 8)
    sample = logistic_path(X, y, PENALTIES, **EXACT)
    assert np.allclose(sample.coef_, whole.coef_, rtol=0, atol=1e-8)
    assert sample.n_iter_.max() <= whole.n_iter_.max() + 15


@pytest.mark.parametrize(
    "shape", [(300, 40), (40, 70), (40, 90)], ids=["tall", "wide", "twice as wide"]
)
@pytest.mark.parametrize("classes", [2, 3])
def test_sketched_second_moments_serve_as_well(monkeypatch, shape, classes):
    X, y = problem(*shape, classes=classes)
    whole = logistic_path(X, y, PENALTIES, **EXACT)
    monkeypatch.setattr(logistic_design, "WHOLE", 16)
    monkeypatch.setattr(logistic_design, "SKETCH", 8)
    sketch = logistic_path(X, y, PENALTIES, **EXACT)
    assert np.allclose(sketch.coef_, whole.coef_, rtol=0, atol=1e-7)
    assert not np.array_equal(sketch.n_iter_, whole.n_iter_)  # it did take the other way


@pytest.mark.parametrize(
    ("shape", "in_memory", "expected"),
    [((40, 70), True, False), ((40, 90), True, True), ((40, 90), False, False)],
)
def test_an_image_of_many_rows_where_it_halves_the_passes(monkeypatch, shape, in_memory, expected):
    X, y = problem(*shape)
    whole = logistic_path(X, y, PENALTIES, **EXACT)
    monkeypatch.setattr(logistic_design, "WHOLE", 16)
    if not in_memory:
        monkeypatch.setattr(logistic_design, "COPY_BYTES", 1)
    created = []
    plain = logistic_design._factor
    monkeypatch.setattr(logistic_design, "_factor", lambda rows: created.append(1) or plain(rows))
    path = logistic_path(X, y, PENALTIES, **EXACT)
    assert bool(created) == expected
    assert np.allclose(path.coef_, whole.coef_, rtol=0, atol=1e-7)


def test_few_passes_whatever_the_conditioning():
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((600, 40)) * np.geomspace(1e-3, 1, 40)) @ rng.standard_normal((40, 40))
    scores = X @ rng.standard_normal(40)
    y = rng.random(600) < expit(2 * scores / scores.std())
    path = logistic_path(X, y, [1e-8, 1e-4, 1e-2], dtype="float64")
    # Second moments spread over six orders of magnitude; unpreconditioned methods need hundreds.
    assert path.converged_.all()
    assert path.n_iter_.max() <= 25


@pytest.mark.parametrize("classes", [2, 5])
def test_float32_comes_close_to_float64(classes):
    X, y = problem(400, 60, classes=classes)
    quick = logistic_path(X.astype(np.float32), y, PENALTIES, standardize=True)
    exact = logistic_path(X.astype(np.float32), y, PENALTIES, standardize=True, **EXACT)
    spread = X.std(axis=0)
    assert np.abs((quick.coef_ - exact.coef_) * spread).max() < 1e-3
    assert (quick.grad_max_ <= 1e-6).all()


def test_separable_labels_without_penalty_stop_with_a_warning():
    X, _ = problem()
    y = (X[:, 0] > X[:, 0].mean()).astype(int)
    with pytest.warns(ConvergenceWarning, match="l2 = 0 .*separable"):
        path = logistic_path(X, y, [0, 1e-3])
    assert path.converged_.tolist() == [False, True]
    assert np.isfinite(path.coef_).all()
    assert np.array_equal(X @ path.coef_[0, 0] + path.intercept_[0, 0] > 0, y == 1)


@pytest.mark.parametrize("classes", [2, 3])
def test_no_penalty_on_overlapping_classes_has_an_optimum(classes):
    X, y = problem(classes=classes)
    path = logistic_path(X, y, [0.0], **EXACT)
    peer = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(X, y)
    assert path.converged_.all()
    ours, theirs = (c - c.mean(axis=0) if classes > 2 else c for c in (path.coef_[0], peer.coef_))
    assert np.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_too_few_passes_warn():
    X, y = problem()
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        path = logistic_path(X, y, [1e-4, 1e4], max_iter=3)
    assert path.converged_.tolist() == [False, True]
    assert path.n_iter_.max() == 3


def test_columns_without_spread():
    X, y = problem()
    X = np.column_stack([X, np.full(len(X), 0.1), np.full(len(X), 1e6)])
    for standardize in (False, True):
        path = logistic_path(X, y, PENALTIES, standardize=standardize, **EXACT)
        plain = logistic_path(X[:, :12], y, PENALTIES, standardize=standardize, **EXACT)
        assert np.array_equal(path.coef_[..., 12:], np.zeros((5, 1, 2)))
        assert np.allclose(path.coef_[..., :12], plain.coef_, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(30, 3), (4, 9)])
def test_states_that_say_nothing_give_the_class_shares(shape):
    y = np.resize([0, 1, 1, 0, 1], shape[0])
    path = logistic_path(np.ones(shape), y, PENALTIES, **EXACT)
    assert np.abs(path.coef_).max() < 1e-12
    assert np.allclose(expit(path.intercept_), y.mean(), rtol=0, atol=1e-12)


def test_one_column():
    X, y = problem()
    path = logistic_path(X[:, :1], y, PENALTIES, **EXACT)
    for l2, coef, intercept in zip(PENALTIES, path.coef_, path.intercept_, strict=True):
        assert max(gradient(X[:, :1], one_hot(y), l2, coef, intercept)) < 1e-10


def test_settings_of_torch_are_left_as_they_were():
    X, y = problem()
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        medium = logistic_path(X, y, PENALTIES)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.get_num_threads() == threads
    assert np.array_equal(medium.coef_, logistic_path(X, y, PENALTIES).coef_)


def broken(**changes):
    X, y = problem(30, 4)
    return {"X": X, "y": y, "penalties": [1e-2]} | changes


def with_nan(place, value=np.nan):
    X = problem(30, 4)[0]
    X[place] = value
    return X


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (broken(X=with_nan((7, 2))), "NaN or inf in 1 of 30 rows .*'7'"),
        (broken(X=with_nan((0, 0), np.inf)), "NaN or inf in 1 of 30 rows .*'0'"),
        (broken(X=with_nan((3, 0), 1e30), dtype="float32"), "overflow float32"),
        (broken(X=with_nan((3, 0), 1e300), dtype="float32"), "overflow float32"),
        (broken(X=np.zeros(30)), r"states \(n, d\)"),
        (broken(X=np.zeros((0, 4)), y=[]), r"states \(n, d\)"),
        (broken(y=np.zeros(29)), "29|one class"),
        (broken(y=np.arange(29) % 2), "X has 30 rows but y has 29"),
        (broken(y=np.ones(30, dtype=int)), "one class only"),
        (broken(penalties=[]), "penalties must be"),
        (broken(penalties=[-1.0]), "penalties must be"),
        (broken(penalties=[np.nan]), "penalties must be"),
        (broken(penalties=1.0), "penalties must be"),
        (broken(sample_weight=np.ones(29)), r"sample_weight must have shape \(30,\)"),
        (broken(sample_weight=-np.ones(30)), "sample_weight must be finite"),
        (broken(sample_weight=np.zeros(30)), "sample_weight is zero in every row"),
        (broken(sample_weight=broken()["y"]), "one class only"),
        (broken(folds=np.zeros(29)), "folds must have shape"),
        (broken(folds=np.zeros(30)), "No row with weight is outside fold 0"),
        (broken(dtype="float16"), "dtype must be 'float32' or 'float64'"),
        (broken(tol=0), "tol must be positive"),
        (broken(max_iter=0), "max_iter at least 1"),
        (broken(device="nonsense"), "device 'nonsense' cannot be used"),
    ],
)
def test_bad_input(arguments, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy tells of the 1e30 as well
        with pytest.raises(ProbeError, match=message) as caught:
            logistic_path(**arguments)
    assert "\n" not in str(caught.value)
