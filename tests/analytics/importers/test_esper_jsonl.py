"""Esper's files as runs: every line accounted for, whatever the file, and each run whole or not there."""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import esper_analytics as ea
from esper_analytics.errors import DataError, UsageError
from esper_analytics.importers import esper_jsonl, sources
from esper_analytics.importers.esper_jsonl import import_file, import_files
from esper_analytics.importers.load_report import LoadReport
from tests.esper_files import ALL_KINDS, WHOLE, content, event, events, import_run, import_runs, lines
from tests.support import DATA, esper

STARTED = {"event_type": "TRAINING_STARTED", "event_id": "start", "timestamp": "2026-01-01T00:00:00+00:00"}
OLD, NEW = (DATA / f"all_kinds_{date}.jsonl.zst" for date in ("2025-12", "2026-06"))


def raw(folder: Path) -> list[tuple[int, str, str]]:
    frame = ea.open(folder).table("raw_events").sort("line", "key").collect()
    return frame.select("line", "key", "reason").rows()


def in_small_blocks(monkeypatch: Any) -> None:
    """Have files of any size read in several blocks, and by processes."""
    monkeypatch.setattr(sources, "_PIECE_BYTES", 10_000)
    monkeypatch.setattr(sources.Source.blocks, "__defaults__", (20_000,))
    monkeypatch.setattr(esper_jsonl._Workers, "PATIENCE", 1)


