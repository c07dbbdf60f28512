"""The JSON settings of ``sparsenn teacher-student``, with the keys of the paper's public code. No PyTorch is needed here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from sparsenn.training.checks import (
    ABOVE_0,
    COUNT,
    FOLDER,
    NOT_NEGATIVE,
    SAMPLES,
    TRUE_OR_FALSE,
    Check,
    list_of,
)
from sparsenn.training.errors import ConfigError
from sparsenn.training.files import parse_json

_FOLDER = "config_files"
_PACKAGED = resources.files("sparsenn.papers.l1").joinpath("configs")


@dataclass(frozen=True)
class StudyConfig:
    """Settings of a set of teacher–student runs.

    Attributes:
        batch_size: samples a step.
        patience: epochs in a row without a lower loss before a run ends.
        dataset_size: samples.
        num_epochs: the longest run.
        init: scale of the start; 0 leaves PyTorch's own.
        name: goes into the names of folder and files.
        lr: learning rates.
        l1_norm: strengths of L1.
        l2_norm: strengths of L2: λ Σw² in the loss and a weight decay of λ beside it, as in the public code.
        loss_func: ``"MSE"``.
        clipping: weights below it become 0 after each step; in a file ``false`` says 0, as in the public code's own.
        same_act: whether ``multiple`` trains the pairs of like activations alone.
        save_path: the folder of the folders.
    """

    batch_size: int
    patience: int
    dataset_size: int
    num_epochs: int
    init: float
    name: str
    lr: tuple[float, ...] = (0.01,)
    l1_norm: tuple[float, ...] = (0.0,)
    l2_norm: tuple[float, ...] = (0.0,)
    loss_func: str = "MSE"
    clipping: float = 0.0
    same_act: bool = False
    save_path: str = "./experiment_output"

    def to_dict(self) -> dict[str, Any]:
        """As in a file."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def packaged() -> tuple[str, ...]:
    """The settings that come with the package.

    Example:
        >>> from sparsenn.papers.l1.study_config import packaged
        >>> packaged()[:2]
        ('config_cnn_l1_0.2.json', 'config_cnn_l1_1.json')
    """
    return tuple(sorted(entry.name for entry in _PACKAGED.iterdir() if entry.name.endswith(".json")))


def read_study_config(name: str) -> StudyConfig:
    """Read settings by name: a path, else a file in ``config_files/`` below the working directory, else a packaged one.

    Raises:
        ConfigError: if there is no such file, or it holds no JSON object, an unknown key, a key twice, or a value that does not
            fit.

    Example:
        >>> from sparsenn.papers.l1.study_config import read_study_config
        >>> read_study_config("config_cnn_l1_0.2.json").l1_norm
        (1e-05,)
    """
    places = [Path(name), Path(_FOLDER) / name]
    found = next((place for place in places if place.is_file()), None)
    if found is None and name not in packaged():
        raise ConfigError(
            f"config_path: neither {places[0]} nor {places[1]} is a file; packaged settings are {', '.join(packaged())}"
        )
    try:
        text = (_PACKAGED.joinpath(name) if found is None else found).read_text(encoding="utf-8")
        content = parse_json(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"config_path {found or name}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config_path {found or name}: it holds a {type(content).__name__}; it takes an object of settings")
    return study_config(content, str(found or name))


def study_config(content: dict[str, Any], where: str) -> StudyConfig:
    """Settings from a JSON object.

    Args:
        content: keys and values.
        where: what messages call it.

    Raises:
        ConfigError: for an unknown or missing key, or a value that does not fit.
    """
    known = [field.name for field in fields(StudyConfig)]
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ConfigError(f"{where}: unknown {', '.join(map(repr, unknown))}; known are {', '.join(known)}")
    required = [name for name in known if name not in StudyConfig.__dict__]
    missing = [key for key in required if key not in content]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} missing; it takes at least {', '.join(required)}")
    for key, value in content.items():
        if not _CHECKS[key].fits(value):
            raise ConfigError(f"{where}: {key} is {value!r}; it takes {_CHECKS[key].takes}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    if values.get("clipping") is False:
        values["clipping"] = 0
    config = StudyConfig(**values)
    if any(config.l1_norm) and any(config.l2_norm):
        raise ConfigError(
            f"{where}: l1_norm and l2_norm both have values above 0; a run takes one penalty, the other list is [0]"
        )
    return config


def _part_of_a_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not set(value) & set("/\\\0")


_CHECKS: dict[str, Check] = {
    "batch_size": COUNT,
    "patience": COUNT,
    "dataset_size": SAMPLES,
    "num_epochs": COUNT,
    "init": NOT_NEGATIVE,
    "name": Check(_part_of_a_name, "a string that can be part of a file's name"),
    "lr": list_of(ABOVE_0, "a list of numbers above 0"),
    "l1_norm": list_of(NOT_NEGATIVE, "a list of numbers, 0 or more"),
    "l2_norm": list_of(NOT_NEGATIVE, "a list of numbers, 0 or more"),
    "loss_func": Check(lambda value: value == "MSE", "MSE"),
    "clipping": Check(lambda value: value is False or NOT_NEGATIVE.fits(value), f"{NOT_NEGATIVE.takes}, or false"),
    "same_act": TRUE_OR_FALSE,
    "save_path": FOLDER,
}
