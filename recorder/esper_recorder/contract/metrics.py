"""Metrics from stored sums: pure functions of a row's counts and sums.

A metric has one value by each library's definition; what was stored is enough for all of them. `derive` gives the
metrics of one set of transitions. `derive_update` gives those of a whole PPO update by a named definition:

* `pooled`: over all transitions the update evaluated, each with the same weight, non-finite terms left out. The same
  for every trainer, so the one to compare runs by; `approx_kl_k1` and `approx_kl_k3` always follow it.
* `sb3`: as Stable-Baselines3 2.x logs them. `approx_kl` is the mean over the minibatches of the last epoch alone;
  `clip_fraction`, `entropy`, `policy_loss` and `value_loss` are means over the minibatches of all epochs, each
  minibatch with the same weight; `loss` is the last minibatch's; a minibatch with a non-finite term is NaN.

Explained variance is that of the rollout where the rollout was recorded: predictions made before the update.

None stands for NULL, not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def mean(total: float | None, n: int | None) -> float | None:
    """total / n; None where either was not measured or nothing was counted."""
    if total is None or not n:
        return None
    return total / n


def std(total: float | None, total_sq: float | None, n: int | None) -> float | None:
    """Population standard deviation from a sum and a sum of squares.

    Computed in float64; of values whose mean is m times their deviation, about 2 log10(m) of 16 digits are lost.
    """
    if total is None or total_sq is None or not n:
        return None
    return math.sqrt(max(total_sq / n - (total / n) ** 2, 0.0))


def root_mean_square(total_sq: float | None, n: int | None) -> float | None:
    """sqrt(total_sq / n); None where nothing was counted."""
    if total_sq is None or not n:
        return None
    return math.sqrt(total_sq / n)


def explained_variance(
    residual_sum: float | None,
    residual_sum_sq: float | None,
    residual_n: int | None,
    return_sum: float | None,
    return_sum_sq: float | None,
    return_n: int | None,
) -> float | None:
    """1 - var(return - value) / var(return), population variances (Stable-Baselines3, CleanRL).

    1 is perfect up to a constant offset, 0 as good as predicting the mean return, negative worse. NaN where the
    returns do not vary: the ratio has no meaning there.
    """
    residual = std(residual_sum, residual_sum_sq, residual_n)
    spread = std(return_sum, return_sum_sq, return_n)
    if residual is None or spread is None:
        return None
    if spread == 0.0:
        return math.nan
    return 1.0 - residual**2 / spread**2


def clipped_norm(norm: float | None, max_norm: float | None) -> float | None:
    """Gradient norm after `torch.nn.utils.clip_grad_norm_`: norm * min(1, max_norm / (norm + 1e-6)).

    NaN where the norm is not finite: the clipped gradients then hold NaN. None where either is not known.
    """
    if norm is None or max_norm is None:
        return None
    if not math.isfinite(norm):
        return math.nan
    return norm * min(1.0, max_norm / (norm + 1e-6))


def derive(row: Row) -> dict[str, float | None]:
    """The metrics of one set of transitions: a minibatch, or (pooled) an update.

    Args:
        row: counts and sums by column name, missing or None where not measured. `loss` also needs `entropy_coef` and
            `value_coef`.
    """
    get = row.get
    n = get("n")
    log_ratio_n = _minus(n, get("log_ratio_nan"), get("log_ratio_posinf"), get("log_ratio_neginf"))
    ratio_n = _minus(n, get("ratio_nonfinite"))
    k3_n = _minus(ratio_n, get("log_ratio_neginf"))  # its ratio, 0, is finite and its k3 is not
    advantage_n = _finite_count(row, "advantage")
    return_n = _finite_count(row, "return")
    k3 = mean(get("k3_sum"), k3_n)
    entropy = mean(get("entropy_sum"), _finite_count(row, "entropy"))
    policy_loss = mean(get("policy_loss_sum"), get("policy_loss_n"))
    value_loss = mean(get("value_loss_sum"), get("value_loss_n"))
    return {
        "approx_kl": k3,
        "approx_kl_k1": mean(get("k1_sum"), log_ratio_n),
        "approx_kl_k3": k3,
        "clip_fraction": mean(_plus(get("clip_low_count"), get("clip_high_count")), n),
        "ratio_mean": mean(get("ratio_sum"), ratio_n),
        "ratio_std": std(get("ratio_sum"), get("ratio_sum_sq"), ratio_n),
        "entropy": entropy,
        "entropy_normalized": mean(get("entropy_normalized_sum"), get("entropy_normalized_n")),
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "loss": _loss(policy_loss, entropy, value_loss, row),
        "advantage_mean": mean(get("advantage_sum"), advantage_n),
        "advantage_std": std(get("advantage_sum"), get("advantage_sum_sq"), advantage_n),
        "return_mean": mean(get("return_sum"), return_n),
        "return_std": std(get("return_sum"), get("return_sum_sq"), return_n),
        "value_mean": mean(get("value_sum"), _finite_count(row, "value")),
        "residual_mean": mean(get("residual_sum"), get("residual_n")),
        "residual_rms": root_mean_square(get("residual_sum_sq"), get("residual_n")),
        "explained_variance": explained_variance(
            get("residual_sum"),
            get("residual_sum_sq"),
            get("residual_n"),
            get("return_sum"),
            get("return_sum_sq"),
            return_n,
        ),
    }


def derive_update(row: Row, minibatches: Sequence[Row], definition: str = "pooled") -> dict[str, float | None]:
    """The metrics of one PPO update by a library's definition.

    Args:
        row: the update's merged counts and sums, those of its rollout and gradient norms included.
        minibatches: its minibatches in the order the trainer evaluated them, each with its sums and its `epoch`.
        definition: a key of `DEFINITIONS`.

    Raises:
        KeyError: the definition is not known.
    """
    own = DEFINITIONS[definition]
    finite_norms = _minus(row.get("grad_norm_n"), row.get("grad_norm_nonfinite"))
    result = derive(row)
    result["grad_norm"] = mean(row.get("grad_norm_sum"), finite_norms)
    rollout_return_n = row.get("rollout_return_n")
    result["rollout_return_std"] = std(
        row.get("rollout_return_sum"), row.get("rollout_return_sum_sq"), rollout_return_n
    )
    if row.get("rollout_residual_n") is not None:
        result["explained_variance"] = explained_variance(
            row.get("rollout_residual_sum"),
            row.get("rollout_residual_sum_sq"),
            row.get("rollout_residual_n"),
            row.get("rollout_return_sum"),
            row.get("rollout_return_sum_sq"),
            rollout_return_n,
        )
    return result | own(row, minibatches)


def derive_layer(row: Row) -> dict[str, float | None]:
    """The metrics of one parameter tensor's gradient (`gradient_layers`)."""
    get = row.get
    n = _minus(get("n"), get("grad_nan"), get("grad_posinf"), get("grad_neginf"))
    return {
        "grad_norm": _root(get("grad_sum_sq")),
        "grad_mean": mean(get("grad_sum"), n),
        "grad_std": std(get("grad_sum"), get("grad_sum_sq"), n),
        "weight_norm": _root(get("weight_sum_sq")),
    }