class TestAccounting:
    @pytest.mark.parametrize("path", [*ALL_KINDS, *WHOLE], ids=lambda path: path.name)
    def test_each_kind_has_as_many_stored_events_as_lines(self, path: Path, tmp_path: Path) -> None:
        kinds = Counter(event["event_type"] for event in events(path))
        [outcome] = import_file(path, tmp_path)
        report = outcome.report
        runs = ea.open(tmp_path)
        stored = runs.sql("SELECT event_type, count(*) FROM events GROUP BY 1").rows()
        assert dict(stored) == kinds
        read = Counter[str]()
        for record in report.records():
            read[record["kind"].partition("/")[0]] += record["typed"]
        assert (read, report.problems, report.reasons) == (kinds, [], Counter())
        rows = {"epochs": "EPOCH_COMPLETED", "batches": "BATCH_EPOCH_COMPLETED", "ppo_updates": "PPO_UPDATE_COMPLETED"}
        for table, kind in rows.items():
            assert runs.table(table).collect().height == kinds[kind]
            assert report.rows[table] == kinds[kind]

    def test_a_line_that_is_not_an_event_is_kept_with_its_number_and_the_reason(self, tmp_path: Path) -> None:
        text = lines(STARTED)[:-1].encode()
        strange = [b"no json", b"[1]", b'{"a": 1}', b'{"event_type": 5}', b"\xff\xfe", b'"\\ud800"', b"", b"  "]
        last = b'{"event_type": "EPOCH_COMPL'
        run, report = import_run(b"\n".join([text, *strange, last]), tmp_path)
        assert raw(run) == [
            (2, "", "not_json"),
            (3, "", "no_event"),
            (4, "", "no_event"),
            (5, "", "no_event"),
            (6, "", "not_json"),
            (7, "", "not_json"),
            (10, "", "torn"),
        ]
        texts = ea.open(run).table("raw_events").sort("line").collect()["text"].to_list()
        assert texts == ["no json", "[1]", '{"a": 1}', '{"event_type": 5}', "\\xff\\xfe", '"\\ud800"', last.decode()]
        assert (report.read, report.blank, report.tally("(no event)").rejected) == (8, 2, 7)

    def test_a_complete_last_line_counts_without_its_newline(self, tmp_path: Path) -> None:
        run, report = import_run(lines(STARTED, event("EPOCH_COMPLETED", 1, {"env_id": 0}))[:-1], tmp_path)
        assert ea.open(run).table("epochs").collect().height == 1
        assert report.problems == []

    def test_nan_and_infinity_tokens_are_read_as_such(self, tmp_path: Path) -> None:
        data = {"batch": 1, "explained_variance": math.nan, "ratio_max": math.inf, "ratio_min": -math.inf}
        run, report = import_run(lines(STARTED, event("PPO_UPDATE_COMPLETED", 1, data)), tmp_path)
        [row] = ea.open(run).table("ppo_updates").collect().to_dicts()
        assert math.isnan(row["explained_variance"])
        assert (row["ratio_max"], row["ratio_min"]) == (math.inf, -math.inf)
        assert report.problems == []

    def test_a_line_that_repeats_an_event_is_kept_and_counts_once(self, tmp_path: Path) -> None:
        update = event("PPO_UPDATE_COMPLETED", 1, {"batch": 1})
        run, report = import_run(lines(STARTED, update, STARTED, update, event("EPOCH_COMPLETED", 2)), tmp_path)
        assert raw(run) == [(3, "", "repeated"), (4, "", "repeated")]
        runs = ea.open(run)
        assert runs.table("ppo_updates").collect().height == 1
        assert runs.table("events").collect().height == 3
        assert (report.read, report.tally("PPO_UPDATE_COMPLETED").read) == (5, 2)

    def test_events_without_an_id_are_not_repeats(self, tmp_path: Path) -> None:
        update = {"event_type": "PPO_UPDATE_COMPLETED", "data": {"batch": 1}}
        run, report = import_run(lines(update, update), tmp_path)
        assert ea.open(run).table("events_all").collect()["event_id"].to_list() == [None, None]
        assert (report.read, raw(run)) == (2, [])

    def test_an_unknown_event_is_kept_as_it_was_written(self, tmp_path: Path) -> None:
        text = '{"event_type":"NEW_THING",  "event_id":"q", "data":{"big":123456789012345678901234567890,"x":NaN}}'
        run, report = import_run(f"{lines(STARTED)}{text}\n", tmp_path)
        assert ea.open(run).table("raw_events").collect()["text"].to_list() == [text]
        assert report.problems == ["1 of 2 entries not understood"]

    @pytest.mark.parametrize("ending", ["", ".gz"])
    def test_blocks_mapped_in_other_processes_give_the_same_rows(
        self, ending: str, tmp_path: Path, monkeypatch: Any
    ) -> None:
        data = content(NEW) + b"no json\n" + content(NEW).splitlines(keepends=True)[9]
        whole, whole_report = import_run(data, tmp_path / "whole", "same.jsonl")
        in_small_blocks(monkeypatch)
        stored = gzip.compress(data) if ending else data
        pieces, pieces_report = import_run(stored, tmp_path / "pieces", f"same.jsonl{ending}")
        assert whole_report.to_json() | {"source": ""} == pieces_report.to_json() | {"source": ""}
        one, other = ea.open(whole), ea.open(pieces)
        assert one.rows_of(one.ids[0]) == other.rows_of(other.ids[0])
        for table, rows in one.rows_of(one.ids[0]).items():
            if rows:
                frames = [runs.table(table).collect() for runs in (one, other)]
                names = [name for name, dtype in frames[0].schema.items() if not dtype.is_nested()]
                assert frames[0].sort(names).equals(frames[1].sort(names)), table

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is sent its lines")
    def test_a_file_that_becomes_shorter_meanwhile_is_named_and_nothing_of_it_is_stored(
        self, tmp_path: Path, monkeypatch: Any
    ) -> None:
        in_small_blocks(monkeypatch)
        path = tmp_path / "events.jsonl"
        path.write_bytes(content(NEW))
        with pytest.raises(
            DataError, match=r"events\.jsonl could not be imported: it became shorter while it was read"
        ):
            import_file(path, tmp_path / "runs", progress=lambda _: os.truncate(path, 10))
        assert [*(tmp_path / "runs").glob("*")] == []


