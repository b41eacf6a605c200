"""What MkDocs does not do by itself (its hooks): notebooks as pages, and Sphinx roles as code."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):(?=<code>)")


def on_files(files: Files, config: Any) -> Files:
    """Put a Markdown page and its pictures in the place of each notebook, as it was executed."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        body, resources = MarkdownExporter().from_filename(notebook.abs_src_path)
        page = PurePosixPath(notebook.src_uri).with_suffix(".md")
        body = body.replace('<table border="1" class="dataframe">', "<table>")  # as other tables
        files.remove(notebook)
        for name, picture in resources["outputs"].items():
            renamed = f"{page.stem}-{name}"
            body = body.replace(f"]({name})", f"]({renamed})")
            files.append(File.generated(config, str(page.with_name(renamed)), content=picture))
        files.append(File.generated(config, str(page), content=body))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Leave ``:func:`` and the like out, which docstrings have for readers of the source."""
    return ROLE.sub("", html)
