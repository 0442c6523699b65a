"""Metrics from stored sums: pure functions of a row's counts and sums.

A metric has one value by each library's definition; what was stored is enough for all of them. `derive` gives the
metrics of one set of transitions. `derive_update` gives those of a whole PPO update by a named definition:

* `pooled`: over all transitions the update evaluated, each with the same weight, non-finite terms left out. The same
  for every trainer, so the one to compare runs by; `approx_kl_k1` and `approx_kl_k3` always follow it.
* `sb3`: as Stable-Baselines3 2.x logs them. `approx_kl` is the mean over the minibatches of the last epoch alone;
  `clip_fraction`, `entropy`, `policy_loss` and `value_loss` are means over the minibatches of all epochs, each
  minibatch with the same weight; `loss` is the last minibatch's; a minibatch with a non-finite term is NaN.

Rows that were imported from a library's own logs have no sums to compute anything from. Their `definition` names that
library (`cleanrl`, `rsl_rl`, `torchrl`, `sb3`, ...), and their metrics are as it logged them: see docs/importing.md.

Explained variance is that of the rollout where the rollout was recorded: predictions made before the update.

None stands for NULL, not measured. The formulas of a set of transitions are written once, over an `Arithmetic`: that
of plain numbers here, that of whole columns in the recorder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Row = Mapping[str, Any]
Columns = Mapping[str, Sequence[Any]]


class Arithmetic(Protocol):
    """What the formulas compute with. An operand that is None (NULL) makes the result None."""

    def subtract(self, a: Any, b: Any) -> Any: ...
    def multiply(self, a: Any, b: Any) -> Any: ...

    def divide(self, a: Any, b: Any, of: Any = None) -> Any:
        """a / b, a sum over the b finite terms of `of` (b itself where not given).

        NULL where `of` is zero: nothing was counted. NaN where only b is: nothing counted was finite.
        """

    def root(self, a: Any) -> Any:
        """Square root; of a negative number, which only rounding makes, zero."""

    def ratio(self, a: Any, b: Any, least: Any) -> Any:
        """a / b; NaN where b is not above `least`: the quotient has no meaning."""


class UpdateArithmetic(Arithmetic, Protocol):
    """What the formulas of a whole update compute with besides."""

    def choose(self, known: Any, then: Any, otherwise: Any) -> Any:
        """`then` where `known` was measured, `otherwise` where it is NULL."""


class Scalars:
    """Arithmetic of plain numbers and None."""

    def subtract(self, a: Any, b: Any) -> Any:
        return None if a is None or b is None else a - b

    def multiply(self, a: Any, b: Any) -> Any:
        return None if a is None or b is None else a * b

    def divide(self, a: Any, b: Any, of: Any = None) -> Any:
        if a is None or b is None or not (b if of is None else of):
            return None
        return a / b if b else math.nan

    def root(self, a: Any) -> Any:
        return None if a is None else math.sqrt(max(a, 0.0))

    def ratio(self, a: Any, b: Any, least: Any) -> Any:
        if a is None or b is None or least is None:
            return None
        return a / b if b > least else math.nan

    def choose(self, known: Any, then: Any, otherwise: Any) -> Any:
        return otherwise if known is None else then


_SCALARS = Scalars()

_ROUNDING = 1e-13
"""A variance below this share of the mean square is what rounding makes of a constant: float64 has 16 digits."""


def mean(total: Any, n: Any, o: Arithmetic = _SCALARS, *, of: Any = None) -> Any:
    """total / n, the mean of the n finite ones of `of` terms (n itself where not given).

    NULL where it was not measured or nothing was counted; NaN where nothing counted was finite.
    """
    return o.divide(total, n, of)


def std(total: Any, total_sq: Any, n: Any, o: Arithmetic = _SCALARS, *, of: Any = None) -> Any:
    """Population standard deviation from a sum and a sum of squares; NULL and NaN as in `mean`.

    Computed in float64; of values whose mean is m times their deviation, about 2 log10(m) of 16 digits are lost.
    """
    return o.root(_variance(total, total_sq, n, o, of))


def root_mean_square(total_sq: Any, n: Any, o: Arithmetic = _SCALARS, *, of: Any = None) -> Any:
    """sqrt(total_sq / n); NULL and NaN as in `mean`."""
    return o.root(o.divide(total_sq, n, of))


def explained_variance(
    residual_sum: Any,
    residual_sum_sq: Any,
    residual_n: Any,
    return_sum: Any,
    return_sum_sq: Any,
    return_n: Any,
    o: Arithmetic = _SCALARS,
    *,
    of: Any = None,
) -> Any:
    """1 - var(return - value) / var(return), population variances (Stable-Baselines3, CleanRL).

    1 is perfect up to a constant offset, 0 as good as predicting the mean return, negative worse. NaN where the
    returns do not vary, or by no more than the rounding of their sums: the ratio has no meaning there.
    """
    residual = _variance(residual_sum, residual_sum_sq, residual_n, o, of)
    spread = _variance(return_sum, return_sum_sq, return_n, o, of)
    rounding = o.multiply(_ROUNDING, o.divide(return_sum_sq, return_n, of))
    return o.subtract(1.0, o.ratio(residual, spread, rounding))


def correlation(
    x: tuple[Any, Any, Any], y: tuple[Any, Any, Any], product_sum: Any, n: Any, o: Arithmetic = _SCALARS
) -> Any:
    """Pearson's correlation of two quantities over the same n transitions.

    NaN where one holds a value that is not finite (the sums are then not over the same transitions), or does not vary
    by more than the rounding of its sums.

    Args:
        x, y: (sum, sum of squares, count) of the finite values.
        product_sum: sum of x * y.
    """
    (x_sum, x_sum_sq, x_n), (y_sum, y_sum_sq, y_n) = x, y
    spread = tuple(_variance(total, total_sq, count, o, n) for total, total_sq, count in (x, y))
    covariance = o.subtract(o.divide(product_sum, n), o.multiply(o.divide(x_sum, x_n, n), o.divide(y_sum, y_n, n)))
    result = o.divide(covariance, o.multiply(o.root(spread[0]), o.root(spread[1])), n)
    for variance, total_sq, count in ((spread[0], x_sum_sq, x_n), (spread[1], y_sum_sq, y_n)):
        rounding = o.multiply(_ROUNDING, o.divide(total_sq, count, n))
        result = o.multiply(result, o.ratio(variance, variance, rounding))  # times 1, or NaN
    missing = o.subtract(o.subtract(n, x_n), o.subtract(y_n, n))
    return o.ratio(result, o.divide(n, n), missing)


def is_finite(value: float | None) -> bool:
    """Whether a value was measured and is neither NaN nor infinite."""
    return value is not None and math.isfinite(value)


def largest(values: Sequence[float]) -> float:
    """The largest number, infinities included; NaN where there is none."""
    return max((v for v in values if not math.isnan(v)), default=math.nan)


def clipped_norm(norm: float | None, max_norm: float | None) -> float | None:
    """Gradient norm after `torch.nn.utils.clip_grad_norm_`: norm * min(1, max_norm / (norm + 1e-6)).

    NaN where the norm is not finite: the clipped gradients then hold NaN. None where either is not known.
    """
    if norm is None or max_norm is None:
        return None
    if not math.isfinite(norm):
        return math.nan
    return norm * min(1.0, max_norm / (norm + 1e-6))


def derive(row: Row, o: Arithmetic = _SCALARS) -> dict[str, Any]:
    """The metrics of one set of transitions: a minibatch, or (pooled) an update.

    Args:
        row: counts and sums by column name, missing or None where not measured. `loss` also needs `entropy_coef` and
            `value_coef`.
        o: the arithmetic of the row's values.
    """
    get = row.get
    n = get("n")
    ratio_n = o.subtract(n, get("ratio_nonfinite"))
    advantage_n = _finite_count(row, "advantage", o)
    return_n = _finite_count(row, "return", o)
    value_n = _finite_count(row, "value", o)
    residual_n = get("residual_n")
    clipped_in = o.subtract(o.subtract(n, get("clip_low_count")), get("clip_high_count"))
    k3 = mean(get("k3_sum"), _k3_count(row, o), o, of=n)
    entropy = mean(get("entropy_sum"), _finite_count(row, "entropy", o), o, of=n)
    policy_loss = mean(get("policy_loss_sum"), get("policy_loss_n"), o, of=n)
    value_loss = mean(get("value_loss_sum"), get("value_loss_n"), o, of=n)
    return {
        "approx_kl": k3,
        "approx_kl_k1": mean(get("k1_sum"), _finite_count(row, "log_ratio", o), o, of=n),
        "approx_kl_k3": k3,
        "clip_fraction": o.divide(o.subtract(n, clipped_in), n),
        "ratio_mean": mean(get("ratio_sum"), ratio_n, o, of=n),
        "ratio_std": std(get("ratio_sum"), get("ratio_sum_sq"), ratio_n, o, of=n),
        "entropy": entropy,
        "entropy_normalized": mean(get("entropy_normalized_sum"), get("entropy_normalized_n"), o),
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "loss": _loss(policy_loss, entropy, value_loss, row, o),
        "advantage_mean": mean(get("advantage_sum"), advantage_n, o, of=n),
        "advantage_std": std(get("advantage_sum"), get("advantage_sum_sq"), advantage_n, o, of=n),
        "return_mean": mean(get("return_sum"), return_n, o, of=n),
        "return_std": std(get("return_sum"), get("return_sum_sq"), return_n, o, of=n),
        "value_mean": mean(get("value_sum"), value_n, o, of=n),
        "residual_mean": mean(get("residual_sum"), residual_n, o, of=n),
        "residual_rms": root_mean_square(get("residual_sum_sq"), residual_n, o, of=n),
        "explained_variance": explained_variance(
            get("residual_sum"),
            get("residual_sum_sq"),
            residual_n,
            get("return_sum"),
            get("return_sum_sq"),
            return_n,
            o,
            of=n,
        ),
        "advantage_positive_fraction": o.divide(
            get("advantage_positive_count"), o.subtract(n, get("advantage_nan")), n
        ),
        "raw_advantage_mean": mean(get("raw_advantage_sum"), get("raw_advantage_n"), o, of=n),
        "raw_advantage_std": std(
            get("raw_advantage_sum"), get("raw_advantage_sum_sq"), get("raw_advantage_n"), o, of=n
        ),
        "value_std": std(get("value_sum"), get("value_sum_sq"), value_n, o, of=n),
        "value_return_correlation": correlation(
            (get("value_sum"), get("value_sum_sq"), value_n),
            (get("return_sum"), get("return_sum_sq"), return_n),
            get("value_return_sum"),
            n,
            o,
        ),
    }


def derive_head(row: Row, o: Arithmetic = _SCALARS) -> dict[str, Any]:
    """The metrics of one action head (`heads`) from its counts and sums; `transition_n` counts all transitions."""
    every, chosen = row.get("transition_n"), row.get("entropy_normalized_sum")
    finite = every
    for kind in ("nan", "posinf", "neginf"):
        finite = o.subtract(finite, row.get(f"entropy_{kind}"))
    derived = derive(row, o)
    return {name: derived[name] for name in _HEAD_METRICS} | {
        "learnable_fraction": o.divide(row.get("learnable_count"), every),
        "entropy_normalized_all": mean(chosen, finite, o, of=every),
    }


_HEAD_METRICS = (
    "approx_kl_k1",
    "approx_kl_k3",
    "clip_fraction",
    "ratio_mean",
    "ratio_std",
    "entropy",
    "entropy_normalized",
)


def derive_update(row: Row, minibatches: Columns, definition: str = "pooled") -> dict[str, float | None]:
    """The metrics of one PPO update by a library's definition.

    Args:
        row: the update's merged counts and sums, those of its rollout and gradient norms included.
        minibatches: columns of its minibatches in the order the trainer evaluated them: `MINIBATCH_COLUMNS`, the
            metrics as `derive` gives them; none where there were no minibatches.
        definition: a key of `DEFINITIONS`.

    Raises:
        KeyError: the definition is not known.
    """
    return derive_pooled(row) | DEFINITIONS[definition](row, minibatches)


def derive_pooled(row: Row, o: UpdateArithmetic = _SCALARS) -> dict[str, Any]:
    """The metrics of one PPO update over all its transitions, whatever the minibatches.

    Args:
        row: the update's merged counts and sums, those of its rollout and gradient norms included.
        o: the arithmetic of the row's values.
    """
    get = row.get
    result = derive(row, o)
    norms_n = o.subtract(get("grad_norm_n"), get("grad_norm_nonfinite"))
    result["grad_norm"] = mean(get("grad_norm_sum"), norms_n, o, of=get("grad_norm_n"))
    n = get("rollout_n")
    returns = (get("rollout_return_sum"), get("rollout_return_sum_sq"), get("rollout_return_n"))
    result["rollout_return_std"] = std(*returns, o, of=n)
    values = (get("rollout_value_sum"), get("rollout_value_sum_sq"), get("rollout_value_n"))
    result["rollout_value_return_correlation"] = correlation(values, returns, get("rollout_value_return_sum"), n, o)
    residuals = (get("rollout_residual_sum"), get("rollout_residual_sum_sq"), get("rollout_residual_n"))
    of_rollout = explained_variance(*residuals, *returns, o, of=n)
    result["explained_variance"] = o.choose(get("rollout_residual_n"), of_rollout, result["explained_variance"])
    return result


def derive_layer(row: Row, o: Arithmetic = _SCALARS) -> dict[str, Any]:
    """The metrics of one parameter tensor's gradient (`gradient_layers`)."""
    get = row.get
    n = get("n")
    finite = _finite_count(row, "grad", o)
    some = o.divide(finite, finite, n)  # 1; NaN where no element is finite
    return {
        "grad_norm": o.multiply(o.root(get("grad_sum_sq")), some),
        "grad_mean": mean(get("grad_sum"), finite, o, of=n),
        "grad_std": std(get("grad_sum"), get("grad_sum_sq"), finite, o, of=n),
        "weight_norm": o.root(get("weight_sum_sq")),
        "step_norm": o.root(get("step_sum_sq")),
    }


