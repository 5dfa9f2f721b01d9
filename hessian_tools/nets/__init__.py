"""The networks: ordinary modules, no state beyond their parameters; or a module of your own by import path."""

from hessian_tools.nets.conv4 import Conv4
from hessian_tools.nets.imported import load_network, refuse_unfit, source_digest
from hessian_tools.nets.initial import seeded
from hessian_tools.nets.layers import NORMALISATIONS
from hessian_tools.nets.mlp import MLP
from hessian_tools.nets.resnet12 import ResNet12
from hessian_tools.nets.scale import normalised_weights
from hessian_tools.nets.vision_transformer import VisionTransformer

__all__ = [
    "MLP",
    "NORMALISATIONS",
    "Conv4",
    "ResNet12",
    "VisionTransformer",
    "load_network",
    "normalised_weights",
    "refuse_unfit",
    "seeded",
    "source_digest",
]
