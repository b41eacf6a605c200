"""Damage inside formats: a file that is whole, and says or holds something else than it should."""

from __future__ import annotations

import hashlib
import io
import json
import random
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from damage import HUGE, OTHERS, swap_value
from safetensors.numpy import load, save


def parquet_metadata(data: bytes, rng: random.Random) -> bytes:
    """Change what is said about a table in its schema."""
    table = pq.read_table(io.BytesIO(data))
    said = table.schema.metadata or {}
    content = json.loads(said.get(b"probekit", b"{}"))
    text = rng.choice(
        [json.dumps(swap_value(content, rng)), "[" * 100_000, "[1]", '{"classes": 1}']
    )
    return _written(
        table.replace_schema_metadata({b"probekit": text.encode("utf-8", "surrogatepass")})
    )


def parquet_column(data: bytes, rng: random.Random) -> bytes:
    """Change a column: gone, of another type, with nulls, other lists, or named like another."""
    table = pq.read_table(io.BytesIO(data))
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    n = table.num_rows
    others: list[Any] = [
        pa.array([None] * n),
        pa.array([rng.choice(["x", "", "1", "\x1b"]) for _ in range(n)]),
        pa.array([float("nan")] * n),
        pa.array([[1.0]] * n),
        pa.array([[float(i)] * (i % 3) for i in range(n)]),
        pa.array([None if i == n // 2 else v for i, v in enumerate(column.to_pylist())]),
        pa.array([{"a": 1}] * n),
        pa.array([b"\xff\xfe"] * n),
        pa.array([2**62] * n),
    ]
    how = rng.random()
    if how < 0.2:
        table = table.remove_column(at)
    elif how < 0.3:
        table = table.slice(0, rng.choice([0, 1, n // 2]))
    elif how < 0.4:
        names = [
            rng.choice(table.column_names) if i == at else c
            for i, c in enumerate(table.column_names)
        ]
        table = table.rename_columns(names)
    else:
        table = table.set_column(at, name, rng.choice(others))
    return _written(table)


def _written(table: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def store_attribute(data: bytes, rng: random.Random) -> bytes:
    """Change an attribute of a store, or one place of its spec."""
    with _Opened(data) as (file, out):
        name = rng.choice([*file.attrs, "spec", "spec"])
        if name == "spec" and rng.random() < 0.8:
            text = json.dumps(swap_value(json.loads(file.attrs["spec"]), rng))
            value: Any = text.encode("utf-8", "replace").decode().replace("\0", "")
        else:
            value = rng.choice(
                [
                    1,
                    -1,
                    "x",
                    "",
                    b"\xff",
                    1.5,
                    np.zeros(3),
                    True,
                    h5py.Empty("f"),
                    "[" * 5000,
                    "/dev/zero",
                ]
            )
        del file.attrs[name]
        if rng.random() < 0.9:
            file.attrs[name] = value
    return out.getvalue()


def store_data(data: bytes, rng: random.Random) -> bytes:
    """Change a data set of a store: gone, of another shape or type, filled with other numbers."""
    with _Opened(data) as (file, out):
        names = [f"{g}/{n}" for g in ("rows", "layers") for n in file[g]]
        name = rng.choice(names)
        old = file[name][...]
        how = rng.randrange(8)
        if how < 6:
            del file[name]
        if how == 0:
            file[name] = old[: len(old) // 2]
        elif how == 1:
            file[name] = rng.choice([old.astype("S8"), np.zeros((3, 3, 3)), np.float64(1)])
        elif how == 2:
            file.create_dataset(name, data=old, chunks=True, compression="gzip")
        elif how == 3:
            file.create_dataset(name, (1 << 40,) * old.ndim, old.dtype, chunks=(1,) * old.ndim)
        elif how == 4:
            file[name] = h5py.SoftLink(rng.choice(names))
        elif how == 5:
            file.create_group(name)
        elif old.dtype.kind == "S":
            file[name][rng.randrange(len(old))] = rng.randbytes(old.dtype.itemsize)
        else:
            noise = rng.randbytes(old.itemsize)
            file[name][rng.randrange(len(old))] = np.frombuffer(noise, old.dtype)[0]
    return out.getvalue()


class _Opened:
    def __init__(self, data: bytes) -> None:
        self.out = io.BytesIO(data)
        self.file = h5py.File(self.out, "r+")

    def __enter__(self) -> tuple[Any, io.BytesIO]:
        return self.file, self.out

    def __exit__(self, *_: object) -> None:
        self.file.close()


def arrays(data: bytes, rng: random.Random) -> bytes:
    """Change an array of a safetensors file: gone, cut, of another kind, not finite, or huge."""
    found = dict(load(data))
    name = rng.choice(sorted(found))
    old = found[name]
    how = rng.randrange(7)
    if how == 0:
        del found[name]
    elif how == 1:
        found[name] = old[: len(old) // 2]
    elif how == 2:
        found[name] = old[None]
    elif how == 3:
        found[name] = old.astype(rng.choice(["f8", "f4", "i4", "u1", "bool"]))
    elif how == 4:
        found[name] = np.full(old.shape, rng.choice([np.nan, np.inf, 1e30, -1]), "f4")
    elif how == 5:
        found[rng.choice(["x", *found])] = found.pop(name)
    else:
        found[name] = np.zeros((*old.shape, 2), old.dtype)
    return save({key: np.ascontiguousarray(value) for key, value in found.items()})


def header(data: bytes, rng: random.Random) -> bytes:
    """Change one place of a safetensors file's header."""
    size = int.from_bytes(data[:8], "little")
    content = swap_value(json.loads(data[8 : 8 + size]), rng)
    text = json.dumps(content).encode("utf-8", "surrogatepass")
    length = rng.choice([len(text), len(text), 2**63 - 1, 0])
    return length.to_bytes(8, "little") + text + data[8 + size :]


def same_hash(description: bytes, numbers: bytes) -> bytes:
    """A probe's description that fits the damaged numbers, so that these are looked at."""
    try:
        content = json.loads(description)
        content["sha256"] = hashlib.sha256(numbers).hexdigest()
        return json.dumps(content).encode()
    except (ValueError, TypeError, UnicodeError):
        return description


def yaml_value(data: bytes, rng: random.Random) -> bytes:
    """Set one field of a YAML file to something else."""
    lines = data.decode("utf-8").splitlines()
    at = rng.randrange(len(lines))
    name = lines[at].partition(":")[0]
    value = rng.choice(
        [
            *map(repr, OTHERS[:12]),
            *map(str, HUGE),
            *(
                "yes",
                "~",
                "1e-2",
                "1:30",
                "2024-01-01",
                "!!int x",
                "&a [*a]",
                "*b",
                "[",
                "{a: b",
                "|",
            ),
            "0x" + "f" * 4000,
        ]
    )
    lines[at] = f"{name}: {value}"
    return "\n".join(lines).encode("utf-8", "replace")


def template(_: bytes, rng: random.Random) -> bytes:
    """A Jinja template out of pieces that are hard to bear."""
    pieces = [
        *(
            "{{ text }}",
            "{{ text.x.y }}",
            "{{ ''.__class__.__mro__ }}",
            "{{ 1 / 0 }}",
            "{{ text * 999999999 }}",
        ),
        *(
            "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
            "{{ 9 ** 9 ** 9 }}",
        ),
        *(
            "{% for i in range(999999999) %}x{% endfor %}",
            "{% include '/etc/passwd' %}",
            "{% if %}",
            "{{",
        ),
        *(
            "{{ '%999999999d' % 1 }}",
            "{{ text|center(999999999) }}",
            "{{ lipsum(n=9999) }}",
            "{{ label }}",
        ),
        *(
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{{ raise_exception('no') }}",
            "{{ cycler }}",
        ),
        *(
            "{% set x = [] %}{{ x.append(1) }}",
            "{{ text|int + text }}",
            "{{ '\\ud800' }}",
            "plain ",
            "{# #}",
        ),
    ]
    return "".join(rng.choices(pieces, k=rng.randint(1, 3))).encode("utf-8", "surrogatepass")
