"""The vocabulary: source, help, messages, templates, docs and tests use the field's terms, not a private English.

`python tests/test_words.py [PATH...]` lists what is found, line by line.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]  # not from tests.support: this file also runs as a script
SUFFIXES = {".py", ".md", ".sql", ".toml", ".j2", ".css", ".html", ".js"}
EXEMPT = ("tests/data/", "tests/test_words.py", "tests/analytics/test_schema_2.py", "examples/runs/")
FORMER_NAMES = re.compile(r"renamed_from=|_FORMER_KEYS|->|^  `|share_")
"""Lines of the code, and of the changelog's list of renames, that must name what a name was before."""

# A pattern also matches inside an identifier: `told_rows`, `is_told`. The text after it says what to write instead.
BANNED = {
    r"(?<![a-z.])(told|tells?|telling)(?![a-z])": "recorded, reported, passed, given as an argument, distinguish",
    r"\b(is|are|was|were|be) off\b": "invalid; disabled",
    r"\bcould (never |not )?look\b|never could look|(?<![a-z])looked(?![a-z]| up\b)": "evaluated; had no data",
    r"(?<![a-z])hits?(?![a-z])": "breach",
    r"(?<![a-z])yields?[ _]to(?![a-z])": "inhibited by",
    r"(?<![a-z])quiet(ly|er|s)?(?![a-z])": "not firing; healthy",
    r"(?<![a-z])(held|holds?|holding)[ _]against(?![a-z])": "evaluated with",
    r"(?<![a-z])held[ _]back(?![a-z])": "backfilled",
    r"\b(is|are|was|were) none\b": "is not a; is None",
    r"(?<!here )\b(is|are|was|were) no (?!longer\b|more\b)": "is not a",
    r"(?<![a-z])anew(?![a-z])": "again",
    r"\bso (many|much)\b": "N; that many, with the quantity named",
    r"\bof (its|their|one's|your|our|his|my) own\b": "own; separate",
    r"(?<![a-z])near-by(?![a-z])|\(near: ": "closest",
    r"\b(go|goes|going|went|gone) on\b": "continues",
    r"(?<![a-z])besides(?![a-z])": "also",
    r"(?<![a-z])shares? of(?![a-z])|_shares?\b": "fraction",
    r"\ba row an?\b": "one row per",
    r"(?<![a-z])in[ _]words(?![a-z])": "as text; described",
    r"(?<![a-z])sentences?(?![a-z])": "message",
    r"(?<![a-zA-Z])[a-z_]*ring(?=[ .,;:`)]|$)(?<=\bring)|\bRing\b|[a-z]Ring\b": "buffer",
    r"(?<![a-z])upkeep(?![a-z])": "maintenance",
    r"(?<![a-z])rooms?(?![a-z])": "package; space",
    r"(?<![a-z])walls?(?![a-z])(?!([- _]clock|[- _]time|_m?s\b))": "import boundary",
    r"(?<![a-z])(house|desk|guests?|neighbou?rs?)(?![a-z])": "architecture; analytics side; adjacent",
    r"(?<![a-z])(doubts?|doubtful)(?![a-z])": "caveat",
    r"(?<![a-z])(mend|mends|mended|mending)(?![a-z])": "fix",
    r"(?<![a-z])(bring|brings|bringing|brought)(?![a-z])": "add; have; carry",
    r"\b(take|takes|taken|taking|took) in\b": "read",
    r"(?<![a-z])(healthiest|sickest)(?![a-z])": "min; max",
    r"\bclass _?(Found|Judged|Told|Given|Held|Arranged|Reduced|Recognised|Stored|Logged|Asked|Seen|Mapped|Collected"
    r"|Pushed|Staged|Confined|Recovered|Unpacked|Unjudged|Computed|Made|Known|Shown)\b": "a noun of the field",
    r"(?<![a-zA-Z])(Losses|LostRows|RowsLost|Meeting)(?![a-z])": "gap; dropped rows; rendezvous",
}
PATTERN = re.compile("|".join(f"(?P<p{place}>{pattern})" for place, pattern in enumerate(BANNED)))
ADVICE = list(BANNED.values())


def files(*paths: str) -> list[Path]:
    """The text files of the project that git has or would add."""
    command = ["git", "ls-files", "-co", "--exclude-standard", *paths]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if Path(name).suffix in SUFFIXES and not name.startswith(EXEMPT)]


def found_in(path: Path) -> Iterator[str]:
    """Each banned turn as `file:line: turn (write: ...)`."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if path.name in ("CHANGELOG.md", "parser.py", "ppo.py") and FORMER_NAMES.search(line):
            continue
        for match in PATTERN.finditer(line):
            advice = ADVICE[int((match.lastgroup or "p0")[1:])]
            yield f"{path.relative_to(ROOT)}:{number}: {match.group(0)!r} (write: {advice})"


BANNED_TURNS = (
    *("it is told", "told_rows", "the value is off", "could never look", "a hit", "it is none", "is no number"),
    *("made anew", "so many rows", "a row a run", "shares of updates", "the MinibatchRing", "a room", "class _Given:"),
)


@pytest.mark.parametrize("turn", BANNED_TURNS)
def test_the_test_finds_a_banned_turn(turn: str) -> None:
    assert PATTERN.search(turn)


@pytest.mark.parametrize("text", ["wall clock", "there is no run", "a string", "during", "is no longer", "looked up"])
def test_the_test_lets_plain_english_pass(text: str) -> None:
    assert PATTERN.search(text) is None


@pytest.mark.parametrize(
    "folder", ["recorder", "esper_analytics", "queries", "reports", "docs", "examples", "benchmarks"]
)
def test_no_banned_turn_is_in_the_project(folder: str) -> None:
    assert [turn for path in files(folder) for turn in found_in(path)] == []


def test_no_banned_turn_is_in_the_tests_and_the_pages_at_the_top() -> None:
    pages = ["tests", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml", "Makefile"]
    assert [turn for path in files(*pages) for turn in found_in(path)] == []


if __name__ == "__main__":
    for file in files(*sys.argv[1:]):
        print(*found_in(file), sep="\n", end="\n" if any(True for _ in found_in(file)) else "")
