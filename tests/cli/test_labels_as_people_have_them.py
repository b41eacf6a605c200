"""Labels and rows as people have them, from the command line: what is read and joined is said."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from probekit.activations.create import Plan
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.data import Rows
from probekit.verdicts import Verdicts

ORDER = np.random.default_rng(7).permutation(300)


@pytest.fixture
def store_of(chain):
    """A store of the chain's states whose rows came from a table with other columns."""

    def make(name="other.h5", **columns):
        rows = Rows({"text": chain.texts, **columns}, source="rows.csv")
        path = chain.folder / name
        with StoreWriter.open(
            path,
            Plan(
                spec={"model": "blobs"},
                ids=rows.ids,
                hashes=rows.hashes,
                widths={6: chain.X.shape[1]},
                store_dtype="float32",
                keys=rows.keys,
            ),
        ) as writer:
            n = len(rows)
            writer.write(np.arange(n), {6: chain.X}, np.ones(n, np.int32), np.zeros(n, bool))
            writer.finish()
        return path

    return make


def table(path, **columns):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def shuffled(values):
    return [values[i] for i in ORDER]


@pytest.mark.parametrize("name", ["ID", "uid", "review_id"])
def test_every_command_joins_by_the_shared_column(probekit, chain, store_of, name):
    keys = [f"p-{i}" for i in range(300)]
    acts = store_of(**{name: keys})
    truth = table(
        chain.folder / "truth.csv",
        **{name: shuffled(keys), "label": shuffled(chain.truth_of.tolist())},
    )
    weak = table(
        chain.folder / "weak.csv",
        **{name: shuffled(keys), "label": shuffled(chain.weak_of.tolist())},
    )
    for command, more in (
        (("filter", acts, "--labels", weak, "--probe", "knn"), ("-o", chain.out)),
        (("relabel", acts, "--labels", weak, "--truth", truth, "--overwrite"), ("-o", chain.out)),
        (("weak-labels", acts, "--truth", truth, "--train-rows", "50"), ("-o", "w.parquet")),
        (("diagnose", acts, "--labels", weak), ()),
        (("sweep", acts, "--labels", weak, "--probes", "knn", "--k", "5"), ("-o", "s.parquet")),
    ):
        more = tuple(chain.folder / m if m.endswith("parquet") else m for m in map(str, more))
        result = probekit(*command, *more)
        assert result.exit_code == 0, result.output
        assert name in result.stderr.splitlines()[0]
    verdicts = Verdicts.load(chain.out)
    assert np.array_equal(verdicts.weak.argmax(axis=1), chain.weak_of)  # not one on another row
    assert "label accuracy before" not in result.stdout


def test_a_store_keeps_what_its_rows_can_be_joined_by(chain, store_of):
    keys = [f"p-{i}" for i in range(300)]
    with ActivationStore(store_of(uid=keys, note=["same"] * 300)) as store:
        assert store.keys.id_column is None
        assert store.keys.columns == {"uid": keys}
        assert store.keys.text_column == "text"
    with ActivationStore(store_of("ids.h5", ID=keys)) as store:
        assert (store.keys.id_column, list(store.ids)) == ("ID", keys)
    with ActivationStore(chain.acts) as store:  # an older one does not say
        assert store.keys.id_column == "id"


def test_classes_and_column_are_said_before_anything_else(probekit, chain):
    made = ("filter", chain.acts, "--labels", chain.weak, "--probe", "knn", "-o", chain.out)
    counts = np.bincount(chain.weak_of)
    first = probekit(*made).stderr.splitlines()[0]
    assert f"300 labels, read from column 'label': 0 {counts[0]}, 1 {counts[1]}" in first
    assert first.endswith("by id.")


def test_positions_are_used_only_where_somebody_says_so(probekit, refused, chain):
    bare = table(chain.folder / "bare.csv", label=chain.weak_of.tolist())
    made = ("filter", chain.acts, "--labels", bare, "--probe", "knn", "-o", chain.out)
    assert "--by-position" in refused(*made)
    result = probekit(*made, "--by-position")
    assert result.exit_code == 0, result.output
    assert "by position, as asked" in result.stderr
    assert np.array_equal(Verdicts.load(chain.out).weak.argmax(axis=1), chain.weak_of)


