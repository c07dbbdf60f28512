"""Training the runs, one row each in a table that all items share, and what is measured of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sparsenn import data as datasets
from sparsenn.data import ImageData
from sparsenn.papers.dwf.settings import COMPRESSIONS, KEY, source_of
from sparsenn.prune import LayerCollapseWarning, pruning_curve
from sparsenn.training.config import TrainConfig, configure
from sparsenn.training.diagnostics import layer_names
from sparsenn.training.errors import TrainingDiverged, TrainingInterrupted
from sparsenn.training.evaluate import evaluate
from sparsenn.training.files import write_atomic
from sparsenn.training.fit import Fit
from sparsenn.training.folder import alone_in
from sparsenn.training.logging import Progress, Record, progress_for
from sparsenn.training.loop import to_device, train_net
from sparsenn.training.presets import PRUNERS
from sparsenn.training.result import Outcome, outcome
from sparsenn.training.session import StopSignal, session
from sparsenn.training.stacked.progress import spoken
from sparsenn.training.table import Row, Table

CHECKPOINT_SECONDS = 30.0
_RECORDS = 40  # at most so many moments of a run are in its row; each costs as much as some 5 % of an epoch of a LeNet
_DIGITS = 5  # significant ones of a figure in a record
_PRUNED = tuple(sorted({*COMPRESSIONS, *(2.0**k for k in range(1, 14))}))


@dataclass
class Place:
    """Where runs are trained and kept.

    Attributes:
        folder: of the table, the nets and the state of the run that is going on.
        data_root: as for ``sparsenn train``.
        device: the same.
        threads: the same.
        compile: the same.
        quiet: no bar, and no line a run.
    """

    folder: Path
    data_root: str | None = None
    device: str = "cpu"
    threads: int = 1
    compile: bool = False
    quiet: bool = True
    _images: dict[str, ImageData] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        """The rows that are there."""
        return Table(self.folder / "nets.jsonl", KEY)

    def images(self, config: TrainConfig) -> ImageData:
        """A data set on the device; it is read once."""
        if config.dataset not in self._images:
            loaded = datasets.load(config.dataset, config.data_root, download=True)
            self._images = {config.dataset: to_device(loaded, config)}
        return self._images[config.dataset]

    def net_file(self, key: Row) -> Path:
        """Where the trained net of a run is kept."""
        return self.folder / "nets" / f"{_digest(key)}.safetensors"


def _digest(key: Row) -> str:
    return hashlib.sha256(json.dumps([key[column] for column in KEY]).encode()).hexdigest()[:16]


def config_of(key: Row, place: Place) -> TrainConfig:
    """The settings of a run; what its name leaves open (noise, clipping, augmentation) is the preset's.

    Raises:
        ConfigError: for settings that training does not take.
    """
    method, epochs, lr = key["method"], key["epochs"] + key["after_epochs"], key["lr"]
    if method == "dwf" and key["after_epochs"]:
        epochs, lr = key["after_epochs"], key["after_lr"]
    given: dict[str, Any] = {name: key[name] for name in ("dataset", "model", "schedule", "batch_size", "seed")}
    if method == "dwf":
        given |= {"depth": key["depth"], "lam": key["lam"], "factor_init": key["factor_init"]}
    elif method in PRUNERS:
        # A compression counts all parameters; beyond some 650 a LeNet-300-100 has none left if its biases stay.
        given |= {"compression": key["prune_to"], "prune_biases": method != "random"}
    elif method != "dense":
        given |= {"lam": key["lam"]}
    if method == "magnitude":
        given |= {"prune_epoch": key["epochs"], "retrain_lr": key["after_lr"]}
    return configure(
        **given,
        method=method,
        epochs=epochs,
        lr=lr,
        eval_every=-(-epochs // _RECORDS),
        checkpoint_every=epochs,  # they are written by the clock
        twin=False,
        data_root=place.data_root,
        device=place.device,
        threads=place.threads,
        compile=place.compile,
    )


def train(keys: Sequence[Row], place: Place) -> list[Row]:
    """Train what the table lacks of these runs, and return the rows of all, in the order of ``keys``.

    The runs of the first seed come first. A net that is pruned comes before those that it becomes, and is a row of its own.

    Raises:
        ConfigError: for settings that training does not take, before anything is loaded or written; or for a compiler that is
            not there.
        DataError: if a data file is missing or damaged.
        RunFolderError: if another process trains in the folder, or something can't be written.
        TrainingInterrupted: after a signal, once the state is written.
    """
    wanted = sorted({json.dumps(key): key for key in _with_sources(keys)}.values(), key=lambda key: key["seed"])
    for key in wanted:
        config_of(key, place)
    with alone_in(place.folder), StopSignal() as stop, progress_for(quiet=place.quiet) as progress:
        table = place.table  # read where no other process adds to it
        todo = list(table.missing(wanted))
        began = time.monotonic()
        for number, key in enumerate(todo, start=1):
            row = _row(key, place, progress, stop)
            table.add(row)
            shutil.rmtree(_state(key, place), ignore_errors=True)
            if not place.quiet:
                left = _left(todo, number, time.monotonic() - began)
                print(f"{number}/{len(todo)}  {line_of(row)}{left}", file=sys.stderr, flush=True)
    return table.rows_of(keys)


def _left(todo: Sequence[Row], done: int, seconds: float) -> str:
    """How long the other runs take if an epoch of theirs takes as long as one of these."""
    epochs = [key["after_epochs"] or key["epochs"] for key in todo]
    seconds *= sum(epochs[done:]) / sum(epochs[:done])
    return f"; about {spoken(seconds)} left" if done < len(todo) else ""


def _with_sources(keys: Sequence[Row]) -> Iterator[Row]:
    for key in keys:
        if (source := source_of(key)) is not None:
            yield source
        yield key


def _state(key: Row, place: Place) -> Path:
    return place.folder / "state" / _digest(key)


def _row(key: Row, place: Place, progress: Progress, stop: StopSignal) -> Row:
    name = {column: key[column] for column in KEY}
    try:
        net = _outcome(key, place, progress, stop)
    except TrainingDiverged as error:
        return {**name, "status": "diverged", "stopped_at": error.epoch}
    return {**name, "status": "finished", **_figures(net, place.images(net.config))}


def _outcome(key: Row, place: Place, progress: Progress, stop: StopSignal) -> Outcome:
    """The trained net of a run; it is kept too."""
    config, home = config_of(key, place), _state(key, place)
    with session(config), warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerCollapseWarning)  # that a layer dies is a finding here
        source = source_of(key)
        start = None if source is None else trained_state(source, place, progress, stop)
        images = place.images(config)
        home.mkdir(parents=True, exist_ok=True)
        net = outcome(_fit(config, images, home, start, progress, stop))
    keep_state(place.net_file(key), net.model.state_dict())
    return net


def _fit(
    config: TrainConfig,
    images: ImageData,
    home: Path,
    start: dict[str, Tensor] | None,
    progress: Progress,
    stop: StopSignal,
) -> Fit:
    try:
        return train_net(
            config,
            images,
            title=f"{config.method} {config.depth}, λ {config.lam:g}, seed {config.seed}",
            progress=progress,
            stop=stop,
            home=home,
            start=start,
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )
    except TrainingInterrupted as error:
        message = "stopped after a whole step; the same command goes on from there"
        raise TrainingInterrupted(message, error.signal_number, error.folder) from error


def trained_state(key: Row, place: Place, progress: Progress, stop: StopSignal) -> dict[str, Tensor]:
    """The net of a run; it is trained again where its file was deleted."""
    if not place.net_file(key).exists():
        _outcome(key, place, progress, stop)
    return kept_state(place.net_file(key))


def _figures(net: Outcome, images: ImageData) -> Row:
    names = layer_names(net.model)
    weights = dict(net.model.named_parameters())
    last = net.history[-1]
    return {
        "accuracy": net.accuracy,
        "compression": net.compression_ratio if net.weights else None,
        "parameters": net.total,
        "weights": net.weights,
        "train_loss": last["train_loss"],
        "test_loss": last["test_loss"],
        "misalignment": last["misalignment"],
        "norm": float(torch.linalg.vector_norm(torch.cat([w.detach().flatten().double() for w in weights.values()]))),
        "layers": names,
        "sizes": [weights[name].numel() for name in names],
        "kept": [int(weights[name].count_nonzero()) for name in names],
        "pruned": _pruned(net.model, images),
        "history": _shortened(net.history),
        "seconds": round(net.seconds, 1),
    }


def _pruned(model: nn.Module, images: ImageData) -> list[list[float]]:
    """Accuracy against compression where the smallest weights are taken away without any training after it."""
    on = images.test_images.device
    model = model.to(on)
    curve = pruning_curve(model, lambda net: evaluate(net, images.test_images, images.test_labels)[1], compressions=_PRUNED)
    model.cpu()
    return [list(point) for point in curve]


def _shortened(history: Sequence[Record]) -> list[Record]:
    """The records with as many digits as a picture shows."""
    return [{name: _short(value) for name, value in record.items()} for record in history]


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, list):
        return [_short(entry) for entry in value]
    return {name: _short(entry) for name, entry in value.items()} if isinstance(value, dict) else value


def line_of(row: Row) -> str:
    """A finished run in a line."""
    what = f"{row['dataset']}, {row['model']}, {row['method']}"
    if row["method"] == "dwf":
        what += f" {row['depth']}"
    what += f", λ {row['lam']:g}" if row["prune_to"] is None else f", compression {row['prune_to']:g}"
    if row["status"] != "finished":
        return f"{what}, seed {row['seed']}: diverged in epoch {row['stopped_at']}"
    left = "nothing is left" if row["compression"] is None else f"compression {row['compression']:.1f}"
    return f"{what}, seed {row['seed']}: {100 * row['accuracy']:.2f} %, {left}"


def keep_state(path: Path, state: dict[str, Tensor]) -> None:
    """Write a net's state; a tensor that is mostly zeros as its entries that are not, and their places."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        flat = tensor.detach().cpu().flatten()
        places = flat.nonzero().flatten()
        if 4 * len(places) < len(flat):
            tensors |= {f"{name}:places": places.int(), f"{name}:values": flat[places]}
            tensors[f"{name}:shape"] = torch.tensor(tensor.shape)
        else:
            tensors[name] = tensor.detach().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(tensors))


def kept_state(path: Path) -> dict[str, Tensor]:
    """What :func:`keep_state` wrote."""
    stored = load_file(path)
    state = {name: tensor for name, tensor in stored.items() if ":" not in name}
    for name in [name.removesuffix(":places") for name in stored if name.endswith(":places")]:
        shape = stored[f"{name}:shape"].tolist()
        dense = torch.zeros(shape, dtype=stored[f"{name}:values"].dtype)
        dense.view(-1)[stored[f"{name}:places"].long()] = stored[f"{name}:values"]
        state[name] = dense
    return state