class TestRuns:
    @pytest.mark.parametrize(("path", "profile"), [(OLD, "esper-2025-12"), (NEW, "esper-2026-06")])
    def test_the_generation_is_recognised_by_content_and_the_run_keeps_its_rules(
        self, path: Path, profile: str, tmp_path: Path
    ) -> None:
        run, _ = import_run(content(path), tmp_path, "anything.log")
        runs = ea.open(run)
        rules = runs.rules_text(runs.ids[0])
        assert rules is not None and rules[0] == profile
        [row] = runs.table("runs").collect().to_dicts()
        assert (row["trainer"], row["definition"], row["name"]) == ("esper", "esper", "anything")
        assert (row["level"], row["versions"], row["host"]) == (None, None, None)
        assert json.loads(row["config"])["n_envs"] == {OLD: 2, NEW: 4}[path]
        assert row["total_updates"] == {OLD: 400, NEW: 300}[path]

    def test_a_run_is_finished_if_its_training_completed_else_it_was_killed(self, tmp_path: Path) -> None:
        batch = {"batch_idx": 1, "episodes_completed": 4, "total_episodes": 8}
        ends = {
            "killed": event("BATCH_EPOCH_COMPLETED", 1, batch),
            "finished": event("BATCH_EPOCH_COMPLETED", 1, batch | {"episodes_completed": 8}),
            "also finished": event("TRAINING_COMPLETED", 1),
        }
        for ended, last in ends.items():
            run, _ = import_run(lines(STARTED, last), tmp_path / ended)
            assert ea.open(run).list()["ended"].to_list() == [ended.removeprefix("also ")]

    def test_each_training_and_each_group_of_a_file_is_a_run(self, tmp_path: Path) -> None:
        again = STARTED | {"event_id": "again"}
        other = STARTED | {"event_id": "other", "group_id": "B"}
        update = {"batch": 1, "ratio_max": 1.0}
        text = lines(
            event("EPOCH_COMPLETED", 1),
            STARTED,
            event("PPO_UPDATE_COMPLETED", 2, update),
            other,
            event("PPO_UPDATE_COMPLETED", 3, update, group_id="B"),
            again,
            event("PPO_UPDATE_COMPLETED", 4, update | {"ratio_max": 2.0}),
        )
        names = [outcome.run_id.rsplit("-", 2)[0] for outcome in import_runs(text, tmp_path / "night", "events.jsonl")]
        assert names == ["night", "night-B", "night-2"]
        runs = ea.open(tmp_path / "night" / "runs")
        rows = runs.table("events").group_by("run_id").len().sort("len").collect()["len"].to_list()
        assert rows == [2, 2, 3]

    def test_the_same_file_is_not_imported_twice_and_a_grown_one_replaces_the_run(self, tmp_path: Path) -> None:
        first = lines(STARTED, event("PPO_UPDATE_COMPLETED", 1, {"batch": 1}))
        [stored] = import_runs(first, tmp_path)
        assert stored.status == "imported"
        [again] = import_runs(first, tmp_path)
        assert (again.status, again.run_id, again.report.read) == ("unchanged", stored.run_id, 2)
        grown = first + lines(event("PPO_UPDATE_COMPLETED", 2, {"batch": 2}))
        [replaced] = import_runs(grown, tmp_path)
        assert (replaced.status, replaced.run_id) == ("replaced", stored.run_id)
        runs = ea.open(tmp_path / "runs")
        assert (len(runs), runs.table("ppo_updates").collect().height) == (1, 2)
        [shorter] = import_runs(first, tmp_path)
        assert shorter.status == "shorter"
        assert runs.table("ppo_updates").collect().height == 2

    def test_the_same_content_compressed_is_the_same_run(self, tmp_path: Path) -> None:
        text = lines(STARTED, event("PPO_UPDATE_COMPLETED", 1, {"batch": 1}))
        [plain] = import_runs(text, tmp_path, "a.jsonl")
        [packed] = import_runs(gzip.compress(text.encode()), tmp_path, "a.jsonl.gz")
        assert (packed.status, packed.run_id) == ("unchanged", plain.run_id)

    def test_a_full_disk_is_an_error_and_leaves_nothing(self, tmp_path: Path, monkeypatch: Any) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("esper_analytics.importers.run_writer.write_part", full)
        with pytest.raises(DataError, match="No space left on device"):
            import_run(content(OLD), tmp_path)
        assert [*(tmp_path / "runs").glob("*")] == []


