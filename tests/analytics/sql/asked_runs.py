"""The runs that named queries and views are tested on, and their values taken straight from the files."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import polars as pl
import pytest

from tests.esper_files import ALL_KINDS, EXCERPTS, events

NEW, OLD = (next(path for path in EXCERPTS if date in path.name) for date in ("2026-06", "2025-12"))
ALL_NEW, ALL_OLD = (next(path for path in ALL_KINDS if date in path.name) for date in ("2026-06", "2025-12"))
COMPONENTS = (
    *("bounded_attribution", "compute_rent", "occupancy_rent", "fossilized_rent", "alpha_shock", "blending_warning"),
    *("holding_warning", "stage_bonus", "pbrs_bonus", "synergy_bonus", "action_shaping", "terminal_bonus"),
    *("fossilize_terminal_bonus", "hindsight_credit", "ratio_penalty", "escrow_forfeit", "drip_this_epoch"),
    "drip_immediate_bonus",
)


def run_of(runs, path):
    [run_id] = [run_id for run_id in runs.ids if run_id.startswith(path.name.split(".")[0])]
    return run_id


def data_of(path, kind):
    return [event["data"] for event in events(path) if event["event_type"] == kind]


def rows(runs, table="ppo_updates"):
    """The rows of a table, straight from its Parquet files, by run."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run_id in runs.ids:
        for part in sorted((runs.folder(run_id) / table).glob("part-*.parquet")):
            found[run_id] += pl.read_parquet(part).to_dicts()
    assert found, f"nothing was recorded of {table}"
    return found


def near(value):
    return pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True)


def raised(path):
    """The kind of each alarm that the trainer raised."""
    return [event["data"]["anomaly_type"] for event in events(path) if "anomaly_type" in (event["data"] or {})]


def rewards_of(path):
    """The reward breakdown of each step, as the trainer reported it, in one place or in another."""
    found = []
    for d in data_of(path, "ANALYTICS_SNAPSHOT"):
        if d["kind"] == "last_action":
            found.append(d.get("reward_components") or d)
    return found
