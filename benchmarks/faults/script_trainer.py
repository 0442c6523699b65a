"""PPO in one file, in the manner of CleanRL, recorded with `Recorder`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from esper_recorder import Recorder
from faults.harness import Harness
from faults.seams import Minibatch, Rollout, Seams, Settings, Training
from faults.tasks import HarnessedEnv, gym_environments
from faults.witness import Witness

_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class Agent(nn.Module):
    """An actor and a critic, an MLP each."""

    def __init__(self, observations: int, actions: int, settings: Settings, continuous: bool) -> None:
        super().__init__()
        self.actor_body = _body(observations, settings)
        self.actor_head = _layer(settings.hidden, actions, 0.01)
        self.critic = nn.Sequential(_body(observations, settings), _layer(settings.hidden, 1, 1.0))
        self.log_std = nn.Parameter(torch.full((actions,), math.log(settings.initial_std))) if continuous else None

    def distribution(self, observations: Tensor) -> Any:
        """The policy."""
        outputs = self.actor_head(self.actor_body(observations))
        if self.log_std is None:
            return Categorical(logits=outputs)
        return Normal(outputs, self.log_std.exp().expand_as(outputs))

    def values(self, observations: Tensor) -> Tensor:
        """Expected returns."""
        found: Tensor = self.critic(observations).squeeze(-1)
        return found

    def evaluate(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of actions, and entropies."""
        policy = self.distribution(observations)
        log_probs, entropy = policy.log_prob(actions), policy.entropy()
        return (log_probs, entropy) if self.log_std is None else (log_probs.sum(-1), entropy.sum(-1))


