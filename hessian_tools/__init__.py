"""hessian-tools: inner loops of meta-learners, and the curvature along them.

``import hessian_tools as ht`` gives the names below; the study built on them is the package ``analysis``.
"""

from hessian_tools.curvature import (
    Check,
    Density,
    Diagonal,
    EigenPairs,
    Estimate,
    Extremes,
    GaussNewton,
    GramSpectrum,
    Hessian,
    Moments,
    Operator,
    check_operator,
    diagonal,
    extremal_eigenpairs,
    frobenius_squared,
    gauss_newton,
    gauss_newton_spectrum,
    gradient,
    hessian,
    moments,
    spectral_density,
    top_eigenpairs,
    trace,
)
from hessian_tools.flat import ParamLayout, flatten
from hessian_tools.loss import HiddenStateError, Loss, make_loss
from hessian_tools.meta import learners
from hessian_tools.meta.collapse import Homogeneity, homogeneity
from hessian_tools.meta.inner import adapt
from hessian_tools.meta.learners import Latent, Learner
from hessian_tools.meta.objective import meta_loss
from hessian_tools.meta.parameters import meta_parameters, network_parameters
from hessian_tools.meta.pretraining import Augmentation, ShotPretraining
from hessian_tools.meta.recording import record
from hessian_tools.meta.shot import Shot, longer_reference
from hessian_tools.meta.steps import Momentum, Plain, Preconditioned, StepRule
from hessian_tools.nets import MLP, Conv4, normalised_weights, seeded
from hessian_tools.rng import stream
from hessian_tools.train import Checkpoint, Evaluation, TrainConfig, best_checkpoint, evaluate, meta_train
from hessian_tools.trajectory import SaveAt, Trajectory

__all__ = [
    "MLP",
    "Augmentation",
    "Check",
    "Checkpoint",
    "Conv4",
    "Density",
    "Diagonal",
    "EigenPairs",
    "Estimate",
    "Evaluation",
    "Extremes",
    "GaussNewton",
    "GramSpectrum",
    "Hessian",
    "HiddenStateError",
    "Homogeneity",
    "Latent",
    "Learner",
    "Loss",
    "Moments",
    "Momentum",
    "Operator",
    "ParamLayout",
    "Plain",
    "Preconditioned",
    "SaveAt",
    "Shot",
    "ShotPretraining",
    "StepRule",
    "TrainConfig",
    "Trajectory",
    "adapt",
    "best_checkpoint",
    "check_operator",
    "diagonal",
    "evaluate",
    "extremal_eigenpairs",
    "flatten",
    "frobenius_squared",
    "gauss_newton",
    "gauss_newton_spectrum",
    "gradient",
    "hessian",
    "homogeneity",
    "learners",
    "longer_reference",
    "make_loss",
    "meta_loss",
    "meta_parameters",
    "meta_train",
    "moments",
    "network_parameters",
    "normalised_weights",
    "record",
    "seeded",
    "spectral_density",
    "stream",
    "top_eigenpairs",
    "trace",
]
