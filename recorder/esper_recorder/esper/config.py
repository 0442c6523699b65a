"""The hyperparameters of an Esper training: strict, frozen, loadable from JSON, kept in the run.

    config = TrainingConfig.for_cifar10(n_episodes=200)
    train_ppo_vectorized(**config.to_train_kwargs())
    Recorder("runs/", config=config, total_updates=config.n_episodes)

`config.model_dump_json()` writes it and `TrainingConfig.from_json` reads it. An unknown key is an error that suggests
the closest one, and so is a value of another type than its field's.
Needs pydantic: `pip install 'esper-recorder[esper]'`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from esper_recorder.contract.suggest import suggest

try:
    from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "esper_recorder.esper.TrainingConfig needs pydantic: pip install 'esper-recorder[esper]'", name="pydantic"
    ) from error

from esper_recorder.esper.slots import ordered_slots


class ConfigError(ValueError):
    """A configuration is invalid; the message has one line per field, with the reason."""


class RewardMode(StrEnum):
    """How components add up to a reward."""

    SHAPED = "shaped"
    SPARSE = "sparse"
    MINIMAL = "minimal"


class RewardFamily(StrEnum):
    """What is rewarded."""

    CONTRIBUTION = "contribution"
    LOSS = "loss"


def _member(kind: type[StrEnum]) -> Callable[[Any], Any]:
    """Make a validator that accepts a member's name in any case, as JSON and command lines write it."""

    def validate(value: Any) -> Any:
        if isinstance(value, str) and not isinstance(value, kind):
            try:
                return kind(value.lower())
            except ValueError:
                raise ValueError(f"{value!r} is not known; there are: {', '.join(kind)}") from None
        return value

    return validate


def _slots(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"give a list of slot ids, such as [{value!r}]")
    return ordered_slots(value) if isinstance(value, list | tuple | set | frozenset) else value


