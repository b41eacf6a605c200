"""Links between the repository's pages go somewhere: files and headings, on GitHub and the site."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def headings(path: Path) -> list[str]:
    """Text of each heading, without marks of links and code."""
    text = re.sub(r"^```.*?^```$", "", text_of(path), flags=re.DOTALL | re.MULTILINE)
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return [heading.replace("`", "").strip() for heading in HEADING.findall(plain)]


def numbered(slugs: list[str], mark: str) -> set[str]:
    """Anchors of a page: those of equal headings are numbered."""
    seen: dict[str, int] = {}
    result = set()
    for slug in slugs:
        result.add(f"{slug}{mark}{seen[slug]}" if slug in seen else slug)
        seen[slug] = seen.get(slug, 0) + 1
    return result


def on_github(path: Path) -> set[str]:
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings(path)]
    return numbered([heading.replace(" ", "-") for heading in plain], "-")


def on_the_site(path: Path) -> set[str]:
    """As Python-Markdown's ``slugify``."""
    plain = [
        unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        for heading in headings(path)
    ]
    slugs = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in plain]
    return numbered([re.sub(r"[-\s]+", "-", slug) for slug in slugs], "_")


def broken(path: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    result = []
    for link in LINK.findall(CODE.sub("", text_of(path))):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = (path.parent / place).resolve() if place else path
        notebook = target.with_suffix(".ipynb")  # a page of the site
        if not target.exists() and not notebook.exists():
            result.append(link)
        elif anchor:
            anchors = on_github(target)
            # Pages of the site are read in both places.
            if path.is_relative_to(ROOT / "docs"):
                anchors &= on_the_site(target)
            if anchor not in anchors:
                result.append(link)
    return result


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_go_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_a_link_that_goes_nowhere_is_found(tmp_path: Path) -> None:
    """The control."""
    (tmp_path / "other.md").write_text("# One: `two`\n\n# Same\n\n# Same\n")
    page = tmp_path / "page.md"
    links = ["other.md", "other.md#one-two", "other.md#same-1", "#here", "https://x.example/y"]
    wrong = ["no.md", "other.md#two", "other.md#same_1", "#there", "../other.md"]
    page.write_text("# Here\n\n" + "\n".join(f"[a]({link})" for link in links + wrong))
    assert broken(page) == wrong
