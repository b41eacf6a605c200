from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from probekit.errors import UsageError
from probekit.students import losses
from probekit.students.losses import (
    RecentPredictions,
    cut_at_level,
    loss_names,
    loss_options,
    make_loss,
    warm_up,
)

GOLDEN = Path(__file__).parent.parent / "golden"
# The references and probekit both add up in float32, in other orders.
CLOSE = {"atol": 5e-6, "rtol": 0}

# Losses with an auxiliary term -> the options that switch it off.
AUXILIARY = {name: {"a_max": 0.0} for name in loss_names() if "a_max" in loss_options(name)}
AUXILIARY["entropy_additive"] = {"strength": 0.0}
MIXING = [name for name in AUXILIARY if name != "entropy_additive"]
BINARY = ["logconf_eleuther", "logconf_openai", "logconf_paper"]
WITH_BUFFER = ["logconf", "logconf_eleuther"]


def read(name):
    with np.load(GOLDEN / f"losses_{name}.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def eleuther():
    return read("eleuther")


@pytest.fixture(scope="module")
def openai():
    return read("openai")


def two_columns(y):
    y = torch.from_numpy(np.asarray(y, np.float32))
    return torch.stack([1 - y, y], dim=1)


def value_and_gradient(function, logits, targets, **options):
    z = torch.as_tensor(logits).clone().requires_grad_()
    value = function(z, torch.as_tensor(targets), **options)
    value.backward()
    return float(value.detach()), z.grad


def check(found, value, gradient):
    assert found[0] == pytest.approx(float(value), abs=5e-6)
    assert np.allclose(found[1], gradient, **CLOSE)


def batch(classes=2, rows=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator)
    targets = torch.randn(rows, classes, generator=generator).softmax(dim=1)
    return logits, targets


def made(name, targets, total_steps=10, **options):
    return make_loss(name, total_steps=total_steps, weak=targets.numpy(), **options)


def at_end(name, logits, targets, **options):
    """Value and gradient after any warm-up."""
    loss = made(name, targets, **options)
    return value_and_gradient(loss, logits, targets, step=10_000)


# Golden values and gradients


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("name", ["xent", "kl"])
def test_golden_cross_entropy(eleuther, name, labels):
    found = value_and_gradient(
        getattr(losses, name), eleuther["logits"], two_columns(eleuther[f"labels_{labels}"])
    )
    check(found, eleuther[f"{name}_{labels}_value"], eleuther[f"{name}_{labels}_grad"])


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_golden_window(eleuther, labels):
    targets = two_columns(eleuther[f"labels_{labels}"])
    radii = eleuther[f"window_{labels}_radius"]
    for i, radius in enumerate(radii.tolist()):
        found = value_and_gradient(losses.window, eleuther["logits"], targets, radius=radius)
        check(found, eleuther[f"window_{labels}_{i}_value"], eleuther[f"window_{labels}_{i}_grad"])
    midweak = losses.midweak_radius(targets)
    assert midweak == pytest.approx(radii[-1], abs=1e-7)
    for loss in (made("window_midweak", targets), made("window", targets, radius="midweak")):
        assert loss.options == {"radius": midweak}
        found = value_and_gradient(loss, eleuther["logits"], targets, step=0)
        last = len(radii) - 1
        check(
            found,
            eleuther[f"window_{labels}_{last}_value"],
            eleuther[f"window_{labels}_{last}_grad"],
        )


@pytest.mark.parametrize("size", [1, 8, 40])
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("name", ["logconf_eleuther", "entropy_eleuther"])
def test_golden_eleuther_sequences(eleuther, name, balance, size):
    """Eight calls that share one buffer; batches of one row and larger than the buffer too."""
    key = f"seq{size}_harden{int(name == 'logconf_eleuther')}_bal{int(balance)}"
    options = {"balance_batch": balance, "a_max": float(eleuther["seq_aux_coef"])}
    options["warmup_steps"] = int(eleuther["seq_warmup"])
    if name == "logconf_eleuther":
        options["buffer_size"] = int(eleuther["seq_buffer_size"])
    loss = make_loss(name, total_steps=1000, **options)
    for i, step in enumerate(eleuther["seq_steps"].tolist()):
        logits = torch.from_numpy(eleuther[f"seq{size}_logits"][i])
        targets = two_columns(eleuther[f"seq{size}_labels"][i])
        # The reference's buffer takes predictions of evaluations in; this one must not notice them.
        loss(logits.flip(0) + 3, targets, step=step, training=False)
        found = value_and_gradient(loss, logits, targets, step=step)
        check(found, eleuther[f"{key}_value"][i], eleuther[f"{key}_grad"][i])


def test_golden_eleuther_without_warm_up(eleuther):
    loss = make_loss("logconf_eleuther", total_steps=9, warmup_steps=0)
    targets = two_columns(eleuther["labels_soft"])
    found = value_and_gradient(loss, eleuther["logits"], targets, step=0)
    check(found, eleuther["logconf_nowarmup_value"], eleuther["logconf_nowarmup_grad"])


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_golden_openai(openai, labels):
    logits, targets = openai["logits"], openai[f"labels_{labels}"]
    found = value_and_gradient(losses.xent, logits, targets)
    check(found, openai[f"xent_{labels}_value"], openai[f"xent_{labels}_grad"])
    for i, (a_max, warmup) in enumerate(openai["logconf_params"].tolist()):
        key = f"logconf_{labels}_{i}"
        for j, progress in enumerate(openai["step_fracs"].tolist()):
            found = value_and_gradient(
                losses.logconf_openai,
                logits,
                targets,
                progress=progress,
                a_max=a_max,
                warmup=warmup,
            )
            check(found, openai[f"{key}_value"][j], openai[f"{key}_grad"][j])
    for i, (alpha, beta) in enumerate(openai["product_params"].tolist()):
        found = value_and_gradient(losses.product, logits, targets, alpha=alpha, beta=beta)
        key = f"product_{labels}_{i}"
        check(found, openai[f"{key}_value"], openai[f"{key}_grad"])


# Mathematics


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("name", "classes"),
    [(name, c) for name in sorted(AUXILIARY) for c in (2, 4) if c == 2 or name not in BINARY],
)
def test_no_auxiliary_weight_is_cross_entropy_bit_for_bit(name, classes, weighted):
    logits, targets = batch(classes)
    weight = torch.linspace(0, 2, len(logits)) if weighted else None
    loss = made(name, targets, **AUXILIARY[name])
    found = value_and_gradient(loss, logits, targets, step=10, weight=weight)
    plain = value_and_gradient(losses.xent, logits, targets, weight=weight)
    assert found[0] == plain[0]
    assert torch.equal(found[1], plain[1])
    other = value_and_gradient(made(name, targets), logits, targets, step=10_000, weight=weight)
    assert not torch.equal(other[1], plain[1])


