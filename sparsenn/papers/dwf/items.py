"""What ``sparsenn reproduce dwf ITEM`` makes: the runs that an item needs, then the item from their rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparsenn.data import require_extra
from sparsenn.papers.dwf import figures, starts, tables, trajectories
from sparsenn.papers.dwf.curves import select
from sparsenn.papers.dwf.runs import Place, train
from sparsenn.papers.dwf.settings import POINTS, SEEDS, Given, fine_tuned, tuning_epochs
from sparsenn.training.errors import ConfigError
from sparsenn.training.files import write_atomic
from sparsenn.training.presets import PRUNERS
from sparsenn.training.table import Row

DEPTHS = (2, 3, 4)
_METHODS = ("dwf", *PRUNERS)
_LRS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0)  # eight from 1e-3 to 1, as Figure 12a has; 11 goes to 2
_WIDE = (2e-5, 1e-2)  # λ where learning rates differ: small rates need large ones
_STORIES = 3  # strengths in Figures 6, 17 and 18
_ALL_STARTS = ("preserve", "dwf", "variance_matching", "root", "standard")
_BEST_STARTS = ("preserve", "dwf", "root")  # that neither vanish nor explode
_MEDIUM, _EXTREME = 100.0, 500.0  # compressions of Figure 10
_SAME_RATES = {2: 0.2, 3: 0.5, 4: 0.7}  # of every net in Figure 22
_FINE_TUNED = (2.0, 4.0, 8.0)  # times the compression that a net has by itself, Figure 21
_FINE_TUNING = (50, 0.11)  # epochs and learning rate


@dataclass(frozen=True)
class Choice:
    """What a user may choose of an item beside ``Given``: depths, and methods for the items that have them."""

    depths: tuple[int, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """A table or figure.

    Attributes:
        keys: the runs that it needs.
        make: the item from the rows that are there; the number of runs is that of all it needs.
        dataset: the paper's, or the nearest that is small.
        model: the same.
        depths: numbers of factors.
        methods: for the items that compare these.
        lams: smallest and largest λ; None for those of the depth.
        points: of a curve over λ. The λ of 7 points are among those of 13, so that items share these nets too.
        seeds: of each run.
    """

    keys: Callable[[Given, Choice], list[Row]]
    make: Callable[[str, list[Row], Given, int], bytes]
    dataset: str = "fashion-mnist"
    model: str = "lenet-300-100"
    depths: tuple[int, ...] = DEPTHS
    methods: tuple[str, ...] = ()
    lams: tuple[float, float] | None = None
    points: int = POINTS
    seeds: int = SEEDS


def _compared(given: Given, choice: Choice) -> list[Row]:
    """The runs of Tables 1 and 2 and of Figures 8 to 10."""
    keys = given.dense()
    for method in choice.methods:
        keys += _sweeps(given, choice) if method == "dwf" else given.pruned(method)
    return keys


def _sweeps(given: Given, choice: Choice) -> list[Row]:
    return [key for depth in choice.depths for key in given.sweep(depth)]


def _sweeps_at_same_rates(given: Given, choice: Choice) -> list[Row]:
    rates = {depth: given.lr or _SAME_RATES.get(depth, _SAME_RATES[4]) for depth in choice.depths}
    return [key for depth, lr in rates.items() for key in given.sweep(depth, lr=lr)]


def _beside_l1(given: Given, choice: Choice) -> list[Row]:
    return [*given.l1_sweep("l1-subgradient"), *given.l1_sweep("prox"), *_sweeps(given, choice)]


def _rates(lrs: Sequence[float]) -> Callable[[Given, Choice], list[Row]]:
    """Curves over λ at several learning rates; a given one takes their place."""

    def keys(given: Given, choice: Choice) -> list[Row]:
        chosen = lrs if given.lr is None else (given.lr,)
        return [key for lr in chosen for depth in choice.depths for key in given.sweep(depth, lr=lr)]

    return keys


def _starts(*names: str) -> Callable[[Given, Choice], list[Row]]:
    """Curves over λ from several starts; a given one takes their place."""

    def keys(given: Given, choice: Choice) -> list[Row]:
        chosen = names if given.factor_init is None else (given.factor_init,)
        return [key for start in chosen for depth in choice.depths for key in given.sweep(depth, factor_init=start)]

    return keys


def _starts_and_tuned(given: Given, choice: Choice) -> list[Row]:
    """The same beside dense nets that are factorized, or pruned, when they are trained."""
    epochs = tuning_epochs(given.key("dense")["epochs"])
    pruned = given.pruned("magnitude", after_epochs=epochs)
    chosen = _BEST_STARTS if given.factor_init is None else (given.factor_init,)
    tuned = [key for start in chosen for depth in choice.depths for key in given.tuned(depth, start)]
    return [*given.dense(), *tuned, *pruned, *_starts(*_BEST_STARTS)(given, choice)]


def _dead(given: Given, choice: Choice) -> list[Row]:
    """Without a penalty, from a start with many weights next to 0 and from one without."""
    chosen = ("variance_matching", "dwf", "preserve") if given.factor_init is None else (given.factor_init,)
    which = [(seed, depth, start) for seed in range(given.seeds) for depth in choice.depths for start in chosen]
    return [given.key("dwf", seed, depth=depth, lam=0.0, factor_init=start) for seed, depth, start in which]


def _schedules(factor_init: str | None = None) -> Callable[[Given, Choice], list[Row]]:
    """One run for each schedule at the middle strength, then the others of the sweep's λ under cosine."""

    def keys(given: Given, choice: Choice) -> list[Row]:
        if factor_init is not None and given.factor_init not in (None, factor_init):
            raise ConfigError(f"factor-init: the item is of {factor_init} factors; got {given.factor_init}")
        own = given if factor_init is None else replace(given, factor_init=factor_init)
        sweep = [key for depth in choice.depths for key in own.sweep(depth)]
        middle = sweep[len(sweep) // 2]
        return [middle, {**middle, "schedule": "constant"}, {**middle, "schedule": "step"}, *sweep]

    return keys


def _one_depth(given: Given, choice: Choice) -> list[Row]:
    return given.sweep(choice.depths[0])


def _follow_ups(rows: Sequence[Row]) -> list[Row]:
    """Pruning and training on, for the factorized nets that have weights left: compressions relative to what each has."""
    keys = []
    for row in select(rows, method="dwf"):
        for factor in _FINE_TUNED:
            if row["compression"] is not None and row["weights"] >= 2 * factor:
                keys.append(fine_tuned(row, float(f"{factor * row['compression']:.4g}"), *_FINE_TUNING))
    return keys


def _about(item: str, given: Given) -> str:
    return f"{item.replace('fig', 'Figure ')}. {given.model} on {given.dataset}"


def _picture(draw: Callable[..., bytes], **options: object) -> Callable[[str, list[Row], Given, int], bytes]:
    return lambda item, rows, given, wanted: draw(rows, _about(item, given), **options)


def _trajectories(columns: str, label: str, *quantities: str) -> Callable[[str, list[Row], Given, int], bytes]:
    def make(item: str, rows: list[Row], given: Given, wanted: int) -> bytes:
        return trajectories.lines(select(rows, seed=0), _about(item, given), columns, label, quantities)

    return make


def _spaced(rows: Sequence[Row], count: int) -> list[Row]:
    """So many of the rows with weights left, from the smallest λ to the largest."""
    own = sorted((row for row in rows if row["compression"] is not None), key=lambda row: row["lam"])
    return [own[round(i * (len(own) - 1) / max(count - 1, 1))] for i in range(min(count, len(own)))]


def _some(draw: Callable[[list[Row], str], bytes]) -> Callable[[str, list[Row], Given, int], bytes]:
    """A picture of a few strengths, first seed."""
    return lambda item, rows, given, wanted: draw(_spaced(select(rows, seed=0), _STORIES), _about(item, given))


def _phases(item: str, rows: list[Row], given: Given, wanted: int) -> bytes:
    own = select(rows, seed=0)
    first = [*own[:1], *(row for row in own if row["schedule"] != "cosine")]
    cosine = [row for row in own if row["schedule"] == "cosine"]
    return trajectories.schedules([*first, *_spaced(cosine, _STORIES)], _about(item, given), _STORIES)


def _components(item: str, rows: list[Row], given: Given, wanted: int) -> bytes:
    own = _spaced(select(rows, seed=0), _STORIES)
    row = own[len(own) // 2] if own else None
    which = f", D = {row['depth']}, λ = {row['lam']:g}" if row is not None else ""
    return trajectories.components(row, _about(item, given) + which)


def _table(make: Callable[..., str]) -> Callable[[str, list[Row], Given, int], bytes]:
    return lambda item, rows, given, wanted: make(rows, given.dataset, given.model, wanted).encode()


_BY_START = functools.partial(figures.by, panel="depth", line="factor_init")
_CURVES = ("compression", "training accuracy (%)", "test accuracy (%)")
ITEMS: dict[str, Item] = {
    "table1": Item(make=_table(tables.table1), keys=_compared, methods=("dwf", "magnitude", "snip", "synflow")),
    "table2": Item(make=_table(tables.table2), keys=_compared, methods=_METHODS),
    "fig1": Item(_beside_l1, _picture(figures.fig1), depths=(2, 3)),
    "fig4": Item(_starts(*_ALL_STARTS), _picture(starts.trained), points=7, seeds=1),
    "fig5a": Item(
        _dead,
        _trajectories("depth", "factor_init", "training accuracy (%)", "test accuracy (%)", "dead weights (%)"),
        depths=(10,),
        seeds=1,
    ),
    "fig5b": Item(
        _rates((0.003, 0.03, 0.3)),
        _trajectories("depth", "lr", "compression", "test accuracy (%)"),
        depths=(4,),
        lams=(1e-3, 1e-3),
        points=1,
        seeds=1,
    ),
    "fig6": Item(_schedules(), _phases, depths=(4,), seeds=1),
    "fig7": Item(_sweeps, _trajectories("depth", "lam", *_CURVES), seeds=1),
    "fig8": Item(_compared, _picture(figures.methods), methods=_METHODS),
    "fig9": Item(_compared, _picture(figures.methods), methods=_METHODS, dataset="cifar-10", model="resnet-18"),
    "fig10": Item(_compared, _picture(figures.allocation, compressions=(_MEDIUM, _EXTREME)), methods=_METHODS),
    "fig11": Item(
        _rates((*_LRS, 2.0)), _picture(figures.by, panel="depth", line="lr"), dataset="mnist", lams=_WIDE, points=7, seeds=1
    ),
    "fig12a": Item(_rates(_LRS), _picture(figures.pareto), dataset="mnist", lams=_WIDE, points=7, seeds=1),
    "fig12b": Item(_starts(*_ALL_STARTS), _picture(_BY_START), model="lenet-5", points=7, seeds=1),
    "fig13": Item(_sweeps, _picture(figures.strengths)),
    "fig14": Item(
        _rates((0.15, 0.3, 0.6)),
        _picture(figures.by, panel="lr", line="depth"),
        dataset="mnist",
        depths=(2, 3, 4, 5, 6, 8),
        points=7,
        seeds=1,
    ),
    "fig15": Item(_sweeps, _trajectories("depth", "lam", *_CURVES[1:]), seeds=1, dataset="cifar-100", model="vgg-19"),
    "fig16": Item(_sweeps, _trajectories("depth", "lam", *_CURVES), seeds=1, dataset="cifar-100", model="vgg-19"),
    "fig17": Item(_one_depth, _some(trajectories.layers), depths=(3,), seeds=1),
    "fig18": Item(_one_depth, _some(trajectories.layer_misalignments), depths=(2,), seeds=1),
    "fig19": Item(_sweeps, _trajectories("depth", "lam", "misalignment", "compression"), seeds=1),
    "fig20": Item(_one_depth, _components, depths=(3,), seeds=1),
    "fig21": Item(_one_depth, _picture(figures.fine_tuning), depths=(2,)),
    "fig22": Item(_sweeps_at_same_rates, _picture(figures.methods), dataset="cifar-100", model="wide-resnet-16-8"),
    "fig23": Item(_starts(*_ALL_STARTS), _picture(_BY_START), points=7, seeds=1),
    "fig24": Item(_schedules(factor_init="root"), _phases, depths=(4,), points=7, seeds=1),
    "starts": Item(_starts_and_tuned, _table(tables.starts), points=7),
}


def reproduce(
    out: str | Path = "runs/dwf",
    *,
    item: str,
    dataset: str | None = None,
    model: str | None = None,
    depths: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    lams: Sequence[float] | None = None,
    points: int | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    factor_init: str | None = None,
    data_root: str | None = None,
    device: str = "cpu",
    threads: int = 1,
    compile: bool = False,  # noqa: A002 (what it is called everywhere)
    no_train: bool = False,
    quiet: bool = True,
) -> Path:
    """Train what an item needs and the table in ``out`` lacks, and write the item there.

    ``nets.jsonl`` holds a line for each trained net, which all items share: nothing is trained twice. ``nets/`` holds the nets,
    those with few weights as their non-zero ones. A killed command goes on where it was; ``state/`` has the checkpoint, written
    every 30 seconds, of the run that is going on. One process a folder.

    Args:
        out: the folder.
        item: a key of ``ITEMS``.
        dataset: a name of ``sparsenn.data.names()``; None for the item's own.
        model: a name of ``sparsenn.models.names()``; None for the item's own.
        depths: numbers of factors; None for the item's own.
        methods: of ``dwf``, ``magnitude``, ``snip``, ``synflow`` and ``random``, for the items that compare them.
        lams: smallest and largest λ of every curve; None for those of its depth.
        points: how many λ, log-spaced; None for the item's own.
        seeds: how many, counted from 0; None for the item's own, the paper's three or one.
        epochs: passes over the training set; None for the preset's.
        batch_size: images a step; None for the preset's.
        lr: initial learning rate of factorized nets, instead of the defaults or the rates that the item compares.
        factor_init: how factors start, instead of the default or the starts that the item compares.
        data_root: as for ``sparsenn train``.
        device: the same.
        threads: CPU threads; 0 leaves PyTorch its choice.
        compile: as for ``sparsenn train``; the runs are the same but for rounding, and have the same names.
        no_train: make the item of the rows that are there; no data is read.
        quiet: no bar, no line a run.

    Returns:
        The path of the table or picture.

    Raises:
        ConfigError: for a setting out of range, or one that the item has no use for, before anything is read or written; and
            for a figure without a finished run.
        DataError: if a data file is missing or damaged.
        RunFolderError: if another process trains in the folder, or something can't be written.
        TrainingInterrupted: after a signal, once the state is written.

    Source:
        Kolb et al. 2025, Deep Weight Factorization; docs/deep_weight_factorization.md says what the paper leaves open.
    """
    own = ITEMS[item]
    given = Given(
        dataset or own.dataset,
        model or own.model,
        epochs=epochs,
        seeds=own.seeds if seeds is None else seeds,
        lams=own.lams if lams is None else (lams[0], lams[1]),
        points=own.points if points is None else points,
        lr=lr,
        factor_init=factor_init,
        batch_size=batch_size,
    )
    given.check()
    choice = _choice(item, depths, methods)
    keys = own.keys(given, choice)
    if item.startswith("fig"):
        require_extra("matplotlib", "drawing pictures")
    place = Place(Path(out), data_root, device, threads, compile, quiet)
    rows = _rows(keys, place, no_train)
    if item == "fig21":
        later = _follow_ups(rows)
        keys, rows = keys + later, rows + _rows(later, place, no_train)
    if item.startswith("fig") and not select(rows):
        raise ConfigError(
            f"{item}: none of its {len(keys)} runs has ended well in {place.folder}; without no-train they are trained"
        )
    path = place.folder / f"{_file_name(item, given)}.{'png' if item.startswith('fig') else 'md'}"
    write_atomic(path, own.make(item, rows, given, len(keys)))
    return path


def _rows(keys: Sequence[Row], place: Place, no_train: bool) -> list[Row]:
    return place.table.rows_of(keys) if no_train else train(keys, place)


def _file_name(item: str, given: Given) -> str:
    return f"{item}-{given.model}-{given.dataset}"


def _choice(item: str, depths: Sequence[int] | None, methods: Sequence[str] | None) -> Choice:
    own = ITEMS[item]
    if methods is not None and not own.methods:
        raise ConfigError(f"{item} compares no methods; drop methods")
    for method in methods or ():
        if method not in own.methods:
            raise ConfigError(f"methods: got {method!r}; {item} takes some of {', '.join(own.methods)}")
    if depths is not None and len(own.depths) == 1 and len(depths) != 1:
        raise ConfigError(f"depths: {item} shows one depth; got {len(depths)}")
    return Choice(tuple(depths or own.depths), tuple(methods or own.methods))
