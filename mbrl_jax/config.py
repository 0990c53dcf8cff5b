"""The settings: frozen dataclasses, YAML on one side and a JAX pytree on the other.

Every setting is either *static* (it changes a shape or the graph, so a new value compiles anew) or *traced* (any other number).
A configuration is itself a pytree: its leaves are the traced settings and its structure holds the static ones. So the same
object is both what ``make_train`` closes over and the ``hyper`` argument of ``train``, and a grid of traced settings is

>>> hyper = dataclasses.replace(config, agent=dataclasses.replace(config.agent, learning_rate=jnp.array([1e-4, 3e-4])))

mapped by ``jax.vmap`` over that leaf. Bad values are refused by :func:`check`, with their path, before anything compiles.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, dataclass_transform

import jax
import yaml

C = TypeVar("C")


class ConfigError(ValueError):
    """A setting that cannot work: the message names the field, its value and what would be right."""


class Limits(typing.NamedTuple):
    """The closed range of a number; for a tuple, of each of its entries."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None  # an open lower end

    def admit(self, value: float) -> bool:
        """Whether ``value`` is within."""
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and math.isfinite(value)
        )

    def __str__(self) -> str:
        parts = [
            None if self.minimum is None else f"at least {self.minimum}",
            None if self.above is None else f"above {self.above}",
            None if self.maximum is None else f"at most {self.maximum}",
        ]
        return " and ".join(part for part in (*parts, "finite") if part)


def static(default: Any, **limits: float) -> Any:
    """A setting that changes shapes or the graph."""
    return dataclasses.field(default=default, metadata={"traced": False, "limits": Limits(**limits)})


def traced(default: float, **limits: float) -> Any:
    """A number that may be a tracer: it can be vmapped over without compiling again."""
    return dataclasses.field(default=default, metadata={"traced": True, "limits": Limits(**limits)})


def group(make: Any) -> Any:
    """Settings within settings."""
    return dataclasses.field(default_factory=make, metadata={"traced": True, "limits": Limits()})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(static, traced, group))
def settings(cls: type[C]) -> type[C]:
    """Make ``cls`` a frozen dataclass and a pytree whose leaves are its traced settings."""
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    fields = dataclasses.fields(made)  # type: ignore[arg-type]
    leaves = [field.name for field in fields if field.metadata["traced"]]
    meta = [field.name for field in fields if not field.metadata["traced"]]
    return jax.tree_util.register_dataclass(made, data_fields=leaves, meta_fields=meta)


@settings
class EnvironmentConfig:
    """Which task."""

    name: str = static("CartPole-v1")
    """The environment's registered name."""
    time_limit: int | None = static(None, minimum=1)
    """Steps until an episode is truncated; none takes the task's own."""
    observation_noise: float = traced(0.0, minimum=0)
    """Noise of the measurements in the random real transitions (batch protocol): its standard deviation as a share of the task's
    scale of each axis."""


