"""`esper demo`: records two real PPO runs, replays them with another threshold and reports them.

The trainer is a child process (`python -m esper_recorder.demo`), so nothing here loads torch. The runs of an earlier
demo, listed in `DIR/demo.json`, are replaced; other runs in `DIR/runs` are left alone.
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

from esper_analytics.detection.diff import diff
from esper_analytics.detection.replay import Result, replay
from esper_analytics.errors import DataError, UsageError, writing
from esper_analytics.formatting import format_list
from esper_analytics.postmortem.render import report
from esper_analytics.runs import open as open_runs

NEEDS: Final = ("torch", "stable_baselines3", "gymnasium")
RULE: Final = "ratio_explosion"
ABOVE: Final = 3.0
CHANGED: Final = {f"{RULE}.above": ABOVE}
"""The other threshold."""

Progress = Callable[[str, int, int], None]


def record(
    out: Path,
    progress: Progress,
    *,
    command: Iterable[str] | None = None,
    on_alarm: Callable[[str], object] = lambda line: None,
) -> list[str]:
    """Record the demo's runs into `out/runs`, in place of an earlier demo's, and return their ids.

    Args:
        out: the demo's folder; created if missing.
        progress: called with the run's name, the steps done and the steps in all.
        command: the command line that records, without `--out DIR`.
        on_alarm: called with each line about an alarm in the trainer's log, when the training is over.

    Raises UsageError if the trainer's libraries are missing or `out` cannot be written, DataError if training fails.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None] if command is None else []
    if missing:
        raise UsageError(
            f"The demo trains with {format_list(NEEDS)}; not installed here: {format_list(missing)}. "
            "They come with: pip install 'esper-analytics[demo]'."
        )
    runs = out / "runs"
    listing = out / "demo.json"
    with writing(out):
        runs.mkdir(parents=True, exist_ok=True)
        before = {path.name for path in runs.iterdir()}
        earlier = _earlier_runs(listing)
        try:
            trainer = command or (sys.executable, "-m", "esper_recorder.demo")
            for line in _train([*trainer, "--out", str(runs)], progress):
                if " alarm " in line:
                    on_alarm(line)
        finally:
            # Also after an interrupt, so that the next demo replaces what this one left half done.
            recorded = sorted({path.name for path in runs.iterdir() if (path / "run.json").exists()} - before)
            listing.write_text(json.dumps({"runs": sorted({*earlier, *recorded})}) + "\n", encoding="utf-8")
        for name in earlier:
            if (runs / name / "run.json").is_file():
                shutil.rmtree(runs / name, ignore_errors=True)
        listing.write_text(json.dumps({"runs": recorded}) + "\n", encoding="utf-8")
    if not recorded:
        raise DataError(f"The training ended without a run in {runs}.")
    return recorded


def evaluate(out: Path, run_ids: list[str]) -> tuple[Result, Result]:
    """Replay the runs with their own thresholds and with `CHANGED`, and write `out/report.html`."""
    runs = open_runs(out / "runs")
    chosen = runs if sorted(runs.ids) == sorted(run_ids) else runs.select(*run_ids)
    shipped = replay(chosen)
    report(shipped, out / "report.html")
    return shipped, replay(chosen, values=CHANGED)


def differences(shipped: Result, changed: Result) -> pl.DataFrame:
    """One row per run: how often the changed rule fires with each threshold, when first, and the new firings."""
    threshold = next(rule for rule in shipped.rules.rules if rule.name == RULE).conditions[0].threshold
    before = "?" if threshold is None or threshold.number is None else f"{threshold.number:g}"
    new = diff(shipped, changed).filter(pl.col("change") == "new")
    rows = []
    for run_id in shipped.rules_by_run:
        firings = [_firings(result, run_id) for result in (shipped, changed)]
        rows.append((shipped.runs.manifest(run_id).name, *firings, new.filter(pl.col("run_id") == run_id).height))
    columns = ["run", f"{RULE} above {before}", f"{RULE} above {ABOVE:g}", "new firings"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def next_commands(out: Path) -> list[str]:
    """Return commands to try next, as lines to copy."""
    esper = _esper()
    runs, figure, review = (shlex.quote(str(out / name)) for name in ("runs", "wrecked.png", "review.html"))
    return [
        f"{esper} replay {runs} --run wrecked --set {RULE}.above={ABOVE:g} --against default",
        f'{esper} sql {runs} "SELECT run_id, max(ratio_max), max(approx_kl) FROM ppo_updates GROUP BY 1"',
        f"{esper} plot {runs} --run wrecked -o {figure}",
        f"{esper} report {runs} --rules esper-review --against default -o {review}",
    ]


def _train(command: list[str], progress: Progress) -> list[str]:
    """Train, and return the lines of the trainer's log."""
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
        errors.seek(0)
        lines = [line.strip() for line in errors if line.strip()]
        if process.returncode:
            raise DataError(f"The training ended with exit status {process.returncode}: {lines[-1] if lines else '?'}")
        return lines


def _earlier_runs(listing: Path) -> list[str]:
    """The run folders of an earlier demo; empty if its list is missing or malformed."""
    try:
        names = list(json.loads(listing.read_text(encoding="utf-8"))["runs"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []
    # These folders are deleted, so only a bare folder name within `runs` is accepted.
    return [name for name in names if isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name, flags=re.ASCII)]


def _firings(result: Result, run_id: str) -> str:
    updates = result.firings.filter(pl.col("run_id") == run_id, pl.col("rule") == RULE).get_column("update")
    return f"{updates.len()} updates, first {min(updates)}" if updates.len() else "never"


def _esper() -> str:
    """How to start this installation from a shell: `esper` if that finds it on PATH, else its path."""
    script = Path(sys.executable).with_name("esper")
    on_path = shutil.which("esper")
    if not script.exists() or (on_path is not None and Path(on_path).resolve() == script.resolve()):
        return "esper"
    return shlex.quote(str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script))
