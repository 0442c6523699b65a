"""Health of a recurrent state."""

from __future__ import annotations

import torch
from torch import Tensor

from esper_recorder.reduce.packed import Collector, Packed, wide_enough


def state_statistics(state: Tensor) -> Packed:
    """What a hidden or cell state looks like, named as in the table `recurrent_state`.

    Root mean squares and not norms, which grow with the number of elements: they do not depend on how many
    environments there are or how wide the layer is. Moments are over the finite elements.

    Args:
        state: [..., envs, hidden]; a state without environments, [hidden], is that of one.
    """
    x = wide_enough(state.detach())
    if x.dim() < 2:
        x = x.reshape(1, -1)
    by_env = x.movedim(-2, 0).reshape(x.shape[-2], -1)
    finite = torch.isfinite(by_env)
    wide = torch.where(finite, by_env, 0).to(torch.float64)
    sum_sq, n = (wide * wide).sum(dim=-1), finite.sum(dim=-1)
    env_rms = torch.sqrt(sum_sq / n)  # NaN where an environment's state has no finite element
    some = n.sum() > 0
    out = Collector()
    out.add("n", torch.full((), by_env.numel(), device=x.device))
    out.add("nan_count", torch.isnan(by_env).sum())
    out.add("inf_count", torch.isinf(by_env).sum())
    out.add("sum_sq", sum_sq.sum())
    out.add("rms", torch.sqrt(sum_sq.sum() / n.sum()))
    out.add("env_rms_mean", env_rms.nanmean())
    for name, value in (
        ("env_rms_max", torch.where(torch.isnan(env_rms), -torch.inf, env_rms).amax()),
        ("abs_max", wide.abs().amax()),
        ("l2_norm", torch.sqrt(sum_sq.sum())),
    ):
        out.add(name, torch.where(some, value, torch.nan))
    return out.pack()