@settings
class ModelConfig:
    """The dynamics ensemble and how it is fitted."""

    members: int = static(5, minimum=1)
    """Ensemble members, E."""
    elites: int | None = static(None, minimum=1)
    """Members that imagination uses, those with the lowest holdout error; none uses all."""
    hidden: tuple[int, ...] = static((64, 64), minimum=1)
    """Widths of the hidden layers."""
    activation: Literal["silu", "tanh", "gelu", "relu"] = static("silu")
    """Nonlinearity between layers; the Laplacian penalty refuses relu, which has no second derivative."""
    input_scale: Literal["data", "task"] = static("data")
    """Whether observations enter standardised by the data, or divided by the task's own scale. Where a policy goes further than
    the data did it is many of their deviations out, and predictions are wrong; on the task's scale it is still within one."""
    kind: Literal["gaussian", "deterministic"] = static("gaussian")
    """Whether a member predicts mean and log-variance, or a mean only."""
    learn_bounds: bool = static(False)
    """Whether the log-variance bounds (0.5 and -10) are learned."""
    reward: Literal["known", "learned"] = static("known")
    """Whether imagination takes the reward from the task's known function or from a head of the model."""
    termination: Literal["known", "learned"] = static("known")
    """Whether imagination takes termination from the task's known function or from a head of the model."""
    termination_weight: float = traced(100.0, minimum=0)
    """Weight of a learned termination's cross-entropy; beside the likelihood of precise Gaussian members 1 is lost, beside
    deterministic ones 1 will do."""
    learning_rate: float = traced(1e-3, above=0)
    """Adam's step size."""
    weight_decay: float = traced(0.0, minimum=0)
    """Weight of half the sum of the squared kernels in each member's loss. Inputs that explain nothing lose their influence by
    it, so that predictions hold further away from the data."""
    batch_size: int = static(256, minimum=1)
    """Rows of a minibatch, per member."""
    epochs: int = static(50, minimum=1)
    """Passes over the data in the first fit."""
    refit_batches: int = static(250, minimum=1)
    """Minibatches of each refit (interactive protocol)."""
    bootstrap: bool = static(False)
    """Whether each member is first fitted on a resample (with replacement) of the rows of its own instead of on all of them."""
    patience: int | None = static(None, minimum=1)
    """Epochs without a better holdout error after which a member is frozen at its best; none trains to the end."""
    laplacian: Literal["none", "auto", "exact", "hutchinson"] = static("none")
    """Penalty on the Laplacian of the predicted mean; auto is exact up to 8 observation axes, estimated above."""
    laplacian_weight: float = traced(1e-4, minimum=0)
    """Weight of that penalty."""
    laplacian_rows: int | None = static(None, minimum=1)
    """Rows of each (shuffled) minibatch that the penalty's mean is taken over; none takes all."""
    laplacian_probes: int = static(4, minimum=1)
    """Random probes of the Hutchinson estimate."""


@settings
class ImaginationConfig:
    """K lanes of imagined rollouts, H steps of each per real step."""

    lanes: int = static(25, minimum=1)
    """Parallel imagined rollouts, K."""
    steps: int = static(3, minimum=1)
    """Imagined steps of every lane per real step, H."""
    cap: int = traced(3, minimum=1)
    """Depth at which any lane re-roots, whatever its controller says."""
    restart: Literal["streaming", "per_step"] = static("streaming")
    """Whether a lane re-roots as soon as it ends, or all lanes re-root at every real step and ended ones idle."""
    sampling: Literal["ts1", "ts_infinity", "mean", "fused", "infoprop"] = static("ts1")
    """Who predicts: a freshly dealt member each step, a lane's own member, the mean of all members, their precision-weighted
    fusion, or a dealt member's sample pulled towards that fusion by what the members agree on (Infoprop)."""
    epsilon: float = traced(0.1, minimum=0, maximum=1)
    """Share of random actions in imagination."""
    capacity: int = static(20_000, minimum=1)
    """Rows of the imagined replay."""
    controller: str = static("fixed")
    """The horizon controller's registered name."""
    controller_settings: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"length": 3}, metadata={"traced": True, "limits": Limits()}
    )
    """The controller's own numbers, by the names of its function's arguments."""
    measure: Literal["std", "max_pairwise", "max_aleatoric", "gjs", "one_vs_rest"] = static("std")
    """The members' disagreement that the threshold controllers and the penalty on disagreement go by."""
    penalty: Literal["none", "mopo", "disagreement", "halt"] = static("none")
    """What is taken from the reward of imagined rows: the largest predicted deviation (MOPO), the disagreement, or, where the
    controller stops, everything: the row becomes a terminal (MOReL)."""
    penalty_weight: float = traced(0.0, minimum=0)
    """Weight of that penalty; for the halt, the terminal's reward is minus this."""


