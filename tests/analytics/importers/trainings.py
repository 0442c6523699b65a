"""Short real trainings by four libraries, each logging as it does for everybody.

    python tests/analytics/importers/trainings.py cleanrl FOLDER

Run in a separate process: rsl_rl switches off torch's argument checks for the whole process, and both it and TorchRL
warn when they are imported. What CleanRL does is written out here, since CleanRL is a script to copy and no package.
What each logs is printed as JSON, value by value, so that a test can compare an import with it.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GIT_PYTHON_REFRESH", "silent")  # rsl_rl keeps the state of git repositories where there is git

import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

UPDATES = 3


class _Recorder:
    """A writer's `add_scalar` that keeps everything it is called with."""

    def __init__(self, writer: Any) -> None:
        self.said: list[tuple[str, float, int]] = []
        self._add = writer.add_scalar
        writer.add_scalar = self

    def __call__(self, tag: str, value: Any, global_step: Any = None, **options: Any) -> None:
        self.said.append((tag, float(value), int(global_step)))
        self._add(tag, value, global_step, **options)


def cleanrl(folder: Path) -> list[tuple[str, float, int]]:
    """The training loop of CleanRL's `ppo.py` on CartPole: two environments, its loss, its tags, its order."""
    import gymnasium as gym
    from torch.utils.tensorboard import SummaryWriter

    settings = {
        "exp_name": "ppo",
        "seed": 1,
        "torch_deterministic": True,
        "track": False,
        "total_timesteps": 400,
        "learning_rate": 2.5e-4,
        "num_envs": 2,
        "num_steps": 64,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "num_minibatches": 2,
        "update_epochs": 2,
        "norm_adv": True,
        "clip_coef": 0.2,
        "clip_vloss": True,
        "ent_coef": 0.01,
        "vf_coef": 0.5,
        "max_grad_norm": 0.5,
        "target_kl": None,
    }
    torch.manual_seed(1)
    writer = SummaryWriter(str(folder / "CartPole-v1__ppo__1__1700000000"))
    heard = _Recorder(writer)
    table = "\n".join(f"|{key}|{value}|" for key, value in settings.items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")

    envs = [gym.make("CartPole-v1") for _ in range(2)]
    critic, actor = (nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, n)) for n in (1, 2))
    parameters = [*critic.parameters(), *actor.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2.5e-4, eps=1e-5)
    steps, clip_coef = 64, 0.2
    obs = torch.zeros(steps, 2, 4)
    actions, logprobs, rewards, dones, values = (torch.zeros(steps, 2) for _ in range(5))
    next_obs = torch.tensor(np.array([env.reset(seed=i)[0] for i, env in enumerate(envs)]))
    next_done = torch.zeros(2)
    returns_so_far, lengths_so_far = [0.0, 0.0], [0, 0]
    global_step = 0
    for iteration in range(1, UPDATES + 1):
        optimizer.param_groups[0]["lr"] = (1.0 - (iteration - 1.0) / UPDATES) * 2.5e-4
        for step in range(steps):
            global_step += 2
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                chosen = Categorical(logits=actor(next_obs))
                action = chosen.sample()
                values[step] = critic(next_obs).flatten()
            actions[step], logprobs[step] = action, chosen.log_prob(action)
            for i, env in enumerate(envs):
                ob, reward, terminated, truncated, _ = env.step(int(action[i]))
                rewards[step, i] = float(reward)
                returns_so_far[i] += float(reward)
                lengths_so_far[i] += 1
                next_done[i] = float(terminated or truncated)
                if terminated or truncated:
                    writer.add_scalar("charts/episodic_return", returns_so_far[i], global_step)
                    writer.add_scalar("charts/episodic_length", lengths_so_far[i], global_step)
                    returns_so_far[i], lengths_so_far[i] = 0.0, 0
                    ob, _ = env.reset()
                next_obs[i] = torch.tensor(ob)
        with torch.no_grad():
            next_value, last, advantages = critic(next_obs).flatten(), torch.zeros(2), torch.zeros_like(rewards)
            for t in reversed(range(steps)):
                alive = 1.0 - (next_done if t == steps - 1 else dones[t + 1])
                following = next_value if t == steps - 1 else values[t + 1]
                delta = rewards[t] + 0.99 * following * alive - values[t]
                advantages[t] = last = delta + 0.99 * 0.95 * alive * last
            returns = advantages + values
        b_obs, b_logprobs, b_actions = obs.reshape(-1, 4), logprobs.reshape(-1), actions.reshape(-1)
        b_advantages, b_returns, b_values = advantages.reshape(-1), returns.reshape(-1), values.reshape(-1)
        b_inds, clipfracs = np.arange(2 * steps), []
        for _epoch in range(2):
            np.random.default_rng(iteration).shuffle(b_inds)
            for start in range(0, 2 * steps, steps):
                mb_inds = b_inds[start : start + steps]
                chosen = Categorical(logits=actor(b_obs[mb_inds]))
                logratio = chosen.log_prob(b_actions[mb_inds]) - b_logprobs[mb_inds]
                ratio = logratio.exp()
                with torch.no_grad():
                    old_approx_kl = (-logratio).mean()
                    approx_kl = ((ratio - 1) - logratio).mean()
                    clipfracs += [((ratio - 1.0).abs() > clip_coef).float().mean().item()]
                mb_advantages = b_advantages[mb_inds]
                mb_advantages = (mb_advantages - mb_advantages.mean()) / (mb_advantages.std() + 1e-8)
                clipped = torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef)
                pg_loss = torch.max(-mb_advantages * ratio, -mb_advantages * clipped).mean()
                newvalue = critic(b_obs[mb_inds]).view(-1)
                near = b_values[mb_inds] + torch.clamp(newvalue - b_values[mb_inds], -clip_coef, clip_coef)
                squared = torch.max((newvalue - b_returns[mb_inds]) ** 2, (near - b_returns[mb_inds]) ** 2)
                v_loss = 0.5 * squared.mean()
                entropy_loss = chosen.entropy().mean()
                optimizer.zero_grad()
                (pg_loss - 0.01 * entropy_loss + v_loss * 0.5).backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
        y_pred, y_true = b_values.numpy(), b_returns.numpy()
        explained = 1 - np.var(y_true - y_pred) / np.var(y_true)
        writer.add_scalar("charts/learning_rate", optimizer.param_groups[0]["lr"], global_step)
        writer.add_scalar("losses/value_loss", v_loss.item(), global_step)
        writer.add_scalar("losses/policy_loss", pg_loss.item(), global_step)
        writer.add_scalar("losses/entropy", entropy_loss.item(), global_step)
        writer.add_scalar("losses/old_approx_kl", old_approx_kl.item(), global_step)
        writer.add_scalar("losses/approx_kl", approx_kl.item(), global_step)
        writer.add_scalar("losses/clipfrac", np.mean(clipfracs), global_step)
        writer.add_scalar("losses/explained_variance", explained, global_step)
        writer.add_scalar("charts/SPS", 1000, global_step)
    writer.close()
    return heard.said


