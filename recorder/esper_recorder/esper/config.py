"""The hyperparameters of an Esper training: strict, frozen, loadable from JSON, kept in the run.

    config = TrainingConfig.for_cifar10(n_episodes=200)
    train_ppo_vectorized(**config.to_train_kwargs())
    Recorder("runs/", config=config, total_updates=config.n_episodes)

`config.model_dump_json()` writes it and `TrainingConfig.from_json` reads it. A key that is not known is an error that
names the nearest one, and so is a value of another type than its field's.
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
    """A configuration is not what it should be; the message says each field's reason on a line of its own."""


class RewardMode(StrEnum):
    """How a reward is made of its components."""

    SHAPED = "shaped"
    SPARSE = "sparse"
    MINIMAL = "minimal"


class RewardFamily(StrEnum):
    """What a reward is a reward for."""

    CONTRIBUTION = "contribution"
    LOSS = "loss"


def _member(kind: type[StrEnum]) -> Callable[[Any], Any]:
    """A member from its value or name in any case, as JSON and command lines write it."""

    def member(value: Any) -> Any:
        if isinstance(value, str) and not isinstance(value, kind):
            try:
                return kind(value.lower())
            except ValueError:
                raise ValueError(f"{value!r} is not known; there are: {', '.join(kind)}") from None
        return value

    return member


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"give a list of slot ids, such as [{value!r}]")
    return ordered_slots(value) if isinstance(value, list | tuple | set | frozenset) else value