def _pooled(row: Row, minibatches: Sequence[Row]) -> dict[str, float | None]:
    return {}


def _sb3(row: Row, minibatches: Sequence[Row]) -> dict[str, float | None]:
    if not minibatches:
        return {}
    every = [_sb3_minibatch(m) for m in minibatches]
    last_epoch = [v for v, m in zip(every, minibatches, strict=True) if m.get("epoch") == minibatches[-1].get("epoch")]
    last = every[-1]
    return {
        "approx_kl": _mean_of([v["approx_kl"] for v in last_epoch]),
        "clip_fraction": _mean_of([v["clip_fraction"] for v in every]),
        "entropy": _mean_of([v["entropy"] for v in every]),
        "policy_loss": _mean_of([v["policy_loss"] for v in every]),
        "value_loss": _mean_of([v["value_loss"] for v in every]),
        "loss": _loss(last["policy_loss"], last["entropy"], last["value_loss"], row),
    }


def _sb3_minibatch(row: Row) -> dict[str, float | None]:
    """A minibatch's metrics with non-finite terms kept in: torch's mean over them is NaN or infinite."""
    metrics = derive(row)
    n = row.get("n")
    for name, finite in (
        ("approx_kl", _minus(n, row.get("ratio_nonfinite"), row.get("log_ratio_neginf"))),
        ("entropy", _finite_count(row, "entropy")),
        ("policy_loss", row.get("policy_loss_n")),
        ("value_loss", row.get("value_loss_n")),
    ):
        if finite is not None and n is not None and finite < n:
            metrics[name] = math.nan
    return metrics


DEFINITIONS: dict[str, Callable[[Row, Sequence[Row]], dict[str, float | None]]] = {
    "pooled": _pooled,
    "sb3": _sb3,
}
"""Whose definition the metrics of an update follow: name -> what differs from the pooled ones."""


def _finite_count(row: Row, quantity: str) -> int | None:
    return _minus(
        row.get("n"), row.get(f"{quantity}_nan"), row.get(f"{quantity}_posinf"), row.get(f"{quantity}_neginf")
    )


def _minus(n: int | None, *others: int | None) -> int | None:
    if n is None or any(other is None for other in others):
        return None
    return n - sum(other for other in others if other is not None)


def _plus(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _mean_of(values: Sequence[float | None]) -> float | None:
    measured = [v for v in values if v is not None]
    return sum(measured) / len(measured) if measured else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)


def _loss(policy_loss: float | None, entropy: float | None, value_loss: float | None, row: Row) -> float | None:
    entropy_coef, value_coef = row.get("entropy_coef"), row.get("value_coef")
    if policy_loss is None or entropy is None or value_loss is None or entropy_coef is None or value_coef is None:
        return None
    return float(policy_loss - entropy_coef * entropy + value_coef * value_loss)
