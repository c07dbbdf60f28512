"""Settings that work, one row for each data set and network. No PyTorch is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass, replace

DATASETS = ("digits", "mnist", "fashion-mnist", "kuzushiji-mnist", "cifar-10", "cifar-100", "tiny-imagenet")
MODELS = ("lenet-300-100", "lenet-5", "vgg-16", "vgg-19", "resnet-18", "resnet-34", "wide-resnet-16-8", "row-transformer")
PRUNERS = ("magnitude", "snip", "synflow", "random")
FACTORIZED = ("dwf", "dwf-adam")
METHODS = (*FACTORIZED, "prox", "l1-subgradient", "dense", *PRUNERS)
SCHEDULES = ("cosine", "constant", "step")
DTYPES = ("float32", "float64", "bfloat16")
BALANCED = ("never", "auto", "always")
OPTIMIZERS = ("sgd", "prox", "factorized", "adam")  # of a run in a stack, as the two that follow
PENALTIES = ("none", "l1", "l2")
ENGINES = ("auto", "fused", "torch")
FACTOR_INITS = ("preserve", "root", "dwf", "variance_matching", "standard")


@dataclass(frozen=True)
class Preset:
    """What a run takes where nothing else is said.

    Attributes:
        depth: factors a weight, for ``dwf`` and ``dwf-adam``.
        lam: λ of the penalty for these two.
        lr: initial learning rate for ``dwf``; three of them are those of depths 2, 3 and 4.
        adam_lr: initial learning rate for ``dwf-adam``.
        lam_schedule: how λ falls.
        l1_lam: λ of the two methods whose penalty is λ‖w‖₁.
        dense_lr: initial learning rate of the methods that train the weights themselves, and so of the dense twin.
        epochs: passes over the training set.
        batch_size: images a step.
        eval_every: epochs between two evaluations.
        checkpoint_every: epochs between two checkpoints.
        twin: whether the dense twin is trained too.
        input_noise: standard deviation of the noise on the training images.
        clip_norm: largest norm of the loss's gradient by the weights; 0 for no limit.
        threads: CPU threads; 0 leaves PyTorch its choice.
        augment: whether training images are flipped, shifted and rotated.
        compression: all parameters over those that a pruning method keeps.
    """

    depth: int = 3
    lam: float = 6e-4
    lr: float | tuple[float, float, float] = 0.15
    adam_lr: float = 0.01
    lam_schedule: str = "constant"
    l1_lam: float = 1e-4
    dense_lr: float = 0.15
    epochs: int = 75
    batch_size: int = 256
    eval_every: int = 1
    checkpoint_every: int = 5
    twin: bool = False
    input_noise: float = 0.0
    clip_norm: float = 0.0
    threads: int = 0
    augment: bool = False
    compression: float = 20.0

    def lr_at(self, depth: int) -> float:
        """The learning rate for D factors, beyond the table that of the nearest depth in it."""
        return self.lr[min(max(depth, 2), 4) - 2] if isinstance(self.lr, tuple) else self.lr


_DIGITS = Preset(
    depth=2,
    lam=8e-4,
    lr=0.4,
    lam_schedule="cosine",
    l1_lam=8e-4,
    dense_lr=0.2,
    epochs=520,
    batch_size=64,
    eval_every=5,
    checkpoint_every=50,
    twin=True,
    input_noise=0.2,
    clip_norm=1.0,
    threads=1,
)

# Rates of the runs that go on from a trained net; from scratch a place to start a search, not tuned. Without clipping: clipped
# gradients would not hold their own against the decay.
_DIGITS_TRANSFORMER = replace(
    _DIGITS, lam=4e-3, lr=0.15, lam_schedule="constant", l1_lam=4e-3, dense_lr=0.05, epochs=120, clip_norm=0.0
)


def _colour(lr: tuple[float, float, float], epochs: int = 250) -> Preset:
    """Networks for colour images; their λ is where a search may start, not tuned."""
    return Preset(lam=9e-5, lr=lr, dense_lr=0.1, epochs=epochs, batch_size=128, augment=True)


_RESNET = (0.2, 0.5, 0.7)

# Epochs, batch sizes and learning rates of the images but the digits: Kolb et al. 2025, Table 4.
PRESETS: dict[tuple[str, str], Preset] = {
    ("digits", "lenet-300-100"): _DIGITS,
    ("mnist", "lenet-300-100"): Preset(),
    ("mnist", "lenet-5"): Preset(),
    ("fashion-mnist", "lenet-300-100"): Preset(),
    ("fashion-mnist", "lenet-5"): Preset(),
    ("kuzushiji-mnist", "lenet-300-100"): Preset(lr=0.4),
    ("kuzushiji-mnist", "lenet-5"): Preset(),
    ("cifar-10", "vgg-16"): _colour((0.5, 0.6, 0.6)),
    ("cifar-10", "resnet-18"): _colour(_RESNET),
    ("cifar-10", "wide-resnet-16-8"): _colour(_RESNET),
    ("cifar-100", "vgg-19"): _colour((0.3, 0.6, 0.6)),
    ("cifar-100", "resnet-18"): _colour(_RESNET),
    ("cifar-100", "resnet-34"): _colour(_RESNET),
    ("cifar-100", "wide-resnet-16-8"): _colour(_RESNET),
    ("tiny-imagenet", "resnet-18"): _colour((0.5, 0.8, 1.1)),
    ("tiny-imagenet", "resnet-34"): _colour(_RESNET, epochs=150),
    ("tiny-imagenet", "wide-resnet-16-8"): _colour(_RESNET),
    ("digits", "row-transformer"): _DIGITS_TRANSFORMER,
}
