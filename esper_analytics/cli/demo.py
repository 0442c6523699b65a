"""`esper demo`: two real PPO runs, recorded, replayed with other thresholds, and reported.

The trainer runs in a process of its own (`python -m esper_recorder.demo`), so nothing here loads torch. The runs of the
demo before, listed in `DIR/demo.json`, are replaced; other runs in `DIR/runs` are left alone.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import polars as pl

from esper_analytics.detection.replay import Result, diff, replay
from esper_analytics.errors import DataError, UsageError
from esper_analytics.formatting import listed
from esper_analytics.postmortem.render import report
from esper_analytics.runs import open as open_runs
from esper_recorder.contract.rules.model import Rule

NEEDS: Final = ("torch", "stable_baselines3", "gymnasium")
CHANGED: Final = {"ratio_explosion.above": 3.0}
"""The other threshold that is tried."""

Progress = Callable[[str, int, int], None]


def record(out: Path, progress: Progress, *, command: Iterable[str] | None = None) -> list[str]:
    """Record the demo's runs into `out/runs`, in place of those of the demo before.

    Args:
        out: the demo's folder; made where it is not there.
        progress: called with the run's name, the steps done and the steps to do.
        command: what records, without `--out DIR`.

    Returns:
        The run_ids.

    Raises:
        UsageError: the trainer's libraries are not installed, or `out` cannot be written.
        DataError: the training failed.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None] if command is None else []
    if missing:
        raise UsageError(
            f"The demo trains with {listed(NEEDS)}; not installed here: {listed(missing)}. "
            "They come with: pip install 'esper-analytics[demo]'."
        )
    runs = out / "runs"
    listing = out / "demo.json"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        before = {path.name for path in runs.iterdir()}
        earlier = _listed(listing)
        try:
            _train([*(command or (sys.executable, "-m", "esper_recorder.demo")), "--out", str(runs)], progress)
        finally:
            # Also after an interrupt: the next demo then replaces what this one left half done.
            recorded = sorted({path.name for path in runs.iterdir() if (path / "run.json").exists()} - before)
            listing.write_text(json.dumps({"runs": sorted({*earlier, *recorded})}) + "\n", encoding="utf-8")
        for name in earlier:
            if (runs / name / "run.json").is_file():
                shutil.rmtree(runs / name, ignore_errors=True)
        listing.write_text(json.dumps({"runs": recorded}) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{error.filename or out} cannot be written: {error.strerror or error}.") from error
    if not recorded:
        raise DataError(f"The training ended without a run in {runs}.")
    return recorded


def evaluate(out: Path, run_ids: list[str]) -> tuple[Result, Result]:
    """Replay the runs with the thresholds they ran with and with `CHANGED`, and write `out/report.html`."""
    runs = open_runs(out / "runs")
    everything = sorted(runs.ids) == sorted(run_ids)
    chosen = runs if everything else runs.only(run_ids)
    shipped = replay(chosen)
    report(shipped, out / "report.html")
    return shipped, replay(chosen, values=CHANGED)


def differences(shipped: Result, changed: Result) -> pl.DataFrame:
    """What the changed threshold changes: a row per run with how often its rule fires, and first, with each."""
    (path, value), *_ = CHANGED.items()
    name = path.partition(".")[0]
    rule = next(rule for rule in shipped.rules.rules if rule.name == name)
    change = diff(shipped, changed)
    rows = []
    for run_id in shipped.rules_by_run:
        both = [_fired(result, run_id, name) for result in (shipped, changed)]
        own = change.filter((pl.col("run_id") == run_id) & (pl.col("change") == "new"))
        rows.append((shipped.runs.manifest(run_id).name, *both, own.height))
    return pl.DataFrame(
        rows,
        schema=["run", f"{name} above {_number(rule)}", f"{name} above {value:g}", "new firings"],
        orient="row",
    )


def next_commands(out: Path) -> list[str]:
    """What to try next, as lines to copy."""
    esper, runs = _esper(), shlex.quote(str(out / "runs"))
    (path, value), *_ = CHANGED.items()
    figure = shlex.quote(str(out / "wrecked.png"))
    return [
        f"{esper} replay {runs} --run wrecked --set {path}={value:g} --against default",
        f'{esper} sql {runs} "SELECT run_id, max(ratio_max), max(approx_kl) FROM ppo_updates GROUP BY 1"',
        f"{esper} plot {runs} --run wrecked -o {figure}",
        f"{esper} report {runs} --rules seeds --against default -o {shlex.quote(str(out / 'seeds.html'))}",
    ]


def _train(command: list[str], progress: Progress) -> None:
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    match line.split():
                        case [name, done, total] if done.isdigit() and total.isdigit():
                            progress(name, int(done), int(total))
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            said = [line.strip() for line in errors if line.strip()]
            raise DataError(f"The training ended with exit status {process.returncode}: {said[-1] if said else '?'}")


def _listed(listing: Path) -> list[str]:
    """The folders of the demo before; nothing where its list is not there or is not one."""
    try:
        names = list(json.loads(listing.read_text(encoding="utf-8"))["runs"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []
    # It says what to delete: only what is the plain name of a folder in `runs` will do.
    return [name for name in names if isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name, flags=re.ASCII)]


def _fired(result: Result, run_id: str, rule: str) -> str:
    updates = result.firings.filter((pl.col("run_id") == run_id) & (pl.col("rule") == rule)).get_column("update")
    return f"{updates.len()} updates, first {min(updates)}" if updates.len() else "never"


def _number(rule: Rule) -> str:
    threshold = rule.conditions[0].threshold
    return "?" if threshold is None or threshold.number is None else f"{threshold.number:g}"


def _esper() -> str:
    """How this shell starts `esper`: by its name where that finds this installation, else by its path."""
    own = Path(sys.executable).with_name("esper")
    found = shutil.which("esper")
    if not own.exists() or (found is not None and Path(found).resolve() == own.resolve()):
        return "esper"
    return shlex.quote(str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own))