def derive_state(row: Row, o: Arithmetic = _SCALARS) -> dict[str, Any]:
    """The metrics of a recurrent state (`recurrent_state`)."""
    get = row.get
    n = get("n")
    finite = o.subtract(o.subtract(n, get("nan_count")), get("inf_count"))
    some = o.divide(finite, finite, n)  # 1; NaN where no element is finite
    return {
        "rms": root_mean_square(get("sum_sq"), finite, o, of=n),
        "env_rms_mean": mean(get("env_rms_sum"), get("env_n"), o, of=n),
        "l2_norm": o.multiply(o.root(get("sum_sq")), some),
    }


def _pooled(row: Row, minibatches: Columns) -> dict[str, float | None]:
    return {}


def _sb3(row: Row, minibatches: Columns) -> dict[str, float | None]:
    if not minibatches:
        return {}
    every: Columns = minibatches
    if any(count is not None and count != row.get("n") for count in _finite_counts(row).values()):
        rows = [
            _with_nonfinite(dict(zip(minibatches, m, strict=True))) for m in zip(*minibatches.values(), strict=True)
        ]
        every = {name: [m[name] for m in rows] for name in rows[0]}
    epochs = minibatches["epoch"]
    of_last_epoch = [kl for kl, epoch in zip(every["approx_kl"], epochs, strict=True) if epoch == epochs[-1]]
    means = {name: _mean_of(every[name]) for name in ("clip_fraction", "entropy", "policy_loss", "value_loss")}
    policy_loss, entropy, value_loss = (every[name][-1] for name in ("policy_loss", "entropy", "value_loss"))
    loss = _loss(policy_loss, entropy, value_loss, row, _SCALARS)
    return {"approx_kl": _mean_of(of_last_epoch), **means, "loss": loss}


