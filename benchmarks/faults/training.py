"""Train one planned run, and keep what the judge must know beside the recording."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from faults import library_trainer
from faults.healthy import HEALTHY
from faults.plan import PlannedRun
from faults.registry import FAULTS
from faults.witness import Witness

Manifest = dict[str, Any]
"""What is known of a finished run: the planned run's fields, `key`, `fingerprint`, `run_id`, `crashed` (the error, or
None), `seconds`, `cpu_seconds` and `witness` (rows by update)."""


def train_run(run: PlannedRun, out: Path) -> Manifest:
    """Train it, unless it is there already, and return its manifest."""
    finished = manifest_of(run, out)
    if finished is not None:
        return finished
    root = out / "unfinished" / run.key
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    began, cpu_began = time.perf_counter(), time.process_time()
    witness, error = _train(run, root)
    if error is not None and not run.faulty:
        raise RuntimeError(f"The healthy run {run.key} failed.") from error
    folders = [path for path in root.iterdir() if (path / "run.json").exists()]
    if len(folders) != 1:
        raise RuntimeError(f"{run.key} recorded {len(folders)} runs, not one.") from error
    (out / "runs").mkdir(exist_ok=True)
    folder = folders[0].rename(out / "runs" / folders[0].name)
    root.rmdir()
    manifest: Manifest = asdict(run) | {
        "key": run.key,
        "fingerprint": run.fingerprint(),
        "run_id": folder.name,
        "crashed": None if error is None else f"{type(error).__name__}: {error}"[:500],
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - cpu_began, 2),
        "witness": witness,
    }
    _write(out, manifest)
    return manifest


def manifest_of(run: PlannedRun, out: Path) -> Manifest | None:
    """The manifest of a run that was finished as it is planned now; None if it has to be trained."""
    try:
        manifest: Manifest = json.loads(_path(out, run.key).read_text())
    except (FileNotFoundError, ValueError):
        return None
    recorded = out / "runs" / manifest["run_id"]
    if manifest["fingerprint"] == run.fingerprint() and (recorded / "run.json").exists():
        return manifest
    shutil.rmtree(recorded, ignore_errors=True)
    return None


def manifests(out: Path) -> list[Manifest]:
    """The manifests of all finished runs whose recording is there."""
    found: list[Manifest] = [json.loads(path.read_text()) for path in sorted((out / "manifest").glob("*.json"))]
    return [manifest for manifest in found if (out / "runs" / manifest["run_id"] / "run.json").exists()]


def _train(run: PlannedRun, root: Path) -> tuple[list[dict[str, Any]], Exception | None]:
    """Train; the witness's rows, and the error if the training failed."""
    settings = run.settings
    seams = (FAULTS if run.faulty else HEALTHY)[run.name].seams
    seen: list[Witness] = []
    library = None if run.faulty else HEALTHY[run.name].library
    try:
        if library is not None:
            library_trainer.train(library, run.task, settings, run.seed, root)
        else:
            trainer = importlib.import_module(f"faults.{run.trainer}_trainer")
            trainer.train(run.task, settings, run.seed, seams, run.onset, root, seen.append)
    except Exception as error:
        return (seen[0].as_dicts() if seen else []), error
    return (seen[0].as_dicts() if seen else []), None


def _path(out: Path, key: str) -> Path:
    return out / "manifest" / f"{key}.json"


def _write(out: Path, manifest: Manifest) -> None:
    path = _path(out, manifest["key"])
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(manifest))
    os.replace(new, path)
