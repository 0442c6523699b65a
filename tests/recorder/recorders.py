"""A recorder without rules, and the smallest minibatch, for tests of single calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from esper_recorder import Recorder, Sink


def recorder(root: Path, sink: Sink | None = None, **options: Any) -> Recorder:
    return Recorder(root, sink=sink, **{"rules": None, **options})


def small_minibatch(n: int = 4, **more: Any) -> dict[str, Any]:
    return {"log_ratio": torch.linspace(-0.1, 0.1, n), "clip_range": 0.2, **more}
