"""What ``sparsenn reproduce l1 ITEM`` makes: the runs that an item needs, then the item from their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sparsenn.data import require_extra
from sparsenn.papers.l1 import courses, figures, tables
from sparsenn.papers.l1.compare import comparison_markdown, spread
from sparsenn.papers.l1.runs import kept_weights, table_of, train, weight_file, without_weights
from sparsenn.papers.l1.settings import ACTIVATIONS, EXPERIMENTS, PAIRS, PUBLISHED, SCALES, SEEDS, grid
from sparsenn.training.errors import ConfigError, RunFolderError
from sparsenn.training.files import write_atomic
from sparsenn.training.folder import writing_in
from sparsenn.training.table import Row

# What a folder may hold.
_OWN = ("exp*.jsonl", "exp*.md", "exp*.state", "exp*.weights", "table*.md", "fig*.png", "courses.*", "*.part")
_MATCHED = tuple((activation, activation) for activation in ACTIVATIONS)


@dataclass(frozen=True)
class Column:
    """A single run that an item shows."""

    method: str
    scale: float
    teacher: str
    student: str
    seed: int = 1

    @property
    def name(self) -> str:
        """The head of its column."""
        return f"{tables.NAMES[self.method]} ({tables.scale_name(self.scale)}), {self.student}, seed {self.seed}"


@dataclass(frozen=True)
class Item:
    """A table or figure.

    Attributes:
        experiment: whose runs it shows.
        what: what it shows, in a few words.
        kind: ``losses``, ``matrix``, ``sparsities``, ``weights``, ``maps`` or ``courses``.
        columns: the single runs of ``weights`` and ``maps``.
        methods: of the runs of the other kinds.
        scales: the same.
    """

    experiment: int
    what: str
    kind: str
    columns: tuple[Column, ...] = ()
    methods: tuple[str, ...] = PUBLISHED
    scales: tuple[float, ...] = SCALES


def _matched(method: str, scale: float) -> tuple[Column, ...]:
    return tuple(Column(method, scale, a, a) for a in ("relu", "sigmoid", "tanh"))


def _four(activation: str, seed: int, l2_scale: float = 1.0, none_scale: float = 1.0) -> tuple[Column, ...]:
    cells = (("l1", 0.2), ("l1", 1.0), ("l2", l2_scale), ("none", none_scale))
    return tuple(Column(method, scale, activation, activation, seed) for method, scale in cells)


_TABLE_8 = tuple(Column("l1", scale, "sigmoid", "sigmoid", seed) for scale in SCALES for seed in (4, 5))
_ITEMS = {
    "table1": Item(3, "average sparsity", "sparsities"),
    "table2": Item(1, "weights without regularization", "weights", _matched("none", 0.2)),
    "table3": Item(1, "weights under L1", "weights", _matched("l1", 0.2)),
    "table4": Item(1, "weights under L2", "weights", _matched("l2", 0.2)),
    "table5": Item(1, "final losses of all pairs", "matrix", methods=("none",), scales=(0.2,)),
    "table6": Item(2, "weights of tanh students", "weights", _four("tanh", 1)),
    "table7": Item(2, "weights of ReLU students", "weights", _four("relu", 3)),
    "table8": Item(2, "weights of sigmoid students", "weights", _TABLE_8),
    "table9": Item(4, "average sparsity", "sparsities"),
    "table10": Item(5, "average sparsity", "sparsities"),
    "table11": Item(6, "weights of sigmoid students", "weights", _four("sigmoid", 2, 0.2, 0.2)),
    "table12": Item(6, "weights of ReLU students", "weights", _four("relu", 1)),
    "table13": Item(6, "weights of tanh students", "weights", _four("tanh", 3)),
    "fig3": Item(3, "final losses", "losses"),
    "fig4": Item(4, "weight maps", "maps", (Column("l1", 0.2, "relu", "relu"), Column("none", 1.0, "relu", "relu"))),
    "fig5": Item(2, "final losses", "losses"),
    "fig6": Item(3, "weight map under L1", "maps", (Column("l1", 0.2, "tanh", "tanh"),)),
    "fig7": Item(3, "weight map under L2", "maps", (Column("l2", 1.0, "tanh", "tanh"),)),
    "fig8": Item(3, "weight map without regularization", "maps", (Column("none", 1.0, "tanh", "tanh"),)),
    "fig9": Item(4, "final losses", "losses"),
    "fig10": Item(5, "weight map of a sigmoid student", "maps", (Column("l1", 0.2, "tanh", "sigmoid"),)),
    "fig11": Item(5, "final losses", "losses"),
    "courses": Item(2, "when connections are found", "courses", methods=courses.METHODS),
}


def reproduce(
    out: str | Path = "runs/l1",
    *,
    item: str,
    methods: Sequence[str] | None = None,
    scales: Sequence[float] | None = None,
    pairs: str = "all",
    seeds: int | None = None,
    size: int | None = None,
    epochs: int | None = None,
    no_train: bool = False,
    quiet: bool = True,
) -> Path:
    """Train what an item needs and the tables in ``out`` lack, and write the item there.

    ``expN.jsonl`` holds a line for each run of Experiment N that ended; all items share these tables, so that nothing is
    trained twice. ``exp1`` to ``exp6`` write ``expN.md``: losses, sparsities (below 1e-4 and exactly zero), what was recovered,
    and how our runs compare with the published ones, for all rows of this size and length that the table holds, whichever
    were asked for. A map of a large student needs its weights, which lie in ``expN.weights/``; where they are not there its
    run is trained again. A killed command goes on where it was.

    Args:
        out: the folder, new or empty or with what these items write.
        item: ``exp1`` to ``exp6``, ``table1`` to ``table13``, ``fig3`` to ``fig11``, or beside the paper ``courses``: in which
            epoch the students of Experiment 2 have the connections that they end with, under L1 and under proximal steps.
        methods: of ``l1``, ``l2``, ``none`` and ``prox``; None for the item's own.
        scales: of the start; None for the item's own.
        pairs: ``all`` nine pairs of activations or ``matched`` ones.
        seeds: how many, counted from 1; None for the paper's five.
        size: samples; None for the paper's number.
        epochs: the longest run; None for the paper's number.
        no_train: make the item of the rows that are there.
        quiet: no bar.

    Returns:
        The path of the table or figure.

    Raises:
        ConfigError: for a setting out of range, or one that the item has no use for.
        RunFolderError: if the folder holds other files or can't be written, or with ``no_train`` lacks weights.
        TrainingInterrupted: after a signal, once the state is written.

    Source:
        Schulz and Poggio, L1-regularization: The path to sparsity; docs/l1.md says where the settings differ from its text.
    """
    if pairs not in ("all", "matched"):
        raise ConfigError(f"pairs is {pairs!r}; it takes all or matched")
    chosen = PAIRS if pairs == "all" else _MATCHED
    own = _ITEMS.get(item)
    number = int(item.removeprefix("exp")) if own is None else own.experiment
    limits = {"size": size, "epochs": epochs}
    if own is not None and own.columns:
        given = {"methods": methods, "scales": scales, "seeds": seeds, "pairs": None if pairs == "all" else pairs}
        useless = [name for name, value in given.items() if value is not None]
        if useless:
            raise ConfigError(f"{item} shows single runs; it has no use for {', '.join(useless)}")
        keys = [_key(own.experiment, column, limits) for column in own.columns]
    else:
        keys = grid(
            number,
            methods=methods or (PUBLISHED if own is None else own.methods),
            scales=scales or (SCALES if own is None else own.scales),
            pairs=chosen,
            seeds=SEEDS if seeds is None else seeds,
            **limits,
        )
    if item.startswith("fig"):
        require_extra("matplotlib", "drawing pictures")
    folder = Path(out)
    path = folder / f"{item}.{'png' if item.startswith('fig') else 'md'}"
    shows_weights = own is not None and bool(own.columns)
    with _opened(folder):
        of_courses = item == "courses"
        if not no_train and of_courses:
            courses.train(keys, folder)
        elif not no_train:
            train(keys, folder, weights=shows_weights, quiet=quiet)
        table = courses.table_in(folder) if of_courses else table_of(number, folder)
        rows = table.rows_of(keys)
        if item.startswith("fig") and not rows:
            raise ConfigError(f"{item}: none of its {len(keys)} runs is in {folder}; without no-train they are trained")
        if shows_weights:
            _require_weights(rows, folder)
        if own is None:
            content = experiment_markdown(number, _alike(table.rows, size, epochs)).encode()
        else:
            content = _KINDS[own.kind](item, own, rows, folder)
        write_atomic(path, content)
    return path


@contextmanager
def _opened(folder: Path) -> Iterator[None]:
    """The folder while it is written to.

    Raises:
        RunFolderError: if it holds other files, or can't be written.
    """
    with writing_in(folder, "name another folder with --out"):
        if not all(any(fnmatch(entry.name, pattern) for pattern in _OWN) for entry in folder.iterdir()):
            raise RunFolderError(f"{folder} holds other files; name another folder with --out")
        yield


def _require_weights(rows: Sequence[Row], folder: Path) -> None:
    lost = [str(weight_file(row, folder)) for row in without_weights(rows, folder)]
    if lost:
        raise RunFolderError(
            f"{', '.join(lost)} missing, the weights of runs that the table has; drop --no-train to train them"
        )


def _alike(rows: Sequence[Row], size: int | None, epochs: int | None) -> list[Row]:
    """The rows of runs of this size and length, None for the paper's."""
    alike = []
    for row in rows:
        own = EXPERIMENTS[row["experiment"]]
        longest = epochs or own.max_epochs(row["method"], row["scale"])
        if (row["size"], row["max_epochs"]) == (size or own.size, longest):
            alike.append(row)
    return alike


