"""Metrics from stored sums: pure functions of a row's counts and sums.

Covers: the metrics of one set of transitions (`derive`), of a head, a layer and a recurrent state, and of a whole PPO
update, pooled (`derive_pooled`) or by a library's definition (`DEFINITIONS`):

* `pooled`: over all transitions of the update with equal weight, without non-finite terms. The same for every trainer,
  so the one to compare runs by; `approx_kl_k1` and `approx_kl_k3` always follow it.
* `sb3`: as Stable-Baselines3 2.x logs them. `approx_kl` is the mean over the minibatches of the last epoch only;
  `clip_fraction`, `entropy`, `policy_loss` and `value_loss` are means over the minibatches of all epochs, with equal
  weight; `loss` is the last minibatch's; a minibatch with a non-finite term is NaN.

Does not cover: rows imported from the logs of a library, which have no sums. Their `definition` names that library
(`cleanrl`, `rsl_rl`, `torchrl`, `sb3`, ...), and their metrics are as it logged them: see docs/importing.md.

Explained variance is that of the rollout, if it was recorded: of predictions made before the update. None is NULL, not
measured. Each formula is written once, over an `Arithmetic`: of numbers here, of whole columns in the recorder, of SQL
and Polars expressions in the analytics package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Columns = Mapping[str, Sequence[Any]]
Moments = tuple[Any, Any, Any]
"""Sum, sum of squares and count of the finite values of a quantity."""


class MetricInputs(Protocol):
    """Values by column name: a mapping, or columns that are found when they are asked for."""

    def get(self, name: str, /) -> Any: ...


class Arithmetic(Protocol):
    """The operations of the formulas. An operand that is None (NULL) makes the result None."""

    def subtract(self, a: Any, b: Any) -> Any: ...
    def multiply(self, a: Any, b: Any) -> Any: ...

    def divide(self, a: Any, b: Any, of: Any = None) -> Any:
        """a / b, a sum over the b finite ones of `of` terms (by default b).

        NULL if `of` is zero: nothing was counted. NaN if only b is: nothing counted was finite.
        """

    def root(self, a: Any) -> Any:
        """Square root; zero for a negative number, which is a rounding error."""

    def ratio(self, a: Any, b: Any, least: Any) -> Any:
        """a / b; NaN if b is zero or not above `least`: the quotient is meaningless."""


class UpdateArithmetic(Arithmetic, Protocol):
    """The operations of the formulas of a whole update."""

    def choose(self, measured: Any, then: Any, otherwise: Any) -> Any:
        """`then` if `measured` is not NULL, else `otherwise`."""


class Scalars:
    """Arithmetic of numbers and None."""

    def subtract(self, a: Any, b: Any) -> Any:
        return None if a is None or b is None else a - b

    def multiply(self, a: Any, b: Any) -> Any:
        return None if a is None or b is None else a * b

    def divide(self, a: Any, b: Any, of: Any = None) -> Any:
        if a is None or b is None or not (b if of is None else of):
            return None
        return a / b if b else math.nan

    def root(self, a: Any) -> Any:
        return None if a is None else 0.0 if a <= 0.0 else math.sqrt(a)

    def ratio(self, a: Any, b: Any, least: Any) -> Any:
        if a is None or b is None or least is None:
            return None
        return a / b if b and b > least else math.nan

    def choose(self, measured: Any, then: Any, otherwise: Any) -> Any:
        return otherwise if measured is None else then


_SCALARS = Scalars()

_ROUNDING = 1e-13
"""A variance below this fraction of the mean square is the rounding error of a constant: float64 has 16 digits."""

_NONFINITE = ("nan", "posinf", "neginf")
"""How the columns of non-finite counts end."""


def mean(total: Any, n: Any, o: Arithmetic = _SCALARS, *, of: Any = None) -> Any:
    """Mean of the n finite ones of `of` terms (by default n), from their sum.

    NULL if it was not measured or nothing was counted; NaN if nothing counted was finite.
    """
    return o.divide(total, n, of)


def std(total: Any, total_sq: Any, n: Any, o: Arithmetic = _SCALARS, *, of: Any = None) -> Any:
    """Population standard deviation from a sum and a sum of squares; NULL and NaN as in `mean`.

    Computed in float64: if the mean is m times the deviation, about 2 log10(m) of 16 digits are lost.
    """
    return o.root(_variance(total, total_sq, n, o, of))


def root_mean_square(total_sq: Any, n: Any, o: Arithmetic = _SCALARS, *, of: Any = None) -> Any:
    """sqrt(total_sq / n); NULL and NaN as in `mean`."""
    return o.root(o.divide(total_sq, n, of))


def explained_variance(residual: Moments, returns: Moments, o: Arithmetic = _SCALARS, *, of: Any = None) -> Any:
    """1 - var(return - value) / var(return), population variances (Stable-Baselines3, CleanRL).

    1 is perfect up to a constant offset, 0 as good as predicting the mean return, negative worse. NaN if the returns
    vary by no more than the rounding error of their sums: the ratio is meaningless.
    """
    _, return_sum_sq, return_n = returns
    rounding = o.multiply(_ROUNDING, o.divide(return_sum_sq, return_n, of))
    return o.subtract(1.0, o.ratio(_variance(*residual, o, of), _variance(*returns, o, of), rounding))


def correlation(x: Moments, y: Moments, product_sum: Any, n: Any, o: Arithmetic = _SCALARS) -> Any:
    """Pearson's correlation of two quantities over the same n transitions.

    NaN if one has a non-finite value (the sums are then not over the same transitions), or does not vary by more than
    the rounding error of its sums.

    Args:
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
    """Whether a value is measured, and neither NaN nor infinite."""
    return value is not None and math.isfinite(value)


