from __future__ import annotations

import json

import numpy as np
import pytest

from probekit.activations.store import ActivationStore
from probekit.cleaning.predict import relabel
from probekit.labels import load_labels
from probekit.probes import KNNProbe, LogisticProbe
from probekit.verdicts import Verdicts


@pytest.fixture
def run(probekit, chain):
    def start(*more):
        result = probekit("relabel", chain.acts, "--labels", chain.weak, "-o", chain.out, *more)
        assert result.exit_code == 0, result.output
        return result

    return start


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ([], {}),
        (["--blend", "0.4"], {"blend": 0.4}),
        (["--hard"], {"hard": True}),
        (["--threshold", "0.5"], {"threshold": 0.5}),
        (["--flip", "0.1"], {"flip": 0.1}),
        (["--only-above", "0.5", "--k", "9"], {"only_above": 0.5, "probe": KNNProbe(9)}),
        (["--probe", "logreg", "--hard"], {"probe": "logreg", "hard": True}),
        (["--probe", "topofilter", "--k-zeta", "9"], None),
        (
            ["--preset", "eleuther", "--probe", "logreg"],
            {
                "probe": LogisticProbe(1e-2, standardize=False),
                "in_sample": True,
                "disagreement": "distance",
                "ties": "index",
                "blend": 1.0,
            },
        ),
        (
            ["--preset", "eleuther", "--hard"],
            {
                "probe": KNNProbe(50, metric="euclidean", self_neighbor=True),
                "in_sample": True,
                "disagreement": "distance",
                "ties": "index",
                "hard": True,
            },
        ),
    ],
)
def test_the_command_is_the_function(run, chain, options, how):
    run(*options)
    verdicts = Verdicts.load(chain.out)
    if how is None:
        assert verdicts.provenance["probe"]["parameters"]["k_zeta"] == 9
        return
    with ActivationStore(chain.acts) as store:
        expected = relabel(store, load_labels(chain.weak), **how)
    assert np.array_equal(verdicts.label, expected.label)
    assert verdicts.keep.all()
    command = verdicts.provenance["command"]
    assert command.startswith(f"probekit relabel {chain.acts} --labels {chain.weak} ")
    assert verdicts.provenance == {**expected.provenance, "command": command}


def test_what_changed_is_told(run, chain):
    result = run("--truth", chain.truth)
    assert "relabel, soft 0.75" in result.stdout
    assert "label moved by" in result.stdout
    assert "label accuracy after" in result.stdout
    assert "precision of the drop" not in result.stdout
    verdicts = Verdicts.load(chain.out)
    moved = int((verdicts.hard != chain.weak_of).sum())
    line = next(line for line in result.stdout.splitlines() if line.startswith("all "))
    assert line.split()[:3] == ["all", "300", str(moved)]


def test_the_chosen_penalty_is_told(run, chain):
    result = run("--probe", "logreg")
    l2 = Verdicts.load(chain.out).provenance["probe"]["l2"]
    assert f"l2 {l2:.3g} (chosen)" in result.stdout
    assert "(chosen)" not in run("--probe", "logreg", "--l2", "0.1", "--overwrite").stdout


def test_soft_labels_reach_the_training_set(run, chain):
    data = chain.folder / "clean.jsonl"
    run("--write-data", data)
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    assert [line["id"] for line in lines] == chain.ids
    probs = np.array([line["probs"] for line in lines])
    assert np.abs(probs - Verdicts.load(chain.out).label).max() < 1e-6  # seven digits are written
    assert [line["label"] for line in lines] == probs.argmax(axis=1).tolist()


def test_verdicts_as_jsonl_can_be_labels_again(probekit, chain):
    first = chain.folder / "first.jsonl"
    arguments = ["relabel", chain.acts, "--labels", chain.weak, "--probe", "logreg"]
    assert probekit(*arguments, "-o", first).exit_code == 0
    again = probekit("relabel", chain.acts, "--labels", first, "-o", chain.out)
    assert again.exit_code == 0, again.output
    assert np.allclose(Verdicts.load(chain.out).weak, Verdicts.load(first).label, atol=1e-6)


def test_a_no_op_is_told(probekit, chain, make_acts):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 400)).astype(np.float32)
    acts = make_acts(X, chain.ids, chain.texts, name="wide.h5")
    result = probekit(
        "relabel", acts, "--labels", chain.weak, "--probe", "logreg", "--l2", "0.001",
        "--in-sample", "--threshold", "0.5", "-o", chain.out,
    )  # fmt: skip
    assert "Warning: The relabels equal the weak labels" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hard", "--threshold", "0.5"], "one of blend, hard, threshold and flip"),
        (["--blend", "0"], "'--blend': it is a number in (0, 1], got '0'"),
        (["--threshold", "1"], "'--threshold': it is a number in (0, 1), got '1'"),
        (["--only-above", "2"], "'--only-above': it is a number in [0, 1) (2 % is 0.02)"),
        (["--probe", "logreg", "--k", "3"], "has no --k"),
    ],
)
def test_options_that_make_no_sense(refused, chain, options, words):
    arguments = ["relabel", chain.acts, "--labels", chain.weak, "-o", chain.out]
    assert words in refused(*arguments, *options, code=2)
    assert not chain.out.exists()


def test_three_classes(probekit, refused, chain, write_rows):
    rng = np.random.default_rng(1)
    labels = rng.choice(["a", "b", "c"], 300)
    weak = write_rows(
        "three.jsonl", [{"id": i, "label": str(c)} for i, c in zip(chain.ids, labels, strict=True)]
    )
    arguments = ["relabel", chain.acts, "--labels", weak, "-o", chain.out]
    assert "there are 3; use --hard" in refused(*arguments, "--threshold", "0.5", code=2)
    result = probekit(*arguments, "--hard", "--probe", "logreg")
    assert result.exit_code == 0, result.output
    verdicts = Verdicts.load(chain.out)
    assert verdicts.classes == ("a", "b", "c")
    assert np.bincount(verdicts.hard).tolist() == [int((labels == c).sum()) for c in "abc"]


def test_what_was_flipped_is_said(run):
    assert "relabel, hard, flipped 0.1 of each weak class" in run("--flip", "0.1").output
