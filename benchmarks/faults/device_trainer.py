"""PPO on the example's environment (`examples/device_ppo.py`), with a recurrent policy and two action heads.

Like the example it has its environment in torch and never asks it for numbers while it trains on them. A minibatch is
the whole sequences of some environments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from esper_recorder import Recorder
from faults.harness import Harness
from faults.seams import Minibatch, Rollout, Seams, Settings, Training
from faults.tasks import TwoHeadedPoles
from faults.witness import Witness

_HEADS = tuple(TwoHeadedPoles.heads)


class Agent(nn.Module):
    """An LSTM with two heads, and a value function that sees its state but does not train it."""

    def __init__(self, observations: int, settings: Settings) -> None:
        super().__init__()
        hidden = settings.hidden
        activation = nn.ReLU if settings.activation == "relu" else nn.Tanh
        self.body = nn.Sequential(nn.Linear(observations, hidden), activation())
        self.lstm = nn.LSTMCell(hidden, hidden)
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, size) for name, size in TwoHeadedPoles.heads.items()})
        self.critic = nn.Sequential(
            *(nn.Linear(observations + hidden, hidden), activation()),
            *(nn.Linear(hidden, hidden), activation(), nn.Linear(hidden, 1)),
        )
        for head in self.heads.values():
            assert isinstance(head, nn.Linear)
            nn.init.orthogonal_(head.weight, 0.01)
            nn.init.zeros_(head.bias)

    def advance(self, observations: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step: log-probabilities [envs, heads, choices], values [envs], the next state [envs, 2 * hidden]."""
        h, c = self.lstm(self.body(observations), state.chunk(2, dim=1))
        log_probs = torch.stack([log_softmax(head(h), dim=-1) for head in self.heads.values()], 1)
        values = self.critic(torch.cat((observations, h.detach()), 1)).squeeze(-1)
        return log_probs, values, torch.cat((h, c), 1)


def train(
    task: str,
    settings: Settings,
    seed: int,
    fault: type[Seams],
    onset: int,
    root: Path,
    begun: Callable[[Witness], None],
) -> None:
    """Train and record one run under `root`. `begun` is called with the witness before the first update."""
    torch.manual_seed(seed)
    agent = Agent(TwoHeadedPoles.observation_size, settings)
    optimizer = torch.optim.Adam(agent.parameters(), lr=settings.learning_rate, eps=1e-5)
    head = agent.heads[_HEADS[0]]
    assert isinstance(head, nn.Linear)
    training = Training(settings, seed, agent, optimizer, agent.body, head, ("critic",))
    harness = Harness(training, fault, onset)
    begun(harness.witness)
    loop = _Loop(task, agent, training, harness, root)
    training.environment = loop.env
    training.log_probs_of = loop.log_probs_of
    loop.run()