@pytest.mark.parametrize("name", MIXING)
def test_the_first_step_of_every_warm_up_is_cross_entropy(name):
    logits, targets = batch()
    found = value_and_gradient(made(name, targets), logits, targets, step=0)
    assert torch.equal(found[1], value_and_gradient(losses.xent, logits, targets)[1])


def test_cross_entropy_is_torch_s():
    logits, targets = batch(5)
    found = value_and_gradient(losses.xent, logits, targets)
    check(found, *value_and_gradient(cross_entropy, logits, targets))
    hard = targets.argmax(dim=1)
    check(
        value_and_gradient(losses.xent, logits, hard),
        *value_and_gradient(cross_entropy, logits, hard),
    )


def test_divergences_vanish_at_the_target_and_are_positive_elsewhere():
    logits, targets = batch(3)
    for function in (losses.kl, losses.reverse_kl):
        assert float(function(targets.log(), targets)) == pytest.approx(0, abs=1e-6)
        assert float(function(logits, targets)) > 0.1
    hard = torch.eye(3)
    assert torch.isfinite(losses.reverse_kl(torch.zeros(3, 3), hard))
    assert float(losses.kl(torch.zeros(3, 3), hard)) == pytest.approx(np.log(3), abs=1e-6)
    p = logits.double().softmax(1)
    expected = (p * (p.log() - targets.double().log())).sum(1).mean()
    assert float(losses.reverse_kl(logits, targets)) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    ("function", "options"),
    [
        (losses.entropy, {"progress": 1.0, "a_max": 0.7}),
        (losses.entropy, {"progress": 0.1}),
        (losses.entropy_additive, {"temperature": 2.0}),
        (losses.reverse_kl, {}),
        (losses.kl, {}),
    ],
)
def test_gradients_by_differences(function, options, classes):
    logits, targets = (part[:6].double() for part in batch(classes))
    weight = torch.linspace(0.5, 1.5, 6).double()
    z = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: function(z, targets, weight=weight, **options), z)


