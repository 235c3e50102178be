"""Where the tests are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: The checkout.
ROOT: Final = Path(__file__).resolve().parents[2]
