"""``--truth`` and ``--trusted``: the option for a column they lack, and what reading imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

LABEL, TRUTH, TRUSTED = "--label-column", "--truth-column", "--trusted-column"


@pytest.fixture
def base(chain):
    return ("filter", chain.acts, "--labels", chain.weak, "-o", chain.out, "--overwrite")


@pytest.fixture
def gold(chain, write_rows):
    """The truth in a column of another name."""
    rows = [{"id": name, "gold": int(c)} for name, c in zip(chain.ids, chain.truth_of, strict=True)]
    return write_rows("gold.jsonl", rows)


@pytest.mark.parametrize(("flag", "option"), [("--truth", TRUTH), ("--trusted", TRUSTED)])
def test_the_option_of_the_file_is_named_and_repairs_it(
    probekit, refused, base, gold, chain, flag, option
):
    said = refused(*base, flag, gold)
    assert f"{gold} has no column 'probs', 'prob' or 'label'; it has id, gold" in said
    assert said.endswith(f"name the one to read with {option}.")
    assert refused(*base, flag, gold, option, "other").endswith(said[said.index(": name") :])
    done = probekit(*base, flag, gold, option, "gold")
    assert done.exit_code == 0, done.output
    # The weak labels have an option of their own.
    weak = refused("filter", chain.acts, "--labels", gold, "-o", chain.folder / "b.parquet")
    assert weak.endswith(f"name the one to read with {LABEL}.")


def test_weak_labels_names_its_own(refused, chain, gold):
    said = refused("weak-labels", chain.acts, "--truth", gold, "-o", chain.out)
    assert said.endswith(f"name the one to read with {TRUTH}.")


def test_commands_without_such_an_option_name_none(probekit, refused, base, chain, gold):
    assert probekit(*base).exit_code == 0
    more = ("readmit", chain.out, "-o", chain.folder / "again.parquet", "--predictions")
    for wrong in ((gold,), (chain.truth, "--truth", gold)):
        said = refused(*more, *wrong)
        assert said.endswith("it has id, gold: rename the one to read to 'label'.")


def test_other_messages_about_its_columns_name_it_too(refused, base, write_rows):
    def said(flag, *rows):
        return refused(*base, flag, write_rows("wrong.jsonl", rows))

    both = {"id": "r1", "label": 1, "prob": 0.1}, {"id": "r2", "label": 0, "prob": 0.1}
    votes = {"id": "r1", "label_1": 1, "label": 0}, {"id": "r2", "label_1": 0, "label": 0}
    alone = {"id": "r1", "label_1": 1}, {"id": "r2", "label_1": 0}
    for flag, option in (("--truth", TRUTH), ("--trusted", TRUSTED)):
        expected = f"read the label alone with {option} label, or, read the probabilities alone"
        assert f"{expected} with {option} prob." in said(flag, *both)
        assert f"read it alone with {option} label" in said(flag, *votes)
        assert f"read it as labels with {option} label_1." in said(flag, *alone)


def test_reading_a_truth_imports_no_audit_and_no_review(gold):
    code = (
        "import sys\n"
        "from probekit.cli.labels import read_truth\n"
        f"truth = read_truth({{'truth': {str(gold)!r}, 'truth_column': 'gold'}})\n"
        "own = [m for m in sys.modules if m.startswith('probekit.cleaning.')]\n"
        "print(len(truth), *own)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["300", "probekit.cleaning.answers"]
