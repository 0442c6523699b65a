"""How the runs beside this file were recorded, by the recorder at schema version 2: one that finished, recorded at
`minimal` with rows backfilled after an alarm, and one that was killed with all its rows still in the journal.

    python tests/data/schema_2/record.py OUT
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

from esper_recorder import Recorder


def train(root: Path, name: str, updates: int, level: str, kill: bool) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    g = torch.Generator().manual_seed(7)
    recorder = Recorder(
        root,
        name=name,
        config={"lr": 1e-3},
        total_updates=6,
        model=net,
        optimizer=optimizer,
        level=level,
        escalate="critical",
        escalate_updates=2,
    )
    n = 8
    for update in range(1, updates + 1):
        values = torch.randn(4, 4, generator=g)
        advantages = torch.randn(4, 4, generator=g)
        rewards = torch.randn(4, 4, generator=g)
        recorder.rollout(values=values, returns=values + advantages, advantages=advantages, rewards=rewards)
        for epoch in (1, 2):
            for minibatch in (0, 1):
                log_ratio = (3.0 if update == 3 else 0.05) * torch.randn(n, generator=g)
                if update == 4 and minibatch == 1:
                    log_ratio[2] = math.nan
                x = torch.randn(n, 4, generator=g)
                heads = {
                    name: {"log_ratio": log_ratio / 2, "entropy": torch.rand(n, generator=g), "entropy_max": bound}
                    for name, bound in (("move", 1.0), ("op", 2.0))
                }
                recorder.minibatch(
                    log_ratio=log_ratio,
                    advantages=torch.randn(n, generator=g),
                    entropy=torch.rand(n, generator=g),
                    values=torch.randn(n, generator=g),
                    returns=torch.randn(n, generator=g),
                    old_values=torch.randn(n, generator=g),
                    clip_range=0.2,
                    epoch=epoch,
                    heads=heads,
                )
                loss = net(x).square().mean()
                optimizer.zero_grad()
                loss.backward()
                recorder.gradients(total_norm=torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5))
                optimizer.step()
        recorder.recurrent(torch.randn(1, 4, 8, generator=g), torch.randn(1, 4, 8, generator=g))
        recorder.episode(return_=float(update), length=10 * update, env=0)
        recorder.end_update(step=16 * update)
    recorder.flush()
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    recorder.close()


if __name__ == "__main__":
    for run in (("finished", 4, "minimal", False), ("killed", 3, "normal", True)):
        process = multiprocessing.get_context("spawn").Process(target=train, args=(Path(sys.argv[1]), *run))
        process.start()
        process.join()
