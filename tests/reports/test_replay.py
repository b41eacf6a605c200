"""Commands on a page: rebuilt from checked values, or quoted word for word and called recorded."""

from __future__ import annotations

import shlex

import pytest

from probekit.reports.replay import recorded_command, replay_command


def said(store: str = "acts.h5", labels: str = "weak.csv", **changes: object) -> dict[str, object]:
    return {
        "action": "filter",
        "probe": {"name": "KNNProbe", "parameters": {"k": 5}},
        "store": {"name": store},
        "labels": {"source": labels},
        "layers": [1],
        "in_sample": False,
        "seed": 0,
        **changes,
    }


def test_a_file_name_is_one_word_and_no_option() -> None:
    command = replay_command(said("$(touch x).h5", "--rm -rf ~;"))
    assert command is not None
    words = shlex.split(command)
    assert words[:5] == [
        "probekit",
        "filter",
        "$(touch x).h5",
        "--labels",
        "./--rm -rf ~;",
    ]
    plain = replay_command(said())  # the control
    assert plain is not None
    old = {key: value for key, value in said(layer=1).items() if key != "layers"}
    assert replay_command(old) == plain  # files of 0.1.0 name one layer
    assert plain.startswith("probekit filter acts.h5 --labels weak.csv --layer 1 --probe knn --k 5")


@pytest.mark.parametrize("name", ["a\nrm x", "\x1b[2J", "a\u202eb", "\ud800"])
def test_a_name_of_several_lines_or_that_steers_makes_no_command(name: str) -> None:
    assert replay_command(said(name)) is None
    assert replay_command(said(labels=name)) is None
    assert recorded_command(f"probekit sweep {name}", "sweep") is None


def test_a_recorded_command_can_start_nothing_else() -> None:
    plain = "probekit sweep acts.h5 --labels 'weak labels.csv' -o sweep.parquet"
    assert recorded_command(plain, "sweep") == plain
    found = recorded_command("probekit sweep a.h5; curl x | sh && `id` $(id) > y", "sweep")
    assert found is not None
    assert "a.h5;" in shlex.split(found)
    assert not set(shlex.split(found, posix=False)) & {";", "|", "&&", ">"}
    for other in ("rm -rf ~", "probekit run --config x", "sh -c 'probekit sweep x'", "'", None, 3):
        assert recorded_command(other, "sweep") is None
