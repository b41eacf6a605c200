"""Fitted probes on disk: a description in ``probe.json``, numbers in ``probe.safetensors``.

Nothing is pickled: loading a probe runs no code from the folder.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit import __version__
from probekit.errors import OutputExistsError, ProbeError, first_few
from probekit.files import atomic_write
from probekit.probes.registry import REGISTRY, probe_class
from probekit.safe import expand, one_line, read_bytes, read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["load_probe", "save_probe"]

FORMAT, VERSION = "probekit-probe", 1
DESCRIPTION, NUMBERS = "probe.json", "probe.safetensors"
# Class -> its name in the registry; a file can name no other class.
PROBES = {spec.class_name: name for name, spec in sorted(REGISTRY.items())}


def save_probe(probe: Any, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write a fitted probe to ``folder``, which is created if it is missing.

    Raises
    ------
    OutputExistsError
        If the folder has a probe already and ``overwrite`` is not set.
    ProbeError
        If the class could not be loaded again, or a parameter cannot be written as JSON.
    """
    from safetensors.numpy import save
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(probe)
    name = type(probe).__name__
    if name not in PROBES or type(probe) is not probe_class(PROBES[name]):
        raise ProbeError(f"Only {', '.join(PROBES)} can be saved, got {name}.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; name a folder to save the probe in.")
    if not overwrite and any((folder / file).exists() for file in (DESCRIPTION, NUMBERS)):
        raise OutputExistsError(f"{folder} has a probe already; pass overwrite=True.")
    numbers = save({key: np.ascontiguousarray(a) for key, a in probe._arrays().items()})
    description = {
        "format": FORMAT,
        "version": VERSION,
        "class": name,
        "params": {key: _plain(value) for key, value in probe.get_params(deep=False).items()},
        "classes": _plain(probe.classes_),
        "classes_dtype": probe.classes_.dtype.str,
        "n_features_in": int(probe.n_features_in_),
        "sha256": hashlib.sha256(numbers).hexdigest(),
        "made_with": {
            "probekit": __version__,
            **{name: version(name) for name in ("scikit-learn", "numpy")},
        },
    }
    if hasattr(probe, "feature_names_in_"):
        description["feature_names_in"] = probe.feature_names_in_.tolist()
    try:
        text = json.dumps(description, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ProbeError(f"A parameter of {name} cannot be written as JSON: {error}.") from None
    folder.mkdir(parents=True, exist_ok=True)
    # The description comes last, with a hash of its numbers, so that those of another probe are
    # never taken for them.
    with atomic_write(folder / NUMBERS) as file:
        file.write(numbers)
    with atomic_write(folder / DESCRIPTION, "w") as file:
        file.write(text + "\n")


def load_probe(folder: str | Path) -> Any:
    """Read a fitted probe from ``folder``; its predictions are bit for bit those of the saved one.

    Raises
    ------
    ProbeError
        If there is no probe, or its files are damaged or of another version or class.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = expand(folder, error=ProbeError)
    path = folder / DESCRIPTION
    for file in (path, folder / NUMBERS):
        if not file.exists():
            raise ProbeError(f"{folder} has no probe: {file} is missing.")
    description = read_json(path, error=ProbeError)
    numbers = read_bytes(folder / NUMBERS, limit=None, error=ProbeError)
    try:
        probe = _unfitted(description, path)
        probe._check_parameters()
        if hashlib.sha256(numbers).hexdigest() != description["sha256"]:
            raise ProbeError(f"{folder / NUMBERS} is damaged, or was not written with {path}.")
        arrays = load(numbers)
        probe.classes_ = _classes(description)
        probe.n_features_in_ = d = int(description["n_features_in"])
        if "feature_names_in" in description:
            probe.feature_names_in_ = np.array(description["feature_names_in"], dtype=object)
        _check_shapes(arrays, d=d, C=len(probe.classes_))
        probe._restore(arrays)
        _check_predicts(probe, d)
    except ProbeError:
        raise
    except SafetensorError as error:
        raise ProbeError(
            f"{folder / NUMBERS} is damaged: {one_line(str(error)).rstrip('.')}."
        ) from None
    except KeyError as error:
        raise ProbeError(f"{folder} has a damaged probe: {error} is missing or wrong.") from None
    # Errors of NumPy, the searches and scikit-learn for wrong parameters and numbers.
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise ProbeError(
            f"{folder} has a damaged probe: {one_line(str(error)).rstrip('.')}; save it again."
        ) from None
    return probe


# Name of an array, up to the point -> kinds of its dtype, and its shape: n rows, d columns,
# C classes, _ any size; the first array with another letter decides the size of that.
SHAPES = {
    **dict.fromkeys(("Y", "proba", "oof_proba", "oof_proba_"), ("f", "nC")),
    **dict.fromkeys(("weight", "disagreement"), ("f", "n")),
    **dict.fromkeys(("groups", "fold_"), ("iu", "n")),
    **dict.fromkeys(("keep", "component"), ("b", "n")),
    **dict.fromkeys(("l2_scores_", "penalties_"), ("f", "p")),
    **dict.fromkeys(("offset", "intercept"), ("f", "C")),
    "X": ("f", "nd"),
    "coef_": ("f", "Vd"),
    "intercept_": ("f", "V"),
    "scalars": ("f", "3"),
    "center": ("f", "d"),
    "mu": ("f", "Cd"),
    "slope": ("f", "1"),
    "coef": ("f", "_C"),
    "penalties": ("f", "r"),
    "slopes": ("f", "m"),
    "offsets": ("f", "mC"),
}
# NaN if there were no folds to score with.
MAY_BE_NAN = ("l2_scores_", "scalars")


def _check_shapes(arrays: dict[str, NDArray[Any]], **sizes: int) -> None:
    sizes |= {"1": 1, "3": 3}
    for name, array in arrays.items():
        kinds, shape = SHAPES.get(name.partition(".")[0], ("biuf", ""))
        wanted = [
            size if dim == "_" else sizes.setdefault(dim, size)
            for dim, size in zip(shape, array.shape, strict=False)
        ]
        if shape and (list(array.shape) != wanted or len(shape) != array.ndim):
            raise ValueError(f"{name} has the shape {array.shape}")
        if array.dtype.kind not in kinds:
            raise ValueError(f"{name} has the dtype {array.dtype}")
        if array.dtype.kind == "f" and name not in MAY_BE_NAN and not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers that are not finite")


def _classes(description: dict[str, Any]) -> NDArray[Any]:
    kind = description["classes_dtype"]
    # NumPy would parse any other text as Python.
    if not isinstance(kind, str) or re.fullmatch(r"[<>|=][biufSU]\d{1,6}", kind) is None:
        raise ValueError(f"its classes have the dtype {str(kind)[:40]!r}")
    classes = np.array(description["classes"], dtype=np.dtype(kind))
    if classes.ndim != 1 or len(classes) < 2 or classes.dtype.kind not in "biufSU":
        raise ValueError("its classes are not a list of at least two names or numbers")
    return classes


def _check_predicts(probe: Any, d: int) -> None:
    """Predict one row, so that a damaged probe fails now, not when it is used."""
    names = getattr(probe, "feature_names_in_", None)
    if names is not None and names.shape != (d,):
        raise ValueError(f"it names {names.size} columns and was fitted on {d}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these numbers have no names of columns
        proba = probe.predict_proba(np.zeros((1, d), np.float32))
    if proba.shape != (1, len(probe.classes_)) or not np.isfinite(proba).all():
        raise ValueError("it predicts no probabilities")


def _unfitted(description: Any, path: Path) -> Any:
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ProbeError(f"{path} does not describe a probe of probekit.")
    if description.get("version") != VERSION:
        raise ProbeError(
            f"{path} has version {description.get('version')!r}; this probekit reads version "
            f"{VERSION}: save the probe again, or upgrade probekit."
        )
    name = description.get("class")
    if not isinstance(name, str) or name not in PROBES:
        raise ProbeError(f"{path} names the class {name!r}; allowed are {', '.join(PROBES)}.")
    cls = probe_class(PROBES[name])
    unknown = set(description["params"]) - set(inspect.signature(cls.__init__).parameters)
    if unknown:
        names = first_few([one_line(str(key)) for key in sorted(unknown)])
        raise ProbeError(f"{path} sets {names}, which {name} does not have.")
    return cls(**description["params"])


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays as values for JSON."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
