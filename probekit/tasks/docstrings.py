"""Task ``docstrings``: docstrings of science packages and of the standard library.

Read from installed source files with ``ast``; nothing is imported or run. The texts depend on the
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
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from probekit.data import Rows, text_hash
from probekit.errors import DataError
from probekit.tasks.registry import Task, draw

__all__ = ["SPLITS", "TASKS", "first_paragraph", "is_prose", "texts_of"]

SPLITS = {"weak": 2000, "student": 2000, "validation": 1000, "test": 3000}
"""Rows of each split, half of each class; fewer, in these proportions, if texts are few."""

MIN_TEXTS = 400
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
    roots = []
    for package, name in SCIENCE.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise DataError(
                f"The task 'docstrings' reads the source of {name}, which is not installed here; "
                "install it with `pip install scikit-learn scipy`."
            )
        roots += [Path(location) for location in spec.submodule_search_locations]
    return roots


def _library_roots() -> list[Path]:
    folder = Path(sysconfig.get_path("stdlib"))
    names = [name for name in sorted(sys.stdlib_module_names) if name not in LEFT_OUT]
    return [p for name in names for p in (folder / name, folder / f"{name}.py") if p.exists()]


@lru_cache(maxsize=1)
def _texts() -> tuple[frozenset[str], frozenset[str]]:
    """Return the texts of class 0 and of class 1; texts in both are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # other people's escapes
        library = set().union(*map(texts_of, _library_roots()))
        science = set().union(*map(texts_of, _science_roots()))
    return frozenset(library - science), frozenset(science - library)


def _split(
    texts: tuple[frozenset[str], frozenset[str]], *, seed: int, sizes: dict[str, int]
) -> dict[str, Rows]:
    """Divide texts into splits of equal classes, in an order that depends on seed and text only."""
    wanted = sum(sizes.values())
    available = 2 * min(map(len, texts))
    if available < MIN_TEXTS:
        raise DataError(
            f"The task 'docstrings' found {len(texts[0]):,} texts in the standard library and "
            f"{len(texts[1]):,} in scikit-learn and SciPy, and needs {MIN_TEXTS // 2} of each; "
            "install them with their source files (.py)."
        )
    share = min(1.0, available / wanted)
    dealt = [sorted(each, key=lambda text: draw(text, seed=seed, use="deal")) for each in texts]
    splits, start = {}, 0
    for name, size in sizes.items():
        stop = start + int(size * share) // 2
        rows = [(text, label) for label in (0, 1) for text in dealt[label][start:stop]]
        # Ordered by the first draw, the larger class would come first in each split.
        rows.sort(key=lambda row: draw(row[0], seed=seed, use="order"))
        splits[name] = Rows(
            {
                "id": [f"doc-{text_hash(text)}" for text, _ in rows],
                "text": [text for text, _ in rows],
                "label": [label for _, label in rows],
            },
            source=f"docstrings@{name}",
        )
        start = stop
    return splits


@lru_cache(maxsize=2)
def _splits(seed: int) -> dict[str, Rows]:
    return _split(_texts(), seed=seed, sizes=SPLITS)


def _load(split: str, seed: int) -> Rows:
    return _splits(seed)[split]


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
        classes=("standard library", "science"),
        splits=tuple(SPLITS),
        load=_load,
        halves=("weak", "student"),
    ),
)
