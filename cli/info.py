"""``probekit info``: what a store holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack

import click

from probekit.cli.options import FILE, AsJson, SectionedCommand, argument, emit, options_of

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore

SHOWN = 60
POOLED = {
    "first": "state of the first token",
    "last": "state of the last token",
    "max": "largest state of the tokens",
    "mean": "mean state of the tokens",
}


class InfoOptions(TypedDict):
    """Options of ``probekit info``."""

    store: Annotated[
        Path, argument("Activation store, as `probekit extract` writes it.", type=FILE)
    ]
    as_json: AsJson


@click.command("info", cls=SectionedCommand)
@options_of(InfoOptions)
def command(**options: Unpack[InfoOptions]) -> None:
    """Report what an activation store holds, complete or not.

    Example: probekit info acts.h5
    """
    from probekit.activations.store import ActivationStore

    with ActivationStore(options["store"], allow_incomplete=True) as opened:
        layers = [describe_layer(opened, layer) for layer in opened.layers]
        result = _describe(opened, layers)
    emit(result, _text(result), as_json=options["as_json"])


def _describe(store: ActivationStore, layers: list[dict[str, Any]]) -> dict[str, Any]:
    done = store.done
    return {
        "path": str(store.path),
        "complete": store.complete,
        "rows": len(store),
        "rows_done": int(done.sum()),
        "groups": None if store.groups is None else len({*store.groups} - {""}),
        "rows_truncated": int(store.truncated[done].sum()),
        "tokens": int(store.n_tokens[done].sum(dtype="int64")),
        "bytes": store.nbytes,
        "source": store.source,
        "fingerprint": store.fingerprint,
        "rows_fingerprint": store.rows_fingerprint,
        "rows_intact": store.rows_intact(),
        "spec": store.spec,
        "layers": layers,
    }


def describe_layer(store: ActivationStore, layer: int) -> dict[str, Any]:
    """Describe a layer's states over the rows that are done, reading it once, block by block."""
    import numpy as np

    info = store.info(layer)
    total, finite_rows, rows_seen, values = 0.0, 0, 0, 0
    for _, states in store.batches(layer, max(1, (1 << 21) // max(1, info.width))):
        # In float64: the square of a large float32 may overflow float32.
        squares = np.einsum("ij,ij->i", states, states, dtype=np.float64)
        finite = np.isfinite(squares)
        rows_seen += len(states)
        finite_rows += int(finite.sum())
        total += float(np.sqrt(squares[finite]).sum())
        if not finite.all():
            values += int((~np.isfinite(states[~finite])).sum())
    return {
        "layer": layer,
        "shape": (len(store), info.width),
        "dtype": info.dtype,
        "mapped": info.offset is not None,
        "mean_norm": total / finite_rows if finite_rows else None,
        "nonfinite_values": values,
        "nonfinite_rows": rows_seen - finite_rows,
    }


def _text(result: dict[str, Any]) -> str:
    from probekit.errors import human_bytes

    rows, done = result["rows"], result["rows_done"]
    state = (
        "complete"
        if result["complete"]
        else f"incomplete: {done:,} of {rows:,} rows are done; run the same extract command again"
    )
    lines = [
        f"{result['path']}: {state}",
        f"  rows       {rows:,}"
        + (f" from {_short(result['source'])}" if result["source"] else ""),
        *([] if result["groups"] is None else [f"  groups     {result['groups']:,}"]),
        f"  tokens     {result['tokens']:,}; {result['rows_truncated']:,} rows were truncated",
        f"  size       {human_bytes(result['bytes'])}",
        f"  spec       {_spec_text(result['spec'])}",
        f"  store      fingerprint {result['fingerprint']}, rows {result['rows_fingerprint']}",
        "",
        f"  {'layer':>5}  {'shape':>16}  {'dtype':>9}  {'mean norm':>10}  not finite",
    ]
    if not result["rows_intact"]:
        lines.insert(
            1, "  WARNING    ids, hashes or groups have changed since it was written: damaged"
        )
    lines += [_layer_line(layer) for layer in result["layers"]]
    return "\n".join(lines)


def _spec_text(spec: dict[str, Any]) -> str:
    """The settings of every extraction in words, and a list of the others."""
    left = {key: _short(value) for key, value in spec.items() if value is not None}
    lines = []
    if {"model", "layers", "pooling"} <= left.keys():
        pooled = POOLED.get(left["pooling"], left["pooling"])
        lines.append(f"{pooled} of {left.pop('model')}, layers {left.pop('layers')}")
        del left["pooling"]
    if {"dtype", "store_dtype"} <= left.keys():
        lines.append(f"computed in {left.pop('dtype')}, stored as {left.pop('store_dtype')}")
    if "max_length" in left:
        lines.append(f"at most {left.pop('max_length')} tokens of a text")
    return "\n             ".join(
        [*lines, *(f"{_short(key)}: {text}" for key, text in left.items())]
    )


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _layer_line(layer: dict[str, Any]) -> str:
    shape = "{:,} x {:,}".format(*layer["shape"])
    norm = "-" if layer["mean_norm"] is None else f"{layer['mean_norm']:.4g}"
    wrong = (
        f"{layer['nonfinite_values']:,} values in {layer['nonfinite_rows']:,} rows"
        if layer["nonfinite_values"]
        else "none"
    )
    packed = "" if layer["mapped"] else "  (not mapped)"
    dtype = layer["dtype"]
    return f"  {layer['layer']:>5}  {shape:>16}  {dtype:>9}  {norm:>10}  {wrong}{packed}"
