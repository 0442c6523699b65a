"""Health of a recurrent state."""

from __future__ import annotations

import torch
from torch import Tensor

from esper_recorder.reductions.statistics import Statistics, wide_enough


def state_statistics(state: Tensor) -> Statistics:
    """Count and sum a hidden or cell state, named as in the table `recurrent_state`.

    Root mean squares are derived from them, not norms, which grow with the number of environments and the width of the
    layer. Sums are over the finite elements.

    Args:
        state: [..., envs, hidden]; a state without environments, [hidden], is that of one.
    """
    x = wide_enough(state.detach())
    if x.dim() < 2:
        x = x.reshape(1, -1)
    by_env = x.movedim(-2, 0).reshape(x.shape[-2], x.numel() // max(x.shape[-2], 1))
    finite = torch.isfinite(by_env)
    wide = torch.where(finite, by_env, 0).to(torch.float64)
    sum_sq, n = (wide * wide).sum(dim=-1), finite.sum(dim=-1)
    env_rms = torch.where(n > 0, torch.sqrt(sum_sq / n), 0)
    totals = {
        "n": torch.full((), by_env.numel(), device=x.device),
        "nan_count": torch.isnan(by_env).sum(),
        "inf_count": torch.isinf(by_env).sum(),
        "sum_sq": sum_sq.sum(),
        "env_n": (n > 0).sum(),
        "env_rms_sum": env_rms.sum(),
    }
    for name, values in (("env_rms_max", env_rms), ("abs_max", wide.abs().flatten())):
        largest = torch.cat([values, values.new_zeros(1)]).amax()  # of an empty state too
        totals[name] = torch.where(n.sum() > 0, largest, torch.nan)
    return Statistics(tuple(totals), torch.stack([total.to(torch.float64) for total in totals.values()]))