class _Loop:
    def __init__(self, task: str, agent: Agent, training: Training, harness: Harness, root: Path) -> None:
        self.task, self.agent, self.training, self.harness, self.root = task, agent, training, harness, root
        self.hidden = task == "hidden-poles"
        envs = training.settings.envs
        self.env = TwoHeadedPoles(envs, torch.device("cpu"))
        self.state = torch.zeros(envs, 2 * training.settings.hidden)
        self.began = torch.ones(envs, dtype=torch.bool)
        self.observations = torch.empty(0)
        self.start, self.starts = self.state, torch.empty(0)

    def recorder(self, resume: str | None = None) -> Recorder:
        """A recorder of the run."""
        settings = self.training.settings
        return Recorder(
            self.root,
            name=f"device-{self.task}",
            config=dict(vars(settings)),
            total_updates=settings.updates,
            model=self.agent,
            optimizer=self.training.optimizer,
            rules=None,  # the recording must not depend on what is calibrated on it
            escalate=None,
            resume=resume,
            trainer="device_ppo",
        )

    def run(self) -> None:
        """Train."""
        self.harness.begin(1)
        self.observations = self.see()
        rec = self.recorder()
        try:
            for update in range(1, self.training.settings.updates + 1):
                if self.harness.restarts_before(update):
                    run_id = rec.run_id
                    rec.close()
                    rec = self.recorder(resume=run_id)
                self.harness.begin(update)
                self.update(rec, update)
        except BaseException as error:
            rec.close("raised", error)
            raise
        rec.close()

    def see(self) -> Tensor:
        """The observations of the environment's state."""
        return self.harness.observed(self.env.seen(self.env.state, self.hidden))

    @torch.no_grad()
    def collect(self, rec: Recorder) -> Rollout:
        """Take the steps of a rollout."""
        agent, env, harness, settings = self.agent, self.env, self.harness, self.training.settings
        agent.eval()
        self.start = self.state
        rows: list[tuple[Tensor, ...]] = []
        for _ in range(settings.steps):
            observations, began = self.observations, self.began
            self.state = self.state * ~began[:, None]
            log_probs, values, self.state = agent.advance(observations, self.state)
            noise = torch.empty_like(log_probs).exponential_().log()
            actions = (log_probs - noise).argmax(-1)
            chosen = log_probs.gather(-1, actions[..., None]).squeeze(-1)
            lengths = env.lengths + 1
            reached, rewards, fell, late = env.push(harness.executed(actions))
            ended = fell | late
            late = harness.timed_out(late & ~fell)
            rewards = harness.rewarded(rewards, ended)
            if bool(late.any()):
                after = agent.advance(env.seen(reached, self.hidden), self.state)[1]
                rewards = rewards + settings.gamma * after * late
            for length in lengths[ended].tolist():
                harness.witness.episode(length)
            rows.append((observations, actions, chosen, values, rewards, ended.float(), began, lengths))
            self.began, self.observations = ended, self.see()
        names = ("observations", "actions", "head_log_probs", "values", "rewards", "dones", "began", "lengths")
        rollout = {name: torch.stack(tensors) for name, tensors in zip(names, zip(*rows, strict=True), strict=True)}
        self.starts = rollout["began"]
        rollout["log_probs"] = rollout["head_log_probs"].sum(-1)
        rollout["last_values"] = agent.advance(self.observations, self.state * ~self.began[:, None])[1]
        taken = (self.training.update - 1) * settings.steps * settings.envs
        rec.episodes(returns=rollout["lengths"], lengths=rollout["lengths"], finished=rollout["dones"] > 0, step=taken)
        rec.recurrent(*self.state.chunk(2, dim=1))
        return rollout | {name: torch.empty_like(rollout["values"]) for name in ("advantages", "returns")}

    def evaluate(self, observations: Tensor, actions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities and entropies by head, [steps, envs, heads], and values, of whole sequences."""
        steps = self.harness.steps
        state, resets = steps.initial_state(self.start[rows]), steps.resets(self.starts[:, rows])
        log_probs, values = [], []
        for step in range(len(observations)):
            state = state * ~resets[step][:, None]
            found, value, state = self.agent.advance(observations[step], state)
            log_probs.append(found)
            values.append(value)
        by_choice = torch.stack(log_probs)
        entropy = -(by_choice.exp() * by_choice).sum(-1)
        return by_choice.gather(-1, actions[..., None]).squeeze(-1), entropy, torch.stack(values)

    @torch.no_grad()
    def log_probs_of(self, rollout: Rollout) -> Tensor:
        """Log-probabilities of a rollout's actions under the policy as it is now."""
        rows = torch.arange(self.training.settings.envs)
        return self.evaluate(rollout["observations"], rollout["actions"], rows)[0].sum(-1)

    def update(self, rec: Recorder, update: int) -> None:
        """Collect a rollout and train on it."""
        harness, agent, training, settings = self.harness, self.agent, self.training, self.training.settings
        rollout = self.collect(rec)
        harness.advantages(rollout)
        for group in training.optimizer.param_groups:
            group["lr"] = settings.learning_rate
        rec.settings(
            epochs_planned=settings.epochs,
            entropy_coef=settings.entropy_coef,
            value_coef=settings.value_coef,
            max_grad_norm=settings.max_grad_norm,
        )
        rec.rollout(
            values=rollout["values"],
            returns=rollout["returns"],
            advantages=rollout["advantages"],
            rewards=rollout["rewards"],
            old_log_probs=rollout["log_probs"],
            actions=rollout["actions"],
        )
        harness.begin_training()
        agent.train()
        for epoch in range(1, settings.epochs + 1):
            harness.begin_epoch(rollout)
            sequences = max(settings.batch_size // settings.steps, 1)
            for rows in torch.split(harness.steps.order(settings.envs), sequences):
                self.minibatch(rec, rollout, rows, epoch)
        harness.end_update()
        rec.end_update(step=update * settings.steps * settings.envs)

    def minibatch(self, rec: Recorder, rollout: Rollout, rows: Tensor, epoch: int) -> None:
        """Train on the sequences of some environments."""
        harness, settings = self.harness, self.training.settings
        by_head, entropies, values = self.evaluate(
            harness.learned_from(rollout["observations"][:, rows]), rollout["actions"][:, rows], rows
        )
        whole = Minibatch(
            harness.steps.joined(by_head),
            rollout["log_probs"][:, rows],
            rollout["advantages"][:, rows],
            values,
            rollout["returns"][:, rows],
            entropies.sum(-1),
        )
        batch = harness.old_log_probs(harness.steps.padded(whole))
        steps = torch.arange(settings.steps)[:, None]
        index = steps * settings.envs + rows
        padded = batch.values.shape != index.shape
        heads = {
            name: {
                "new_log_probs": by_head[..., i],
                "old_log_probs": rollout["head_log_probs"][:, rows][..., i],
                "entropy": entropies[..., i],
                "entropy_max": math.log(TwoHeadedPoles.heads[name]),
            }
            for i, name in enumerate(_HEADS)
        }
        rec.minibatch(
            new_log_probs=batch.new_log_probs,
            old_log_probs=batch.old_log_probs,
            advantages=harness.steps.normalized(batch.advantages),
            raw_advantages=batch.advantages,
            entropy=batch.entropy,
            entropy_max=math.fsum(math.log(size) for size in TwoHeadedPoles.heads.values()),
            values=batch.values,
            returns=batch.returns,
            clip_range=settings.clip_range,
            epoch=epoch,
            index=None if padded else index,
            heads=None if padded else heads,
        )
        harness.train(batch, index)
        parameters = self.agent.parameters()
        rec.gradients(total_norm=nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm))
        harness.step()
