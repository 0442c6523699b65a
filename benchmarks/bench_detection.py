"""How well rules find known faults: recall, latency, false incidents, and causes where there is a diagnosis.

    python benchmarks/bench_detection.py ../fault-runs [--rules default] [--half held-out] [--dry]
    python benchmarks/bench_detection.py ../fault-runs --diagnose package.module:function

The runs are those of `benchmarks/train_faults.py`; only those of one half are judged. A run whose fault was not
injected, by its proof, is left out and counted. `--diagnose` names a function that takes an `esper_analytics.Runs` of
one run and returns the names of its likely causes, the likeliest first; without one, the first rule that fired is
reported beside the true cause. `--dry` writes no result.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from faults.judging import Incident, JudgedRun, by_class, confusion, judge, summary
from faults.proving import prove
from faults.training import Manifest, manifests
from results_file import write_result

import esper_analytics as ea

Incidents = Mapping[str, Sequence[Incident]]
Diagnose = Callable[[ea.Runs], Sequence[str]]


def incidents_by_run(runs: ea.Runs, rules: str) -> dict[str, list[Incident]]:
    """What a profile or rules file says of the runs."""
    found: dict[str, list[Incident]] = defaultdict(list)
    for row in ea.replay(runs, rules).incidents.iter_rows(named=True):
        found[row["run_id"]].append(Incident(row["rule"], row["key"] or "", row["severity"], row["onset_update"]))
    return found


def load_diagnosis(name: str | None) -> Diagnose | None:
    """The function named `package.module:function`."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    diagnose: Diagnose = getattr(importlib.import_module(module), function)
    return diagnose


def judge_all(
    known: Sequence[Manifest],
    half: str,
    out: Path,
    incidents: Incidents,
    diagnose: Diagnose | None,
) -> tuple[list[JudgedRun], list[str]]:
    """Judge the faulty runs of a half; also the keys of those that could not be, with why."""
    by_key = {manifest["key"]: manifest for manifest in known}
    judged: list[JudgedRun] = []
    left_out: list[str] = []
    for manifest in known:
        if not manifest["faulty"] or manifest["half"] != half:
            continue
        control = by_key.get(manifest["control"])
        if control is None:
            left_out.append(f"{manifest['key']}: there is no control {manifest['control']}")
            continue
        verdict = prove(manifest, control, out)
        if not verdict.proven:
            left_out.append(f"{manifest['key']}: {verdict.problem}")
            continue
        causes = None if diagnose is None else diagnose(ea.open(out / "runs" / manifest["run_id"]))
        said, usual = incidents.get(manifest["run_id"], ()), incidents.get(control["run_id"], ())
        judged.append(judge(manifest, control, said, usual, causes))
    return judged, left_out


def healthy_counts(
    known: Sequence[Manifest], half: str, runs: ea.Runs, incidents: Incidents
) -> dict[str, list[tuple[int, int]]]:
    """(incidents, updates) of each healthy run of a half, by severity."""
    updates = dict(runs.list().select("run_id", "updates").iter_rows())
    chosen = [m["run_id"] for m in known if not m["faulty"] and m["half"] == half]
    return {
        severity: [(sum(i.severity == severity for i in incidents.get(r, ())), updates[r]) for r in chosen]
        for severity in ("critical", "warning", "info")
    }


def main() -> int:
    """Judge, print and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder that train_faults.py wrote")
    parser.add_argument("--rules", default="default", help="profile or rules file")
    parser.add_argument("--half", default="held-out", choices=("held-out", "training"))
    parser.add_argument("--diagnose", metavar="MODULE:FUNCTION", help="what names the causes of a run")
    parser.add_argument("--dry", action="store_true", help="write no result")
    arguments = parser.parse_args()
    out: Path = arguments.out
    known = manifests(out)
    if not known:
        print(f"There are no finished runs in {out}. Train them: python benchmarks/train_faults.py --out {out}")
        return 1
    runs = ea.open(out / "runs")
    incidents = incidents_by_run(runs, arguments.rules)
    diagnose = load_diagnosis(arguments.diagnose)
    judged, left_out = judge_all(known, arguments.half, out, incidents, diagnose)
    healthy = healthy_counts(known, arguments.half, runs, incidents)
    harmful = [run for run in judged if run.harmful]
    rows: list[dict[str, Any]] = [*summary(judged, healthy), *by_class(judged), *confusion(harmful)]
    for row in rows:
        print(json.dumps(row))
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    settings = {
        "rules": arguments.rules,
        "half": arguments.half,
        "diagnosis": arguments.diagnose or "none",
        "faulty runs": len(judged),
        "left out": len(left_out),
        "healthy runs": len(healthy["critical"]),
        "healthy updates": sum(updates for _, updates in healthy["critical"]),
    }
    print(json.dumps(settings) if arguments.dry else write_result("detection", settings, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