def rsl_rl(folder: Path) -> list[tuple[str, float, int]]:
    """rsl_rl's own runner on a small environment; then a second runner continues from its checkpoint, in one folder."""
    from rsl_rl.env import VecEnv
    from rsl_rl.runners import OnPolicyRunner
    from tensordict import TensorDict
    from torch.utils import tensorboard

    class Walk(VecEnv):  # type: ignore[misc]  # it comes without types
        """Four points, pushed by the actions; an episode ends after 8 steps."""

        def __init__(self) -> None:
            self.num_envs, self.num_actions, self.max_episode_length, self.device = 4, 1, 8, "cpu"
            self.episode_length_buf = torch.zeros(4, dtype=torch.long)
            self.cfg: dict[str, Any] = {}
            self._place = torch.zeros(4, 1)

        def get_observations(self) -> TensorDict:
            return TensorDict({"policy": self._place.clone()}, batch_size=[4])

        def step(self, actions: torch.Tensor) -> Any:
            self._place += 0.1 * actions.clamp(-1, 1) + 0.05
            self.episode_length_buf += 1
            rewards = -self._place.abs().flatten()
            done = self.episode_length_buf >= self.max_episode_length
            extras = {"time_outs": done.clone(), "log": {"distance": self._place.abs().mean()}}
            self._place[done], self.episode_length_buf[done] = 0.0, 0
            return self.get_observations(), rewards, done.long(), extras

    model = {"class_name": "rsl_rl.models.MLPModel", "hidden_dims": [8], "activation": "elu"}
    config: dict[str, Any] = {
        "num_steps_per_env": 16,
        "save_interval": 100,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": {
            **model,
            "distribution_cfg": {"class_name": "rsl_rl.modules.GaussianDistribution", "init_std": 1.0},
        },
        "critic": model,
        "algorithm": {
            "class_name": "rsl_rl.algorithms.PPO",
            "num_learning_epochs": 2,
            "num_mini_batches": 2,
            "schedule": "adaptive",
            "desired_kl": 0.01,
        },
    }
    torch.manual_seed(1)
    said: list[tuple[str, float, int]] = []
    writer_class = tensorboard.SummaryWriter

    def heard_writer(*args: Any, **options: Any) -> Any:
        writer = writer_class(*args, **options)
        heard = _Recorder(writer)
        heard.said = said
        return writer

    tensorboard.SummaryWriter = heard_writer  # type: ignore[assignment,misc]
    runner = OnPolicyRunner(Walk(), copy.deepcopy(config), log_dir=str(folder), device="cpu")
    runner.learn(UPDATES)
    runner.logger.writer.close()
    again = OnPolicyRunner(Walk(), copy.deepcopy(config), log_dir=str(folder), device="cpu")
    again.load(str(folder / f"model_{UPDATES - 1}.pt"))
    again.learn(2)
    again.logger.writer.close()
    tensorboard.SummaryWriter = writer_class  # type: ignore[misc]
    return said


