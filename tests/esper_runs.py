"""Runs that Esper's own trainer recorded (events as JSON lines, compressed), as tables of this project.

Only what the rules of the profiles `esper-*` read is mapped, by meaning: what Esper calls `grad_norm` is measured after
clipping, its `entropy` is a weighted sum over heads. A key that is not in an event is NULL.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.builders import write_run

DATA = Path(__file__).parent / "data"
PROFILES = {"esper_2025-12": "esper-2025-12", "esper_2026-06": "esper-2026-06"}
"""How a file's name begins -> the checks that ran in its trainer."""

_UPDATE = {
    "policy_loss": "policy_loss",
    "value_loss": "value_loss",
    "approx_kl": "kl_divergence",
    "clip_fraction": "clip_fraction",
    "explained_variance": "explained_variance",
    "ratio_min": "ratio_min",
    "ratio_max": "ratio_max",
    "ratio_mean": "ratio_mean",
    "ratio_std": "ratio_std",
    "learning_rate": "lr",
    "entropy_coef": "entropy_coef",
    "entropy_weighted_sum": "entropy",
    "grad_norm": "pre_clip_grad_norm",
    "grad_norm_clipped": "grad_norm",
    "bellman_error": "bellman_error",
    "return_mean": "return_mean",
    "return_std": "return_std",
    "return_variance": "return_variance",
    "return_variance_low": "ev_low_return_variance",
    "unforced_steps": "usable_actor_timesteps",
}
_HEAD = {
    "entropy_normalized_all": "head_{}_entropy",
    "learnable_fraction": "head_{}_learnable_fraction",
    "ratio_max": "head_{}_ratio_max",
    "clip_fraction": "head_{}_clip_fraction",
    "grad_norm": "head_{}_grad_norm",
    "gradient_state": "head_{}_gradient_state",
}
_STATE = {
    "rms": "{}_{}_rms",
    "env_rms_mean": "{}_{}_env_rms_mean",
    "env_rms_max": "{}_{}_env_rms_max",
    "abs_max": "{}_{}_max",
    "l2_norm": "{}_{}_l2_total",
}
_KEYED = ("entropy_collapse", "entropy_nan_inf")

Rows = list[dict[str, Any]]


def events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file; a last line that a killed trainer did not finish is none."""
    lines = pa.input_stream(str(path), compression="zstd").read().decode().split("\n")
    for number, line in enumerate(lines):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            assert number == len(lines) - 1, f"{path.name}, line {number + 1} is no JSON"


def tables(path: Path) -> dict[str, Rows]:
    """Rows of `ppo_updates`, `heads`, `recurrent_state` and, as raised live, `alarms`."""
    found: dict[str, Rows] = {"ppo_updates": [], "heads": [], "recurrent_state": [], "alarms": []}
    episodes = None
    for event in events(path):
        data = event["data"] or {}
        if event["event_type"] == "TRAINING_STARTED":
            episodes = data["n_episodes"]
        elif event["event_type"] == "PPO_UPDATE_COMPLETED":
            progress = event["epoch"] / episodes if episodes else None
            found["ppo_updates"].append(_update(data) | {"definition": "esper", "progress": progress})
            found["heads"] += _heads(data)
            found["recurrent_state"] += _states(data)
        elif "anomaly_type" in data:
            found["alarms"].append(_alarm(data) | {"severity": event["severity"]})
    return found


def write(root: Path, path: Path, profile: str) -> Path:
    """Write the file's run under `root` as the recorder would have, with the rules its trainer ran with."""
    from esper_recorder.contract.rules import load_profile

    rows = tables(path)
    name = path.name.split(".")[0]
    return write_run(root, name, tables=rows, rules=load_profile(profile).text, profile=profile)


def _update(data: dict[str, Any]) -> dict[str, Any]:
    scalars = {name: value for name, value in data.items() if isinstance(value, int | float)}
    nonfinite = sorted(name for name, value in scalars.items() if not math.isfinite(value))
    row = {column: data.get(name) for column, name in _UPDATE.items()}
    return row | {"update": data["batch"], "nonfinite_fields": nonfinite}


def _heads(data: dict[str, Any]) -> Rows:
    names = sorted({match[1] for name in data if (match := re.fullmatch(r"head_(\w+)_entropy", name))})
    rows = []
    for head in names:
        row = {column: data.get(name.format(head)) for column, name in _HEAD.items()}
        for column, name in (("nan_found", "head_nan_detected"), ("inf_found", "head_inf_detected")):
            row[column] = (data.get(name) or {}).get(head)
        rows.append(row | {"update": data["batch"], "head": head})
    return rows


def _states(data: dict[str, Any]) -> Rows:
    rows = []
    for layer in ("lstm", "rollout_lstm"):
        for kind in ("h", "c"):
            row = {column: data.get(name.format(layer, kind)) for column, name in _STATE.items()}
            if any(value is not None for value in row.values()):
                rows.append(row | {"update": data["batch"], "layer": layer, "kind": kind})
        both = {"nan_found": data.get(f"{layer}_has_nan"), "inf_found": data.get(f"{layer}_has_inf")}
        if any(value is not None for value in both.values()):
            rows.append(both | {"update": data["batch"], "layer": layer, "kind": ""})
    return rows


def _alarm(data: dict[str, Any]) -> dict[str, Any]:
    rule, key = data["anomaly_type"], ""
    for keyed in _KEYED:
        if rule.startswith(f"{keyed}_"):
            rule, key = keyed, rule.removeprefix(f"{keyed}_")
    return {"update": data["batch"], "rule": rule, "key": key, "detail": data["detail"]}