def test_entropy_has_the_gradient_that_the_released_one_lacks():
    logits, targets = batch(3)
    a, rows = 0.5, len(logits)
    log_p = logits.log_softmax(1)
    H = -(log_p.exp() * log_p).sum(1, keepdim=True)
    plain = value_and_gradient(losses.xent, logits, targets)[1]
    true = value_and_gradient(losses.entropy, logits, targets, a_max=a)
    expected = (1 - a) * plain - a * log_p.exp() * (log_p + H) / rows
    assert np.allclose(true[1], expected, **CLOSE)
    released = value_and_gradient(
        losses.entropy_eleuther, logits, targets, step=100, a_max=a, warmup_steps=100
    )
    assert released[0] == pytest.approx(true[0], abs=1e-6)
    assert np.allclose(released[1], (1 - a) * plain, **CLOSE)
    assert not np.allclose(released[1], true[1], atol=1e-3)


def test_additive_entropy():
    logits, targets = batch(3)
    p = (logits.double() / 2).softmax(1)
    expected = losses.xent(logits, targets) - 0.3 * (p * p.log()).sum(1).mean()
    found = losses.entropy_additive(logits, targets, strength=0.3, temperature=2)
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


def test_warm_ups():
    _, targets = batch()
    for name, at in {
        "logconf": {0: 0, 1: 0.25, 2: 0.5, 9: 0.5},
        "logconf_paper": {0: 0, 1: 0.25, 2: 0.5, 9: 0.5},
        "logconf_openai": {0: 0, 1: 0.05, 2: 0.5, 9: 0.5},
        "logconf_eleuther": {0: 0, 1: 0.005, 10: 0.05, 100: 0.5, 999: 0.5},
    }.items():
        for step, a in at.items():
            # Logits 0 and a class-1 prediction only of p1 > p1: the hardened class is 0 everywhere.
            loss = made(name, targets)
            certain = torch.tensor([[0.0, 1.0]]).repeat(4, 1)
            found = float(loss(torch.tensor([[3.0, 0.0]]).repeat(4, 1), certain, step=step))
            p0 = float(torch.tensor([3.0, 0.0]).softmax(0)[0])
            expected = -(1 - a) * np.log(1 - p0) - a * np.log(p0)
            assert found == pytest.approx(expected, abs=1e-5), (name, step)
    assert warm_up(0, 0, 0.5) == 0.5


def test_thresholds_reach_the_shares_that_they_are_for():
    logits, _ = batch(rows=1000)
    logits[:, 0] += 3  # a student that almost always says class 0
    p = logits.softmax(1)
    assert (p[:, 1] > 0.5).float().mean() < 0.2  # the control: ½ would miss the share
    for level in (0.1, 0.5, 0.8):
        assert float(cut_at_level(p, p, level).float().mean()) == pytest.approx(level, abs=2e-3)
    # Weak labels of another mean: only `logconf` knows the whole set's.
    targets = two_columns(np.full(1000, 0.7))
    weak = two_columns(np.full(50, 0.2))
    shares = {}
    for name in ("logconf", "logconf_paper", "logconf_openai", "logconf_eleuther"):
        options = {"buffer_size": 1000} if name in WITH_BUFFER else {}
        loss = make_loss(name, total_steps=10, weak=weak, a_max=1.0, **options)
        # With a = 1 the target is the hardened class alone: grad = (p - ĥ) / B.
        gradient = value_and_gradient(loss, logits, targets, step=1000)[1]
        hard = p - 1000 * gradient
        assert np.allclose(hard.numpy(), hard.round().numpy(), atol=1e-4)
        shares[name] = float(hard[:, 1].mean())
    wanted = {"logconf": 0.2, "logconf_paper": 0.5, "logconf_openai": 0.7, "logconf_eleuther": 0.7}
    assert shares == pytest.approx(wanted, abs=2e-3)


