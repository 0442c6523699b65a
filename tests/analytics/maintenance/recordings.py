"""Recordings to be maintained, and their content as both engines read it."""

from __future__ import annotations

import math
from pathlib import Path

import esper_analytics as ea
from tests.builders import add_journal, add_part, complete_rows, write_run

UPDATES = 12


def many_parts(root: Path, name: str = "run", *, ranks: tuple[int, ...] = (0,), **more) -> Path:
    """A run of 12 updates in 12 parts per table and rank, with NaN and NULL; only some of the parts have alarms."""
    path = write_run(root, name, **more)
    for rank in ranks:
        for update in range(1, UPDATES + 1):
            row = {"update": update, "rank": rank, "loss": math.nan if update % 3 else None, "n": update}
            add_part(path, "ppo_updates", complete_rows("ppo_updates", [row], run_id=path.name), rank=rank, seq=update)
            if update in (3, 5, 11):
                alarm = {"update": update, "rank": rank, "rule": "kl"}
                add_part(path, "alarms", complete_rows("alarms", [alarm], run_id=path.name), rank=rank, seq=update)
    return path


def dead_run(root: Path) -> Path:
    """What a killed process leaves: parts, a torn journal, an unfinished part, an unfinished run.json."""
    path = many_parts(root, ended=None)
    rows = [{"update": update, "n": update} for update in (UPDATES + 1, UPDATES + 2)]
    journal = add_journal(path, {"ppo_updates": complete_rows("ppo_updates", rows, run_id=path.name)}, seq=UPDATES + 1)
    with journal.open("ab") as file:
        file.write(b"\xe5\x4a torn")
    (path / "ppo_updates" / ".part-a1-r0-000099.parquet.tmp").write_bytes(b"PAR1")
    (path / ".run.json.77.tmp").write_text("{")
    return path


def content(path: Path, table: str = "ppo_updates") -> list[tuple[object, ...]]:
    """(rank, update, n, loss as text) of every recorded row, read with both engines."""
    runs = ea.open(path)
    columns = ["rank", "update"] + (["n", "loss"] if table == "ppo_updates" else ["rule"])
    names = ", ".join(f'"{name}"' for name in columns)
    from_frame = runs.table(f"{table}_all").select(columns).sort("rank", "update").collect()
    from_sql = runs.sql(f"SELECT {names} FROM {table}_all ORDER BY 1, 2")
    assert from_sql.equals(from_frame, null_equal=True)
    return [tuple(map(str, row)) for row in from_frame.iter_rows()]


def expected(last: int = UPDATES, ranks: tuple[int, ...] = (0,)) -> list[tuple[object, ...]]:
    def loss(update: int) -> str:
        return "nan" if update <= UPDATES and update % 3 else "None"

    return [(str(r), str(u), str(u), loss(u)) for r in ranks for u in range(1, last + 1)]
