"""What tests of several packages share."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""
DATA = ROOT / "tests" / "data"
GOLDEN = ROOT / "tests" / "golden"