def test_more_classes_are_hardened_towards_the_prior():
    logits, _ = batch(3, rows=3000)
    logits[:, 2] += 4
    p = logits.softmax(1)
    prior = torch.tensor([0.5, 0.3, 0.2])
    weak = prior.repeat(10, 1)
    loss = make_loss("logconf", total_steps=10, weak=weak, a_max=1.0, buffer_size=3000)
    gradient = value_and_gradient(loss, logits, weak[:1].repeat(3000, 1), step=10)[1]
    hard = (p - 3000 * gradient).round()
    assert torch.equal(hard.argmax(1), (p * prior / p.mean(0)).argmax(1))
    plain = torch.eye(3)[p.argmax(1)].mean(0)  # the control: 86 % of class 2
    assert (hard.mean(0) - prior).abs().max() < 0.6 * (plain - prior).abs().max()


def test_window_edges():
    logits, targets = batch()
    value, gradient = value_and_gradient(losses.window, logits, targets, radius=0.0)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(logits))
    everything = value_and_gradient(losses.window, logits, targets, radius=0.6)
    assert torch.equal(everything[1], value_and_gradient(losses.xent, logits, targets)[1])
    # What is above the edge is left out, and with `strict` the edge too; divided by all rows.
    edge = torch.zeros(1, 2)
    on_edge = losses.window(edge, targets[:1], radius=0.0)
    assert float(on_edge) == float(losses.xent(edge, targets[:1])) > 0
    assert float(losses.window(edge, targets[:1], radius=0.0, strict=True)) == 0
    kept = torch.cat([edge, torch.tensor([[9.0, 0.0]])])
    for strict in (False, True):
        found = float(losses.window(kept, targets[:2], strict=strict))
        assert found == pytest.approx(np.log(2) / 2, abs=1e-6)


def test_the_published_window_is_strict_on_any_batch_off_the_edge():
    logits, targets = batch()
    for radius in (0.05, 0.15, 0.3):
        found = [losses.window(logits, targets, radius=radius, strict=s) for s in (False, True)]
        assert torch.equal(*found)


def test_a_window_that_lets_none_or_all_in_is_reported():
    logits, targets = batch()
    none, everything = (made("window", targets, radius=r) for r in (0.0, 0.5))
    some = made("window", targets, radius=0.2)
    for loss in (none, everything, some, made("xent", targets)):
        assert loss.notes == []  # nothing is known before the first step
        loss(logits, targets, step=0)
        loss(10 * torch.eye(2)[[0] * len(logits)], targets, step=0, training=False)
    assert none.notes[0].startswith("The loss window trained on no row")
    assert "left no row out" in everything.notes[0]
    assert "xent" in everything.notes[0]
    assert some.notes == made("xent", targets).notes == []
    resumed = made("window", targets, radius=0.5)
    resumed.load_state_dict(none.state_dict())
    resumed(logits, targets, step=1)
    assert resumed.notes == []  # what was seen before counts
    half = torch.full((4, 2), 0.5)
    unsure = made("window_midweak", half)  # labels of one half: radius 0
    unsure(logits[:4], half, step=0)
    assert "trained on no row" in unsure.notes[0]


def test_midweak_is_the_lower_median_of_each_training_set():
    y = np.array([0.5, 0.9, 0.2, 0.45])  # distances 0, .4, .3, .05
    assert losses.midweak_radius(two_columns(y)) == pytest.approx(0.05)
    weak = torch.tensor([[0.4, 0.3, 0.3], [0.8, 0.1, 0.1], [0.1, 0.6, 0.3]])
    assert losses.midweak_radius(weak) == pytest.approx(0.1)
    first, second = (made("window_midweak", two_columns(part)) for part in (y, y[1:]))
    assert first.options["radius"] != second.options["radius"]


