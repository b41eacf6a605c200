"""The site: complete, built strictly, nothing loaded from elsewhere; and the notebooks run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

import probekit

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.glob("tutorials/*.ipynb"))
# What a browser fetches by itself: not links that people follow.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)[^>]+src=[\"']?(https?:)?//[^>]*>"
    r"|<link(?![^>]+rel=[\"']?canonical)[^>]+href=[\"']?(https?:)?//[^>]*>"
    r"|url\([\"']?(https?:)?//"
)


class Page(HTMLParser):
    """The anchors of a page of the site, and where it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links = {""}, set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        for name, value in attrs:
            if name in ("id", "name"):
                self.anchors.add(value or "")
            elif name in ("href", "src") and not re.match(r"[a-z]+:|//", value or ""):
                self.links.add(value or "")


def dead_links(site: Path) -> list[str]:
    """Links between the pages of a site that lead to no file, or to no anchor of it."""
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    result = []
    for path, page in pages.items():
        for link in sorted(page.links):
            place, _, anchor = unquote(link).partition("#")
            target = (path.parent / place.partition("?")[0]).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            known = pages.get(target)
            if not target.is_file() or (known is not None and anchor not in known.anchors):
                result.append(f"{path.relative_to(site)}: {link}")
    return result


def test_dead_links_are_seen(tmp_path: Path) -> None:
    """The control of the test of the built site."""
    (tmp_path / "a.html").write_text('<h1 id="x">A</h1><a href="b.html#y">b</a><a href="#x">x</a>')
    assert dead_links(tmp_path) == ["a.html: b.html#y"]
    (tmp_path / "b.html").write_text('<h1 id="z">B</h1><a href="https://x.example/">x</a>')
    assert dead_links(tmp_path) == ["a.html: b.html#y"]
    (tmp_path / "b.html").write_text('<h1 id="y">B</h1>')
    assert dead_links(tmp_path) == []


def nav_pages(nav: Any) -> set[str]:
    """Every page that the navigation names."""
    if isinstance(nav, str):
        return {nav}
    if isinstance(nav, dict):
        return set().union(*map(nav_pages, nav.values()))
    return set().union(*map(nav_pages, nav))


def test_every_page_is_in_the_navigation() -> None:
    nav = nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    pages |= {str(path.relative_to(DOCS).with_suffix(".md")) for path in NOTEBOOKS}
    assert nav == pages


def test_explanations_are_read_in_one_go() -> None:
    pages = sorted(DOCS.glob("methods/*.md"))
    assert pages
    assert {page.name: n for page in pages if (n := len(page.read_text().split())) > 1500} == {}


def test_how_to_pages_are_short_and_listed() -> None:
    index = (DOCS / "how-to/index.md").read_text()
    for page in DOCS.glob("how-to/*.md"):
        assert len(page.read_text().split()) <= 600, page.name
        assert page.name == "index.md" or f"({page.name})" in index


def test_every_public_name_is_in_the_reference() -> None:
    listed = re.findall(r"^::: (\S+)", (DOCS / "reference/python.md").read_text(), re.MULTILINE)
    names = {name.rpartition(".")[2] for name in listed}
    assert set(probekit.__all__) <= names
    homes = {name: getattr(probekit, name).__module__ for name in probekit.__all__}
    assert {f"{home}.{name}" for name, home in homes.items()} <= set(listed)


def test_what_a_browser_fetches_is_seen() -> None:
    """The control of the test of the built site."""
    assert FETCHED.search('<script src="https://cdn.example/x.js"></script>')
    assert FETCHED.search('<link rel="stylesheet" href="//fonts.example/x.css">')
    assert FETCHED.search("@import url(https://fonts.example/x.css)")
    assert not FETCHED.search('<a href="https://arxiv.org/abs/2312.09390">')
    assert not FETCHED.search('<link rel="canonical" href="https://x.example/">')


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_as_they_were_executed(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not re.search(r"/(home|root|tmp|work)/", path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    """Their code as it stands, on fewer rows."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    small, n_found = re.subn(r"^N = \d+", "N = 300", code, flags=re.MULTILINE)
    assert n_found == 1
    # What IPython does with a line for the shell.
    shell = r'import subprocess; subprocess.run(f"""\1""", shell=True, check=True)'
    small = re.sub(r"^!(.*)$", shell, small, flags=re.MULTILINE)
    path_of_scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "PATH": path_of_scripts}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", small],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_site_builds_strictly_and_links_and_loads_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 10
    for page in [*pages, *tmp_path.rglob("*.css")]:
        found = FETCHED.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.name}: {found}"
    assert dead_links(tmp_path) == []
    # A table with a class does not scroll, and makes its page wider than a phone.
    assert 'class="dataframe"' not in (tmp_path / "tutorials/find-wrong-labels.html").read_text()
    assert (tmp_path / "tutorials/find-wrong-labels.html").is_file()
    assert list(tmp_path.glob("tutorials/*.png"))
