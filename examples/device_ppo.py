"""PPO whose environment is torch code, so that a whole update runs on the device and the host never waits for it.

    python examples/device_ppo.py                                        # a minute on one CPU core at most
    python examples/device_ppo.py --device cuda --n-envs 4096 --amp
    esper report runs/ -o report.html

The file reads from top to bottom: the environment (CartPole), the agent, collecting a rollout, advantages, and the
training, with the recorder in it. Nothing makes the host wait: no `.item()`, no boolean index, no `torch.distributions`
(it validates its arguments), no gradient scaler.

What is simple here on purpose: one action head, one MLP for policy and value each, no observation normalisation.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from esper_recorder import Recorder

# --- the environment ------------------------------------------------------------------------------------------------


class CartPole:
    """`n_envs` poles on carts (Barto, Sutton and Anderson, 1983), with the constants of Gymnasium's CartPole-v1.

    An environment whose episode ended begins the next one in the same step.
    """

    observation_size, actions = 4, 2
    steps_at_most = 500

    def __init__(self, n_envs: int, device: torch.device) -> None:
        self._n_envs, self._device = n_envs, device
        self.state = self._fresh()  # [n_envs, 4]: position, velocity, angle, angular velocity
        self.lengths = torch.zeros(n_envs, device=device)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Push each cart to the left (0) or to the right (1).

        Returns:
            The observation the step led to [n_envs, 4] (`state` is already the next episode's if it ended),
            the reward, and whether the pole fell or the time was up [n_envs].
        """
        x, velocity, angle, spin = self.state.unbind(1)
        force = 20.0 * action - 10.0
        sine, cosine = torch.sin(angle), torch.cos(angle)
        pole_mass, mass, half_length, gravity = 0.1, 1.1, 0.5, 9.8
        push = (force + pole_mass * half_length * spin.square() * sine) / mass
        spinning = (gravity * sine - cosine * push) / (half_length * (4.0 / 3.0 - pole_mass * cosine.square() / mass))
        moving = push - pole_mass * half_length * spinning * cosine / mass
        reached = self.state + 0.02 * torch.stack((velocity, moving, spin, spinning), 1)
        fell = (reached[:, 0].abs() > 2.4) | (reached[:, 2].abs() > 12 * math.pi / 180)
        self.lengths = self.lengths + 1
        late = self.lengths >= self.steps_at_most
        ended = fell | late
        self.state = torch.where(ended[:, None], self._fresh(), reached)
        self.lengths = torch.where(ended, 0.0, self.lengths)
        return reached, torch.ones_like(x), fell, late

    def _fresh(self) -> Tensor:
        return torch.rand(self._n_envs, 4, device=self._device) * 0.1 - 0.05


# --- the agent ------------------------------------------------------------------------------------------------------


class Agent(nn.Module):
    """A policy and a value function, an MLP each."""

    def __init__(self, observation_size: int, actions: int, hidden: int = 64) -> None:
        super().__init__()
        self.policy = _mlp(observation_size, hidden, actions, last=0.01)
        self.value = _mlp(observation_size, hidden, 1, last=1.0)

    def log_probs(self, observation: Tensor) -> Tensor:
        """Log-probability of every action, nats, float32: [..., actions]."""
        return log_softmax(self.policy(observation).float(), dim=-1)

    def values(self, observation: Tensor) -> Tensor:
        """Expected return, float32: [...]."""
        values: Tensor = self.value(observation).float().squeeze(-1)
        return values