def test_product_where_student_and_label_exclude_each_other():
    logits = torch.tensor([[200.0, 0.0], [1.0, 0.0]])  # p1 of the first row is 0 in float32
    targets = torch.tensor([[0.0, 1.0], [0.3, 0.7]])
    value, gradient = value_and_gradient(losses.product, logits, targets)
    assert np.isfinite(value)
    assert gradient[0].tolist() == [0.5, -0.5]  # the row's own label
    p = logits[1].softmax(0)
    both = p * targets[1]
    expected = (p - both / both.sum()) / 2
    assert np.allclose(gradient[1], expected, **CLOSE)


# State


@pytest.mark.parametrize("name", loss_names())
def test_evaluation_changes_nothing(name):
    logits, targets = batch(rows=8)
    quiet, watched = made(name, targets), made(name, targets)
    for step in range(6):
        part = batch(rows=8, seed=step)[0]
        watched(logits - 2, targets, step=step, training=False)
        before = {k: v.clone() for k, v in watched.state_dict().items()}
        evaluated = watched(part, targets, step=step, training=False)
        assert watched.state_dict().keys() == before.keys()
        assert all(torch.equal(v, before[k]) for k, v in watched.state_dict().items())
        value = watched(part, targets, step=step)
        assert torch.equal(value, evaluated)
        assert torch.equal(value, quiet(part, targets, step=step))
    assert (name in {*WITH_BUFFER, "window", "window_midweak"}) == bool(watched.state_dict())


@pytest.mark.parametrize("name", loss_names())
def test_a_saved_state_continues_the_same(name):
    _, targets = batch(rows=8)
    through, first = made(name, targets), made(name, targets)
    values = [through(batch(rows=8, seed=s)[0], targets, step=s + 3) for s in range(8)]
    for s in range(4):
        first(batch(rows=8, seed=s)[0], targets, step=s + 3)
    second = made(name, targets)
    second.load_state_dict(first.state_dict())
    for s in range(4, 8):
        assert torch.equal(second(batch(rows=8, seed=s)[0], targets, step=s + 3), values[s])
    if name in WITH_BUFFER:
        lost = made(name, targets)
        assert not torch.equal(lost(batch(rows=8, seed=4)[0], targets, step=7), values[4])


def test_the_buffer_holds_the_last_rows_and_no_graph():
    recent = RecentPredictions(4)
    recent.joined(torch.full((3, 2), 0.1))
    rows = recent.joined(torch.full((2, 2), 0.2, requires_grad=True) * 1)
    assert np.allclose(rows[:, 0], [0.1, 0.1, 0.2, 0.2])
    assert not recent.rows.requires_grad
    big = torch.rand(1000, 2)
    assert torch.equal(recent.joined(big), big[-4:])
    assert recent.rows.untyped_storage().nbytes() == 4 * 2 * 4
    recent.load_state_dict({})
    assert recent.rows is None


def test_a_state_of_another_loss_is_refused():
    _, targets = batch()
    loss = made("logconf", targets)
    loss(*batch(), step=0)
    with pytest.raises(UsageError, match="is not one of the loss xent"):
        make_loss("xent", total_steps=1).load_state_dict(loss.state_dict())


# Precision and input


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", loss_names())
def test_half_precision_is_computed_in_float32(name, dtype):
    logits, targets = batch()
    rounded = logits.to(dtype)
    half, full = made(name, targets), made(name, targets)
    value, gradient = value_and_gradient(half, rounded, targets.to(dtype), step=5)
    wide = value_and_gradient(full, rounded.float(), targets.to(dtype).float(), step=5)
    assert value == wide[0]
    assert gradient.dtype == dtype
    assert torch.equal(gradient, wide[1].to(dtype))


@pytest.mark.parametrize("name", loss_names())
def test_weights_weigh_rows(name):
    logits, targets = batch()
    weight = torch.rand(len(logits), generator=torch.Generator().manual_seed(1))
    found = at_end(name, logits, targets)
    loss = made(name, targets)
    weighted = value_and_gradient(loss, logits, targets, step=10_000, weight=weight.double())
    assert np.allclose(weighted[1], found[1] * weight[:, None], **CLOSE)
    ones = made(name, targets)(logits, targets, step=10_000, weight=torch.ones(len(logits)))
    assert float(ones) == found[0]