@settings
class QLearningConfig:
    """The Q-learner."""

    hidden: tuple[int, ...] = static((64, 64), minimum=1)
    """Widths of the hidden layers."""
    learning_rate: float = traced(3e-4, above=0)
    """Adam's step size at the first update."""
    learning_rate_decay: float = traced(0.0, minimum=0, maximum=1)
    """Share of that step size which is gone, linearly, by the run's last update."""
    discount: float = traced(0.99, minimum=0, maximum=1)
    """Discount factor, gamma."""
    target_rate: float = traced(0.01, above=0, maximum=1)
    """Share of the online network that the target network takes over at each update, tau."""
    batch_size: int = static(256, minimum=1)
    """Rows of an update's minibatch."""
    updates_per_step: int = static(1, minimum=1)
    """Updates per real step."""
    members: int = static(1, minimum=1)
    """Q-networks that learn side by side from their own initialisation; their mean acts."""
    real_ratio: float = static(0.0, minimum=0, maximum=1)
    """Share of each minibatch that comes from the real replay."""
    target: Literal["max", "double", "quantile", "mean_std", "steve"] = static("double")
    """How the next state's value is formed; the last three ask every member of the dynamics ensemble."""
    target_quantile: float = traced(0.25, minimum=0, maximum=1)
    """The quantile over members (target: quantile)."""
    target_beta: float = traced(1.0, minimum=0)
    """Standard deviations over members subtracted from their mean (target: mean_std)."""
    target_steps: int = static(3, minimum=1)
    """Imagined steps that the value is expanded by at the most (target: steve)."""
    loss: Literal["squared", "huber"] = static("squared")
    """The error's loss."""
    huber_delta: float = traced(1.0, above=0)
    """Where the Huber loss turns linear."""
    input_scale: tuple[float, ...] | None = static(None, above=0)
    """What each observation axis is divided by; none takes the task's own scale."""


@settings
class ExplorationConfig:
    """Epsilon-greedy behaviour in the real environment (interactive protocol), annealed linearly."""

    start: float = traced(0.2, minimum=0, maximum=1)
    """Share of random actions at the first step."""
    end: float = traced(0.02, minimum=0, maximum=1)
    """Share of random actions at the last step."""


@settings
class SelectionConfig:
    """The choice of the policy in imagination, from snapshots taken at the end of every round."""

    episodes: int = static(20, minimum=1)
    """Imagined episodes that score a snapshot."""
    steps: int = static(500, minimum=1)
    """Steps after which an imagined episode is cut."""


@settings
class EvaluationConfig:
    """Greedy episodes in the real environment; they teach the agent nothing."""

    episodes: int = static(50, minimum=1)
    """Episodes that judge a final policy."""
    curve_episodes: int = static(10, minimum=1)
    """Episodes of each point of the learning curve."""


@settings
class ModelFreeQConfig:
    """Q-learning from real transitions alone."""

    protocol: Literal["batch", "interactive"] = static("batch")
    """Whether all real data are collected at random beforehand, or the agent goes on acting."""
    environment: EnvironmentConfig = group(EnvironmentConfig)
    random_transitions: int = static(5_000, minimum=2)
    """Real transitions collected by the uniform random policy."""
    steps: int = static(5_000, minimum=1)
    """Steps of the main loop; in the interactive protocol each of them is one more real transition."""
    round_steps: int = static(250, minimum=1)
    """Steps of a round; a round ends with an evaluation."""
    metric_steps: int = static(10, minimum=1)
    """Steps over which the logged losses are averaged."""
    precision: Literal["default", "highest"] = static("default")
    """Precision of matrix products: the backend's default, or full float32."""
    agent: QLearningConfig = group(QLearningConfig)
    exploration: ExplorationConfig = group(ExplorationConfig)
    evaluation: EvaluationConfig = group(EvaluationConfig)

    @property
    def real_transitions(self) -> int:
        """Real transitions that a run uses in all."""
        return self.random_transitions + (self.steps if self.protocol == "interactive" else 0)


@settings
class DynaQConfig(ModelFreeQConfig):
    """Q-learning from rollouts imagined by a learned dynamics ensemble (Dyna, Sutton 1991; MBPO, Janner et al. 2019)."""

    model: ModelConfig = group(ModelConfig)
    imagination: ImaginationConfig = group(ImaginationConfig)
    selection: SelectionConfig = group(SelectionConfig)


ALGORITHMS: dict[str, type[ModelFreeQConfig]] = {"dyna_q": DynaQConfig, "model_free_q": ModelFreeQConfig}


def algorithm_name(config: ModelFreeQConfig) -> str:
    """The name of the algorithm that ``config`` configures, as a preset's ``algorithm`` key has it."""
    return next(name for name, cls in ALGORITHMS.items() if type(config) is cls)


# ---------------------------------------------------------------------------------------------------------------- checks


def check(config: ModelFreeQConfig) -> None:
    """Refuse a configuration that cannot work.

    Raises:
      ConfigError: naming every field that is wrong, its value and what would be right.

    """
    problems = list(_field_problems(config, ""))
    if not problems:
        problems += _joint_problems(config)
    if problems:
        raise ConfigError("\n".join(problems))