def clipped_norm(norm: float | None, max_norm: float | None) -> float | None:
    """Gradient norm after `torch.nn.utils.clip_grad_norm_`: norm * min(1, max_norm / (norm + 1e-6)).

    NaN if the norm is not finite, as the clipped gradients are then. None if either was not measured.
    """
    if norm is None or max_norm is None:
        return None
    if not math.isfinite(norm):
        return math.nan
    return norm * min(1.0, max_norm / (norm + 1e-6))


class MetricTerms:
    """The counts and means that formulas share, each computed when it is first asked for."""

    def __init__(self, row: MetricInputs, o: Arithmetic) -> None:
        self.row, self.o = row, o
        self._counts: dict[str, Any] = {}
        self._means: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """A column of the row; NULL if it is missing."""
        return self.row.get(name)

    @property
    def n(self) -> Any:
        """How many terms there are."""
        return self.row.get("n")

    def count(self, name: str) -> Any:
        """How many terms of a quantity are finite."""
        if name not in self._counts:
            count = _COUNTS.get(name)
            self._counts[name] = self.get(f"{name}_n") if count is None else count(self.row, self.o)
        return self._counts[name]

    def mean(self, name: str) -> Any:
        if name not in self._means:
            self._means[name] = mean(self.get(f"{name}_sum"), self.count(name), self.o, of=self.n)
        return self._means[name]

    def moments(self, name: str) -> Moments:
        return self.get(f"{name}_sum"), self.get(f"{name}_sum_sq"), self.count(name)

    def std(self, name: str) -> Any:
        return std(*self.moments(name), self.o, of=self.n)

    def ratio(self, name: str, n: Any, of: Any = None) -> Any:
        return self.o.divide(self.get(name), n, of)


_COUNTS: dict[str, Callable[[MetricInputs, Arithmetic], Any]] = {
    "k1": lambda row, o: _finite_count(row, "log_ratio", o),
    "k3": lambda row, o: _k3_count(row, o),
    "ratio": lambda row, o: o.subtract(row.get("n"), row.get("ratio_nonfinite")),
    "entropy": lambda row, o: _finite_count(row, "entropy", o),
    "advantage": lambda row, o: _finite_count(row, "advantage", o),
    "return": lambda row, o: _finite_count(row, "return", o),
    "value": lambda row, o: _finite_count(row, "value", o),
}
"""Of the quantities whose non-finite terms are counted; of the others the finite ones are."""

Formulas = Mapping[str, Callable[[MetricTerms], Any]]


def _clip_fraction(t: MetricTerms) -> Any:
    clipped_in = t.o.subtract(t.o.subtract(t.n, t.get("clip_low_count")), t.get("clip_high_count"))
    return t.o.divide(t.o.subtract(t.n, clipped_in), t.n)


_TRANSITIONS: Formulas = {
    "approx_kl": lambda t: t.mean("k3"),
    "approx_kl_k1": lambda t: t.mean("k1"),
    "approx_kl_k3": lambda t: t.mean("k3"),
    "clip_fraction": _clip_fraction,
    "entropy": lambda t: t.mean("entropy"),
    "entropy_normalized": lambda t: t.ratio("entropy_normalized_sum", t.get("entropy_normalized_n")),
    "policy_loss": lambda t: t.mean("policy_loss"),
    "value_loss": lambda t: t.mean("value_loss"),
    "loss": lambda t: _loss(t.mean("policy_loss"), t.mean("entropy"), t.mean("value_loss"), t.row, t.o),
    "advantage_mean": lambda t: t.mean("advantage"),
    "advantage_std": lambda t: t.std("advantage"),
    "return_mean": lambda t: t.mean("return"),
    "return_std": lambda t: t.std("return"),
    "value_mean": lambda t: t.mean("value"),
    "value_std": lambda t: t.std("value"),
    "raw_advantage_mean": lambda t: t.mean("raw_advantage"),
    "raw_advantage_std": lambda t: t.std("raw_advantage"),
    "ratio_mean": lambda t: t.mean("ratio"),
    "ratio_std": lambda t: t.std("ratio"),
    "residual_mean": lambda t: t.mean("residual"),
    "residual_rms": lambda t: root_mean_square(*t.moments("residual")[1:], t.o, of=t.n),
    "explained_variance": lambda t: explained_variance(t.moments("residual"), t.moments("return"), t.o, of=t.n),
    "advantage_positive_fraction": lambda t: t.ratio(
        "advantage_positive_count", t.o.subtract(t.n, t.get("advantage_nan")), t.n
    ),
    "value_return_correlation": lambda t: correlation(
        t.moments("value"), t.moments("return"), t.get("value_return_sum"), t.n, t.o
    ),
}


