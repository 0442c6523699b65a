"""Existing telemetry as runs: each format has a module, and all of them write through `run_writer`.

An imported run is a run folder like any other. Its `run.json` says where it came from, and `load_report.json` beside it
what became of everything that was read.
"""
