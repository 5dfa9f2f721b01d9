"""Tests of the names that ``hessian_tools`` and ``hessian_tools.curvature`` export, and of old ones that still work."""

import math
import re
from types import ModuleType

import pytest
from cases import SPECTRA, operator, symmetric

import hessian_tools as ht
from hessian_tools import curvature
from hessian_tools.curvature import Estimate, trace
from hessian_tools.inner import steps
from hessian_tools.intervals import student_t

# Names that must stay at the top level.
PROMISED_NAMES = {
    *("flatten", "make_loss", "Loss", "ParamLayout", "hessian", "gauss_newton", "check_operator"),
    *("top_eigenpairs", "EigenPairs", "trace", "Estimate", "spectral_density", "Density"),
    *("learners", "Shot", "meta_loss", "adapt", "record", "SaveAt", "Trajectory", "meta_train"),
}


@pytest.mark.parametrize("package", [ht, curvature], ids=lambda package: package.__name__)
def test_every_exported_name_exists_and_is_exported_once(package: ModuleType) -> None:
    assert len(package.__all__) == len(set(package.__all__))
    assert all(name in vars(package) for name in package.__all__)


def test_the_top_level_has_the_promised_names_and_fewer_than_sixty_in_all() -> None:
    assert set(ht.__all__) >= PROMISED_NAMES
    assert len(ht.__all__) < 60


# Names of version 0.1 that have left the top level, with the objects that they must still give.
OLD_NAMES = {
    "cubic_term": ht.third_derivative,
    "explained_by_gauss_newton": ht.gauss_newton_share,
    "Explained": curvature.GaussNewtonShare,
    "Spectrum": curvature.Spectrum,
    "subspace_error": curvature.subspace_error,
    "Momentum": steps.Momentum,
    "GramSpectrum": curvature.Spectrum,
}


@pytest.mark.parametrize("name", OLD_NAMES)
def test_an_old_name_works_and_its_warning_gives_the_new_name(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"hessian_tools\.{name} is deprecated .* 0\.3; use hessian_tools\."):
        assert getattr(ht, name) is OLD_NAMES[name]
    assert name not in ht.__all__


def test_old_names_of_curvature_work_with_a_warning() -> None:
    renamed = {
        "along": curvature.curvature_along,
        "AlongGradient": curvature.GradientCurvature,
        "GramSpectrum": curvature.Spectrum,
    }
    for name, new in renamed.items():
        with pytest.warns(DeprecationWarning, match=f"use hessian_tools.curvature.{new.__name__}"):
            assert getattr(curvature, name) is new
    for name in ("Block", "Combination", "Restriction", "AdaptationGram", "is_multiaffine"):
        with pytest.warns(DeprecationWarning, match=rf"\.{name} is deprecated"):
            assert getattr(curvature, name).__name__ == name


def test_an_unknown_name_raises_the_usual_attribute_error() -> None:
    for package in (ht, curvature):
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nonsense'"):
            package.nonsense  # noqa: B018


def test_the_version_is_a_version_number() -> None:
    assert re.match(r"\d+\.\d+", ht.__version__) or ht.__version__ == "0+unknown"


def test_the_old_argument_level_of_an_interval_means_confidence() -> None:
    estimate: Estimate = trace(operator(symmetric(SPECTRA["decaying"])), num_probes=8)
    with pytest.warns(DeprecationWarning, match=r"level=\) is deprecated .* use interval\(confidence=\)"):
        low, high = estimate.interval(level=0.8)
    assert (low == estimate.interval(confidence=0.8)[0]).all() and (high > low).all()


def test_student_t_at_known_quantiles() -> None:
    """The expected values stand in printed tables of Student's t distribution, to four decimals."""
    for num_values, confidence, expected in ((2, 0.95, 12.7062), (5, 0.95, 2.7764), (31, 0.99, 2.7500)):
        assert student_t(num_values, confidence) == pytest.approx(expected, abs=5e-5)
    assert math.isnan(student_t(1, 0.95))  # one value has no standard deviation
    with pytest.raises(ValueError, match="confidence=95"):
        student_t(4, 95.0)
