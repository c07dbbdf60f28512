"""Everything that defines a run, checked before PyTorch is imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sparsenn.training.checks import (
    ABOVE_0,
    BELOW_1,
    DEPTH,
    DEVICE,
    FOLDER,
    NOT_NEGATIVE,
    SEED,
    THREADS,
    TRUE_OR_FALSE,
    Check,
    is_int,
    number,
    one_of,
    optional,
    shown,
    whole,
)
from sparsenn.training.errors import ConfigError
from sparsenn.training.files import parse_json
from sparsenn.training.presets import (
    BALANCED,
    DATASETS,
    DTYPES,
    FACTOR_INITS,
    FACTORIZED,
    METHODS,
    MODELS,
    PRESETS,
    PRUNERS,
    SCHEDULES,
    Preset,
)

FREE_ON_RESUME = ("data_root", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a run. :func:`configure` makes one from the few that differ from the preset.

    Attributes:
        dataset: name of the data set.
        model: name of the network.
        method: ``dwf`` trains D factors for every weight, by SGD, and ``dwf-adam`` by Adam; ``prox`` the weights, with λ‖w‖₁ by
            proximal steps; ``l1-subgradient`` the weights, with λ sign(w) added to the gradient; ``dense`` the weights without
            a penalty; ``magnitude``, ``snip``, ``synflow`` and ``random`` the weights that a pruning method of this name keeps,
            without a penalty, see ``sparsenn.prune``.
        depth: the number D of factors; 1 for all methods but dwf and dwf-adam.
        lam: λ of the penalty, (λ/D) Σ‖ω_d‖² or λ‖w‖₁; 0 for ``dense`` and the pruning methods.
        lam_schedule: how λ falls, as ``schedule`` says of the learning rate. A λ that ends at 0 lets the weights that are left
            grow to the size that the loss asks for.
        penalize_biases: whether the penalty, and with it the factors of a method that has them, is for biases and
            normalization layers too; otherwise the method's steps train them as they are, and ``target_sparsity``
            is of the others.
        target_sparsity: the share of weights that shall end at zero, in (0, 1): λ is then found while the net trains, see
            ``sparsenn.optim.TargetSparsity``, ``lam`` is where it starts, and ``lam_schedule`` is constant. None for a given λ.
        compression: all parameters over those that a pruning method keeps; None for the other methods.
        prune_epoch: how many epochs a pruning method trains the dense net before it puts its masks on. The rest of the run
            trains what is left, with a fresh optimizer and the schedule from its beginning. 0 prunes at initialization.
        retrain_lr: the initial learning rate of that rest; None for ``lr``.
        prune_biases: whether a pruning method ranks biases and normalization layers with the weights; they stay otherwise.
        lr: initial learning rate.
        schedule: how the learning rate falls: ``cosine`` to 0, ``constant``, or ``step`` (a tenth at 1/2 and at 3/4).
        warmup: so many epochs at the beginning, and after masks were put on, in which the learning rate grows linearly, before
            it falls. A trained net may not stand the rate that a fresh one begins with.
        epochs: passes over the training set.
        batch_size: images a step.
        momentum: momentum of SGD, and β₁ of Adam.
        clip_norm: largest norm of the gradient of the loss by the weights (all of them as one vector; a longer one is scaled
            down); 0 for no limit. It does not see the factors' gradients nor the penalty.
        input_noise: standard deviation σ of the Gaussian noise that every training image is given anew in every epoch, in units
            of the pixels' range [0, 1], of their standard deviation for colour images; 0 for none.
        augment: whether every training image is flipped, shifted and rotated anew in every epoch, by ``sparsenn.data.augment``.
        factor_init: how the factors start, see ``sparsenn.optim.FactorizedSGD``.
        balanced: whether balanced factors are kept as one root a weight: ``never``, ``auto``, or ``always``, which takes
            ``factor_init`` root; see ``sparsenn.optim.FactorizedSGD``.
        seed: of the initial weights, the factors and the order of the images.
        device: where to train, ``cpu``, ``cuda`` or ``cuda:<index>``.
        threads: CPU threads; 0 leaves PyTorch its choice.
        dtype: floating-point type of weights and images.
        compile: whether the net computes, and is differentiated, through ``torch.compile``, which needs a C++ compiler (on CUDA
            Triton): one compilation for each shape of a batch, and after masks were put on, then kernels that fuse what lies
            between the products. What else the process has compiled is compiled anew where it is used again.
        data_root: the folder that holds ``mnist/`` and the like; None for ``SPARSENN_DATA``.
        twin: train the dense net of the same start beside it.
        eval_every: epochs between two evaluations on the test set.
        checkpoint_every: epochs between two checkpoints.
    """

    dataset: str
    model: str
    method: str
    depth: int
    lam: float
    lam_schedule: str
    penalize_biases: bool = True  # in runs from before this could be chosen it was
    target_sparsity: float | None
    compression: float | None
    prune_epoch: int
    retrain_lr: float | None
    prune_biases: bool
    lr: float
    schedule: str
    warmup: int = 0  # in those there was none
    epochs: int
    batch_size: int
    momentum: float
    clip_norm: float
    input_noise: float
    augment: bool
    factor_init: str
    balanced: str = "never"  # the same
    seed: int
    device: str
    threads: int
    dtype: str
    compile: bool = False  # in those it was not
    data_root: str | None
    twin: bool
    eval_every: int
    checkpoint_every: int

    def __post_init__(self) -> None:
        _check_values(vars(self))
        _check_together(self)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, ready for JSON."""
        return asdict(self)

    def dense_twin(self) -> TrainConfig:
        """The same run without factors and penalty, at the preset's learning rate for dense nets."""
        neutral = {key: value for key, (value, _) in _neutral("dense").items()}
        lr = _preset(self.dataset, self.model).dense_lr
        return TrainConfig(**{**self.to_dict(), **neutral, "method": "dense", "lr": lr})