_Count = Annotated[int, Field(ge=1)]
_Fraction = Annotated[float, Field(gt=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_NotNegative = Annotated[float, Field(ge=0)]
_OfHost = Field(json_schema_extra={"of": "host"})
"""A field of the environment with its host network, not of the PPO loop."""


class TrainingConfig(BaseModel):
    """A training's hyperparameters. Raises ConfigError for an unknown field or an invalid value."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    n_episodes: _Count = 100
    """Rollouts, each followed by PPO's passes over it."""
    n_envs: _Count = 4
    """Parallel environments."""
    max_epochs: _Count = 25
    """Steps of an episode: the policy acts once in each epoch of the host network."""
    ppo_updates_per_batch: _Count = 1
    """Passes over a rollout."""
    n_minibatches: _Count = 4
    """Minibatches a pass is split into."""
    lr: _Positive = 3e-4
    """Learning rate of Adam."""
    clip_ratio: _Fraction = 0.2
    """Clip range of the probability ratio."""
    gamma: _Fraction = 0.995
    """Discount."""
    gae_lambda: _Fraction = 0.97
    """Decay of the advantage estimate."""
    value_coef: _NotNegative = 0.5
    """Weight of the value loss."""
    max_grad_norm: _Positive = 1.0
    """Norm the gradients are clipped to."""
    entropy_coef: _NotNegative = 0.1
    """Weight of the entropy."""
    entropy_coef_start: _NotNegative | None = None
    """Weight the annealing begins with; None is `entropy_coef`."""
    entropy_coef_end: _NotNegative | None = None
    """Weight it ends with; None is `entropy_coef`."""
    entropy_coef_min: _NotNegative = 0.01
    """Lower bound of the weight."""
    entropy_anneal_episodes: Annotated[int, Field(ge=0)] = 0
    """Episodes the annealing takes; 0 disables it."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of every random stream."""
    amp: bool = False
    """Compute in half precision."""
    use_telemetry: bool = True
    """Record the training."""

    lstm_hidden_dim: Annotated[int, Field(ge=1), _OfHost] = 128
    """Width of the policy's recurrent layer."""
    chunk_length: Annotated[int | None, Field(ge=1), _OfHost] = None
    """Steps of backpropagation through time; must be `max_epochs`, which None stands for."""
    slots: Annotated[tuple[str, ...], BeforeValidator(_slots), Field(min_length=1), _OfHost] = ("mid",)
    """Slots of the host network in which modules may grow; kept in canonical order."""
    max_seeds: Annotated[int | None, Field(ge=1), _OfHost] = None
    """Most modules at a time; None for no limit."""
    reward_mode: Annotated[RewardMode, BeforeValidator(_member(RewardMode)), _OfHost] = RewardMode.SHAPED
    """How components add up to the reward."""
    reward_family: Annotated[RewardFamily, BeforeValidator(_member(RewardFamily)), _OfHost] = RewardFamily.CONTRIBUTION
    """What is rewarded."""
    param_budget: Annotated[int, Field(ge=1), _OfHost] = 500_000
    """Parameters that may be added without a penalty."""
    param_penalty_weight: Annotated[float, Field(ge=0), _OfHost] = 0.1
    """Weight of the penalty beyond the budget."""
    sparse_reward_scale: Annotated[float, Field(gt=0), _OfHost] = 1.0
    """Factor on a sparse reward."""
    plateau_threshold: Annotated[float, Field(ge=0), _OfHost] = 0.5
    """A change of the rolling accuracy, in %, below this is a plateau."""
    improvement_threshold: Annotated[float, Field(gt=0), _OfHost] = 2.0
    """A change above this is an improvement (or, falling, a degradation)."""

    def __init__(self, **values: Any) -> None:
        names = type(self).model_fields
        if unknown := [name for name in values if name not in names]:
            hints = [f"{name}: there is no such field. {suggest(name, names, kind='fields')}" for name in unknown]
            raise ConfigError("\n".join(hints))
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("\n".join(map(_reason, error.errors()))) from None

    @model_validator(mode="before")
    @classmethod
    def _whole_chunk(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("chunk_length") is None:
            return {**values, "chunk_length": values.get("max_epochs", cls.model_fields["max_epochs"].default)}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.chunk_length != self.max_epochs:
            raise ValueError(
                f"chunk_length is {self.chunk_length} and max_epochs is {self.max_epochs}, which must be equal: the "
                "recurrent state is reset at each episode, and a chunk that ends elsewhere would cut the gradient "
                "through time, or carry it from one episode into the next"
            )
        if self.reward_family is RewardFamily.LOSS and self.reward_mode is not RewardMode.SHAPED:
            raise ValueError(
                f"reward_family loss needs reward_mode shaped (it is {self.reward_mode}): the other modes reward the "
                "final accuracy, which a training on its loss does not have"
            )
        if self.plateau_threshold >= self.improvement_threshold:
            raise ValueError(
                f"plateau_threshold is {self.plateau_threshold} and improvement_threshold "
                f"{self.improvement_threshold}: a change would be both a plateau and an improvement"
            )
        return self

    # --- presets ------------------------------------------------------------------------------------------------------

    @classmethod
    def for_cifar10(cls, **changes: Any) -> Self:
        """CIFAR-10: default exploration; smaller changes count as a plateau."""
        return cls(**{"plateau_threshold": 0.4, **changes})

    @classmethod
    def for_cifar10_deep(cls, **changes: Any) -> Self:
        """CIFAR-10 with a deeper host: less exploration."""
        return cls(**{"entropy_coef": 0.08, "plateau_threshold": 0.35, **changes})

    @classmethod
    def for_tinystories(cls, **changes: Any) -> Self:
        """TinyStories, language modelling: little, annealed exploration; small changes count."""
        preset = {
            "entropy_coef": 0.05,
            "entropy_anneal_episodes": 10,
            "plateau_threshold": 0.3,
            "improvement_threshold": 1.5,
            "sparse_reward_scale": 0.5,
        }
        return cls(**{**preset, **changes})

    # --- conversions --------------------------------------------------------------------------------------------------

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a JSON object. Raises ConfigError if it is not a valid configuration."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"the configuration is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"the top level of a configuration must be a JSON object, and is a {_JSON[type(values)]}")
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a JSON file. Raises ConfigError, or OSError if it cannot be read."""
        try:
            return cls.from_json(Path(path).read_bytes())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_train_kwargs(self, train: Callable[..., Any] | None = None) -> dict[str, Any]:
        """Return the keyword arguments of a training function.

        Args:
            train: the function; the result has the fields that it takes. The default returns the fields of the PPO
                loop, as `train_ppo_vectorized` of `examples/device_ppo.py` takes them.

        Raises ConfigError if `train` needs an argument that is not a field.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        if train is None:
            fields = type(self).model_fields
            return {name: value for name, value in values.items() if fields[name].json_schema_extra != {"of": "host"}}
        parameters = inspect.signature(train).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
        missing = [name for name in needed if name not in values]
        if missing:
            raise ConfigError(f"{getattr(train, '__name__', train)}() needs {', '.join(missing)}, which is not a field")
        takes = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        return {name: value for name, value in values.items() if name in takes}


_JSON = {list: "list", str: "text", int: "number", float: "number", bool: "truth value", type(None): "null"}


def _reason(error: Any) -> str:
    """Format one error of pydantic: the field, the reason, and the value."""
    where = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (given: {error['input']!r})" if where else message
