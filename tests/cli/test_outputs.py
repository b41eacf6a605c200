"""No command overwrites its inputs, and a second writer fails with one sentence."""

from __future__ import annotations

import json

import pytest

from probekit.files import locked
from probekit.verdicts import Verdicts


@pytest.fixture
def commands(chain, tmp_path):
    """What each command reads here, by the option's name, and how it is typed with an output."""
    acts, weak, truth, rows = chain.acts, chain.weak, chain.truth, chain.rows
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(chain.ids[:200]))
    return {
        "filter": ["filter", acts, "--labels", weak, "--truth", truth],
        "relabel": ["relabel", acts, "--labels", weak, "--truth", truth],
        "sweep": ["sweep", acts, "--labels", weak, "--probes", "knn", "--k", "5"],
        "weak-labels": ["weak-labels", acts, "--truth", truth, "--train-ids", ids],
        "extract": ["extract", rows, "-m", "no-such-model"],
        "predict": ["predict", rows, "-m", "no-such-model", "--truth", truth],
    }


@pytest.mark.parametrize(
    "name", ["filter", "relabel", "sweep", "weak-labels", "extract", "predict"]
)
def test_no_command_replaces_what_it_reads(name, commands, chain, refused, tmp_path):
    words = commands[name]
    read = [path for path in words if hasattr(path, "read_bytes") and path.is_file()]
    assert read
    for path in read:
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").hardlink_to(path)
        for output in (path, tmp_path / "link"):
            before = path.read_bytes()
            sentence = refused(*words, "-o", output, "--overwrite", code=2)
            assert f"{output} is read here" in sentence
            assert path.read_bytes() == before


def test_the_rows_of_the_store_count_as_read(chain, refused, probekit, tmp_path):
    words = ["filter", chain.acts, "--labels", chain.weak, "--overwrite"]
    before = chain.rows.read_bytes()
    for more in (["-o", tmp_path / "v.parquet", "--write-data", chain.rows], ["-o", chain.rows]):
        assert "holds the rows that" in refused(*words, *more, code=2)
    assert chain.rows.read_bytes() == before
    other = tmp_path / "other.jsonl"  # the control
    other.write_text("x")
    done = probekit(*words, "-o", tmp_path / "v.parquet", "--write-data", other)
    assert done.exit_code == 0, done.output


def test_two_outputs_are_two_files(chain, refused, tmp_path):
    out = tmp_path / "v.jsonl"
    words = ["filter", chain.acts, "--labels", chain.weak, "-o", out, "--write-data"]
    (tmp_path / "way").symlink_to(tmp_path)
    for again in (out, tmp_path / "way" / "v.jsonl"):
        assert "named twice" in refused(*words, again, code=2)


@pytest.mark.parametrize("name", ["filter", "relabel", "sweep", "weak-labels"])
def test_a_second_writer_is_told(name, commands, refused, probekit, tmp_path):
    out = tmp_path / "out.parquet"
    with locked(out):
        assert "being written by another process" in refused(*commands[name], "-o", out, code=1)
        assert not out.exists()
    assert probekit(*commands[name], "-o", out).exit_code == 0  # the control
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_command_stopped_between_its_outputs_is_finished_by_the_same(
    chain, probekit, refused, tmp_path, monkeypatch
):
    out, data = tmp_path / "v.parquet", tmp_path / "clean.jsonl"
    words = ["filter", chain.acts, "--labels", chain.weak, "-o", out, "--write-data", data]

    def stop(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("probekit.verdicts.Verdicts.write_data", stop)
        assert probekit(*words).exit_code == 1
    assert out.exists()
    assert not data.exists()
    assert "exists already" in refused(*words[:-2], code=1)  # the control: another command
    with monkeypatch.context() as patch:
        patch.setattr("probekit.verdicts.Verdicts.write_data", stop)
        assert probekit(*words, "--overwrite").exit_code == 1
    done = probekit(*words)
    assert done.exit_code == 0, done.output
    assert len(data.read_text().splitlines()) == int(Verdicts.load(out).keep.sum())
    assert "exists already" in refused(*words, code=1)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_sweep_stopped_after_its_table_is_finished_by_the_same(
    chain, probekit, tmp_path, monkeypatch
):
    out, figures = tmp_path / "s.jsonl", tmp_path / "fig"
    words = ["sweep", chain.acts, "--labels", chain.weak, "--probes", "knn", "--k", "1,5,9"]
    words += ["-o", out, "--figures", figures]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("probekit.cli.sweep._draw", stop)
        assert probekit(*words).exit_code != 0
    table = out.read_bytes()
    done = probekit(*words)
    assert done.exit_code == 0, done.output
    assert "done before" in done.stderr
    assert out.read_bytes() == table
    assert list(figures.iterdir())
    assert json.loads((tmp_path / "s.jsonl.meta.json").read_text())["format"] == "probekit-sweep"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