def _layer(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _body(inputs: int, settings: Settings) -> nn.Sequential:
    kind, hidden, gain = _ACTIVATIONS[settings.activation], settings.hidden, math.sqrt(2)
    return nn.Sequential(_layer(inputs, hidden, gain), kind(), _layer(hidden, hidden, gain), kind())


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
    set_random_seed(seed)
    env = gym_environments(task, fault.environment_seeds(seed, settings.envs))
    space: Any = env.action_space
    continuous = not isinstance(space, gym.spaces.Discrete)
    size = int(np.prod(space.shape)) if continuous else int(space.n)
    agent = Agent(int(np.prod(env.observation_space.shape or ())), size, settings, continuous)
    optimizer = torch.optim.Adam(agent.parameters(), lr=settings.learning_rate, eps=1e-5)
    training = Training(
        settings, seed, agent, optimizer, agent.actor_body, agent.actor_head, ("critic",), agent.log_std
    )
    harness = Harness(training, fault, onset)
    begun(harness.witness)
    env.harness = harness

    def log_probs_of(rollout: Rollout) -> Tensor:
        with torch.no_grad():
            return agent.evaluate(rollout["observations"], rollout["actions"])[0]

    training.environment = env.venv
    training.log_probs_of = log_probs_of
    script = _Script(task, settings, agent, training, harness, env, root, continuous)
    script.run()


class _Script:
    def __init__(
        self,
        task: str,
        settings: Settings,
        agent: Agent,
        training: Training,
        harness: Harness,
        env: HarnessedEnv,
        root: Path,
        continuous: bool,
    ) -> None:
        self.task, self.settings, self.agent, self.env, self.root = task, settings, agent, env, root
        self.training, self.harness, self.continuous = training, harness, continuous
        self.observations = torch.empty(0)

    def recorder(self, resume: str | None = None) -> Recorder:
        """A recorder of the run."""
        settings = self.settings
        rec = Recorder(
            self.root,
            name=f"script-{self.task}",
            config=dict(vars(settings)),
            total_updates=settings.updates,
            model=self.agent,
            optimizer=self.training.optimizer,
            rules=None,  # the recording must not depend on what is calibrated on it
            escalate=None,
            resume=resume,
            trainer="script",
        )
        return rec

    def run(self) -> None:
        """Train."""
        self.harness.begin(1)
        self.observations = torch.from_numpy(self.env.reset())
        rec = self.recorder()
        try:
            for update in range(1, self.settings.updates + 1):
                if self.harness.restarts_before(update):
                    run_id = rec.run_id
                    rec.close()
                    rec = self.recorder(resume=run_id)
                self.update(rec, update)
        except BaseException as error:
            rec.close("raised", error)
            raise
        rec.close()

    def collect(self, rec: Recorder) -> Rollout:
        """Take the steps of a rollout."""
        env, settings, agent = self.env, self.settings, self.agent
        rows: list[dict[str, Tensor]] = []
        agent.eval()
        for step in range(settings.steps):
            observations = self.observations
            with torch.no_grad():
                policy = agent.distribution(observations)
                actions = policy.sample()
                log_probs = policy.log_prob(actions)
                values = agent.values(observations)
            executed = actions.clamp(-2.0, 2.0) if self.continuous else actions
            following, paid, dones, infos = env.step(executed.numpy())
            rewards = torch.from_numpy(np.array(paid, dtype=np.float32))
            for i, info in enumerate(infos):
                if info["TimeLimit.truncated"]:  # worth what the policy could still have earned
                    with torch.no_grad():
                        last = torch.from_numpy(info["terminal_observation"])[None].float()
                        rewards[i] += settings.gamma * agent.values(last)[0]
                if "episode" in info:
                    done_steps = ((self.training.update - 1) * settings.steps + step + 1) * settings.envs
                    rec.episode(
                        return_=float(info["episode"]["r"]), length=int(info["episode"]["l"]), env=i, step=done_steps
                    )
            rows.append(
                {
                    "observations": observations,
                    "actions": actions,
                    "log_probs": log_probs.sum(-1) if self.continuous else log_probs,
                    "values": values,
                    "rewards": rewards,
                    "dones": torch.from_numpy(np.asarray(dones)).float(),
                }
            )
            self.observations = torch.from_numpy(following)
        rollout = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        with torch.no_grad():
            rollout["last_values"] = agent.values(self.observations)
        return rollout | {name: torch.empty_like(rollout["values"]) for name in ("advantages", "returns")}

    def update(self, rec: Recorder, update: int) -> None:
        """Collect a rollout and train on it."""
        settings, harness, agent, training = self.settings, self.harness, self.agent, self.training
        harness.begin(update)
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
        names = ("observations", "actions", "log_probs", "values", "advantages", "returns")
        flat = {name: rollout[name].flatten(0, 1) for name in names}
        harness.begin_training()
        agent.train()
        stopped = False
        for epoch in range(1, settings.epochs + 1):
            harness.begin_epoch(flat)
            for index in torch.split(harness.steps.order(len(flat["values"])), settings.batch_size):
                observations = harness.learned_from(flat["observations"][index])
                log_probs, entropy = agent.evaluate(observations, flat["actions"][index])
                batch = harness.old_log_probs(
                    Minibatch(
                        log_probs,
                        flat["log_probs"][index],
                        flat["advantages"][index],
                        agent.values(observations),
                        flat["returns"][index],
                        entropy,
                    )
                )
                rec.minibatch(
                    new_log_probs=batch.new_log_probs,
                    old_log_probs=batch.old_log_probs,
                    advantages=harness.steps.normalized(batch.advantages),
                    raw_advantages=batch.advantages,
                    entropy=entropy,
                    entropy_max=None if self.continuous else math.log(agent.actor_head.out_features),
                    values=batch.values,
                    returns=batch.returns,
                    old_values=flat["values"][index],
                    clip_range=settings.clip_range,
                    epoch=epoch,
                    index=index,
                )
                if settings.target_kl is not None:
                    log_ratio = (log_probs - batch.old_log_probs).detach()
                    stopped = float((log_ratio.exp() - 1 - log_ratio).mean()) > 1.5 * settings.target_kl
                    if stopped:
                        break
                harness.train(batch, index)
                rec.gradients(total_norm=nn.utils.clip_grad_norm_(agent.parameters(), settings.max_grad_norm))
                harness.step()
            if stopped:
                break
        harness.end_update()
        std = None if agent.log_std is None else agent.log_std.detach().exp().mean()
        rec.end_update(step=update * settings.steps * settings.envs, stopped_early=stopped, policy_std=std)
