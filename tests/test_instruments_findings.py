"""tests/instruments_findings.md has a row per finding of the reviews, and names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.support import ROOT

FINDINGS = (ROOT / "tests" / "instruments_findings.md").read_text(encoding="utf-8")
ROWS = [
    line
    for line in FINDINGS.splitlines()
    if line.startswith("| ") and not line.startswith(("| finding |", "| what it must do |"))
]

INSTRUMENTS = (
    "Slots",
    "Reward components",
    "Layer gradient statistics",
    "Numerical stability",
    "Ratio-explosion diagnostic",
    "Training configuration",
    "Telemetry levels",
    "Anomaly detector",
    "Emitters",
    "Environment emitter",
    "Gradient collector",
    "EMA tracker",
    "LSTM health",
    "Profiler",
    "Package surface",
    "Trends",
    "Backend of Esper's hub",
)
"""The instruments of the reviews, and the backend that connects an unchanged Esper trainer."""

FIRST_REVIEW = (
    "S-01",
    *(f"RT-0{i}" for i in range(1, 4)),
    *(f"DT-0{i}" for i in range(1, 7)),
    *(f"C-0{i}" for i in range(1, 5)),
    *(f"TC-0{i}" for i in range(1, 4)),
    *(f"I-0{i}" for i in range(1, 4)),
)
"""The ids of its findings."""

SECOND_REVIEW = {
    "anomaly detector": {"P1": 1, "P3": 2, "P4": 1},
    "debug telemetry": {"P2": 2, "P3": 1, "P4": 1},
    "emitters": {"P1": 1, "P2": 2, "P3": 2, "P4": 1},
    "gradient collector": {"P2": 2, "P3": 2, "P4": 1},
    "gradient EMA": {"P2": 1, "P3": 1, "P4": 1},
    "package": {"P4": 1},
    "LSTM health": {"P3": 1, "P4": 1},
    "profiler": {"P3": 1, "P4": 1},
    "telemetry config": {"P3": 1, "P4": 1},
}
"""Module -> severity -> how many findings."""

ALL_MODULES = (
    "compliance with the payloads' contract",
    "gaps of the tests",
    "private functions of torch",
    "two patterns of host syncs",
    "torch.compile",
    "device placement",
    "gradient flow",
    "memory",
)


@cache
def names_of_tests(path: str) -> frozenset[str]:
    """The tests of a file, as pytest names them: `test_a`, `TestB::test_c`."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            tests |= {f"{node.name}::{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
    return frozenset(tests)


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_every_instrument_has_rows(name: str):
    _, heading, rest = FINDINGS.partition(f"\n## {name}\n")
    assert heading and "::test_" in rest.partition("\n## ")[0]


@pytest.mark.parametrize("finding", FIRST_REVIEW)
def test_every_finding_of_the_first_review_has_a_row(finding: str):
    assert len([row for row in ROWS if row.startswith(f"| {finding}: ")]) == 1


@pytest.mark.parametrize("module", SECOND_REVIEW)
def test_every_finding_of_the_second_review_has_a_row(module: str):
    severities = [match[1] for row in ROWS if (match := re.match(rf"\| (P\d) {module}: ", row))]
    counts = {severity: severities.count(severity) for severity in sorted(set(severities))}
    assert counts == SECOND_REVIEW[module]


@pytest.mark.parametrize("finding", ALL_MODULES)
def test_every_risk_of_all_modules_has_a_row(finding: str):
    assert [row for row in ROWS if row.startswith(f"| cross-cutting: {finding} |")]


def test_every_row_names_a_test_that_exists():
    assert len(ROWS) > 70
    for row in ROWS:
        named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", row)
        assert named, f"names no test: {row}"
        for path, test in named:
            assert test in names_of_tests(path), f"{path} has no {test}"


def test_a_row_with_an_unknown_test_is_found():
    assert "test_nothing_of_the_kind" not in names_of_tests("tests/test_instruments_findings.py")
    assert "test_every_row_names_a_test_that_exists" in names_of_tests("tests/test_instruments_findings.py")
