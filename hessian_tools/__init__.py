"""hessian-tools: inner loops of meta-learners, and the curvature along them.

``import hessian_tools as ht`` gives the names below; the study built on them is the package ``analysis``.
"""

from hessian_tools.curvature import (
    AdaptationJacobian,
    Check,
    Density,
    Diagonal,
    EigenPairs,
    Estimate,
    Expansion,
    Explained,
    Extremes,
    GaussNewton,
    GramSpectrum,
    Hessian,
    Moments,
    Operator,
    SingularValues,
    adaptation_jacobian,
    check_operator,
    cubic_term,
    diagonal,
    explained_by_gauss_newton,
    extremal_eigenpairs,
    frobenius_squared,
    gauss_newton,
    gauss_newton_spectrum,
    gradient,
    gradient_share,
    hessian,
    moments,
    singular_values,
    spectral_density,
    step_overlaps,
    subspace_error,
    subspace_overlap,
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
from hessian_tools.nets import MLP, Conv4, ResNet12, VisionTransformer, load_network, normalised_weights, seeded
from hessian_tools.own_training import Recorder, trajectory_from
from hessian_tools.rng import stream
from hessian_tools.train import Checkpoint, Evaluation, TrainConfig, best_checkpoint, evaluate, meta_train
from hessian_tools.trajectory import SaveAt, Trajectory

__all__ = [
    "MLP",
    "AdaptationJacobian",
    "Augmentation",
    "Check",
    "Checkpoint",
    "Conv4",
    "Density",
    "Diagonal",
    "EigenPairs",
    "Estimate",
    "Evaluation",
    "Expansion",
    "Explained",
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
    "Recorder",
    "ResNet12",
    "SaveAt",
    "Shot",
    "ShotPretraining",
    "SingularValues",
    "StepRule",
    "TrainConfig",
    "Trajectory",
    "VisionTransformer",
    "adapt",
    "adaptation_jacobian",
    "best_checkpoint",
    "check_operator",
    "cubic_term",
    "diagonal",
    "evaluate",
    "explained_by_gauss_newton",
    "extremal_eigenpairs",
    "flatten",
    "frobenius_squared",
    "gauss_newton",
    "gauss_newton_spectrum",
    "gradient",
    "gradient_share",
    "hessian",
    "homogeneity",
    "learners",
    "load_network",
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
    "singular_values",
    "spectral_density",
    "step_overlaps",
    "stream",
    "subspace_error",
    "subspace_overlap",
    "top_eigenpairs",
    "trace",
    "trajectory_from",
]
