from __future__ import annotations

import json

import numpy as np
import pytest

from probekit.activations.store import ActivationStore
from probekit.cleaning.diagnose import diagnose
from probekit.cleaning.student import STUDENTS, Learner
from probekit.labels import load_labels


@pytest.fixture
def soft(chain, write_rows):
    p = np.where(chain.weak_of == 1, 0.85, 0.25)
    rows = [{"id": i, "prob": v} for i, v in zip(chain.ids, p.tolist(), strict=True)]
    return write_rows("soft.jsonl", rows)


def test_it_prints_everything_and_one_line_for_each_action(probekit, chain):
    result = probekit("diagnose", chain.acts, "--labels", chain.weak)
    assert result.exit_code == 0, result.output
    text = result.stdout
    action = json.loads(probekit("diagnose", chain.acts, "--labels", chain.weak, "--json").stdout)
    assert text.startswith(f"Advice: {action['advice']['action']}")
    for word in ("effective rank", "copies", "confident joint", "HOC", "expansion", "predictable"):
        assert word in text
    for word in ("probe agreement  ", "label agreement  ", "confidence   ", "shuffled labels"):
        assert word in text
    for name in ("filter ", "relabel "):
        lines = [line for line in text.splitlines() if line.startswith(name)]
        assert len(lines) == 1
        assert "do it: " in lines[0] or "leave the labels alone: " in lines[0]
    assert "Hard weak labels alone cannot settle this" in text
    assert "--trusted-accuracy" in text
    assert f"probekit audit {chain.acts} --labels {chain.weak} -m 20" in text


def test_json_is_the_function(probekit, chain):
    result = probekit("diagnose", chain.acts, "--labels", chain.weak, "--json", "--seed", "3")
    output = json.loads(result.stdout)
    with ActivationStore(chain.acts) as store:
        expected = diagnose(store, load_labels(chain.weak), seed=3)
    assert output["concord"]["value"] == expected.concord.value
    assert output["predictable"]["interval"] == list(expected.predictable.interval)
    assert output["advice"]["action"] == expected.advice.action
    assert output["advice"]["signals"]["rows"] == 300
    assert "NaN" not in result.stdout


def test_confidences_and_trusted_accuracy_say_what_c_is(probekit, chain, soft):
    hard = probekit("diagnose", chain.acts, "--labels", chain.weak).stdout
    assert "unknown: the labels are hard" in hard
    assert "relabel would need, at this label agreement: at most" in hard
    own = probekit("diagnose", chain.acts, "--labels", soft).stdout
    assert "the mean confidence of the weak labels" in own
    assert "often more confident than accurate" in own
    trusted = ("--trusted-accuracy", "0.8")
    given = probekit("diagnose", chain.acts, "--labels", soft, *trusted, "--json").stdout
    signals = json.loads(given)["advice"]["signals"]
    assert (signals["confidence"], signals["confidence_from"]) == (0.8, "trusted accuracy")


@pytest.mark.parametrize("student", STUDENTS)
def test_the_advice_names_the_student(probekit, chain, student):
    command = ("diagnose", chain.acts, "--labels", chain.weak)
    plain, asked = probekit(*command), probekit(*command, "--student", student)
    lines = asked.stdout.splitlines()
    assert lines[1].startswith(f"For a {Learner(student).name}: ")
    others = [line.replace(f" --student {student}", "") for line in (lines[0], *lines[2:])]
    assert others == plain.stdout.splitlines()  # nothing else changes, but what to type next
    said = json.loads(probekit(*command, "--student", student, "--json").stdout)["student"]
    assert said["student"] == student
    assert said["why"] in lines[1]
    assert json.loads(probekit(*command, "--json").stdout)["student"] is None


def test_layers_are_chosen_among_those_stored(probekit, refused, chain, make_acts):
    acts = make_acts(chain.X, chain.ids, chain.texts, name="many.h5", layers=(2, 4, 5, 6))
    base = ("diagnose", acts, "--labels", chain.weak, "--json")

    def layers(*more):
        return [part["layer"] for part in json.loads(probekit(*base, *more).stdout)["layers"]]

    # 3 would be half of the depth; of its equally near neighbours the deeper one is taken.
    assert layers() == layers("--layers", "all") == [4, 5, 6]
    assert layers("--layers", "5-6") == [5, 6]
    assert layers("--layers", "2") == [2]
    assert refused(*base, "--layers", "3") == f"{acts} has no layer 3; it has 2, 4, 5, 6."
    assert "mid, last or all, commas between, got 'x'" in refused(*base, "--layers", "x", code=2)


def test_alarms_are_printed(probekit, chain, make_acts, write_rows):
    X = chain.X.copy()
    X[3] = np.nan
    acts = make_acts(X, chain.ids, chain.texts, name="broken.h5")
    result = probekit("diagnose", acts, "--labels", chain.weak)
    assert "ALARM     Layer 6 has NaN or infinity in 1 of the rows" in result.stdout
    assert "1 of the layers are damaged" in result.stdout


def test_three_classes(probekit, chain, write_rows):
    rows = [{"id": i, "label": "abc"[k % 3]} for k, i in enumerate(chain.ids)]
    labels = write_rows("three.jsonl", rows)
    result = probekit("diagnose", chain.acts, "--labels", labels)
    assert result.exit_code == 0, result.output
    assert "filter    leave the labels alone: a linear fit and the votes of" in result.stdout


def test_bad_input_gets_one_sentence(refused, chain, write_rows):
    base = ("diagnose", chain.acts, "--labels")
    sentence = refused(*base, chain.weak, "--trusted-accuracy", "73", code=2)
    assert sentence.endswith("it is a number in (0, 1] (73 % is 0.73), got '73'.")
    part = write_rows("part.jsonl", [{"id": f"r{i}", "label": i % 2} for i in range(50)])
    assert "no label for 250 of 300 rows" in refused(*base, part)
    one = write_rows("one.jsonl", [{"id": i, "label": 1} for i in chain.ids])
    assert "one class only" in refused(*base, one)
    assert "does not exist" in refused("diagnose", "none.h5", "--labels", chain.weak)


def test_part_of_the_labels_will_do_where_asked(probekit, chain, write_rows):
    part = write_rows("part.jsonl", [{"id": f"r{i}", "label": i % 2} for i in range(50)])
    result = probekit("diagnose", chain.acts, "--labels", part, "--only-labelled", "--json")
    assert json.loads(result.stdout)["rows"] == 50


def test_the_length_of_a_training_is_one_of_a_finetuned_student(probekit, refused, chain):
    command = ("diagnose", chain.acts, "--labels", chain.weak, "--epochs", 3)
    assert "For a briefly finetuned student: " in probekit(*command, "--student", "finetune").stdout
    why = refused(*command, "--student", "linear")
    assert "--epochs does nothing without --student finetune" in why