KEYS = tuple(field.name for field in fields(TrainConfig))


def configure(**given: Any) -> TrainConfig:
    """The preset of a data set and network with ``given`` written over it.

    Args:
        **given: any attribute of :class:`TrainConfig`.

    Raises:
        ConfigError: for an unknown key (the message lists the known ones) or a value out of range.

    Example:
        >>> from sparsenn.training import configure
        >>> config = configure(dataset="mnist", depth=2)
        >>> config.model, config.epochs, config.batch_size, config.twin
        ('lenet-300-100', 75, 256, False)
    """
    _check_keys(given, "configuration")
    _check_values(given)
    dataset = given.get("dataset", "digits")
    model = given.get("model", next((fitting for known, fitting in PRESETS if known == dataset), "lenet-300-100"))
    preset, method = _preset(dataset, model), given.get("method", "dwf")
    _refuse_without_effect(given, method)
    depth = given.get("depth", preset.depth) if method in FACTORIZED else 1
    epochs = given.get("epochs", 2 * preset.epochs if method == "magnitude" else preset.epochs)
    defaults: dict[str, Any] = {
        "dataset": dataset,
        "model": model,
        "method": method,
        "depth": depth,
        "lam": {**dict.fromkeys(FACTORIZED, preset.lam), **dict.fromkeys(("dense", *PRUNERS), 0.0)}.get(method, preset.l1_lam),
        "lam_schedule": "constant" if "lam" in _neutral(method) or given.get("target_sparsity") else preset.lam_schedule,
        "penalize_biases": True,
        "target_sparsity": None,
        "compression": preset.compression if method in PRUNERS else None,
        "prune_epoch": epochs // 2 if method == "magnitude" and is_int(epochs) else 0,
        "retrain_lr": None,
        "prune_biases": False,
        "lr": {
            "dwf": preset.lr_at(depth if is_int(depth) else preset.depth),
            "dwf-adam": preset.adam_lr,
        }.get(method, preset.dense_lr),
        "schedule": "cosine",
        "warmup": 0,
        "epochs": epochs,
        "batch_size": preset.batch_size,
        "momentum": 0.9,
        "clip_norm": preset.clip_norm,
        "input_noise": preset.input_noise,
        "augment": preset.augment,
        "factor_init": "preserve",
        "balanced": "never",
        "seed": 0,
        "device": "cpu",
        "threads": preset.threads,
        "dtype": "float32",
        "compile": False,
        "data_root": None,
        "twin": preset.twin and method != "dense",
        "eval_every": preset.eval_every,
        "checkpoint_every": preset.checkpoint_every,
    }
    return TrainConfig(**{**defaults, **given})


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The settings of a JSON or TOML file, whose keys are attributes of :class:`TrainConfig`.

    Raises:
        ConfigError: if the file cannot be read, is not such an object, or holds an unknown key.
    """
    content = read_settings(path)
    _check_keys(content, f"config file {path}")
    return content


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings of a JSON file, a single object, or of a TOML file (by its suffix; Python 3.11 or later).

    Raises:
        ConfigError: if the file cannot be read or is no such file, or a key stands in it twice.
    """
    language = "TOML" if Path(path).suffix == ".toml" else "JSON"
    loads = parse_json if language == "JSON" else _toml(path).loads
    try:
        content = loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # of TOML that is nested too deeply
        raise ConfigError(f"config file {path} cannot be read as {language}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path} holds a {type(content).__name__}; it takes one JSON object of settings")
    return content


