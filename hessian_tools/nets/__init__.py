"""The networks, which are modules whose only state is their parameters. Yours can be given by its import path."""

from hessian_tools.nets.building import load_network, refuse_unfit, seeded
from hessian_tools.nets.convolutional import NORMALISATIONS, Conv4, ResNet12
from hessian_tools.nets.mlp import MLP
from hessian_tools.nets.scale import normalised_weights
from hessian_tools.nets.vision_transformer import VisionTransformer
from hessian_tools.nets.vocabulary import linear_cross_entropy

# The networks.
__all__ = ["MLP", "Conv4", "ResNet12", "VisionTransformer", "NORMALISATIONS"]
# How a network is built, how one of yours is found, and what is known of it.
__all__ += ["seeded", "load_network", "refuse_unfit", "normalised_weights"]
# A loss for large vocabularies.
__all__ += ["linear_cross_entropy"]
