"""A recorder that cannot begin, or only in part, never stops the training: only an invalid argument is an error."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from esper_recorder import Recorder
from esper_recorder.contract.rules.model import RuleError
from esper_recorder.storage import jsonable
from esper_recorder.storage.jsonable import encodable, to_jsonable
from esper_recorder.storage.manifest import read_manifest
from tests.recorder.storage.stored_updates import read_rows

NOT_UTF8 = os.fsdecode(b"caf\xe9.pt")
"""What `os.listdir` returns for a name in Latin-1: it has a surrogate, which UTF-8 cannot encode."""


class Broken:
    """Every method that a conversion may call raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")


class BrokenItems(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise RuntimeError("no items")


@dataclasses.dataclass
class Settings:
    path: Any = NOT_UTF8
    broken: Any = dataclasses.field(default_factory=Broken)


class BadModel:
    def model_dump(self, mode: str) -> Any:
        raise ValueError("no dump")


def deep(kind: type, depth: int = 5000) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else (value,) if kind is tuple else {"a": value}
    return value


def cyclic() -> dict[str, Any]:
    whole: dict[str, Any] = {"lr": 0.1}
    whole["self"] = whole
    whole["list"] = [whole, [whole]]
    return whole


CONFIGS: dict[str, Any] = {
    "a surrogate": {"file": NOT_UTF8, NOT_UTF8: 1, "paths": [Path(NOT_UTF8)], "lone": "\ud800"},
    "deep lists": deep(list),
    "deep tuples": {"a": deep(tuple)},
    "deep mappings": deep(dict),
    "cyclic": cyclic(),
    "broken repr": {"a": Broken(), "b": [Broken()], "c": {Broken(): 1}, "d": {Broken()}},
    "broken items": {"a": BrokenItems(x=1)},
    "broken dataclass": Settings(),
    "broken model": BadModel(),
    "huge text": "x" * 10_000_000,
    "huge list": list(range(1_000_000)),
    "huge mapping": {str(i): i for i in range(300_000)},
    "many texts": ["y" * 1000] * 20_000,
    "huge number": {"n": 10**10_000, "negative": -(10**5000)},
    "not finite": [float("nan"), float("inf")],
    "years": [__import__("datetime").datetime.min, __import__("datetime").datetime.max],
    "a lambda": {"schedule": lambda x: x, "type": int, "module": json},
    "bytes": {"b": b"\xff\x00", "control": "\x1b[31m\x00"},
}


class TestConfig:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_whatever_it_is_the_run_is_recorded_and_run_json_is_utf_8_of_bounded_size(self, tmp_path: Path, name: str):
        with Recorder(tmp_path, config=CONFIGS[name], rules=None) as rec:
            rec.minibatch(log_ratio=torch.zeros(3))
            rec.end_update()
        assert rec.path is not None
        content = (rec.path / "run.json").read_bytes()
        assert len(content) < 3 * jsonable.MOST_CHARACTERS
        assert json.loads(content.decode())["attempts"][0]["how"] == "finished"
        assert len(read_rows(rec.path, "ppo_updates")) == 1

    def test_what_can_be_kept_is_kept_beside_what_cannot(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        config = {"lr": 0.1, "file": NOT_UTF8, "bad": Broken(), "model": {"sizes": [64, Broken()]}, "loop": cyclic()}
        with caplog.at_level(logging.WARNING, "esper_recorder"), Recorder(tmp_path, config=config, rules=None) as rec:
            pass
        assert rec.path is not None
        kept = read_manifest(rec.path).config
        assert (kept["lr"], kept["file"], kept["model"]["sizes"][0]) == (0.1, "caf\\udce9.pt", 64)
        assert kept["bad"] == kept["model"]["sizes"][1] == "<Broken, whose repr raises RuntimeError>"
        assert kept["loop"]["self"] == "... (it contains itself)"
        (line,) = [record.message for record in caplog.records if "run.json keeps" in record.message]
        assert all(key in line for key in ("file", "bad", "model.sizes[1]", "loop.self"))

    def test_a_huge_list_keeps_its_first_values_and_the_log_says_how_many_are_left_out(self):
        texts: list[str] = []
        kept = to_jsonable({"seeds": list(range(1_000_000)), "after": 1}, texts=texts)
        # 2 of the 100,000 values are the mapping and the list; nothing is left for `after`.
        assert kept == {"seeds": list(range(jsonable.MOST_VALUES - 2))}
        assert texts == ["seeds (all but 99998 of 1000000)"]

    def test_another_thread_may_change_it_meanwhile(self, tmp_path: Path):
        config = {str(i): {"a": i} for i in range(2000)}
        stop = threading.Event()

        def change() -> None:
            i = 0
            while not stop.is_set():
                i += 1
                config[f"new{i % 5000}"] = {"a": i}
                config.pop(f"new{(i * 7) % 5000}", None)

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(5):
                Recorder(tmp_path, config=config, rules=None).close()
        finally:
            stop.set()
            thread.join()
        for run in tmp_path.iterdir():
            assert read_manifest(run).config["1999"] == {"a": 1999}

    def test_a_text_is_returned_unchanged_if_it_can_be_encoded(self):
        assert encodable("grün 🙂") == "grün 🙂"
        assert encodable("a\udcffb") == "a\\udcffb"


ARGUMENTS: dict[str, dict[str, Any]] = {
    "root": {"root": None},
    "root is empty": {"root": ""},
    "root has a zero byte": {"root": "a\0b"},
    "name": {"name": 5},
    "level": {"level": "loud"},
    "level of another type": {"level": Broken()},
    "stop_on": {"stop_on": Broken()},
    "rules": {"rules": 5},
    "rules file": {"rules": "nowhere.toml"},
    "rules profile": {"rules": "\ud800"},
    "rank": {"rank": Broken()},
    "run_id": {"run_id": ["a"]},
    "resume": {"resume": "nowhere"},
    "resume of another type": {"resume": 3},
    "from_update": {"from_update": "2"},
    "trainer": {"trainer": 3},
    "definition": {"definition": Broken()},
    "total_updates": {"total_updates": Broken()},
    "escalate": {"escalate": Broken()},
    "model": {"model": Broken()},
    "optimizer": {"optimizer": Broken()},
    "sink": {"sink": Broken()},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_invalid_argument_is_a_value_error(tmp_path: Path, name: str):
    with pytest.raises((ValueError, RuleError)) as raised:
        Recorder(**{"root": tmp_path, "rules": None, **ARGUMENTS[name]})
    assert not isinstance(raised.value, UnicodeError)
    assert list(tmp_path.iterdir()) == []


def train(rec: Recorder) -> None:
    for _ in range(3):
        rec.minibatch(log_ratio=torch.zeros(3))
        rec.end_update()
    rec.close()


class TestFolders:
    @pytest.mark.parametrize("root", ["/proc/runs", "/sys/runs", "/dev/null/runs"])
    def test_that_cannot_be_written_cost_the_recording_and_not_the_training(
        self, root: str, caplog: pytest.LogCaptureFixture
    ):
        with caplog.at_level(logging.ERROR, "esper_recorder"):
            rec = Recorder(root)
        train(rec)
        assert rec.run_id is None and rec.path is None
        (line,) = [record.message for record in caplog.records]
        assert line.startswith(f"Nothing of this training is recorded under {root} (") and "Training continues" in line

    def test_a_full_disk_at_the_start_costs_no_more(self, small_disk: Path, caplog: pytest.LogCaptureFixture):
        with (small_disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(1024))
        with caplog.at_level(logging.ERROR, "esper_recorder"):
            train(Recorder(small_disk / "runs"))
        assert "No space left" in caplog.text

    def test_a_root_that_is_not_utf_8_is_recorded_to(self, tmp_path: Path):
        with Recorder(os.path.join(tmp_path, os.fsdecode(b"caf\xe9")), name=NOT_UTF8, rules=None) as rec:
            rec.minibatch(log_ratio=torch.zeros(3))
            rec.end_update()
        assert rec.path is not None and read_manifest(rec.path).name == "caf\\udce9.pt"
        (part,) = (rec.path / "ppo_updates").iterdir()
        with part.open("rb") as file:  # pyarrow opens no such path itself
            assert pq.read_table(file).num_rows == 1


NO_DESCRIPTORS = """
import os, resource, sys, torch
from esper_recorder import Recorder
import esper_recorder.sb3
leave = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for descriptor in held[: leave]:
    os.close(descriptor)
rec = Recorder(sys.argv[1])
for update in range(4):
    rec.minibatch(log_ratio=torch.zeros(3))
    rec.end_update()
rec.flush()
for descriptor in held[leave:]:
    os.close(descriptor)
rec.minibatch(log_ratio=torch.zeros(3))
rec.end_update()
rec.close()
print(rec.run_id)
"""


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_without_descriptors_the_training_goes_on_and_is_recorded_as_far_as_possible(tmp_path: Path, left: int):
    done = subprocess.run(
        [sys.executable, "-c", NO_DESCRIPTORS, str(tmp_path), str(left)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    run_id = done.stdout.strip()
    if run_id == "None":
        assert "Nothing of this training is recorded" in done.stderr and "Too many open files" in done.stderr
        return
    (run,) = tmp_path.iterdir()
    (attempt,) = read_manifest(run).attempts
    assert attempt.how == "finished"
    updates = {row["update"] for row in read_rows(run, "ppo_updates")}
    gaps = read_rows(run, "gaps")
    missing = {
        u for gap in gaps if gap["table_name"] == "*" for u in range(gap["first_update"], gap["last_update"] + 1)
    }
    assert 5 in updates and updates | missing >= {1, 2, 3, 4, 5}


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(f"no file {NOT_UTF8}"), "OSError: no file caf\\udce9.pt"),
        (f"lost {NOT_UTF8}", "lost caf\\udce9.pt"),
        (Unprintable(), "Unprintable: its message cannot be made: RuntimeError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_an_error_that_cannot_be_encoded_ends_the_run_escaped(tmp_path: Path, error: Any, text: str):
    rec = Recorder(tmp_path, rules=None)
    rec.close("raised", error)
    assert rec.path is not None
    (attempt,) = read_manifest(rec.path).attempts
    assert (attempt.how, attempt.error) == ("raised", text)


def test_texts_of_rows_and_gaps_that_cannot_be_encoded_are_stored_escaped(tmp_path: Path):
    with Recorder(tmp_path, rules=None) as rec:
        rec.row("slots", event=NOT_UTF8, slot="r0c0", env=0)
        rec.recurrent(torch.zeros(1, 2, 3), layer=NOT_UTF8)
        heads = {NOT_UTF8: {"log_ratio": torch.zeros(3)}}
        rec.minibatch(log_ratio=torch.zeros(3), heads=heads)
        rec.row(NOT_UTF8)
        rec.end_update()
    assert rec.path is not None
    escaped = "caf\\udce9.pt"
    assert [row["event"] for row in read_rows(rec.path, "slots")] == [escaped]
    assert {row["layer"] for row in read_rows(rec.path, "recurrent_state")} == {escaped}
    assert {row["head"] for row in read_rows(rec.path, "heads")} == {escaped}
    (gap,) = read_rows(rec.path, "gaps")
    assert escaped in gap["detail"]
