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
    Spectrum,
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
    spectrum,
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
from hessian_tools.nets import MLP, Conv4, normalised_weights, seeded
from hessian_tools.rng import stream
from hessian_tools.train import Checkpoint, TrainConfig, meta_train
from hessian_tools.trajectory import SaveAt, Trajectory

__all__ = [
    "MLP",
    "Check",
    "Checkpoint",
    "Conv4",
    "Density",
    "Diagonal",
    "EigenPairs",
    "Estimate",
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
    "SaveAt",
    "Shot",
    "Spectrum",
    "TrainConfig",
    "Trajectory",
    "adapt",
    "check_operator",
    "diagonal",
    "extremal_eigenpairs",
    "flatten",
    "frobenius_squared",
    "gauss_newton",
    "gauss_newton_spectrum",
    "gradient",
    "hessian",
    "learners",
    "make_loss",
    "meta_loss",
    "meta_train",
    "moments",
    "normalised_weights",
    "record",
    "seeded",
    "spectral_density",
    "spectrum",
    "stream",
    "top_eigenpairs",
    "trace",
]