def _key(experiment: int, column: Column, limits: dict[str, int | None]) -> Row:
    pair = (column.teacher, column.student)
    return grid(experiment, methods=[column.method], scales=[column.scale], pairs=[pair], seeds=[column.seed], **limits)[0]


def _title(experiment: int) -> str:
    own = EXPERIMENTS[experiment]
    return f"Experiment {experiment}: {own.teacher} → {own.student}"


def _about(item: str, own: Item) -> str:
    name = item.replace("table", "Table ").replace("fig", "Figure ")
    return f"{name}. {_title(own.experiment)}: {own.what}"


def experiment_markdown(number: int, rows: Sequence[Row]) -> str:
    """All figures of an experiment by its rows, of which some may not be there yet."""
    parts = [f"# {_title(number)}\n", _census(number, rows)]
    for scale in sorted({row["scale"] for row in rows}):
        parts += [f"## Final loss, {tables.scale_name(scale)}\n", tables.losses(rows, number, scale)]
    if rows:
        parts += ["## Average sparsity in percent, |w| < 1e-4\n", tables.sparsities(rows, number)]
        parts += ["## Average sparsity in percent, exact zeros\n", tables.sparsities(rows, number, exact=True)]
        parts += ["## Recovery, matched activations\n", tables.recoveries(rows)]
        parts += ["## Loss and sparsity\n", tables.correlations(rows)]
    beside = comparison_markdown(rows, number)
    if beside:
        parts += ["## Beside the published runs\n", beside]
    return "\n".join(parts)