def _toml(path: str | Path) -> Any:
    try:
        return importlib.import_module("tomllib")
    except ImportError as error:
        raise ConfigError(f"config file {path} is TOML, which Python reads from 3.11 on; give the settings as JSON") from error


def resumed(stored: Mapping[str, Any], given: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a run that goes on: the stored one, with what may change between two sessions taken from ``given``.

    Raises:
        ConfigError: if ``given`` contradicts what the run was started with.
    """
    _check_keys(given, "configuration")
    before = TrainConfig(**stored).to_dict()
    clashes = [
        f"{key.replace('_', '-')} ({given[key]!r}, the run has {before[key]!r})"
        for key in given
        if key not in FREE_ON_RESUME and given[key] != before[key]
    ]
    if clashes:
        raise ConfigError(
            f"a resumed run keeps its settings; drop {', '.join(clashes)}, or start another run in another folder"
        )
    return TrainConfig(**{**before, **{key: given[key] for key in FREE_ON_RESUME if key in given}})


def _preset(dataset: Any, model: Any) -> Preset:
    _require_known("dataset", dataset, DATASETS)
    _require_known("model", model, MODELS)
    if (dataset, model) not in PRESETS:
        fitting = ", ".join(m for d, m in PRESETS if d == dataset)
        raise ConfigError(f"model {model} has no settings for {dataset}; known for {dataset}: {fitting}")
    return PRESETS[dataset, model]


_MASKS = "masks"


def _neutral(method: Any) -> dict[str, tuple[Any, str]]:
    """The settings that a method can't use, each with the value that says nothing and with what the method lacks."""
    neutral: dict[str, tuple[Any, str]] = {}

    def lacks(what: str, **values: Any) -> None:
        neutral.update({key: (value, what) for key, value in values.items()})

    if method not in PRUNERS:
        lacks(_MASKS, compression=None, prune_epoch=0, retrain_lr=None, prune_biases=False)
    if method not in FACTORIZED:
        lacks("factors", depth=1, factor_init="preserve", balanced="never")
    if method == "dwf-adam":
        lacks("root for balanced factors", balanced="never")
    if method == "dense" or method in PRUNERS:
        lacks("penalty", lam=0.0, lam_schedule="constant", penalize_biases=True, target_sparsity=None)
    if method == "dense":
        lacks("twin", twin=False)
    return neutral


def _refuse_without_effect(given: Mapping[str, Any], method: Any) -> None:
    useless = {key: what for key, (value, what) in _neutral(method).items() if given.get(key, value) != value}
    if masks := [key for key, what in useless.items() if what == _MASKS]:
        raise ConfigError(f"method {method} has no {_MASKS}; drop {_flags(masks)}, or take one of {', '.join(PRUNERS)}")
    if useless:
        lacking = " and no ".join(dict.fromkeys(useless.values()))
        raise ConfigError(f"method {method} has no {lacking}; drop {_flags([*useless])}, or take method dwf")


def _flags(keys: list[str]) -> str:
    return ", ".join(key.replace("_", "-") for key in keys)


def _check_keys(given: Mapping[str, Any], where: str) -> None:
    unknown = [key for key in given if key not in KEYS]
    if unknown:
        raise ConfigError(f"{where}: unknown {', '.join(map(repr, unknown))}; known are {', '.join(KEYS)}")


def _check_values(given: Mapping[str, Any]) -> None:
    for name, check in _CHECKS.items():
        if name in given and not check.fits(given[name]):
            raise ConfigError(f"{name.replace('_', '-')} is {shown(given[name])}; it takes {check.takes}")


def _check_together(config: TrainConfig) -> None:
    _preset(config.dataset, config.model)
    for key, (value, _) in _neutral(config.method).items():
        if getattr(config, key) != value:
            raise ConfigError(f"method {config.method} takes {key.replace('_', '-')} {value!r} alone")
    _check_masks(config)
    shortest = min(part for part in (config.prune_epoch, config.epochs - config.prune_epoch) if part)
    if config.warmup >= shortest:
        raise ConfigError(f"warmup is {config.warmup}; with {shortest} epochs at one go it takes 0 to {shortest - 1}")
    if config.balanced == "always" and config.factor_init != "root":
        raise ConfigError(f"balanced always takes factor-init root, not {config.factor_init}; balanced auto waits for balance")
    if config.target_sparsity is not None and (config.lam_schedule != "constant" or config.lam == 0):
        raise ConfigError("target-sparsity finds λ by itself: it takes lam-schedule constant and a lam above 0 to start from")


def _check_masks(config: TrainConfig) -> None:
    if config.method not in PRUNERS:
        return
    if config.compression is None:
        raise ConfigError(f"method {config.method} needs a compression, a number of 1 or more")
    if config.prune_epoch >= config.epochs:
        raise ConfigError(f"prune-epoch is {config.prune_epoch}; with {config.epochs} epochs it takes 0 to {config.epochs - 1}")
    if config.retrain_lr is not None and config.prune_epoch == 0:
        raise ConfigError("retrain-lr has no effect with prune-epoch 0, where nothing is trained before the masks; drop it")


def _require_known(name: str, value: Any, known: tuple[str, ...]) -> None:
    if not one_of(known).fits(value):
        raise ConfigError(f"{name}: unknown name {shown(value)}; known are {', '.join(known)}")


_CHECKS: dict[str, Check] = {
    "method": one_of(METHODS),
    "depth": DEPTH,
    "lam": NOT_NEGATIVE,
    "lr": ABOVE_0,
    "lam_schedule": one_of(SCHEDULES),
    "penalize_biases": TRUE_OR_FALSE,
    "target_sparsity": optional(number(lambda value: 0 < value < 1, "a number between 0 and 1")),
    "compression": optional(number(lambda value: value >= 1, "a number, 1 or more")),
    "prune_epoch": whole(0),
    "retrain_lr": optional(ABOVE_0),
    "prune_biases": TRUE_OR_FALSE,
    "schedule": one_of(SCHEDULES),
    "warmup": whole(0),
    "epochs": whole(1),
    "batch_size": whole(1),
    "momentum": BELOW_1,
    "clip_norm": NOT_NEGATIVE,
    "input_noise": NOT_NEGATIVE,
    "augment": TRUE_OR_FALSE,
    "factor_init": one_of(FACTOR_INITS),
    "balanced": one_of(BALANCED),
    "seed": SEED,
    "device": DEVICE,
    "threads": THREADS,
    "dtype": one_of(DTYPES),
    "compile": TRUE_OR_FALSE,
    "data_root": optional(FOLDER),
    "twin": TRUE_OR_FALSE,
    "eval_every": whole(1),
    "checkpoint_every": whole(1),
}
