"""The networks of the papers."""

from sparsenn.models.committee import feature_head, soft_committee
from sparsenn.models.lenet import lenet5, lenet_300_100
from sparsenn.models.registry import build, names
from sparsenn.models.resnet import resnet18, resnet34, wide_resnet16_8
from sparsenn.models.skip_mlp import SkipMLP
from sparsenn.models.students import baseline_cnn, build_student, fcn, multi_channel_cnn, split_filter_cnn, start_
from sparsenn.models.teachers import teacher
from sparsenn.models.transformer import row_transformer
from sparsenn.models.vgg import vgg16, vgg19

__all__ = [
    "SkipMLP",
    "baseline_cnn",
    "build",
    "build_student",
    "fcn",
    "feature_head",
    "lenet5",
    "lenet_300_100",
    "multi_channel_cnn",
    "names",
    "resnet18",
    "resnet34",
    "row_transformer",
    "soft_committee",
    "split_filter_cnn",
    "start_",
    "teacher",
    "vgg16",
    "vgg19",
    "wide_resnet16_8",
]