def derive(row: MetricInputs, o: Arithmetic = _SCALARS) -> dict[str, Any]:
    """Compute the metrics of one set of transitions: a minibatch, or (pooled) an update.

    Args:
        row: counts and sums by column name; NULL if missing or None. `loss` also needs `entropy_coef`, `value_coef`.
        o: the arithmetic of the row's values.
    """
    return _compute(_TRANSITIONS, row, o)


def _compute(formulas: Formulas, row: MetricInputs, o: Arithmetic) -> dict[str, Any]:
    terms = MetricTerms(row, o)
    return {name: formula(terms) for name, formula in formulas.items()}


_HEADS: Formulas = {
    name: _TRANSITIONS[name]
    for name in (
        *("approx_kl_k1", "approx_kl_k3", "clip_fraction", "ratio_mean", "ratio_std"),
        *("entropy", "entropy_normalized"),
    )
} | {
    "learnable_fraction": lambda t: t.ratio("learnable_count", t.get("transition_n")),
    "entropy_normalized_all": lambda t: t.ratio(
        "entropy_normalized_sum", _finite_count(t.row, "entropy", t.o, of="transition_n"), t.get("transition_n")
    ),
}


def derive_head(row: MetricInputs, o: Arithmetic = _SCALARS) -> dict[str, Any]:
    """Compute the metrics of one action head (`heads`); its `transition_n` counts all transitions."""
    return _compute(_HEADS, row, o)


def _of_rollout(t: MetricTerms, name: str) -> Moments:
    return t.get(f"rollout_{name}_sum"), t.get(f"rollout_{name}_sum_sq"), t.get(f"rollout_{name}_n")


def _grad_norm(t: MetricTerms) -> Any:
    n = t.get("grad_norm_n")
    return t.ratio("grad_norm_sum", t.o.subtract(n, t.get("grad_norm_nonfinite")), n)


def _rollout_explained_variance(t: MetricTerms) -> Any:
    of_rollout = explained_variance(_of_rollout(t, "residual"), _of_rollout(t, "return"), t.o, of=t.get("rollout_n"))
    o: Any = t.o  # an UpdateArithmetic
    return o.choose(t.get("rollout_residual_n"), of_rollout, _TRANSITIONS["explained_variance"](t))


_UPDATES: Formulas = {
    **_TRANSITIONS,
    "grad_norm": _grad_norm,
    "rollout_return_std": lambda t: std(*_of_rollout(t, "return"), t.o, of=t.get("rollout_n")),
    "rollout_value_return_correlation": lambda t: correlation(
        _of_rollout(t, "value"), _of_rollout(t, "return"), t.get("rollout_value_return_sum"), t.get("rollout_n"), t.o
    ),
    "explained_variance": _rollout_explained_variance,
}


def derive_pooled(row: MetricInputs, o: UpdateArithmetic = _SCALARS) -> dict[str, Any]:
    """Compute the metrics of one PPO update over all its transitions, from its merged counts and sums."""
    return _compute(_UPDATES, row, o)


def _norm(t: MetricTerms, name: str, finite: Any) -> Any:
    return t.o.multiply(t.o.root(t.get(name)), t.o.divide(finite, finite, t.n))  # NaN if no element is finite


_LAYERS: Formulas = {
    "grad_norm": lambda t: _norm(t, "grad_sum_sq", _finite_count(t.row, "grad", t.o)),
    "grad_mean": lambda t: t.ratio("grad_sum", _finite_count(t.row, "grad", t.o), t.n),
    "grad_std": lambda t: std(t.get("grad_sum"), t.get("grad_sum_sq"), _finite_count(t.row, "grad", t.o), t.o, of=t.n),
    "weight_norm": lambda t: t.o.root(t.get("weight_sum_sq")),
    "step_norm": lambda t: t.o.root(t.get("step_sum_sq")),
}


