"""A fitted probe kept with what it reads, and the labels that it gives to rows of another store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit import __version__
from probekit.activations.spec import differing
from probekit.cleaning.predict import read_states
from probekit.errors import OutputExistsError, ProbeError, UsageError
from probekit.files import atomic_write
from probekit.labels import WeakLabels
from probekit.output_tables import check_format
from probekit.probes.saving import PROBES, load_probe, save_probe
from probekit.safe import expand, misfit, read_json

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.scored import Scored

__all__ = ["check_new_folder", "check_savable", "label_store", "save_fitted"]

READS = "states.json"
FORMAT, VERSION = "probekit-probe-states", 1
SHAPE = {"classes": [str], "layers": [int], "spec": dict, "labels": dict}
# What may differ between two stores of the same states: how many layers, their rounding on disk,
# and what the model is called.
FREE = ("layers", "store_dtype", "model", "revision", "file", "content")


def check_savable(probe: Any, states: Any, folder: str | Path) -> None:
    """Raise unless a probe of these states can be saved in ``folder``, before any work.

    Raises
    ------
    UsageError
        If there is no store, it holds differences of pairs, or the probe is not one of probekit's.
    OutputExistsError
        If the folder has files already.
    """
    if not hasattr(states, "spec"):
        raise UsageError("A probe is saved with the spec of its store; an array has none.")
    if states.differences:
        raise UsageError("Probes on differences of pairs cannot be saved; leave --save-probe out.")
    if type(probe).__name__ not in PROBES:
        raise UsageError(
            f"Only {', '.join(PROBES)} can be saved, got {type(probe).__name__}; leave "
            "--save-probe out."
        )
    check_new_folder(folder)


def check_new_folder(folder: str | Path) -> None:
    """Raise OutputExistsError if a folder to write has files already, or is a file."""
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise OutputExistsError(f"{folder} exists and is not empty; name a new folder.")


def save_fitted(scored: Scored, store: ActivationStore, folder: str | Path) -> None:
    """Save the probe that judged these rows, with its classes and the spec of its states."""
    save_probe(scored.probe, folder)
    reads = {
        "format": FORMAT,
        "version": VERSION,
        "classes": list(scored.labels.classes),
        "layers": scored.provenance["layers"],
        "spec": store.spec,
        "labels": scored.provenance["labels"],
    }
    with atomic_write(Path(folder) / READS, "w") as file:
        file.write(json.dumps(reads, ensure_ascii=False, indent=2) + "\n")


def label_store(store: ActivationStore, folder: str | Path) -> WeakLabels:
    """Label every row of a store with a probe that :func:`save_fitted` wrote.

    Parameters
    ----------
    store : ActivationStore
        States of the same model and spec as those the probe was fitted on; with the same layers.
    folder : path
        Folder of the probe.

    Returns
    -------
    WeakLabels
        Class probabilities, with the classes of the labels that the probe was fitted to.

    Raises
    ------
    ProbeError
        If the folder has no probe, or its files are damaged.
    UsageError
        If the store's states are of another model or spec, or lack a layer.
    """
    folder = expand(folder, error=ProbeError)
    probe, path = load_probe(folder), folder / READS
    if not path.exists():
        raise ProbeError(
            f"{folder} does not record which states its probe reads: {path} is missing; save it "
            "again with --save-probe."
        )
    reads = read_json(path, error=ProbeError)
    repair = "`probekit filter --save-probe`"
    check_format(reads, path, FORMAT, VERSION, repair=repair)
    if wrong := misfit(reads, SHAPE, "content"):
        raise ProbeError(f"{path} is damaged: {wrong}; make it again with {repair}.")
    _check_spec(store, reads["spec"], folder)
    layers = tuple(reads["layers"])
    X = read_states(store, layers if len(layers) > 1 else layers[0], stream=True)
    if X.shape[1] != probe.n_features_in_:
        raise UsageError(
            f"{store.path} has states of {X.shape[1]} columns, and the probe in {folder} reads "
            f"{probe.n_features_in_}."
        )
    classes = reads["classes"]
    proba = np.zeros((len(store), len(classes)))
    proba[:, np.asarray(probe.classes_, np.int64)] = probe.predict_proba(X)
    return WeakLabels(
        ids=store.ids,
        hashes=store.hashes,
        probs=proba,
        classes=tuple(classes),
        key=store.keys,
        provenance={
            "probekit": __version__,
            "probe": {"name": type(probe).__name__, "fitted_to": reads["labels"]},
            "layers": list(layers),
            "store": {"name": store.path.name, "fingerprint": store.fingerprint},
        },
    )


def _check_spec(store: ActivationStore, spec: dict[str, Any], folder: Path) -> None:
    """Raise UsageError if states were made otherwise than those that the probe was fitted on."""
    other = [name for name in differing(spec, store.spec) if name not in FREE]
    if other:
        shown = "; ".join(
            f"{name} {store.spec.get(name)!r}, not {spec.get(name)!r}" for name in other
        )
        raise UsageError(
            f"{store.path} has other states than the probe in {folder} was fitted on: {shown}; "
            "extract these rows with the same model and options."
        )