def test_a_confidence_beside_the_label(probekit, refused, chain):
    sure = np.random.default_rng(3).uniform(0.6, 1, 300).round(3)
    path = table(
        chain.folder / "c.csv", id=chain.ids, label=chain.weak_of.tolist(), prob=sure.tolist()
    )
    made = ("filter", chain.acts, "--labels", path, "--probe", "knn", "-o", chain.out)
    sentence = refused(*made)
    assert "contradicts" in sentence
    result = probekit(*made, "--confidence-column", "prob")
    assert result.exit_code == 0, result.output
    verdicts = Verdicts.load(chain.out)
    assert np.array_equal(verdicts.weak.argmax(axis=1), chain.weak_of)
    assert verdicts.weak.max(axis=1) == pytest.approx(sure, abs=1e-6)


def test_no_label_is_left_out_or_named(probekit, refused, chain):
    words = ["nan" if i % 10 == 0 else f"c{w}" for i, w in enumerate(chain.weak_of)]
    path = table(chain.folder / "n.csv", id=chain.ids, label=words)
    made = ("filter", chain.acts, "--labels", path, "--probe", "knn", "-o", chain.out)
    assert "no label for 30 of 300 rows" in refused(*made)
    result = probekit(*made, "--only-labelled")
    assert result.exit_code == 0, result.output
    assert "30 rows without one" in result.stderr
    assert Verdicts.load(chain.out).classes == ("c0", "c1")
    named = probekit(*made, "--classes", "c0,c1,nan", "--overwrite")
    assert named.exit_code == 0, named.output
    assert Verdicts.load(chain.out).classes == ("c0", "c1", "nan")


def test_stores_without_ids_are_not_merged(refused, chain, store_of):
    one, two = store_of("one.h5"), store_of("two.h5", other=["x"] * 300)
    with ActivationStore(one) as store:
        assert store.keys.id_column is None
    sentence = refused("merge", one, store_of("three.h5", ID=[f"z{i}" for i in range(300)]),
                       "-o", chain.folder / "all.h5")  # fmt: skip
    assert "have numbers and no ids" in sentence
    assert "--id-column" in sentence
    assert two.exists()


def test_votes_are_combined_and_their_agreement_is_printed_and_kept(probekit, refused, chain):
    """Two annotators agree, and a third errs in every row: the majority is the weak label."""
    weak = chain.weak_of
    columns = {"label_1": weak, "label_2": weak, "label_3": 1 - weak}
    wide = table(chain.folder / "wide.csv", id=chain.ids, **columns)
    long = table(
        chain.folder / "long.csv",
        id=[*chain.ids] * 3,
        annotator=np.repeat(["a", "b", "c"], 300),
        label=np.concatenate([*columns.values()]),
    )
    made = ("--probe", "knn", "-o", chain.out, "--overwrite")
    for path, read in ((wide, "label_1, label_2, label_3"), (long, "label")):
        result = probekit("filter", chain.acts, "--labels", path, *made)
        assert result.exit_code == 0, result.output
        first, note = result.stderr.splitlines()[:2]
        assert f"300 labels, read from the votes in {read}: " in first
        assert note.endswith("combined by share of votes.")
        verdicts = Verdicts.load(chain.out)
        assert np.array_equal(verdicts.weak.argmax(axis=1), weak)
        assert verdicts.weak.max(axis=1) == pytest.approx(np.full(300, 2 / 3))
        about = verdicts.provenance["annotators"]
        assert (about["method"], about["annotators"], about["all_agree"]) == ("votes", 3, 0)
    pytest.importorskip("crowdkit")
    for command in ("filter", "relabel"):
        result = probekit(
            command, chain.acts, "--labels", wide, "--annotators", "dawid-skene", *made
        )
        assert result.exit_code == 0, result.output
        # It sees that the third annotator is always wrong, and so as good as the others.
        verdicts = Verdicts.load(chain.out)
        assert np.array_equal(verdicts.weak.argmax(axis=1), weak)
        assert verdicts.weak.max(axis=1).min() > 0.99
        assert verdicts.provenance["annotators"]["accuracy"]["label_3"] < 0.01
    result = probekit("diagnose", chain.acts, "--labels", long, "--annotators", "dawid-skene")
    assert result.exit_code == 0, result.output
    assert "--annotators dawid-skene" in result.stdout  # in the command that it suggests
    single = refused("diagnose", chain.acts, "--labels", chain.weak, "--annotators", "votes")
    assert "has one label a row" in single