_NAMES = ("teacher_activation", "student_activation", "scale", "seed")


def _census(number: int, rows: Sequence[Row]) -> str:
    paper = {tuple(key[name] for name in _NAMES) for key in grid(number, methods=["l1"])}
    lines, missing = [], len(paper) * len(PUBLISHED)
    for method in tables.methods_in(rows):
        own = [row for row in rows if row["method"] == method]
        there, count = sum(tuple(row[name] for name in _NAMES) in paper for row in own), f"{len(own)} runs"
        if method in PUBLISHED:
            missing -= there
            count = f"{there} of {len(paper)} runs" + (f" and {len(own) - there} others" if there < len(own) else "")
        lrs, lams = (", ".join(f"{value:g}" for value in sorted({row[name] for row in own})) for name in ("lr", "lam"))
        diverged = sum(row["status"] == "diverged" for row in own)
        epochs = spread([row["epochs"] for row in own])
        lines.append(
            f"- {tables.NAMES[method]}: {count} of {own[0]['size']} samples, lr {lrs}, λ {lams}; "
            f"{diverged} diverged; {epochs.low:.0f} to {epochs.high:.0f} epochs"
        )
    if rows and missing:
        why = f"the first to end are no fair sample, and a cell of fewer than {SEEDS} says so"
        lines += ["", f"Of the paper's runs {missing} are not there: {why}."]
    return "\n".join([*lines, ""]) if lines else "No run has ended.\n"


def _losses(item: str, own: Item, rows: list[Row], folder: Path) -> bytes:
    return figures.loss_picture(rows, own.experiment, _about(item, own))


def _matrix(item: str, own: Item, rows: list[Row], folder: Path) -> bytes:
    return f"# {_about(item, own)}\n\n{tables.loss_matrix(rows, own.methods[0], own.scales[0])}".encode()


def _sparsities(item: str, own: Item, rows: list[Row], folder: Path) -> bytes:
    parts = [
        f"# {_about(item, own)}\n\nPercent of weights below 1e-4 in magnitude; in brackets what the paper prints.\n",
        tables.sparsities(rows, own.experiment),
        "Percent of weights that are exactly zero:\n",
        tables.sparsities(rows, own.experiment, exact=True),
    ]
    return "\n".join(parts).encode()


def _single_runs(own: Item, rows: list[Row]) -> list[tuple[str, Row | None]]:
    found = {(r["method"], r["scale"], r["teacher_activation"], r["student_activation"], r["seed"]): r for r in rows}
    return [(c.name, found.get((c.method, c.scale, c.teacher, c.student, c.seed))) for c in own.columns]


def _weights(item: str, own: Item, rows: list[Row], folder: Path) -> bytes:
    return f"# {_about(item, own)}\n\n{tables.weights(_single_runs(own, rows), own.experiment, folder)}".encode()


def _maps(item: str, own: Item, rows: list[Row], folder: Path) -> bytes:
    panels = []
    for name, row in _single_runs(own, rows):
        title = name
        if row is not None and row["status"] == "finished":
            shares = zip(row["nonzero"], row["weights"], strict=True)
            layers = ", ".join(f"{100 * (1 - kept / count):.2f} %" for kept, count in shares)
            title = f"{name}: sparsity {layers}, final loss {row['loss']:.4f}"
        panels.append((title, None if row is None else kept_weights(row, folder)))
    return figures.weight_picture(panels)


def _courses(item: str, own: Item, rows: list[Row], folder: Path) -> bytes:
    return f"# {_title(own.experiment)}: {own.what}\n\n{courses.markdown(rows)}".encode()


_KINDS: dict[str, Callable[[str, Item, list[Row], Path], bytes]] = {
    "losses": _losses,
    "matrix": _matrix,
    "sparsities": _sparsities,
    "weights": _weights,
    "maps": _maps,
    "courses": _courses,
}
