from __future__ import annotations

from collections.abc import Iterator

import pytest

from probekit.tasks import registry


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """Forget the tasks that a test registered."""
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)
