"""The grammar of layers, and what a spec refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from probekit.activations.spec import ExtractionSpec, parse_layers
from probekit.errors import UsageError


@pytest.mark.parametrize(
    ("asked", "layers"),
    [
        ("0", (0,)),
        ("mid", (6,)),
        ("last", (12,)),
        ("-1", (12,)),
        ("-13", (0,)),
        ("all", tuple(range(13))),
        ("3-6", (3, 4, 5, 6)),
        ("3:6", (3, 4, 5, 6)),
        ("-3:-1", (10, 11, 12)),
        ("-3--1", (10, 11, 12)),
        ("9:-1", (9, 10, 11, 12)),
        ("5-5", (5,)),
        ("last, 4,mid,4 , 0-1", (0, 1, 4, 6, 12)),
        (7, (7,)),
        ([3, -1, 3], (3, 12)),
    ],
)
def test_layers(asked: Any, layers: tuple[int, ...]) -> None:
    assert parse_layers(asked, 12) == layers


def test_mid_of_an_odd_depth_is_rounded_down() -> None:
    assert parse_layers("mid", 5) == (2,)
    assert parse_layers("mid", 1) == (0,)


@pytest.mark.parametrize(
    "asked", ["13", "-14", "6-13", "middle", "", "1,,2", "1.5", "6-3", "3-", []]
)
def test_wrong_layers_are_reported_with_what_exists(asked: Any) -> None:
    with pytest.raises(UsageError, match=r"this model has the layers 0 \(embeddings\) to 12") as e:
        parse_layers(asked, 12)
    assert e.value.exit_code == 2


def make(**changes: Any) -> ExtractionSpec:
    given: dict[str, Any] = {
        "model": "m",
        "revision": None,
        "weights": "w",
        "tokenizer": "t",
        "layers": (1, 2),
        "pooling": "mean",
        "dtype": "float32",
        "store_dtype": "float32",
        "max_length": 512,
        "kind": "text",
    }
    return ExtractionSpec(**{**given, **changes})


def test_a_spec_becomes_json_and_back() -> None:
    spec = make(quantization={"load_in_8bit": True})
    found = json.loads(json.dumps(spec.to_json()))
    assert ExtractionSpec(**{**found, "layers": tuple(found["layers"])}) == spec