def derive_layer(row: MetricInputs, o: Arithmetic = _SCALARS) -> dict[str, Any]:
    """Compute the metrics of one parameter tensor's gradient (`gradient_layers`)."""
    return _compute(_LAYERS, row, o)


def _finite_elements(t: MetricTerms) -> Any:
    return t.o.subtract(t.o.subtract(t.n, t.get("nan_count")), t.get("inf_count"))


_STATES: Formulas = {
    "rms": lambda t: root_mean_square(t.get("sum_sq"), _finite_elements(t), t.o, of=t.n),
    "env_rms_mean": lambda t: t.ratio("env_rms_sum", t.get("env_n"), t.n),
    "l2_norm": lambda t: _norm(t, "sum_sq", _finite_elements(t)),
}


def derive_state(row: MetricInputs, o: Arithmetic = _SCALARS) -> dict[str, Any]:
    """Compute the metrics of a recurrent state (`recurrent_state`)."""
    return _compute(_STATES, row, o)


FORMULAS: Mapping[str, Formulas] = {
    "minibatches": _TRANSITIONS,
    "ppo_updates": _UPDATES,
    "heads": _HEADS,
    "gradient_layers": _LAYERS,
    "recurrent_state": _STATES,
}
"""Table -> its metrics, for a caller that computes some of them one by one."""


def _sb3(row: MetricInputs, minibatches: Columns) -> dict[str, float | None]:
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


def _finite_counts(row: MetricInputs) -> dict[str, int | None]:
    """Return metric -> how many of its terms are finite."""
    return {
        "approx_kl": _k3_count(row, _SCALARS),
        "clip_fraction": row.get("n"),
        "entropy": _finite_count(row, "entropy", _SCALARS),
        "policy_loss": row.get("policy_loss_n"),
        "value_loss": row.get("value_loss_n"),
    }


def _with_nonfinite(row: MetricInputs) -> dict[str, float | None]:
    """Return a minibatch's metrics as torch's mean computes them: NaN if a term is not finite.

    A k3 term is NaN if the log ratio is NaN or +infinity, and +infinity if the ratio overflows or the log ratio is
    -infinity. Of the other metrics it is not recorded which terms are infinite, so they are NaN.
    """
    n = row.get("n")
    result = {
        name: math.nan if n is not None and count is not None and count < n else row.get(name)
        for name, count in _finite_counts(row).items()
    }
    if not is_finite(result["approx_kl"]) and row.get("log_ratio_nan") == row.get("log_ratio_posinf") == 0:
        result["approx_kl"] = math.inf
    return result


POOLED = "pooled"

DEFINITIONS: dict[str, Callable[[MetricInputs, Columns], dict[str, float | None]]] = {
    POOLED: lambda row, minibatches: {},
    "sb3": _sb3,
}
"""The definitions of an update's metrics: name -> what differs from the pooled ones."""

MINIBATCH_COLUMNS = (
    *("epoch", "n", "ratio_nonfinite", "policy_loss_n", "value_loss_n"),
    *[f"{quantity}_{kind}" for quantity in ("log_ratio", "entropy") for kind in _NONFINITE],
    *("approx_kl", "clip_fraction", "entropy", "policy_loss", "value_loss"),
)
"""The columns of an update's minibatches that a definition may use."""

UPDATE_COLUMNS = (
    *("n", "ratio_nonfinite", "log_ratio_neginf", "policy_loss_n", "value_loss_n", "entropy_coef", "value_coef"),
    *[f"entropy_{kind}" for kind in _NONFINITE],
)
"""The columns of the update itself that one may use."""


def _variance(total: Any, total_sq: Any, n: Any, o: Arithmetic, of: Any) -> Any:
    average = o.divide(total, n, of)
    return o.subtract(o.divide(total_sq, n, of), o.multiply(average, average))


def _finite_count(row: MetricInputs, quantity: str, o: Arithmetic, *, of: str = "n") -> Any:
    n = row.get(of)
    for kind in _NONFINITE:
        n = o.subtract(n, row.get(f"{quantity}_{kind}"))
    return n


def _k3_count(row: MetricInputs, o: Arithmetic) -> Any:
    """Count the finite k3 terms: a log ratio of -infinity has a finite ratio, 0, but an infinite k3."""
    return o.subtract(o.subtract(row.get("n"), row.get("ratio_nonfinite")), row.get("log_ratio_neginf"))


def _mean_of(values: Sequence[float | None]) -> float | None:
    measured = [v for v in values if v is not None]
    return sum(measured) / len(measured) if measured else None


def _loss(policy_loss: Any, entropy: Any, value_loss: Any, row: MetricInputs, o: Arithmetic) -> Any:
    bonus = o.multiply(entropy, row.get("entropy_coef"))
    value_term = o.multiply(value_loss, row.get("value_coef"))
    return o.subtract(o.subtract(policy_loss, bonus), o.subtract(0.0, value_term))
