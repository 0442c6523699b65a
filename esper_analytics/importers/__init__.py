"""Existing telemetry in: each module reads one format and hands its rows to `run_writer`.

A run that was imported is a run folder like any other. Its `run.json` says where it came from, and `load_report.json`
beside it what became of everything that was read.
"""
