"""Whatever bytes a file holds, reading it gives a result or one sentence; never anything else.

Hypothesis makes a few files for every reader, the same ones each time; ``make fuzz`` damages
thousands.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probekit.activations.create import Plan
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.data import text_hash
from probekit.errors import ProbekitError
from probekit.experiments.config import read_config
from probekit.labels import load_labels
from probekit.probes import KNNProbe, LogisticProbe, load_probe
from probekit.sources import load_rows
from probekit.verdicts import Verdicts

N = 12
FEW = settings(
    derandomize=True,
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("9" * 4400)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(["id", "text", "label", "prob", "probs", "messages", "text_hash", "keep"])
RECORDS = st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=6)


def a_result_or_one_sentence(read: Callable[[], Any]) -> None:
    try:
        read()
    except ProbekitError as error:
        message = str(error)
    else:
        return
    assert message
    assert "\n" not in message


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


def rows_of(path: Path) -> Any:
    rows = load_rows(path)
    return rows.ids, rows.hashes, rows.contents(), list(rows.records())


READERS: dict[str, Callable[[Path], Any]] = {
    "rows": rows_of,
    "labels": load_labels,
    "verdicts": Verdicts.load,
}
ENDINGS = ["x.jsonl", "x.json", "x.csv", "x.tsv", "x.parquet", "x.arrow", "x.jsonl.gz", "x.csv.zst"]


@pytest.mark.parametrize("reader", READERS)
@FEW
@given(
    name=st.sampled_from(ENDINGS),
    data=st.one_of(st.binary(max_size=300), st.text().map(str.encode)),
)
def test_bytes(reader: str, place: Path, name: str, data: bytes) -> None:
    path = place / name
    path.write_bytes(data)
    a_result_or_one_sentence(lambda: READERS[reader](path))


@pytest.mark.parametrize("reader", READERS)
@FEW
@given(records=RECORDS, lines=st.booleans())
def test_records_of_any_type(reader: str, place: Path, records: list[Any], lines: bool) -> None:
    path = place / ("x.jsonl" if lines else "x.json")
    text = "".join(json.dumps(r) + "\n" for r in records) if lines else json.dumps(records)
    path.write_text(text)
    a_result_or_one_sentence(lambda: READERS[reader](path))


@pytest.mark.parametrize("reader", READERS)
@FEW
@given(
    header=st.lists(st.text(alphabet="idlabeprotx_ \"'\t,;", max_size=6) | NAMES, max_size=4),
    cells=st.lists(st.lists(st.text(max_size=5), max_size=5), max_size=5),
)
def test_tables_of_text(reader: str, place: Path, header: list[str], cells: Any) -> None:
    path = place / "x.csv"
    lines = [",".join(row) for row in [header, *cells]]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    a_result_or_one_sentence(lambda: READERS[reader](path))


@FEW
@given(metadata=st.one_of(VALUES.map(json.dumps), st.text(max_size=50), st.just("[" * 3_000)))
def test_metadata_of_verdicts(place: Path, metadata: str) -> None:
    P = np.full((N, 2), 0.5, np.float32)
    whole = {
        "id": [f"r{i}" for i in range(N)],
        **{name: P.tolist() for name in ("weak", "probe", "label")},
        "text_hash": [""] * N,
        "keep": [True] * N,
        "weight": [1.0] * N,
        "disagreement": [0.0] * N,
        "fold": [0] * N,
    }
    said = {"format": "probekit-verdicts", "version": 1, "classes": ["0", "1"], "provenance": {}}
    with contextlib.suppress(ValueError, RecursionError):
        changed = json.loads(metadata)
        metadata = json.dumps({**said, "provenance": {"probe": changed, "notes": changed}})
    table = pa.table(whole).replace_schema_metadata(
        {b"probekit": metadata.encode("utf-8", "replace")}
    )
    pq.write_table(table, place / "v.parquet")
    a_result_or_one_sentence(lambda: Verdicts.load(place / "v.parquet"))


@FEW
@given(text=st.one_of(st.text(), st.dictionaries(st.text(max_size=9), VALUES).map(json.dumps)))
def test_configurations(place: Path, text: str) -> None:
    (place / "run.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    a_result_or_one_sentence(lambda: read_config(place / "run.yaml"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("store") / "acts.h5"
    texts = [f"text {i}" for i in range(N)]
    with StoreWriter.open(
        path,
        Plan(
            spec={"model": "tiny"},
            ids=[f"r{i}" for i in range(N)],
            hashes=[text_hash(text) for text in texts],
            widths={0: 4},
            store_dtype="float32",
        ),
    ) as writer:
        states = np.arange(N * 4, dtype=np.float32).reshape(N, 4)
        writer.write(np.arange(N), {0: states}, np.ones(N, np.int32), np.zeros(N, bool))
        writer.finish()
    return path.read_bytes()


def damaged(data: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(data)] = value
    return bytes(changed[: len(data) - cut])


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8)


@FEW
@given(changes=CHANGES, cut=st.sampled_from([0, 0, 1, 100]))
def test_stores(place: Path, store: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    path = place / "acts.h5"
    path.write_bytes(damaged(store, changes, cut))

    def read() -> None:
        with ActivationStore(path, allow_incomplete=True) as opened:
            _ = opened.ids, opened.hashes, opened.rows_intact()
            for layer in opened.layers:
                opened.layer(layer)

    a_result_or_one_sentence(read)


@pytest.fixture(scope="module", params=[KNNProbe(k=2), LogisticProbe(l2=0.1)], ids=repr)
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    X = np.random.default_rng(0).normal(size=(N, 4))
    request.param.fit(X, np.arange(N) % 2).save(folder)
    return folder


@FEW
@given(key=st.integers(0, 20), value=VALUES)
def test_descriptions_of_probes(place: Path, probe: Path, key: int, value: Any) -> None:
    content = json.loads((probe / "probe.json").read_text())
    names = [*content, *content["params"]]
    name = names[key % len(names)]
    (content if name in content else content["params"])[name] = value
    (place / "probe.json").write_text(json.dumps(content))
    (place / "probe.safetensors").write_bytes((probe / "probe.safetensors").read_bytes())
    a_result_or_one_sentence(lambda: load_probe(place))
