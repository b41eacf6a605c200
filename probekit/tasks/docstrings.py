"""Task ``docstrings``: docstrings of science packages and of the standard library.

``docstrings:numpy,scipy,torch`` has these packages as classes, any number of them. Source files of
installed packages are read with ``ast``; nothing is imported or run. The texts depend on the
installed versions: compare figures only for equal versions.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import platform
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from probekit.data import Rows, text_hash
from probekit.errors import DataError, UsageError
from probekit.tasks.registry import Task, draw

__all__ = ["SPLITS", "TASKS", "first_paragraph", "is_prose", "texts_of"]

SPLITS = {"weak": 2000, "student": 2000, "validation": 1000, "test": 3000}
"""Rows of each split, equally many of each class; fewer, in these proportions, if texts are few."""

CLASSES = ("standard library", "science")
LEAST_TEXTS = 200
SHORTEST, LONGEST = 30, 240
LETTERS = 0.75
WORDS = 4
SCIENCE = {"sklearn": "scikit-learn", "scipy": "SciPy"}
# Tests describe what they test; vendored packages are neither science nor standard library.
LEFT_OUT = {"test", "tests", "idle_test", "externals", "_external", "site-packages"}

# A doctest, a heading's underline, a directive, or a bare signature.
NOT_PROSE = re.compile(r">>>|[-=~*_^#+]{4}|\.\. [\w-]+::|^[\w.]+ *\(.*\)( *-+> *.*)?$")
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def first_paragraph(docstring: str) -> str:
    """Return the text before the first blank line, white space collapsed."""
    return " ".join(re.split(r"\n[^\S\n]*\n", docstring.strip(), maxsplit=1)[0].split())


def is_prose(text: str) -> bool:
    """Whether a paragraph is a sentence of 30 to 240 characters and not code or a heading."""
    if not SHORTEST <= len(text) <= LONGEST or NOT_PROSE.search(text):
        return False
    letters = sum(c.isalpha() or c == " " for c in text)
    return letters >= LETTERS * len(text) and len(re.findall(r"[^\W\d_]{2,}", text)) >= WORDS


def texts_of(root: Path) -> set[str]:
    """Return the first paragraphs in prose of every module, class and function below a path."""
    files = [root] if root.is_file() else root.rglob("*.py")
    texts: set[str] = set()
    for file in files:
        if LEFT_OUT.isdisjoint(file.relative_to(root.parent).parts):
            texts.update(filter(is_prose, map(first_paragraph, _docstrings(file))))
    return texts


def _docstrings(file: Path) -> Iterator[str]:
    try:
        source = file.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return  # a template or a file for another Python version; other files are enough
    pending: list[ast.AST] = [tree]
    for node in pending:
        if isinstance(node, DEFINITIONS):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield text
        # Definitions are in statements only, and nine of ten nodes are expressions.
        for field in ("body", "orelse", "finalbody", "handlers"):
            inner = getattr(node, field, ())
            pending.extend(inner if isinstance(inner, list) else ())


def _science_roots() -> list[Path]:
    return [root for package in SCIENCE for root in _roots(package, "docstrings")]


def _roots(package: str, task: str) -> list[Path]:
    """Folders of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        install = SCIENCE.get(package, "it" if package.isidentifier() else "")
        repair = (
            f"install {install} with pip" if install else "name packages as Python imports them"
        )
        raise DataError(
            f"The task {task!r} reads the source of the package {package!r}, which is not "
            f"installed here; {repair}."
        )
    return [Path(location) for location in spec.submodule_search_locations]


def _library_roots() -> list[Path]:
    folder = Path(sysconfig.get_path("stdlib"))
    names = [name for name in sorted(sys.stdlib_module_names) if name not in LEFT_OUT]
    return [p for name in names for p in (folder / name, folder / f"{name}.py") if p.exists()]


