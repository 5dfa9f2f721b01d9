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
from hessian_tools.meta.inner import adapt
from hessian_tools.meta.learners import Learner
from hessian_tools.meta.objective import meta_loss
from hessian_tools.meta.recording import record
from hessian_tools.meta.shot import Shot
from hessian_tools.nets import MLP, Conv4, ResNet12, VisionTransformer, load_network, normalised_weights, seeded
from hessian_tools.own_training import Recorder, trajectory_from
from hessian_tools.rng import stream
from hessian_tools.train import Checkpoint, TrainConfig, meta_train
from hessian_tools.trajectory import SaveAt, Trajectory

__all__ = [
    "MLP",
    "AdaptationJacobian",
    "Check",
    "Checkpoint",
    "Conv4",
    "Density",
    "Diagonal",
    "EigenPairs",
    "Estimate",
    "Expansion",
    "Explained",
    "Extremes",
    "GaussNewton",
    "GramSpectrum",
    "Hessian",
    "HiddenStateError",
    "Learner",
    "Loss",
    "Moments",
    "Operator",
    "ParamLayout",
    "Recorder",
    "ResNet12",
    "SaveAt",
    "Shot",
    "SingularValues",
    "TrainConfig",
    "Trajectory",
    "VisionTransformer",
    "adapt",
    "adaptation_jacobian",
    "check_operator",
    "cubic_term",
    "diagonal",
    "explained_by_gauss_newton",
    "extremal_eigenpairs",
    "flatten",
    "frobenius_squared",
    "gauss_newton",
    "gauss_newton_spectrum",
    "gradient",
    "gradient_share",
    "hessian",
    "learners",
    "load_network",
    "make_loss",
    "meta_loss",
    "meta_train",
    "moments",
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
