"""hessian-tools: inner loops of meta-learners, and the curvature of the loss along them.

``import hessian_tools as ht`` gives the names below, in the order in which a first session needs them. All other names
are in the subpackages ``hessian_tools.curvature``, ``.inner``, ``.trajectory``, ``.nets``, ``.data`` and ``.train``.
The study that is built on the library is the package ``analysis``.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from hessian_tools import threads as _threads  # noqa: F401 (it must come before anything that imports torch)
from hessian_tools.curvature import (
    Density,
    EigenPairs,
    Estimate,
    Operator,
    adaptation_jacobian,
    audit,
    by_module,
    check_operator,
    diagonal,
    extremal_eigenpairs,
    frobenius_squared,
    gauss_newton,
    gauss_newton_share,
    gauss_newton_spectrum,
    gradient,
    gradient_curvature,
    hessian,
    hessian_of,
    loss_along,
    moments,
    plan,
    preconditioned,
    ragged,
    singular_values,
    spectral_density,
    spectrum,
    step_overlaps,
    subspace_overlap,
    third_derivative,
    top_eigenpairs,
    trace,
)
from hessian_tools.deprecation import old_names
from hessian_tools.entries import check_entries
from hessian_tools.inner import learners
from hessian_tools.inner.adapt import adapt
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.meta_loss import meta_loss
from hessian_tools.inner.parameters import network_parameters
from hessian_tools.inner.shot import Shot
from hessian_tools.layout import ParamLayout, flatten
from hessian_tools.loss import HiddenStateError, Loss, make_loss
from hessian_tools.nets import MLP, Conv4, ResNet12, VisionTransformer, load_network, seeded
from hessian_tools.result import load
from hessian_tools.rng import stream
from hessian_tools.train import TrainConfig, best_checkpoint, evaluate, meta_train
from hessian_tools.trajectory import SaveAt, Trajectory
from hessian_tools.trajectory.record import record
from hessian_tools.trajectory.recorder import Recorder, trajectory_from

try:
    __version__ = version("hessian-tools")
except PackageNotFoundError:  # the source tree is on the path, but was never installed
    __version__ = "0+unknown"

# A network, its parameters as one vector, and its loss.
__all__ = ["seeded", "MLP", "Conv4", "ResNet12", "VisionTransformer", "load_network"]
__all__ += ["flatten", "ParamLayout", "make_loss", "Loss", "HiddenStateError", "stream"]
# An inner loop, what it minimises, and a record of it.
__all__ += ["learners", "Learner", "Shot", "adapt", "meta_loss", "network_parameters"]
__all__ += ["record", "SaveAt", "Trajectory", "Recorder", "trajectory_from"]
# The curvature matrices of the loss, at one point or along the record.
__all__ += [
    "hessian",
    "hessian_of",
    "gauss_newton",
    "gradient",
    "ragged",
    "preconditioned",
    "Operator",
    "check_operator",
    "audit",
]
# The spectrum of these matrices: single eigenvalues, all eigenvalues, sums over them, and their density.
__all__ += ["top_eigenpairs", "extremal_eigenpairs", "EigenPairs", "spectrum", "gauss_newton_spectrum"]
__all__ += ["trace", "by_module", "moments", "frobenius_squared", "diagonal", "Estimate", "spectral_density", "Density"]
# What a calculation will hold in memory.
__all__ += ["plan"]
# Curvature along the gradient, in eigenspaces, and through the inner loop.
__all__ += ["gradient_curvature", "loss_along", "third_derivative", "gauss_newton_share"]
__all__ += ["subspace_overlap", "step_overlaps", "adaptation_jacobian", "singular_values"]
# Reads a result that result.save(path) wrote.
__all__ += ["load"]
# Meta-training.
__all__ += ["TrainConfig", "meta_train", "best_checkpoint", "evaluate"]

check_entries(sys.modules[__name__])  # from here on, the arguments of public functions are checked

# Old public names, which still work and warn. The branch is hidden from type checkers, because a module with a
# ``__getattr__`` seems to them to have every attribute.
if not TYPE_CHECKING:
    # For each subpackage, the names in it that this package used to export.
    _FORMER_EXPORTS = {
        "curvature": "AdaptationJacobian Check Diagonal Expansion Extremes GaussNewton Hessian Moments "
        "Ragged SingularValues Spectrum gradient_share subspace_error",
        "inner.collapse": "Homogeneity homogeneity",
        "inner.learners": "Latent",
        "inner.parameters": "meta_parameters",
        "inner.pretraining": "Augmentation ShotPretraining",
        "inner.shot": "longer_reference",
        "inner.steps": "Momentum Plain Preconditioned StepRule",
        "nets": "normalised_weights",
        "train": "Checkpoint Evaluation",
    }
    _RENAMED = {
        "Explained": f"{__name__}.curvature.GaussNewtonShare",
        "GramSpectrum": f"{__name__}.curvature.Spectrum",
        "cubic_term": f"{__name__}.third_derivative",
        "explained_by_gauss_newton": f"{__name__}.gauss_newton_share",
    }
    _MOVED = {
        name: f"{__name__}.{package}.{name}" for package, names in _FORMER_EXPORTS.items() for name in names.split()
    }
    __getattr__ = old_names(__name__, _MOVED | _RENAMED)
