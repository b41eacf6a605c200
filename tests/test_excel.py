"""Excel workbooks: values of the first sheet, typed, without running anything."""

from __future__ import annotations

import datetime as dt
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openpyxl import Workbook, load_workbook

import probekit
from probekit.errors import DataError, ProbekitError
from probekit.excel import write_sheet
from probekit.labels import load_labels
from probekit.sources import load_rows
from probekit.tables import read_file


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def make(*sheets: list[list[Any]], name: str = "data.xlsx") -> Path:
        workbook = Workbook()
        workbook.remove(workbook.worksheets[0])
        for number, rows in enumerate(sheets, 1):
            sheet = workbook.create_sheet(f"Sheet{number}")
            for row in rows:
                sheet.append(row)
        workbook.save(tmp_path / name)
        return tmp_path / name

    return make


def test_rows_and_labels_are_read_with_their_types(save: Callable[..., Path]) -> None:
    path = save(
        [
            ["id", " text ", "label", "checked", "day", None],
            [1, "It broke.", "bad", True, dt.datetime(2026, 1, 2), None],
            [],
            [2.0, "Fine\nagain.", "good", False, None, None],
            [None, None],
        ]
    )
    table = read_file(path)
    assert dict(table.columns) == {
        "id": [1, 2],
        "text": ["It broke.", "Fine\nagain."],
        "label": ["bad", "good"],
        "checked": [True, False],
        "day": [dt.datetime(2026, 1, 2), None],
    }
    assert table.note == ""
    labels, rows = load_labels(path), load_rows(path)
    assert list(labels.ids) == rows.ids == ["1", "2"]
    assert labels.hard.tolist() == [0, 1]
    assert load_labels(path, label_column="checked").hard.tolist() == [1, 0]


def test_of_several_sheets_the_first_is_read_and_all_are_named(save: Callable[..., Path]) -> None:
    path = save([["text"], ["x"]], [["text"], ["y"]], [])
    table = read_file(path)
    assert table.columns["text"] == ["x"]
    assert table.note == (
        f"{path} has 3 sheets ('Sheet1', 'Sheet2', 'Sheet3'); the first, 'Sheet1', is read."
    )
    empty = save([], [["text"], ["y"]])
    with pytest.raises(
        DataError, match=r"2 sheets .*and the first, 'Sheet1', is empty; put the ta"
    ):
        read_file(empty)


def test_a_formula_has_the_value_that_was_stored(tmp_path: Path) -> None:
    """openpyxl cannot store a value with a formula, so one is put into its XML."""
    workbook = Workbook()
    for row in (["text", "label"], ["x", "=1+1"], ["y", "=1+2"]):
        workbook.worksheets[0].append(row)
    buffer = io.BytesIO()
    workbook.save(buffer)
    path = tmp_path / "data.xlsx"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, part.replace(b"<f>1+1</f><v />", b"<f>1+1</f><v>7</v>"))
    assert read_file(path).columns["label"] == [7, None]


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "=HYPERLINK('x')",
        "#N/A",
        "\x07 bell",
        "a\r\nb\tc",
        "_x000D_",
        "\ud800",
        " blanks ",
        "ä😀",
        "1",
        "TRUE",
    ],
)
def test_texts_are_written_as_texts_and_come_back(text: str, tmp_path: Path) -> None:
    path = tmp_path / "data.xlsx"
    with path.open("wb") as file:
        write_sheet(["text", "n"], [[text, 1], ["other", None]], file)
    assert read_file(path).columns["text"] == [text, "other"]
    with path.open("rb") as file:
        cell = load_workbook(file).worksheets[0]["A2"]
        assert cell.data_type != "f"


def test_without_openpyxl_one_sentence_says_what_to_install(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save([["text"], ["x"]])
    monkeypatch.setattr("probekit.extras.find_spec", lambda _: None)
    with pytest.raises(ProbekitError, match=r"openpyxl.*`pip install 'probekit-w2s\[excel\]'`"):
        read_file(path)


def test_what_is_no_workbook_is_one_sentence(save: Callable[..., Path], tmp_path: Path) -> None:
    whole = save([["text", "label"], *([f"text {i}", i % 2] for i in range(50))]).read_bytes()
    damaged = tmp_path / "damaged.xlsx"
    rng = np.random.default_rng(0)
    refused = 0
    for turn in range(60):
        data = bytearray(whole[: int(rng.integers(100, len(whole)))] if turn % 3 == 0 else whole)
        for place in rng.integers(0, len(data), 0 if turn % 3 == 0 else 20).tolist():
            data[place] = int(rng.integers(256))
        damaged.write_bytes(bytes(data))
        try:
            read_file(damaged)
        except DataError:
            refused += 1
    assert refused > 40
    damaged.write_text("id,label\n1,2\n")
    with pytest.raises(DataError, match="not an Excel file: it does not begin as one"):
        read_file(damaged)
    damaged.write_bytes(b"\xd0\xcf\x11\xe0rest")
    with pytest.raises(DataError, match=r"or one with a password; save the table as \.xlsx or CSV"):
        read_file(damaged)
    with zipfile.ZipFile(tmp_path / "table.ods", "w") as archive:
        archive.writestr("content.xml", "<a/>")
    with pytest.raises(DataError, match=r"a spreadsheet that is not \.xlsx"):
        read_file(tmp_path / "table.ods")


def test_clean_writes_a_workbook_beside_the_lines(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    words = {"good": "red sweet apple", "bad": "loud fast engine"}
    names = [*words]
    rows = [[f"={words[names[i % 2]]} {i}", names[i % 2], i + 0.5] for i in range(60)]
    path = tmp_path / "data.xlsx"
    with path.open("wb") as file:
        write_sheet(["review", "stars", "price"], rows, file)
    result = probekit.clean(
        path, model=str(tiny_model("bert")), output=tmp_path / "out", action="filter"
    )
    table = read_file(result.files["train.xlsx"])
    train = list(result.records())
    assert len(train) == 48
    for name in ("review", "stars", "price", "label", "weight"):
        assert table.columns[name] == [row[name] for row in train]
    assert table.columns["review"][0].startswith("=")
