"""The command `esper demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esper_analytics.cli.command_line import App
from esper_analytics.cli.console import narrate, print_lines, progress_bars
from esper_analytics.cli.output import TABLE, show

commands = App()


@commands.command("demo", examples=["esper demo --out demo"])
def run_demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="For DIR/runs and DIR/report.html.")] = Path("demo"),
) -> None:
    """Record two real PPO runs, replay them with other thresholds, write a report. Takes about a minute."""
    from esper_analytics.cli import demo

    narrate(
        f"Training PPO on CartPole twice and recording it into {out / 'runs'}: once as usual, once with a learning",
        "rate that wrecks it. The runs of an earlier demo are replaced.",
    )
    alarms: list[str] = []
    with progress_bars("steps") as progress:
        run_ids = demo.record(out, progress, on_alarm=alarms.append)
    if alarms:
        narrate(f"The trainer's log had a line at the onset of each alarm, {len(alarms)} in all. The first:", alarms[0])
    narrate("Replaying the rules over both, with the shipped thresholds and with another:")
    shipped, changed = demo.evaluate(out, run_ids)
    show(demo.differences(shipped, changed), TABLE)
    print_lines(["", f"The report: {out / 'report.html'}", "", "To try next:", ""])
    print_lines(f"    {line}" for line in demo.next_commands(out))