def _finite_counts(row: Row) -> dict[str, int | None]:
    """Metric -> how many of its terms are finite."""
    return {
        "approx_kl": _k3_count(row, _SCALARS),
        "clip_fraction": row.get("n"),
        "entropy": _finite_count(row, "entropy", _SCALARS),
        "policy_loss": row.get("policy_loss_n"),
        "value_loss": row.get("value_loss_n"),
    }


def _with_nonfinite(row: Row) -> dict[str, float | None]:
    """A minibatch's metrics as torch's mean gives them: NaN where a term is not finite.

    A k3 term is NaN where the log ratio is NaN or +infinity, and +infinity where the ratio overflows or the log ratio
    is -infinity; which of the other terms are infinite is not known.
    """
    n = row.get("n")
    result = {
        name: math.nan if n is not None and count is not None and count < n else row.get(name)
        for name, count in _finite_counts(row).items()
    }
    if not is_finite(result["approx_kl"]) and row.get("log_ratio_nan") == row.get("log_ratio_posinf") == 0:
        result["approx_kl"] = math.inf
    return result


DEFINITIONS: dict[str, Callable[[Row, Columns], dict[str, float | None]]] = {
    "pooled": _pooled,
    "sb3": _sb3,
}
"""Whose definition the metrics of an update follow: name -> what differs from the pooled ones."""

