"""The commands `esper verify`, `recover` and `compact`: check the files of runs, repair them, merge them."""

from __future__ import annotations

from esper_analytics.cli import options
from esper_analytics.cli.command_line import App
from esper_analytics.cli.console import conclude
from esper_analytics.cli.run_selection import open_runs

commands = App()


@commands.command("verify", examples=["esper verify runs/", "esper verify runs/ --run hot --strict"])
def verify_runs(
    path: options.Runs,
    run: options.SomeRuns = None,
    form: options.Format = None,
    output: options.Output = None,
    strict: options.Strict = False,
) -> None:
    """Read every file of every run and say whether the recording is whole. Changes nothing.

    Problems are reported on stderr; the exit code is 0 with or without them, unless --strict is given.
    """
    from esper_analytics.maintenance.verification import verify

    only = open_runs(path, run).manifests().keys() if run else None
    conclude(verify(path, only), form, output, strict)


@commands.command("recover", examples=["esper recover runs/"])
def recover_runs(
    path: options.Runs, form: options.Format = None, output: options.Output = None, strict: options.Strict = False
) -> None:
    """Finish what a crash left: journals become parts, unfinished files go. Leaves live runs alone."""
    from esper_analytics.maintenance.recovery import recover

    conclude(recover(path), form, output, strict)


@commands.command("compact", examples=["esper compact runs/"])
def compact_runs(
    path: options.Runs, form: options.Format = None, output: options.Output = None, strict: options.Strict = False
) -> None:
    """Merge many small parts into few, in the same order. Safe to interrupt, and while others read with esper."""
    from esper_analytics.maintenance.compaction import compact

    conclude(compact(path), form, output, strict)