_Whole = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(gt=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_NotNegative = Annotated[float, Field(ge=0)]
_OfHost = Field(json_schema_extra={"of": "host"})
"""A field that the environment with its host network takes, not the PPO loop."""


class TrainingConfig(BaseModel):
    """A training's hyperparameters. Raises ConfigError where made of what it does not take."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    n_episodes: _Whole = 100
    """Rollouts, each followed by PPO's passes over it."""
    n_envs: _Whole = 4
    """Environments side by side."""
    max_epochs: _Whole = 25
    """Steps of an episode: the policy acts once in each epoch of the host network."""
    ppo_updates_per_batch: _Whole = 1
    """Passes over a rollout."""
    n_minibatches: _Whole = 4
    """Minibatches a pass is split into."""
    lr: _Positive = 3e-4
    """Learning rate of Adam."""
    clip_ratio: _Share = 0.2
    """Clip range of the probability ratio."""
    gamma: _Share = 0.995
    """Discount."""
    gae_lambda: _Share = 0.97
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
    """Weight it never goes below."""
    entropy_anneal_episodes: Annotated[int, Field(ge=0)] = 0
    """Episodes the annealing takes; 0 does none."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Of every random stream."""
    amp: bool = False
    """Compute in half precision."""
    use_telemetry: bool = True
    """Record the training."""

    lstm_hidden_dim: Annotated[int, Field(ge=1), _OfHost] = 128
    """Width of the policy's recurrent layer."""
    chunk_length: Annotated[int | None, Field(ge=1), _OfHost] = None
    """Steps that gradients go back through time; None is `max_epochs`, and it can be nothing else."""
    slots: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1), _OfHost] = ("mid",)
    """Slots of the host network that modules may grow in; kept in canonical order."""
    max_seeds: Annotated[int | None, Field(ge=1), _OfHost] = None
    """Modules at a time; None is no limit."""
    reward_mode: Annotated[RewardMode, BeforeValidator(_member(RewardMode)), _OfHost] = RewardMode.SHAPED
    """How the reward is made of its components."""
    reward_family: Annotated[RewardFamily, BeforeValidator(_member(RewardFamily)), _OfHost] = RewardFamily.CONTRIBUTION
    """What it is a reward for."""
    param_budget: Annotated[int, Field(ge=1), _OfHost] = 500_000
    """Parameters that may be added before they cost."""
    param_penalty_weight: Annotated[float, Field(ge=0), _OfHost] = 0.1
    """What they cost then."""
    sparse_reward_scale: Annotated[float, Field(gt=0), _OfHost] = 1.0
    """Factor on a sparse reward."""
    plateau_threshold: Annotated[float, Field(ge=0), _OfHost] = 0.5
    """Change of the rolling accuracy, %, below which it is a plateau."""
    improvement_threshold: Annotated[float, Field(gt=0), _OfHost] = 2.0
    """Change above which it is an improvement (or, falling, a degradation)."""

    def __init__(self, **values: Any) -> None:
        unknown = [name for name in values if name not in type(self).model_fields]
        if unknown:
            raise ConfigError("\n".join(_unknown(name, [*type(self).model_fields]) for name in unknown))
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
                "recurrent state begins anew with each episode, and a chunk that ends elsewhere would cut the gradient "
                "through time, or carry it from one episode into the next"
            )
        if self.reward_family is RewardFamily.LOSS and self.reward_mode is not RewardMode.SHAPED:
            raise ValueError(
                f"reward_family loss goes with reward_mode shaped alone (and it is {self.reward_mode}): the others "
                "pay for the final accuracy, which a training that is judged by its loss has none of"
            )
        if self.plateau_threshold >= self.improvement_threshold:
            raise ValueError(
                f"plateau_threshold is {self.plateau_threshold} and improvement_threshold "
                f"{self.improvement_threshold}: what is a plateau would be an improvement too"
            )
        return self

    # --- presets ------------------------------------------------------------------------------------------------------

    @classmethod
    def for_cifar10(cls, **changes: Any) -> Self:
        """CIFAR-10: the default's exploration; a plateau is told at smaller changes."""
        return cls(**{"plateau_threshold": 0.4, **changes})

    @classmethod
    def for_cifar10_deep(cls, **changes: Any) -> Self:
        """CIFAR-10 with a deeper host: less exploration."""
        return cls(**{"entropy_coef": 0.08, "plateau_threshold": 0.35, **changes})

    @classmethod
    def for_tinystories(cls, **changes: Any) -> Self:
        """TinyStories, language modelling: little exploration that is annealed, and small changes count."""
        preset = {
            "entropy_coef": 0.05,
            "entropy_anneal_episodes": 10,
            "plateau_threshold": 0.3,
            "improvement_threshold": 1.5,
            "sparse_reward_scale": 0.5,
        }
        return cls(**{**preset, **changes})

    # --- in and out ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The configuration a JSON object tells. Raises ConfigError where it is none."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"the configuration is no JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"the top level of a configuration must be a JSON object, and is a {_JSON[type(values)]}")
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The configuration in a JSON file. Raises ConfigError, or OSError where it cannot be read."""
        try:
            return cls.from_json(Path(path).read_bytes())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_train_kwargs(self, train: Callable[..., Any] | None = None) -> dict[str, Any]:
        """The keyword arguments of a training function.

        Args:
            train: the function; it is given those of the fields that it takes. The default gives the fields of the PPO
                loop, as `train_ppo_vectorized` of `examples/device_ppo.py` takes them: without the host network's.

        Raises ConfigError where `train` needs an argument that is no field.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        if train is None:
            fields = type(self).model_fields
            return {name: value for name, value in values.items() if fields[name].json_schema_extra != {"of": "host"}}
        parameters = inspect.signature(train).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
        missing = [name for name in needed if name not in values]
        if missing:
            raise ConfigError(f"{getattr(train, '__name__', train)}() needs {', '.join(missing)}, which is no field")
        takes = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        return {name: value for name, value in values.items() if name in takes}


_JSON = {list: "list", str: "text", int: "number", float: "number", bool: "truth value", type(None): "null"}


def _unknown(name: str, known: list[str]) -> str:
    return f"{name}: there is no such field. {suggest(name, known, kind='fields')}"


def _reason(error: Any) -> str:
    """One reason of pydantic's, in our words' order: the field, why, and what was given."""
    where = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (given: {error['input']!r})" if where else message
