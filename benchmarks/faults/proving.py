"""Was the fault injected? Its proof, evaluated on the recorded run, its witness and its control.

Three things are checked: the proof holds within a few updates of the onset; it does not hold in the control; and
before the onset both trained alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

import esper_analytics as ea
from esper_recorder.contract.tables.registry import column_names
from faults.fault_class import WITNESS, Proof
from faults.registry import FAULTS
from faults.training import Manifest
from faults.witness import COLUMNS


@dataclass(frozen=True)
class Verdict:
    """What the proof found.

    Attributes:
        proven: the fault was injected.
        value: the value of the faulty run that is furthest beyond.
        needed: what it was compared with.
        problem: why not, if not.
    """

    proven: bool
    value: float | None
    needed: float
    problem: str = ""


def prove(manifest: Manifest, control: Manifest, out: Path) -> Verdict:
    """Evaluate the proof of a faulty run."""
    proof, onset = FAULTS[manifest["name"]].proof, int(manifest["onset"])
    updates = range(onset, onset + proof.within)
    found, healthy = (_values(each, proof, updates, out) for each in (manifest, control))
    high = proof.relation == ">"
    pick = max if high else min
    if not found or not healthy:
        which = "run" if not found else "control"
        return Verdict(False, None, math.nan, f"the {which} has no value of {proof.expression} after the onset")
    value, usual = pick(found), pick(healthy)
    needed = proof.value * usual if proof.of_control else proof.value
    if not _holds(value, high, needed):
        return Verdict(False, value, needed, "the proof does not hold after the onset")
    if not proof.of_control and _holds(usual, high, needed):
        return Verdict(False, value, needed, "the proof holds in the control too")
    for update in range(1, onset):
        if manifest["witness"][update - 1] != control["witness"][update - 1]:
            return Verdict(False, value, needed, f"update {update}, before the onset, differs from the control's")
    return Verdict(True, value, needed)


def columns_of(proof: Proof) -> tuple[set[str], set[str]]:
    """The columns that a proof reads, and those that its source has."""
    read = set(pl.sql_expr(proof.expression).meta.root_names())
    if proof.source == WITNESS:
        return read, set(COLUMNS)
    return read, set(column_names(proof.source))


def _holds(value: float, high: bool, needed: float) -> bool:
    return value > needed if high else value < needed


def _values(manifest: Manifest, proof: Proof, updates: range, out: Path) -> list[float]:
    if proof.source == WITNESS:
        rows: list[dict[str, Any]] = manifest["witness"]
        frame = pl.LazyFrame(rows, infer_schema_length=None)
    else:
        frame = ea.open(out / "runs" / manifest["run_id"]).table(proof.source)
    frame = frame.filter(pl.col("update").is_in(list(updates)))
    if proof.first:
        frame = frame.filter(pl.col("minibatch") == 1)
    values = frame.select(pl.sql_expr(proof.expression).cast(pl.Float64).alias("value")).collect().get_column("value")
    return [value for value in values.to_list() if value is not None and not math.isnan(value)]