class TestSources:
    def test_files_folders_and_patterns_are_found_once_each(self, tmp_path: Path) -> None:
        text = lines(STARTED).encode()
        for name, data in (
            ("a.jsonl", text),
            ("deep/b.jsonl.gz", gzip.compress(text.replace(b"start", b"two"))),
            ("deep/c.jsonl.zst", OLD.read_bytes()),
            ("deep/notes.txt", b"no telemetry"),
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
        words = [str(tmp_path), str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl")]
        progress: list[tuple[int, int]] = []
        outcomes = import_files(words, tmp_path / "runs", lambda done, total: progress.append((done, total)))
        assert [Path(outcome.report.source).name for outcome in outcomes] == ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst"]
        assert progress[-1][0] == progress[-1][1] > 0
        assert [done for done, _ in progress] == sorted(done for done, _ in progress)

    @pytest.mark.parametrize("word", ["nothing.jsonl", "*.nothing", "empty"])
    def test_a_pattern_without_a_file_is_an_error(self, word: str, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match=r"There is no file|No file matches"):
            import_files([str(tmp_path / word)], tmp_path / "runs")

    @pytest.mark.parametrize("ending", ["zst", "gz"])
    def test_a_damaged_file_is_imported_up_to_the_damage_which_is_reported(self, ending: str, tmp_path: Path) -> None:
        whole = NEW.read_bytes() if ending == "zst" else gzip.compress(content(NEW))
        run, report = import_run(whole[: len(whole) - 2_000], tmp_path, f"a.jsonl.{ending}")
        assert report.damage is not None and "damaged or cut off" in report.damage
        assert 0 < report.read < len(content(NEW).splitlines())
        stored = ea.open(run).table("events").collect().height
        assert stored + sum(tally.rejected for tally in report.tallies.values()) == report.read

    @pytest.mark.parametrize(
        ("text", "damage"),
        [
            ("", None),
            ("\n\n", None),
            ("root:x:0:0\n[1]\n{", "no line of it is an event of Esper"),
        ],
        ids=["empty", "blank", "other"],
    )
    def test_a_file_without_an_event_makes_no_run(self, text: str, damage: str | None, tmp_path: Path) -> None:
        file = tmp_path / "a.jsonl"
        file.write_text(text)
        [outcome] = import_files([str(file)], tmp_path / "runs")
        assert (outcome.status, outcome.report.damage) == ("empty", damage)
        assert [*tmp_path.glob("runs/*")] == []
        result = esper("import", "esper-jsonl", file, "--to", tmp_path / "runs", code=3)
        assert "nothing to import in" in result.stderr


class TestCommand:
    def test_the_command_prints_the_load_report_and_the_outcome_of_each_run(self, tmp_path: Path) -> None:
        result = esper("import", "esper-jsonl", OLD, "--to", tmp_path / "runs", "--format", "csv")
        frame = pl.read_csv(result.stdout.encode())
        assert frame.columns == ["run_id", "kind", "read", "typed", "kept", "rejected", "left_out", "values_rejected"]
        assert frame["read"].sum() == frame["typed"].sum() == len(events(OLD))
        assert f"imported from {OLD}" in result.stderr
        again = esper("import", "esper-jsonl", OLD, "--to", tmp_path / "runs", "--format", "json")
        assert json.loads(again.stdout)[0]["read"] > 0
        assert "is in" in again.stderr and "already" in again.stderr

    def test_strict_exits_with_3_if_anything_was_rejected_and_the_run_is_imported(self, tmp_path: Path) -> None:
        file = tmp_path / "a.jsonl"
        file.write_text(lines(STARTED, event("PPO_UPDATE_COMPLETED", 1, {"batch": 1, "new": 1})) + "torn")
        words = ["import", "esper-jsonl", file, "--to", tmp_path / "runs"]
        result = esper(*words, "--strict", code=3)
        assert "1 of 3 entries not understood, 1 value without a column" in result.stderr
        assert "raw_events" in result.stderr and "(--strict)" in result.stderr
        assert esper("runs", tmp_path / "runs").stdout.count("killed") == 1
        assert "Not everything" not in esper(*words).stderr

    def test_show_prints_the_source_of_a_run_and_its_load_report(self, tmp_path: Path) -> None:
        esper("import", "esper-jsonl", OLD, "--to", tmp_path / "runs")
        card = json.loads(esper("show", tmp_path / "runs", "--format", "json").stdout)
        assert card["source"]["path"] == str(OLD)
        assert card["load report"]["read"] == len(events(OLD))
        shown = esper("show", tmp_path / "runs").stdout
        assert "load report" in shown and "EPOCH_COMPLETED" in shown

    def test_a_missing_source_and_an_unwritable_destination_are_errors(self, tmp_path: Path) -> None:
        assert "There is no file or folder" in esper("import", "esper-jsonl", "x", "--to", tmp_path, code=2).stderr
        (tmp_path / "file").touch()
        result = esper("import", "esper-jsonl", OLD, "--to", tmp_path / "file", code=2)
        assert "cannot be written to" in result.stderr


def test_a_report_lists_its_problems_if_there_are_any() -> None:
    report = LoadReport()
    assert report.problems == []
    report.tally("a").typed = 1
    report.tally("a").values_rejected = 2
    report.tally("b").rejected = 3
    assert report.problems == ["3 of 4 entries not understood", "2 values without a column"]
