"""Networks for few-shot tasks, which have no state besides their parameters, and what a network of your own needs."""

from hessian_tools.nets.building import load_network, refuse_unfit, seeded
from hessian_tools.nets.convolutional import NORMALISATIONS, Conv4, ResNet12
from hessian_tools.nets.mlp import MLP
from hessian_tools.nets.scale import normalised_weights
from hessian_tools.nets.vision_transformer import VisionTransformer
from hessian_tools.nets.vocabulary import linear_cross_entropy

# The networks.
__all__ = ["MLP", "Conv4", "ResNet12", "VisionTransformer", "NORMALISATIONS"]
# Building a network from a seed, finding your own by its import path, checking it, and its normalised weights.
__all__ += ["seeded", "load_network", "refuse_unfit", "normalised_weights"]
# A loss for large vocabularies.
__all__ += ["linear_cross_entropy"]