def _mlp(inputs: int, hidden: int, outputs: int, last: float) -> nn.Sequential:
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)]
    for layer, gain in zip(layers, (math.sqrt(2), math.sqrt(2), last), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


# --- a rollout ------------------------------------------------------------------------------------------------------


@dataclass
class Rollout:
    """The steps of a rollout: every tensor is [steps, n_envs], observations have one dimension more."""

    observations: Tensor
    reached: Tensor
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor
    fell: Tensor
    ended: Tensor
    lengths: Tensor
    """Steps of the episode so far; its return too, as every step is worth 1."""


@torch.no_grad()
def collect(env: CartPole, agent: Agent, steps: int) -> Rollout:
    """Take `steps` steps in every environment."""
    taken = []
    for _ in range(steps):
        observation, length = env.state, env.lengths + 1
        log_probs = agent.log_probs(observation)
        # The largest of log-probabilities with Gumbel noise is a sample.
        action = (log_probs - torch.empty_like(log_probs).exponential_().log()).argmax(-1)
        chosen = log_probs.gather(-1, action[:, None]).squeeze(-1)
        reached, reward, fell, late = env.step(action)
        taken.append((observation, reached, action, chosen, reward, fell, fell | late, length))
    return Rollout(*(torch.stack(tensors) for tensors in zip(*taken, strict=True)))


def advantages_of(rollout: Rollout, values: Tensor, next_values: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al., 2016), [steps, n_envs].

    The next state is worth nothing if the pole fell, but has its value if only the time limit was reached.
    """
    errors = rollout.rewards + gamma * next_values * ~rollout.fell - values
    carried = gamma * gae_lambda * ~rollout.ended
    advantages = torch.empty_like(errors)
    advantage = torch.zeros_like(errors[0])
    for step in reversed(range(len(errors))):
        advantage = errors[step] + carried[step] * advantage
        advantages[step] = advantage
    return advantages


# --- training -------------------------------------------------------------------------------------------------------


def train_ppo_vectorized(
    *,
    n_episodes: int = 60,
    n_envs: int = 32,
    max_epochs: int = 64,
    ppo_updates_per_batch: int = 4,
    n_minibatches: int = 4,
    lr: float = 2.5e-3,
    clip_ratio: float = 0.2,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    value_coef: float = 0.5,
    max_grad_norm: float = 0.5,
    entropy_coef: float = 0.01,
    entropy_coef_start: float | None = None,
    entropy_coef_end: float | None = None,
    entropy_coef_min: float = 0.0,
    entropy_anneal_episodes: int = 0,
    seed: int = 42,
    device: str = "cpu",
    amp: bool = False,
    use_telemetry: bool = True,
    level: str = "normal",
    runs: Path = Path("runs"),
) -> tuple[Agent, list[Tensor]]:
    """Train PPO on CartPole and record it.

    Args:
        n_episodes: rollouts, each followed by one PPO update.
        n_envs: environments.
        max_epochs: steps of each environment per rollout.
        ppo_updates_per_batch: passes over a rollout.
        n_minibatches: minibatches per pass.
        lr: of Adam.
        clip_ratio: clip range of the probability ratio.
        gamma, gae_lambda: discount, and decay of the advantage estimate.
        value_coef, entropy_coef: weights in the loss.
        max_grad_norm: norm the gradients are clipped to.
        entropy_coef_start, entropy_coef_end: weights between which the entropy's moves over the first
            `entropy_anneal_episodes` rollouts; `entropy_coef` by default. It is never below `entropy_coef_min`.
        seed: of torch, the environment's included.
        device: of the environment, the agent and all tensors.
        amp: compute the networks in bfloat16.
        use_telemetry: record the training, at `level`, under `runs`.

    Returns:
        The agent, and for each rollout the mean length of the episodes that ended in it (NaN if none did), on the
        device.
    """
    torch.manual_seed(seed)
    where = torch.device(device)
    env = CartPole(n_envs, where)
    agent = Agent(env.observation_size, env.actions).to(where)
    optimizer = torch.optim.Adam(agent.parameters(), lr=lr, eps=1e-5)
    transitions = n_envs * max_epochs
    lengths: list[Tensor] = []

    def autocast() -> AbstractContextManager[None]:
        return torch.autocast(where.type, torch.bfloat16) if amp else nullcontext()

    def entropy_weight(episode: int) -> float:
        if not entropy_anneal_episodes:
            return entropy_coef
        start = entropy_coef if entropy_coef_start is None else entropy_coef_start
        end = entropy_coef if entropy_coef_end is None else entropy_coef_end
        return max(start + (end - start) * min(episode / entropy_anneal_episodes, 1.0), entropy_coef_min)

    with Recorder(
        runs,
        name="device-ppo",
        config={
            "n_envs": n_envs,
            "max_epochs": max_epochs,
            "lr": lr,
            "gamma": gamma,
            "gae_lambda": gae_lambda,
            "seed": seed,
            "device": device,
            "amp": amp,
        },
        total_updates=n_episodes,
        model=agent,
        optimizer=optimizer,
        level=level if use_telemetry else "off",
    ) as rec:
        rec.settings(epochs_planned=ppo_updates_per_batch, value_coef=value_coef, max_grad_norm=max_grad_norm)
        for episode in range(n_episodes):
            weight = entropy_weight(episode)
            rec.settings(entropy_coef=weight)

            with autocast(), torch.no_grad():
                rollout = collect(env, agent, max_epochs)
                values = agent.values(rollout.observations)
                next_values = agent.values(rollout.reached)
            advantages = advantages_of(rollout, values, next_values, gamma, gae_lambda)
            returns = advantages + values
            lengths.append(torch.where(rollout.ended, rollout.lengths, torch.nan).nanmean())
            rec.rollout(
                values=values,
                returns=returns,
                advantages=advantages,
                rewards=rollout.rewards,
                old_log_probs=rollout.log_probs,
            )
            rec.episodes(
                returns=rollout.lengths, lengths=rollout.lengths, finished=rollout.ended, step=episode * transitions
            )

            flat = {f.name: getattr(rollout, f.name).flatten(0, 1) for f in fields(rollout)}
            flat |= {"values": values.flatten(), "returns": returns.flatten(), "advantages": advantages.flatten()}
            for epoch in range(1, ppo_updates_per_batch + 1):
                shuffled = torch.rand(transitions, device=where).argsort()
                for index in shuffled.chunk(n_minibatches):
                    batch = {name: tensor[index] for name, tensor in flat.items()}
                    with autocast():
                        log_probs = agent.log_probs(batch["observations"])
                        value = agent.values(batch["observations"])
                    new_log_probs = log_probs.gather(-1, batch["actions"][:, None]).squeeze(-1)
                    entropy = -(log_probs.exp() * log_probs).sum(-1)
                    raw = batch["advantages"]
                    advantage = (raw - raw.mean()) / (raw.std() + 1e-8)
                    ratio = (new_log_probs - batch["log_probs"]).exp()
                    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
                    policy_loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
                    value_loss = (batch["returns"] - value).square().mean()
                    loss = policy_loss + value_coef * value_loss - weight * entropy.mean()
                    rec.minibatch(
                        index=index,  # of what the rollout recorded
                        new_log_probs=new_log_probs,
                        normalize_advantages=True,
                        entropy=entropy,
                        entropy_max=math.log(env.actions),
                        values=value,
                        clip_range=clip_ratio,
                        epoch=epoch,
                    )
                    optimizer.zero_grad()
                    loss.backward()
                    norm = nn.utils.clip_grad_norm_(agent.parameters(), max_grad_norm)
                    rec.gradients(total_norm=norm)
                    optimizer.step()
            rec.end_update(step=(episode + 1) * transitions)
    return agent, lengths


@functools.wraps(train_ppo_vectorized, assigned=())
def main(**options: Any) -> None:
    """Train PPO on CartPole, environment and all on one device, record it, and print how long episodes last."""
    torch.set_num_threads(1)  # networks as small as these are trained fastest on one core
    _, lengths = train_ppo_vectorized(**options)
    for rollout, length in enumerate(torch.stack(lengths).tolist(), start=1):
        if rollout == 1 or rollout % 10 == 0:
            print(f"rollout {rollout}: episodes end after {length:.0f} steps on average")


if __name__ == "__main__":
    typer.run(main)
