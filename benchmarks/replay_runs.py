"""Synthetic runs for the benchmarks of replay, written as the recorder writes them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from esper_recorder.contract.rules.ruleset import load_profile
from esper_recorder.contract.tables import SCHEMA_VERSION, columns
from esper_recorder.storage.manifest import Attempt, Manifest, write_manifest
from esper_recorder.storage.parquet import arrow_schema, write_part

HEADS = ("slot", "blueprint", "style", "tempo", "alpha_target", "alpha_speed", "alpha_curve", "op")
LAYERS = ("policy.0.weight", "policy.0.bias", "value.0.weight", "value.0.bias")
UPDATES_PER_PART = 100_000
STARTED = datetime(2026, 1, 1, tzinfo=UTC)
IDENTITY = frozenset({"attempt", "rank", "update", "time", "elapsed_s"})

Columns = Mapping[str, Any]


def esper_run(root: Path, name: str, updates: int) -> None:
    """Write a run with eight heads, a gradient norm and the state of an LSTM, and about 1.5 firings per update."""

    def rows(first: int, count: int, rng: np.random.Generator) -> dict[str, tuple[int, Columns]]:
        bad = rng.random(count) < 0.1
        ends = np.concatenate([[0], np.cumsum(bad)]).astype(np.int32)
        own = {
            "ratio_max": 1 + rng.lognormal(-1, 0.6, count),
            "ratio_min": np.minimum(1, rng.lognormal(-0.3, 0.5, count)),
            "value_loss": rng.lognormal(0, 0.8, count),
            "bellman_error": rng.lognormal(0, 0.5, count),
            "unforced_steps": rng.integers(0, 60, count).astype(float),
            "grad_norm_clipped": rng.lognormal(1, 0.4, count),
            "nonfinite_fields": pa.ListArray.from_arrays(pa.array(ends), repeated(["explained_variance"], bad.sum())),
        }
        states = {
            "layer": repeated(["rollout_lstm", "rollout_lstm", "rollout_lstm", "lstm"], count),
            "kind": repeated(["h", "c", "", ""], count),
            "rms": rng.lognormal(0, 0.5, 4 * count),
            "env_rms_max": rng.lognormal(0, 1, 4 * count),
            "nan_found": np.zeros(4 * count, bool),
            "inf_found": np.zeros(4 * count, bool),
        }
        heads = {"head": repeated(HEADS, count), "entropy_normalized_all": rng.beta(1, 8, 8 * count)}
        return {"ppo_updates": (1, own), "heads": (len(HEADS), heads), "recurrent_state": (4, states)}

    write_run(root, name, updates, rows)


def plain_run(root: Path, name: str, updates: int) -> None:
    """Write a healthy run with every table that `default` reads: 4 minibatches, 4 layers and 2 episodes per update."""
    read = load_profile("default").tables

    def rows(first: int, count: int, rng: np.random.Generator) -> dict[str, tuple[int, Columns]]:
        tables: dict[str, tuple[int, Any]] = {}
        for table, per_update in (("ppo_updates", 1), ("minibatches", 4), ("gradient_layers", 4), ("episodes", 2)):
            height = per_update * count
            filled: dict[str, Any] = {}
            for column in columns(table):
                if column.name in read.get(table, frozenset()) - IDENTITY:
                    match column.type:
                        case "float64":
                            filled[column.name] = healthy(column.name, rng, height)
                        case "int64":
                            filled[column.name] = np.full(height, 2048 if column.name == "n" else 0)
                        case "bool":
                            filled[column.name] = np.zeros(height, bool)
            tables[table] = (per_update, filled)
        minibatches, layers, episodes = (tables[table][1] for table in ("minibatches", "gradient_layers", "episodes"))
        minibatches["minibatch"] = np.tile(np.arange(1, 5), count)
        for name in ("ratio_max", "ratio_min"):
            minibatches[name][::4] = 1.0  # the first is evaluated with the policy that acted
        layers |= {"layer": repeated(LAYERS, count), "minibatch": np.full(4 * count, 4)}
        episodes |= {"env": np.tile([0, 1], count), "episode": np.repeat(np.arange(first, first + count), 2)}
        return tables

    write_run(root, name, updates, rows)


def healthy(column: str, rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Draw the numbers of a healthy run."""
    if column.startswith("entropy"):
        return rng.beta(20, 20, count)
    if column.startswith("ratio_m"):
        return 1 + rng.lognormal(-3, 0.3, count) * (1 if column == "ratio_max" else -1)
    if column in ("target_kl", "clip_range"):
        return np.full(count, 0.02 if column == "target_kl" else 0.2)
    if column in ("explained_variance", "episode_return", "return_mean", "return_std", "grad_norm"):
        return 0.8 + rng.normal(0, 0.02, count)
    return rng.lognormal(-5, 0.2, count)


def write_run(root: Path, name: str, updates: int, rows: Any) -> None:
    """Write a run from a function that makes the columns of consecutive updates: (first, count, rng) -> tables."""
    run_id = f"{name}-20260101T000000Z-abc123"
    path = root / run_id
    rng = np.random.default_rng(list(name.encode()))
    for seq, first in enumerate(range(1, updates + 1, UPDATES_PER_PART), 1):
        count = min(UPDATES_PER_PART, updates - first + 1)
        numbers = np.arange(first, first + count)
        for table, (per_update, own) in rows(first, count, rng).items():
            update = np.repeat(numbers, per_update)
            filled = {
                "run_id": repeated([run_id], len(update)),
                "attempt": np.ones(len(update), np.int64),
                "rank": np.zeros(len(update), np.int64),
                "update": update,
                "time": pa.array(1_767_225_600_000_000 + update * 1_000_000, pa.timestamp("us", tz="UTC")),
                "elapsed_s": update.astype(float),
                **own,
            }
            if table == "ppo_updates":
                filled |= {"definition": repeated(["pooled"], count), "progress": update / updates}
            part = path / table / f"part-a1-r0-{seq:06d}.parquet"
            write_part(part, table, _arrow(table, filled, len(update)), durable=False)
    attempt = Attempt(started=STARTED, ended=STARTED + timedelta(days=1), how="finished", updates=updates)
    manifest = Manifest(run_id, name, STARTED, definition="pooled", attempts=(attempt,), schema_version=SCHEMA_VERSION)
    write_manifest(path, manifest)


def repeated(texts: Any, times: int) -> pa.Array:
    """Repeat the texts."""
    places = pa.array(np.tile(np.arange(len(texts), dtype=np.int32), int(times)))
    return pa.DictionaryArray.from_arrays(places, pa.array(list(texts))).cast(pa.string())


def _arrow(table: str, filled: Columns, height: int) -> pa.Table:
    arrays = []
    for field in (schema := arrow_schema(table)):
        value = filled.get(field.name)
        if value is None:
            arrays.append(pa.nulls(height, field.type))
        else:
            arrays.append(value if isinstance(value, pa.Array) else pa.array(value, field.type))
    return pa.table(arrays, schema=schema)
