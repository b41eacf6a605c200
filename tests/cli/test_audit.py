from __future__ import annotations

import csv
import json
import shlex

import click
import pytest

from probekit.activations.store import ActivationStore
from probekit.cleaning.audit import draw_rows
from probekit.cleaning.student import STUDENTS, Learner, after_audit
from probekit.cli import audit as command
from probekit.cli.audit import class_keys, wrapped
from probekit.errors import UsageError
from probekit.labels import load_labels
from probekit.safe import printable
from probekit.verdicts import Verdicts


@pytest.fixture
def drawn(chain):
    with ActivationStore(chain.acts) as store:
        return draw_rows(store, load_labels(chain.weak))


@pytest.fixture
def true(chain):
    """Id -> true class."""
    return dict(zip(chain.ids, map(str, chain.truth_of), strict=True))


@pytest.fixture
def press(monkeypatch, probekit, chain, tmp_path):
    """Run the audit at a terminal where these keys are pressed, then Ctrl-C."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "at_terminal", lambda: True)

    def run(keys, *more, acts=chain.acts, labels=chain.weak):
        waiting = iter(keys)

        def getchar():
            try:
                return next(waiting)
            except StopIteration:
                raise KeyboardInterrupt from None

        monkeypatch.setattr(click, "getchar", getchar)
        result = probekit("audit", acts, "--labels", labels, *more)
        assert "Traceback" not in result.output
        result.unused = len(list(waiting))
        return result

    return run


def answers(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {row["id"]: row["true_label"] for row in csv.DictReader(file)}


def test_true_labels_are_asked_for_saved_and_answered(press, chain, drawn, true, tmp_path):
    asked = drawn.ids[:30]
    result = press([true[name] for name in asked], "-m", "30", "--json")
    assert result.exit_code == 0, result.output
    assert answers(tmp_path / "weak.audit.csv") == {name: true[name] for name in asked}
    output = json.loads(result.stdout)
    finding = drawn.conclude({name: true[name] for name in asked})
    assert output["shares"]["leave"]["value"] == finding.shares["leave"].value
    assert output["by_class"]["1"]["rows"] == (drawn.weak == 1).sum()
    assert output["action"] == finding.action
    assert output["settled"] is (output["probability"] >= 0.95)
    assert (output["answers"], output["unsure"], output["not_drawn"]) == (30, 0, 0)
    assert [t for t in chain.texts if t in result.stderr]


def test_the_estimate_is_shown_every_five_answers_and_its_interval_shrinks(press, drawn, true):
    result = press([true[name] for name in drawn.ids[:40]], "-m", "40")
    lines = [line for line in result.stderr.splitlines() if line.startswith("wrong labels so far")]
    assert len(lines) == 7
    widths = [line.count("─") for line in lines]
    assert widths[-1] < widths[0]
    assert lines[-1].endswith("]")
    table = result.stdout.splitlines()
    assert any(line.startswith("as they are") for line in table)
    assert any(line.startswith("after filter") for line in table)
    assert any(line.startswith("weak class 0") for line in table)


def test_it_says_which_filter_its_figure_is_of(press, drawn, true, chain, probekit):
    def kept():
        words = ("filter", chain.acts, "--labels", chain.weak, "-o", chain.out, "--overwrite")
        assert probekit(*words, "--probe", "ensemble").exit_code == 0
        return dict(zip(chain.ids, Verdicts.load(chain.out).keep.tolist(), strict=True))

    alone = kept()
    result = press([true[name] for name in drawn.ids[:30]], "-m", "30")
    said = " ".join(result.stdout.split())
    assert "above are by the ensemble alone; the filter drops 20 % of each weak class." in said
    assert said.count("which cannot show what is left wrong then.") == 1
    assert dict(zip(drawn.ids, drawn.keep.tolist(), strict=True)) == alone
    # The answers, which the command finds by itself, change what it keeps.
    assert kept() != alone


def test_nobody_is_told_who_said_what(press, drawn, true):
    result = press([true[name] for name in drawn.ids[:3]], "-m", "3")
    asking = result.stderr
    assert "probe says" not in asking
    assert "weak:" not in asking
    assert "1 of 3" in asking
    # The reader sees the same screen whichever of the two is right.
    assert asking.count("\n> ") == 3


def test_stop_and_go_on(press, drawn, true, tmp_path):
    first = press([true[n] for n in drawn.ids[:4]] + ["q", "1"], "-m", "10")
    assert first.unused == 1
    assert "Stopped; weak.audit.csv keeps your answers." in first.stderr
    assert "6 rows in weak.audit.csv wait for an answer" in first.stdout
    second = press([true[n] for n in drawn.ids[4:10]], "-m", "10")
    assert "4 of 10 are answered already." in second.stderr
    assert answers(tmp_path / "weak.audit.csv") == {n: true[n] for n in drawn.ids[:10]}
    more = press([true[n] for n in drawn.ids[10:12]], "-m", "12")
    assert more.unused == 0
    assert len(answers(tmp_path / "weak.audit.csv")) == 12
    nothing = press(["0"], "-m", "12")
    assert nothing.unused == 1
    assert nothing.stdout == more.stdout


@pytest.mark.parametrize("stop", [["\x03"], ["\x04"], [""], []])
def test_ctrl_c_and_the_end_of_input_keep_what_was_answered(press, drawn, tmp_path, stop):
    result = press(["0", "1", *stop], "-m", "5")
    assert result.exit_code == 0
    given = answers(tmp_path / "weak.audit.csv")
    assert [given[n] for n in drawn.ids[:5]] == ["0", "1", "", "", ""]


def test_undo_also_across_a_stop(press, drawn, tmp_path):
    result = press(["u", "0", "u", "1", "?", "q"], "-m", "4")
    assert "nothing to undo" in result.stderr
    assert list(answers(tmp_path / "weak.audit.csv").values()) == ["1", "?", "", ""]
    press(["u", "u", "0", "0", "q"], "-m", "4")
    assert list(answers(tmp_path / "weak.audit.csv").values()) == ["0", "0", "", ""]


def test_other_keys_explain_the_keys(press, tmp_path):
    result = press(["x", "\x1b[A", "+", "0", "q"], "-m", "2")
    assert result.stderr.count("Keys: 0 = 0   1 = 1   ? cannot tell   u undo") == 3
    assert list(answers(tmp_path / "weak.audit.csv").values()) == ["0", ""]


def test_it_tells_when_the_answers_settle_it_but_not_which_way(press, drawn, true):
    result = press([true[n] for n in drawn.ids[:60]], "-m", "60")
    assert result.stderr.count("These answers settle what to do") == 1
    assert "relabel" not in result.stderr
    assert "filter" not in result.stderr
    assert "The answers settle it." in result.stdout
    assert "Next: probekit " in result.stdout


def test_a_csv_is_written_filled_in_and_read_back(probekit, chain, drawn, true, tmp_path):
    path = tmp_path / "mine.csv"
    base = ("audit", chain.acts, "--labels", chain.weak, "-m", "8", "-o", path, "--no-ask")
    written = probekit(*base)
    assert written.exit_code == 0, written.output
    assert f"8 rows in {path} wait for an answer (column true_label: 0, 1, or ?" in written.stdout
    assert f"No answer yet. Fill them in, then: probekit audit {chain.acts}" in written.stdout
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(drawn.ids[:8])
    assert [row["text"] for row in rows] == [chain.texts[int(n[1:])] for n in drawn.ids[:8]]
    assert "weak" not in rows[0]
    assert "probe" not in rows[0]
    for row in rows[:-1]:
        row["true_label"] = true[row["id"]]
    rows[-1]["true_label"] = "?"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    before = path.read_bytes()
    result = json.loads(probekit(*base, "--json").stdout)
    assert result["answers"] == 7
    assert path.read_bytes() == before
    # The file is one of true labels, too.
    cleaned = ("filter", chain.acts, "--labels", chain.weak, "-o", tmp_path / "kept.parquet")
    read = probekit(*cleaned, "--trusted", path)
    assert read.exit_code == 0, read.output
    assert "7 labels, read from column 'true_label'" in read.stderr


def test_what_it_suggests_works_and_the_warning_goes(probekit, chain, drawn, true, tmp_path):
    """The rows moved and the ids have another name: what was typed to find them is suggested."""
    rows = tmp_path / "moved rows.jsonl"
    chain.rows.rename(rows)
    weak = tmp_path / "weak labels.csv"
    ids = zip(chain.ids, chain.weak_of.tolist(), strict=True)
    weak.write_text("row,said\n" + "".join(f"{i},{label}\n" for i, label in ids))
    path = tmp_path / "mine.csv"
    base = ["audit", chain.acts, "--labels", weak, "--id-column", "row", "--label-column", "said"]
    written = probekit(*base, "--rows", rows, "-m", "40", "-o", path, "--no-ask")
    assert written.exit_code == 0, written.output
    again = shlex.split(written.stdout.split("then: ")[1])
    assert again[:2] == ["probekit", "audit"]
    answers = "".join(f"{n},{true[n]}\n" for n in drawn.ids[:40])
    path.write_text("id,true_label\n" + answers, encoding="utf-8")
    result = probekit(*again[1:])
    assert result.exit_code == 0, result.output
    then = shlex.split(result.stdout.split("Next: ")[1].splitlines()[0])
    action = drawn.conclude({n: true[n] for n in drawn.ids[:40]}).action
    assert then[:2] == ["probekit", action]
    # The figures are the ensemble's; of a store of one layer kNN would be the default.
    assert then[then.index("--probe") + 1] == "ensemble"
    out = tmp_path / "verdicts.parquet"
    then[then.index("-o") + 1] = str(out)
    acted = probekit(*then[1:])
    assert acted.exit_code == 0, acted.output
    assert "not advised" not in acted.stderr
    assert "not what the audit found" not in acted.stderr
    # The control: something else than the audit found is still warned about, by its answers.
    other = ["filter" if action == "relabel" else "relabel", *then[2:], "--overwrite"]
    assert f"{action} is right with probability" in probekit(*other).stderr


@pytest.mark.parametrize("student", STUDENTS)
def test_the_student_decides_what_is_suggested(probekit, chain, drawn, true, tmp_path, student):
    """What is suggested for a student works, and nothing then says that it is not advised."""
    path, out = tmp_path / "audit.csv", tmp_path / "verdicts.parquet"
    command = ["audit", chain.acts, "--labels", chain.weak, "-m", "40", "-o", path, "--no-ask"]
    assert probekit(*command).exit_code == 0
    answers = "".join(f"{n},{true[n]}\n" for n in drawn.ids[:40])
    path.write_text("id,true_label\n" + answers, encoding="utf-8")
    finding = drawn.conclude({n: true[n] for n in drawn.ids[:40]})
    expected = after_audit(Learner(student), finding)
    result = probekit(*command, "--student", student)
    assert expected.line in result.stdout
    then = shlex.split(result.stdout.split("Next: ")[1].splitlines()[0])
    assert then[:2] == ["probekit", expected.action]
    assert ("--hard" in then) == (student == "memorising")
    then[then.index("-o") + 1] = str(out)
    acted = probekit(*then[1:])
    assert acted.exit_code == 0, acted.output
    assert "not what the audit found" not in acted.stderr
    # The control: for nobody in particular the audit names the action that leaves fewest wrong.
    other = [word for word in then[1:] if word not in ("--student", student)]
    warned = "not what the audit found" in probekit(*other, "--overwrite").stderr
    assert warned == (finding.action != expected.action)


def test_an_audit_here_is_found_by_itself(probekit, chain, drawn, true, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = [chain.acts, "--labels", chain.weak, "-o", chain.out, "--json"]
    advised = json.loads(probekit("relabel", *base).stdout)["advice"]
    assert advised["by"] == "diagnose"
    answers = "".join(f"{n},{true[n]}\n" for n in drawn.ids[:40])
    (tmp_path / "weak.audit.csv").write_text("id,true_label\n" + answers, encoding="utf-8")
    output = json.loads(probekit("relabel", *base, "--overwrite").stdout)["advice"]
    action = drawn.conclude({n: true[n] for n in drawn.ids[:40]}).action
    assert (output["action"], output["by"]) == (action, "weak.audit.csv")
    assert (output["warning"] is None) == (action == "relabel")
    # Of other rows, it is none of these labels' audit.
    (tmp_path / "weak.audit.csv").write_text("id,true_label\nzzz,1\n", encoding="utf-8")
    assert json.loads(probekit("relabel", *base, "--overwrite").stdout)["advice"] == advised


def test_answers_whose_turn_has_not_come_do_not_count_yet(probekit, chain, drawn, true, tmp_path):
    """Such as those of an earlier version, which asked about other rows."""
    path = tmp_path / "audit.csv"
    later = "".join(f"{n},{true[n]}\n" for n in drawn.ids[3:9])
    path.write_text(f"id,true_label\n{later}{drawn.ids[0]},1\n", encoding="utf-8")
    base = ("audit", chain.acts, "--labels", chain.weak, "-o", path, "--no-ask", "-m", "9")
    result = probekit(*base)
    assert f"6 answers come after the first row without one ({drawn.ids[1]!r})" in result.stdout
    output = json.loads(probekit(*base, "--json").stdout)
    assert (output["answers"], output["not_drawn"]) == (1, 6)
    assert {n: a for n, a in answers(path).items() if a} == {
        **{n: true[n] for n in drawn.ids[3:9]},
        drawn.ids[0]: "1",
    }
    # Once the two between are answered, all of them do.
    rest = "".join(f"{n},{true[n]}\n" for n in drawn.ids[1:3])
    path.write_text(f"id,true_label\n{rest}{later}{drawn.ids[0]},1\n", encoding="utf-8")
    assert json.loads(probekit(*base, "--json").stdout)["answers"] == 9


def test_a_file_edited_by_hand_loses_nothing(probekit, chain, drawn, true, tmp_path):
    """Rows in another order, some of them deleted, a formula as text."""
    path = tmp_path / "audit.csv"
    kept = [n for n in reversed(drawn.ids[:6]) if n != drawn.ids[2]]
    lines = "".join(f"=1+1,{n},{true[n]}\n" for n in kept)
    path.write_text(f"text,id,true_label\n{lines}", encoding="utf-8")
    base = ("audit", chain.acts, "--labels", chain.weak, "-o", path, "--no-ask", "-m", "6")
    output = json.loads(probekit(*base, "--json").stdout)
    assert (output["answers"], output["not_drawn"]) == (2, 3)
    given = answers(path)
    assert given[drawn.ids[2]] == ""
    assert {n: given[n] for n in kept} == {n: true[n] for n in kept}
    assert b"'=1+1" in path.read_bytes()


def test_how_many_more_is_a_command_to_paste(press, drawn, true):
    result = press([true[n] for n in drawn.ids[:3]] + ["?"], "-m", "4", "-o", "a.csv")
    line = next(x for x in result.stdout.splitlines() if "more true labels would settle" in x)
    many, total = int(line.split()[0]), int(line.split()[-1])
    assert total == 4 + many
    assert "-o a.csv -m" in line
    assert "true labels of 3, 1 more that cannot be told" in result.stdout


def test_bad_input_gets_one_sentence(refused, chain, make_acts, tmp_path):
    base = ("audit", chain.acts, "--labels", chain.weak)
    out = ("-o", tmp_path / "a.csv")
    sentence = refused(*base, *out, code=2)
    assert sentence.startswith("There is no terminal to ask in; add --no-ask, fill in the column")
    assert refused(*base, "-o", tmp_path / "a.txt", "--no-ask").endswith("the format of an audit.")
    assert "does not exist" in refused(*base, "-o", tmp_path / "no" / "a.csv", "--no-ask")
    assert "has no layer 3" in refused(*base, *out, "--no-ask", "--layers", "3")
    lost = make_acts(chain.X, chain.ids, chain.texts, name="lost.h5", source="gone.jsonl")
    sentence = refused("audit", lost, "--labels", chain.weak, *out, "--no-ask")
    assert sentence.startswith("An audit shows the rows' texts, and ")
    assert sentence.endswith("name them with --rows.")
    assert not (tmp_path / "a.csv").exists()
    table = tmp_path / "weak.csv"
    table.write_text("id,label\n" + "".join(f"{i},{k % 2}\n" for k, i in enumerate(chain.ids)))
    sentence = refused("audit", chain.acts, "--labels", table, "-o", table, "--no-ask")
    assert "is read here; write to another file" in sentence


@pytest.mark.parametrize(
    ("classes", "keys"),
    [
        (("0", "1"), "01"),
        (("negative", "positive"), "np"),
        (("no", "not sure", "yes"), "noy"),
        (("unsafe", "safe"), "ns"),  # u is undo
        (("A", "B"), "ab"),
        (("q", "u"), "12"),
        (("ja", "nein", "日本"), "jn1"),
    ],
)
def test_every_class_has_a_key_of_its_own(classes, keys):
    assert "".join(class_keys(classes)) == keys
    assert list(class_keys(classes).values()) == list(classes)


def test_more_classes_than_keys_are_refused():
    assert len(set(class_keys([f"class {i}" for i in range(30)]))) == 30
    with pytest.raises(UsageError, match="100 classes and fewer keys; add --no-ask"):
        class_keys([f"class {i}" for i in range(100)])


def test_a_text_cannot_drive_the_terminal():
    assert printable("a\x1b[2Jb\x07\r\nc\u202ed\tе") == "a\ufffd[2Jb\ufffd\nc\ufffdd\tе"
    lines = wrapped("word " * 50 + "\n\n" + "x" * 70, 40)
    assert max(map(len, lines)) <= 40
    assert "" in lines


def test_long_texts_are_shown_whole_when_asked(press, chain, make_acts, write_rows):
    texts = [f"{t} " + "and so on " * 200 for t in chain.texts]
    acts = make_acts(chain.X, chain.ids, texts, name="long.h5", source="long.jsonl")
    write_rows("long.jsonl", [{"id": i, "text": t} for i, t in zip(chain.ids, texts, strict=True)])
    short = press(["q"], "-m", "1", acts=acts).stderr
    assert "more lines: +" in short
    whole = press(["+", "q"], "-m", "1", acts=acts).stderr
    assert whole.count("and so on") > 150 > short.count("and so on")