@pytest.mark.parametrize("name", [name for name in loss_names() if name not in BINARY])
def test_any_number_of_classes(name):
    logits, targets = batch(5)
    value, gradient = at_end(name, logits, targets)
    assert np.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert gradient.sum(1).abs().max() < 1e-6  # softmax knows no common shift


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in BINARY), ("entropy_eleuther", {"balance_batch": True})],
)
def test_binary_losses_refuse_more_classes(name, options):
    logits, targets = batch(3)
    with pytest.raises(UsageError, match=rf"{name}.* is defined for two classes and .* have 3"):
        made(name, targets, **options)(logits, targets, step=0)


@pytest.mark.parametrize("name", loss_names())
@pytest.mark.parametrize("rows", [1, 2])
def test_small_batches(name, rows):
    logits, targets = batch(rows=rows)
    value, gradient = at_end(name, logits, targets)
    assert np.isfinite(value)
    assert torch.isfinite(gradient).all()


def test_one_row_and_the_median():
    """A median of one row is the row itself, which would make every prediction class 0."""
    target = torch.tensor([[0.5, 0.5]])
    for z1, hard in ((2.0, 1), (-2.0, 0)):
        logits = torch.tensor([[0.0, z1]])
        gradient = value_and_gradient(
            losses.logconf_paper, logits, target, progress=1.0, a_max=1.0
        )[1]
        assert gradient[0, hard] < 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("xnet", {}, r"no loss 'xnet' \(did you mean xent"),
        ("log_conf", {}, r"did you mean logconf"),
        ("logconf", {"amax": 0.5}, r"no option 'amax' \(did you mean a_max\?\); it has a_max, "),
        ("logconf", {"recent": 3}, r"no option 'recent'"),
        ("xent", {"a_max": 0.5}, r"no option 'a_max'; it has none\."),
        ("window_midweak", {"radius": 0.1}, r"no option 'radius'"),
        ("logconf", {"a_max": 1.5}, r"a_max is a number in \[0, 1\], got 1\.5"),
        ("logconf", {"a_max": float("nan")}, r"a_max is a number"),
        ("entropy", {"warmup": 100}, r"warmup is a number in \[0, 1\], got 100"),
        ("logconf", {"buffer_size": 0}, r"buffer_size is a whole number from 1 to"),
        (
            "window",
            {"radius": "wide"},
            r"radius is midweak or a number in \[-0.5, 1,000,000\], got 'wide'",
        ),
        ("entropy_additive", {"temperature": 0}, r"temperature is a number in \(0, 1,000,000\]"),
        ("logconf_eleuther", {"balance_batch": "yes"}, r"balance_batch is true or false"),
        ("product", {"alpha": True}, r"alpha is a number in \[0, 1,000,000\], got True"),
    ],
)
def test_unknown_names_and_values(name, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        make_loss(name, total_steps=5, weak=batch()[1], **options)
    assert "\n" not in str(caught.value)


def test_what_a_loss_needs():
    for name in ("logconf", "window_midweak"):
        with pytest.raises(UsageError, match=f"loss {name} needs all weak labels"):
            make_loss(name, total_steps=5)
        with pytest.raises(UsageError, match=r"class probabilities \(n, C\).*shape \(4,\)"):
            make_loss(name, total_steps=5, weak=np.ones(4))
    for steps in (0, 2.5, True):
        with pytest.raises(UsageError, match="total_steps is a whole number"):
            make_loss("xent", total_steps=steps)
    logits, targets = batch()
    with pytest.raises(UsageError, match=r"Targets have the shape \(23, 2\)"):
        losses.xent(logits, targets[1:])
    with pytest.raises(UsageError, match=r"Targets have the shape \(24,\)"):
        losses.xent(logits, targets[:, 1])  # P(class 1) alone is no class number
    with pytest.raises(UsageError, match=r"got \(24, 1\); write one output s"):
        losses.xent(logits[:, :1], targets[:, :1])


def test_every_option_is_checked_and_shown():
    from probekit.students.losses import ALLOWED

    options = {option for name in loss_names() for option in loss_options(name)}
    assert options == set(ALLOWED)
    loss = make_loss("product", total_steps=7, alpha=2)
    assert repr(loss) == "Loss(product, total_steps=7, alpha=2)"
    assert "logconf" in loss_names()
    assert loss_names() == sorted(loss_names())
