"""What tests of several packages share; see also `builders` (run folders) and `esper_files` (Esper's telemetry)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typer.testing import Result

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""
DATA = ROOT / "tests" / "data"
GOLDEN = ROOT / "tests" / "golden"
ESPER = Path(sys.executable).with_name("esper")
"""The installed command."""


def esper(*arguments: object, code: int | None = 0) -> Result:
    """Run a command in this process and return its result; its exit code is checked unless `code` is None."""
    from typer.testing import CliRunner

    from esper_analytics.cli.app import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert code in (None, result.exit_code), f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result


def run_process(
    *command: object, code: int | None = 0, timeout: float = 300, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program and return the completed process with its output as text; checked as by `esper`."""
    arguments = [str(argument) for argument in command]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=timeout, **options)
    assert code in (None, done.returncode), f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def project_files(*paths: str) -> list[Path]:
    """The files that git has or would add, below these paths of the checkout."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", *paths]
    return [ROOT / name for name in run_process(*command, cwd=ROOT).stdout.splitlines() if (ROOT / name).is_file()]