def _field_problems(config: Any, prefix: str) -> typing.Iterator[str]:
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _field_problems(value, path + ".")
            continue
        try:
            _convert(value, hints[field.name], path)
        except ConfigError as error:
            yield str(error)
            continue
        limits: Limits = field.metadata["limits"]
        named = {"": value}
        if isinstance(value, tuple):
            named = {f"[{i}]": entry for i, entry in enumerate(value)}
        if isinstance(value, dict):
            named = {f".{name}": entry for name, entry in value.items()}
        for name, number in named.items():
            if isinstance(number, int | float) and not isinstance(number, bool) and not limits.admit(number):
                yield f"{path}{name}: {number!r} is out of range; it must be {limits}"


def _joint_problems(config: ModelFreeQConfig) -> list[str]:
    problems = []

    def require(holds: bool, path: str, value: Any, right: str) -> None:
        if not holds:
            problems.append(f"{path}: {value!r} does not fit; {right}")

    require(
        config.steps % config.round_steps == 0,
        "round_steps",
        config.round_steps,
        f"it must divide steps ({config.steps})",
    )
    require(
        config.round_steps % config.metric_steps == 0,
        "metric_steps",
        config.metric_steps,
        f"it must divide round_steps ({config.round_steps})",
    )
    noise = config.environment.observation_noise
    require(
        noise == 0 or config.protocol == "batch",
        "environment.observation_noise",
        noise,
        f"in the {config.protocol!r} protocol it must be 0",
    )
    require(
        config.agent.target != "steve" or config.agent.members > 1,
        "agent.members",
        config.agent.members,
        "the target 'steve' weighs horizons by how much the Q-networks differ, so it needs at least 2",
    )
    if not isinstance(config, DynaQConfig):
        require(
            config.agent.target in ("max", "double"),
            "agent.target",
            config.agent.target,
            "without a model it must be 'max' or 'double'",
        )
        return problems

    model, imagination = config.model, config.imagination
    training_rows = config.random_transitions - config.random_transitions // holdout_stride(config)
    require(
        model.batch_size <= training_rows,
        "model.batch_size",
        model.batch_size,
        f"it must be at most {training_rows}, the training rows among {config.random_transitions} random transitions",
    )
    require(
        config.random_transitions >= holdout_stride(config),
        "random_transitions",
        config.random_transitions,
        f"it must be at least {holdout_stride(config)}, or no row is left for the holdout",
    )
    elites = model.members if model.elites is None else model.elites
    require(elites <= model.members, "model.elites", model.elites, f"it must be at most model.members ({model.members})")
    if imagination.sampling not in ("mean", "fused"):
        require(
            imagination.lanes % elites == 0,
            "imagination.lanes",
            imagination.lanes,
            f"lanes are dealt evenly to members, so it must be a multiple of {elites}",
        )
    require(
        config.selection.episodes % elites == 0,
        "selection.episodes",
        config.selection.episodes,
        f"episodes are dealt evenly to members, so it must be a multiple of {elites}",
    )
    require(
        imagination.capacity % imagination.lanes == 0,
        "imagination.capacity",
        imagination.capacity,
        f"the replay is written in blocks of lanes, so it must be a multiple of {imagination.lanes}",
    )
    per_step = imagination.lanes * imagination.steps
    require(
        imagination.capacity >= per_step,
        "imagination.capacity",
        imagination.capacity,
        f"it must hold one real step's {per_step} imagined rows",
    )
    require(
        config.steps * per_step < 2**31,
        "steps",
        config.steps,
        f"{config.steps} x {per_step} imagined rows overflow a 32-bit counter; fewer steps, lanes or imagined steps",
    )
    require(
        imagination.sampling not in ("fused", "infoprop") or model.kind == "gaussian",
        "imagination.sampling",
        imagination.sampling,
        "it weighs members by their predicted variance, so model.kind must be 'gaussian'",
    )
    require(
        imagination.penalty != "halt" or imagination.controller not in ("fixed", "schedule"),
        "imagination.penalty",
        imagination.penalty,
        f"it makes a terminal of every stop, and {imagination.controller!r} stops by depth alone",
    )
    require(
        model.laplacian == "none" or model.activation != "relu",
        "model.activation",
        model.activation,
        "the Laplacian penalty needs a twice differentiable one: 'silu', 'tanh' or 'gelu'",
    )
    require(
        model.laplacian_rows is None or model.laplacian_rows <= model.batch_size,
        "model.laplacian_rows",
        model.laplacian_rows,
        f"it must be at most model.batch_size ({model.batch_size})",
    )
    return problems


