from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from probekit.tasks import hub, registry

HubFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """Forget the tasks that a test registered."""
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)


@pytest.fixture(autouse=True)
def _nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what was read of the hub, and any folder that stands for it."""
    monkeypatch.delenv(hub.DATASETS_VARIABLE, raising=False)
    hub._read.cache_clear()
    hub._items.cache_clear()


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubFolder:
    """Function that writes rows where PROBEKIT_DATASETS stands for the hub."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "hub"
    monkeypatch.setenv(hub.DATASETS_VARIABLE, str(root))

    def write(name: str, config: str | None = None, **splits: Sequence[dict[str, Any]]) -> Path:
        folder = root / name / (config or "data")
        folder.mkdir(parents=True)
        for split, rows in splits.items():
            pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"{split}.parquet")
        return root / name

    return write