def torchrl(folder: Path) -> list[tuple[str, float, int]]:
    """TorchRL's ClipPPOLoss and GAE in a user's loop, logged as its PPO script logs, with every loss key."""
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from torchrl.modules import ProbabilisticActor, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE
    from torchrl.record.loggers import TensorboardLogger

    torch.manual_seed(1)
    net = TensorDictModule(nn.Linear(3, 2), in_keys=["observation"], out_keys=["logits"])
    actor = ProbabilisticActor(net, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True)
    critic = ValueOperator(nn.Linear(3, 1), in_keys=["observation"])
    loss_module = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_coeff=0.01, normalize_advantage=True)
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=3e-3)
    logger = TensorboardLogger("PPO_walk", str(folder))
    heard = _Recorder(logger.experiment)
    logger.log_hparams({"clip_epsilon": 0.2, "env": "walk"})
    frames = 0
    for _update in range(UPDATES):
        observations = torch.randn(33, 3)
        with torch.no_grad():
            rollout = actor(TensorDict({"observation": observations[:-1]}, batch_size=[32]))
        ends = torch.zeros(32, 1, dtype=torch.bool)
        ends[-1] = True
        rollout["next"] = TensorDict(
            {
                "observation": observations[1:],
                "reward": rollout["action"].float().view(32, 1) * observations[:-1, :1],
                "done": ends,
                "terminated": ends,
            },
            batch_size=[32],
        )
        frames += 32
        seen = []
        for _epoch in range(2):
            with torch.no_grad():
                rollout = advantage(rollout)
            for minibatch in rollout.split(16):
                losses = loss_module(minibatch)
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
                optimizer.step()
                seen.append({key: float(value.detach().mean()) for key, value in losses.items()})
        for key in seen[0]:
            logger.log_scalar(f"train/{key}", float(np.mean([one[key] for one in seen])), frames)
        logger.log_scalar("train/lr", 3e-3, frames)
        logger.log_scalar("train/clip_epsilon", 0.2, frames)
        logger.log_scalar("time/speed", 1000.0, frames)
    logger.experiment.close()
    return heard.said


def main() -> None:
    """Train with the libraries that are named, and print what each logged."""
    *names, folder = sys.argv[1:]
    result = {}
    for name in names:
        (path := Path(folder) / name).mkdir(parents=True)
        result[name] = {"cleanrl": cleanrl, "rsl_rl": rsl_rl, "torchrl": torchrl}[name](path)
    sys.stdout.write("\nLOGGED " + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