def holdout_stride(config: ModelFreeQConfig) -> int:
    """Every how manieth real row is held out: min(20 %, 5,000) of all rows that the run will ever see."""
    return max(5, -(-config.real_transitions // 5_000))


# ------------------------------------------------------------------------------------------------------------------ YAML


def load(path: str | Path) -> ModelFreeQConfig:
    """Read a preset: a YAML mapping with an ``algorithm`` and any of that algorithm's settings.

    A preset may name another as its ``base``, by a path from its own folder: it then holds only what differs. Groups of settings
    are merged; a list or a controller's numbers replace those of the base.

    Raises:
      ConfigError: a file is missing, is not a YAML mapping, or holds an unknown field or a bad value.

    """
    path = Path(path)
    try:
        config = from_dict(_read(path, ()))
        check(config)
    except ConfigError as error:
        told = str(error)
        raise ConfigError(told if told.startswith(f"{path}: ") else f"{path}: {told}") from None
    return config


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """The settings in a file and in its base; ``readers`` are the files that led here."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: it cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: it is not valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: it must hold a mapping of settings, not {type(content).__name__}")
    own = dict(content)
    base = own.pop("base", None)
    if base is None:
        return own
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: {base!r} must be the path of another preset")
    if path.resolve() in readers:
        raise ConfigError(f"{path}: base: {base!r} leads back to this file")
    return _merge(_read(path.parent / base, (*readers, path.resolve())), own)


def _merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``, group by group."""
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and key != "controller_settings"
        merged[key] = _merge(base[key], value) if both else value
    return merged


def save(config: ModelFreeQConfig, path: str | Path) -> None:
    """Write ``config`` as a preset that :func:`load` reads back to an equal one."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def to_dict(config: ModelFreeQConfig) -> dict[str, Any]:
    """``config`` as plain nested dictionaries, lists and scalars, the algorithm's name first."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return {"algorithm": algorithm_name(config), **plain(dataclasses.asdict(config))}


def from_dict(content: Mapping[str, Any]) -> ModelFreeQConfig:
    """The configuration that :func:`to_dict` describes; missing settings take their defaults.

    Raises:
      ConfigError: an unknown algorithm or field, or a value of the wrong type.

    """
    content = dict(content)
    name = content.pop("algorithm", None)
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise ConfigError(f"algorithm: {name!r} is not known; it must be one of {', '.join(ALGORITHMS)}")
    config: ModelFreeQConfig = _build(ALGORITHMS[name], content, "")
    return config


def _build(cls: type, content: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    unknown = [key for key in content if key not in hints]
    if unknown:
        raise ConfigError(f"{prefix}{unknown[0]}: there is no such setting; there are {', '.join(hints)}")
    values = {}
    for key, value in content.items():
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{key}: {value!r} must be a mapping of settings")
            values[key] = _build(typing.cast(type, hints[key]), value, f"{prefix}{key}.")
        else:
            values[key] = _convert(value, hints[key], prefix + key)
    return cls(**values)


def _convert(value: Any, hint: Any, path: str) -> Any:
    """``value`` as the type ``hint``, where no information is lost."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        return _convert(value, next(argument for argument in arguments if argument is not type(None)), path)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{path}: {value!r} is not a choice; it must be one of {', '.join(map(repr, arguments))}")
    if origin is tuple:
        if isinstance(value, list | tuple) and value:
            return tuple(_convert(entry, arguments[0], f"{path}[{i}]") for i, entry in enumerate(value))
        raise ConfigError(f"{path}: {value!r} must be a list of {arguments[0].__name__} with at least one entry")
    if origin is dict:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: _convert(entry, float, f"{path}.{key}") for key, entry in value.items()}
        raise ConfigError(f"{path}: {value!r} must be a mapping from names to numbers")
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise ConfigError(f"{path}: {value!r} must be {'a number' if hint is float else f'of type {hint.__name__}'}")