MINIBATCH_COLUMNS = (
    "epoch",
    "n",
    "log_ratio_nan",
    "log_ratio_posinf",
    "log_ratio_neginf",
    "ratio_nonfinite",
    "entropy_nan",
    "entropy_posinf",
    "entropy_neginf",
    "policy_loss_n",
    "value_loss_n",
    "approx_kl",
    "clip_fraction",
    "entropy",
    "policy_loss",
    "value_loss",
)
"""The columns of an update's minibatches that a definition may use."""


def _variance(total: Any, total_sq: Any, n: Any, o: Arithmetic, of: Any) -> Any:
    average = o.divide(total, n, of)
    return o.subtract(o.divide(total_sq, n, of), o.multiply(average, average))


def _finite_count(row: Row, quantity: str, o: Arithmetic) -> Any:
    n = row.get("n")
    for kind in ("nan", "posinf", "neginf"):
        n = o.subtract(n, row.get(f"{quantity}_{kind}"))
    return n


def _k3_count(row: Row, o: Arithmetic) -> Any:
    """Transitions whose k3 term is finite: a log ratio of -infinity has a finite ratio, 0, and an infinite k3."""
    return o.subtract(o.subtract(row.get("n"), row.get("ratio_nonfinite")), row.get("log_ratio_neginf"))


def _mean_of(values: Sequence[float | None]) -> float | None:
    measured = [v for v in values if v is not None]
    return sum(measured) / len(measured) if measured else None


def _loss(policy_loss: Any, entropy: Any, value_loss: Any, row: Row, o: Arithmetic) -> Any:
    bonus = o.multiply(entropy, row.get("entropy_coef"))
    value_term = o.multiply(value_loss, row.get("value_coef"))
    return o.subtract(o.subtract(policy_loss, bonus), o.subtract(0.0, value_term))
