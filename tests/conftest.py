"""What holds for all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """Compiled programs are kept for the session, and nothing in the machine's own cache."""
    before = os.environ.get("AGENTTOP_CACHE")
    with tempfile.TemporaryDirectory(prefix="agenttop-cache-") as folder:
        os.environ["AGENTTOP_CACHE"] = folder
        yield
    if before is None:
        del os.environ["AGENTTOP_CACHE"]
    else:
        os.environ["AGENTTOP_CACHE"] = before
