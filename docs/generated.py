"""What the scripts that write a page from the code share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return text.replace("|", r"\|").replace("<", "&lt;")


def write_or_check(path: Path, page: Callable[[], str], source: str) -> None:
    """Write the page, or with the word --check end with a sentence where it is not what the source says."""
    arguments = sys.argv[1:]
    if arguments == ["--check"]:
        if not path.exists() or path.read_text(encoding="utf-8") != page():
            sys.exit(f"{path.parent.name}/{path.name} is not what {source} say. Write it anew: make docs")
    elif arguments:
        sys.exit(f"{Path(sys.argv[0]).name} knows --check and nothing else.")
    else:
        path.write_text(page(), encoding="utf-8")