@lru_cache(maxsize=2)
def _texts(packages: tuple[str, ...]) -> tuple[frozenset[str], ...]:
    """Return the texts of every class; those of several classes are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # other people's escapes
        if packages:
            name = f"docstrings:{','.join(packages)}"
            roots = [_roots(package, name) for package in packages]
        else:
            roots = [_library_roots(), _science_roots()]
        texts = [set().union(*map(texts_of, each)) for each in roots]
    counts = Counter(text for each in texts for text in each)
    return tuple(frozenset(text for text in each if counts[text] == 1) for each in texts)


def _split(
    texts: tuple[frozenset[str], ...],
    *,
    seed: int,
    sizes: dict[str, int],
    task: str = "docstrings",
    classes: Sequence[str] = CLASSES,
) -> dict[str, Rows]:
    """Divide texts into splits of equal classes, in an order that depends on seed and text only."""
    wanted = sum(sizes.values())
    n_classes = len(texts)
    available = n_classes * min(map(len, texts))
    if min(map(len, texts)) < LEAST_TEXTS:
        counts = [
            f"{len(each):,} texts of {name}" for name, each in zip(classes, texts, strict=True)
        ]
        raise DataError(
            f"The task {task!r} found {' and '.join(counts)}, and needs {LEAST_TEXTS} of each; "
            "install packages with their source files (.py)."
        )
    share = min(1.0, available / wanted)
    dealt = [sorted(each, key=lambda text: draw(text, seed=seed, use="deal")) for each in texts]
    splits, start = {}, 0
    for name, size in sizes.items():
        stop = start + int(size * share) // n_classes
        rows = [(text, label) for label, each in enumerate(dealt) for text in each[start:stop]]
        # Ordered by the first draw, the larger class would come first in each split.
        rows.sort(key=lambda row: draw(row[0], seed=seed, use="order"))
        splits[name] = Rows(
            {
                "id": [f"doc-{text_hash(text)}" for text, _ in rows],
                "text": [text for text, _ in rows],
                "label": [label for _, label in rows],
            },
            source=f"{task}@{name}",
        )
        start = stop
    return splits


@lru_cache(maxsize=2)
def _splits(packages: tuple[str, ...], seed: int) -> dict[str, Rows]:
    task = f"docstrings:{','.join(packages)}" if packages else "docstrings"
    classes = packages or CLASSES
    return _split(_texts(packages), seed=seed, sizes=SPLITS, task=task, classes=classes)


def _load(split: str, seed: int, packages: tuple[str, ...] = ()) -> Rows:
    return _splits(packages, seed)[split]


def _of_packages(names: str) -> Task:
    """The task whose classes are these packages, separated by commas."""
    packages = tuple(name.strip() for name in names.split(","))
    if len(packages) < 2 or len(set(packages)) < len(packages) or not all(packages):
        raise UsageError(
            f"The task 'docstrings:{names}' needs two or more different packages, separated by "
            "commas, as in docstrings:numpy,scipy,torch."
        )
    return replace(
        TASKS[0],
        name=f"docstrings:{','.join(packages)}",
        description=(
            "First paragraphs of docstrings (30 to 240 characters): in which of the packages does "
            "this one stand? Texts follow the installed versions."
        ),
        source="source files of the installed packages, read on this machine",
        licence="of each package",
        classes=packages,
        load=partial(_load, packages=packages),
        variant=None,
    )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


TASKS = (
    Task(
        name="docstrings",
        description=(
            "First paragraphs of docstrings (30 to 240 characters): does this one stand in "
            "scikit-learn or SciPy (1) or in Python's standard library (0)? "
            "Texts follow the installed versions."
        ),
        source=(
            f"source files of scikit-learn {_version('scikit-learn')}, SciPy {_version('scipy')} "
            f"and Python {platform.python_version()}, read on this machine"
        ),
        licence="BSD-3-Clause (scikit-learn, SciPy), PSF-2.0 (Python)",
        classes=CLASSES,
        splits=tuple(SPLITS),
        load=_load,
        halves=("weak", "student"),
        variant=_of_packages,
    ),
)
