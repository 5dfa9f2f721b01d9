"""Tests of ``to_xarray`` and ``plot``, which label and draw results of the library.

Every number of a result is in its Dataset under a name, and drawings are checked by the coordinates of their lines.
"""

from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
import xarray as xr
from cases import CASES, SPECTRA, operator, randn, symmetric
from figure_contents import axes, line
from torch import Tensor

import analysis
import hessian_tools as ht
from hessian_tools.curvature import Spectrum, curvature_along
from hessian_tools.trajectory import stack

TANH = next(case for case in CASES if case.name == "tanh-mlp")


def trajectory() -> ht.Trajectory:
    """The record of three steps of gradient descent on the test network."""
    theta, batch, _ = TANH.at(0)
    loop = ht.learners.maml(3, 0.05)
    return ht.record(loop, TANH.loss, theta, batch, batch, save=ht.SaveAt(thetas=True, gradients=True))


def along_gradient() -> object:
    """The curvature along the gradient at each of the three points of the test network."""
    g = ht.gradient(TANH.loss, TANH.thetas, TANH.batch)
    return curvature_along(g, ht.hessian(TANH.loss, TANH.thetas, TANH.batch).mv(g))


@pytest.fixture(scope="module")
def results() -> dict[str, object]:
    """A result of every kind. Names that end in "-one" are results at one point, the others at three points."""
    H = ht.hessian(TANH.loss, TANH.thetas, TANH.batch)
    one = ht.hessian(TANH.loss, *TANH.at(0)[:2])
    return {
        "pairs": ht.top_eigenpairs(H, k=4, vectors=True),
        "pairs-one": ht.top_eigenpairs(one, k=4),
        "extremes": ht.extremal_eigenpairs(H, magnitude=3, ends=2),
        "extremes-one": ht.extremal_eigenpairs(one, magnitude=3),
        "estimate": ht.trace(H, num_probes=8),
        "estimate-one": ht.trace(one, num_probes=8),
        "moments": ht.moments(H, num_probes=8),
        "density": ht.spectral_density(H, num_matvecs=12),
        "density-one": ht.spectral_density(one, num_matvecs=12),
        "gram": ht.gauss_newton_spectrum(TANH.loss, TANH.thetas, TANH.batch),
        "along": along_gradient(),
        "check": ht.check_operator(one, num_probes=1),
        "trajectory": trajectory(),
        "tasks": stack([trajectory(), trajectory()]),
    }


NAMES = (
    *("pairs", "pairs-one", "extremes", "extremes-one", "estimate", "estimate-one", "moments", "density"),
    *("density-one", "gram", "along", "check", "trajectory", "tasks"),
)


def tensors(result: object) -> list[Tensor]:
    """Every tensor that a result holds."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple):
        return [tensor for part in result for tensor in tensors(part)]
    return [t for f in fields(result) for t in tensors(getattr(result, f.name))] if is_dataclass(result) else []


# ---- labelled data


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_in_the_dataset_with_unit_and_meaning(results: dict[str, object], name: str) -> None:
    ds = analysis.to_xarray(results[name])
    stored = [variable.values for variable in ds.variables.values()]
    for tensor in tensors(results[name]):
        assert any(v.shape == tensor.shape and np.array_equal(v, tensor.numpy(), equal_nan=True) for v in stored)
    assert ds.attrs["kind"] == type(results[name]).__name__
    for variable in ds.data_vars.values():
        assert variable.attrs["units"]
        assert variable.attrs["long_name"]
        error = variable.attrs.get("error_variable")
        assert error is None or set(ds[error].dims) <= set(variable.dims)


@pytest.mark.parametrize("name", ["pairs", "extremes", "estimate", "density", "along"])
def test_the_axis_of_points_can_be_named_and_labelled(results: dict[str, object], name: str) -> None:
    ds = analysis.to_xarray(results[name], dims=["inner_step"], coords={"inner_step": [0, 2, 5]})
    assert ds["inner_step"].values.tolist() == [0, 2, 5]
    assert "point" not in ds.dims
    plain = analysis.to_xarray(results[name])
    assert plain["point"].values.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(ds.sel(inner_step=5)[next(iter(ds))], plain.isel(point=2)[next(iter(ds))])


def test_several_leading_axes_need_names() -> None:
    result = curvature_along(randn(2, 3, 4, stream_name="g"), randn(2, 3, 4, stream_name="hg"))
    with pytest.raises(ValueError, match="the 2 leading axes of this result; give 2 different names"):
        analysis.to_xarray(result)
    assert analysis.to_xarray(result, dims=["task", "inner_step"]).sizes == {"task": 2, "inner_step": 3}


def test_datasets_are_copies_and_can_be_stored(results: dict[str, object], tmp_path) -> None:
    pairs = results["pairs"]
    ds = analysis.to_xarray(pairs)
    ds["eigenvalue"][:] = 0
    assert (pairs.values != 0).all()
    for name in ("density", "check", "trajectory"):
        ds = analysis.to_xarray(results[name])
        ds.to_zarr(tmp_path / name, consolidated=False)
        xr.testing.assert_identical(xr.open_zarr(tmp_path / name, consolidated=False).load(), ds)


def test_the_dataset_of_a_check_has_the_names_and_sentences_of_its_findings() -> None:
    H = ht.hessian(lambda theta, _: (theta**3).sum(), torch.ones(3), None)
    ds = analysis.to_xarray(ht.check_operator(H))
    assert ds["finding"].attrs["flag_meanings"].split()[1] == "symmetry"
    assert "two evaluations of the loss agree" in ds.attrs["finding_sentences"][0]
    assert ds["passed"].values.tolist() == [2] * 6  # 2 means "ok"


def test_arguments_that_cannot_be_labelled_or_drawn_are_refused_in_plain_words(results: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="to_xarray cannot label an object of the class list"):
        analysis.to_xarray([1])
    with pytest.raises(ValueError, match="coords has the unknown dimension 'step'"):
        analysis.to_xarray(results["pairs"], coords={"step": [0, 1, 2]})
    with pytest.raises(TypeError, match="plot cannot draw a Dataset that to_xarray did not make"):
        analysis.plot(xr.Dataset())
    study = xr.Dataset({"mine": (("learner", "seed"), np.zeros((1, 1)))})
    for whole, name in ((study, "alpha_rho"), (study["mine"], "mine")):
        with pytest.raises(TypeError, match=rf"drawn by analysis.figures; for a variable, variable\(ds, '{name}'\)"):
            analysis.plot(whole)
    with pytest.raises(TypeError, match="plot cannot draw Diagonal; give a result of one of the kinds"):
        analysis.plot(results["moments"].diagonal, axes())
    many = analysis.to_xarray(results["density"]).isel(point=[0] * 9)
    with pytest.raises(ValueError, match=r"9 curves \(point\) cannot be told apart; choose up to 8"):
        analysis.plot(many, axes())


# ---- pictures


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_result_is_drawn_on_given_axes_and_alike_from_its_dataset(
    results: dict[str, object], name: str
) -> None:
    ax, again = axes(), axes()
    assert analysis.plot(results[name], ax) is ax
    analysis.plot(analysis.to_xarray(results[name]), again)
    ax.figure.draw_without_rendering()
    assert len(ax.lines) == len(again.lines) > 0
    for first, second in zip(ax.lines, again.lines, strict=True):
        np.testing.assert_array_equal(first.get_xydata(), second.get_xydata())
    assert ax.get_xlabel() or name == "along"
    assert not ax.get_title()


def test_the_labels_of_axes_give_the_units(results: dict[str, object]) -> None:
    labels = {name: analysis.plot(results[name], axes()).get_ylabel() for name in ("pairs", "moments", "density")}
    assert labels["pairs"] == "eigenvalue [loss/parameter$^2$]"
    assert labels["moments"] == "trace [loss/parameter$^2$]"
    assert labels["density"] == "density [parameter$^2$/loss]"


def test_without_axes_plot_makes_a_figure_of_the_standard_size() -> None:
    import matplotlib.pyplot as plt

    backend = plt.get_backend()
    plt.switch_backend("agg")
    try:
        ax = analysis.plot(ht.trace(operator(symmetric(SPECTRA["indefinite"])), num_probes=4))
        assert ax.figure.get_size_inches().tolist() == [3.25, 3.25 * 0.75]
    finally:
        plt.close("all")
        plt.switch_backend(backend)


def test_points_that_are_not_finite_are_left_out() -> None:
    A = symmetric(SPECTRA["outliers"])
    A[1, 0, 0] = torch.nan
    for result, gid in (
        (ht.spectral_density(operator(A), num_matvecs=10), "density:point 0"),
        (ht.top_eigenpairs(operator(A), k=2), "eigenvalue:"),
    ):
        ax = analysis.plot(result, axes())
        assert np.isfinite(line(ax, gid).get_xydata()).all()
    assert not any(one.get_gid() == "density:point 1" for one in analysis.plot(
        ht.spectral_density(operator(A), num_matvecs=10), axes()).lines)  # fmt: skip


def test_eigenvalues_have_error_bars_and_open_markers_where_not_converged() -> None:
    H = operator(symmetric(SPECTRA["decaying"]))
    pairs = ht.top_eigenpairs(H, k=3, max_matvecs=6, rtol=1e-12)
    assert not pairs.converged.any()
    ax = analysis.plot(pairs, axes())
    drawn = line(ax, "eigenvalue::open")
    np.testing.assert_allclose(np.sort(drawn.get_ydata()), np.sort(pairs.values.numpy().ravel()))
    assert drawn.get_markerfacecolor() == "white"
    bars = next(c for c in ax.collections if c.get_gid() == "error:eigenvalue").get_segments()
    lengths = sorted(float(bar[1, 1] - bar[0, 1]) for bar in bars)
    np.testing.assert_allclose(lengths, np.sort(2 * pairs.residuals.numpy().ravel()))


def test_several_results_on_the_same_axes_have_their_own_labels_and_colours_in_one_legend() -> None:
    A = symmetric(SPECTRA["outliers"])[0]
    H = ht.hessian(lambda theta, matrix: theta @ matrix @ theta / 2, torch.zeros(len(A), dtype=A.dtype), A)
    ax = axes()
    for scale, color in ((1.0, "#4477aa"), (5.0, "#cc6677")):
        analysis.plot(ht.spectral_density(scale * H), ax, label=f"{scale:g} H", color=color)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["1 H", "5 H", "95% band over probes", "isolated eigenvalue"]
    assert [line(ax, f"density:{name}").get_color() for name in ("1 H", "5 H")] == ["#4477aa", "#cc6677"]
    for name in ("1 H", "5 H"):  # the axes hold both, whichever is drawn last
        assert line(ax, f"density:{name}").get_ydata().max() < ax.get_ylim()[1]


def test_one_eigenvalue_at_many_points_is_drawn_as_a_curve() -> None:
    values, yes = torch.linspace(1, 2, 201, dtype=torch.float64)[:, None], torch.ones(201, dtype=torch.bool)
    sharpness = ht.EigenPairs(values, 0.1 * values, yes[:, None], None, torch.full((201,), 9), yes)
    steps = np.arange(201) * 5
    curve = analysis.to_xarray(sharpness, dims=["update"], coords={"update": steps})
    ax = analysis.plot(curve, axes(), label="sharpness", color="#4477aa")
    np.testing.assert_array_equal(line(ax, "curve:sharpness").get_xdata(), steps)
    assert line(ax, "eigenvalue:sharpness").get_markersize() < 2
    assert ax.get_legend().get_texts()[0].get_text() == "sharpness"


def test_an_estimate_is_drawn_with_its_standard_error(results: dict[str, object]) -> None:
    estimate = results["estimate"]
    ax = analysis.plot(estimate, axes())
    np.testing.assert_allclose(line(ax, "estimate:").get_ydata(), estimate.value)
    bars = next(c for c in ax.collections if c.get_gid() == "error:").get_segments()
    np.testing.assert_allclose([bar[1, 1] - bar[0, 1] for bar in bars], 2 * estimate.stderr)
    one = results["estimate-one"]
    ax = analysis.plot(one, axes())
    np.testing.assert_allclose(line(ax, "samples:estimate").get_ydata(), one.samples)
    assert line(ax, "estimate:").get_ydata()[0] == pytest.approx(float(one.value))


def test_the_frobenius_norm_of_moments_can_be_drawn(results: dict[str, object]) -> None:
    ax = analysis.plot(results["moments"], axes(), name="frobenius_squared")
    np.testing.assert_allclose(line(ax, "frobenius_squared:").get_ydata(), results["moments"].frobenius_squared.value)
    assert ax.get_ylabel() == "squared Frobenius norm [loss$^2$/parameter$^4$]"


def test_eigenvalues_below_the_error_of_a_spectrum_are_not_drawn() -> None:
    values, error = torch.tensor([[3.0, 1.0, 1e-9], [2.0, 1e-3, 0.0]]), torch.tensor([1e-6, 1e-2])
    ax = analysis.plot(Spectrum(values, error), axes())
    for point, shown in enumerate(([3.0, 1.0, np.nan], [2.0, np.nan, np.nan])):
        np.testing.assert_allclose(line(ax, f"eigenvalue:point {point}").get_ydata(), shown)
        assert line(ax, f"error:point {point}").get_ydata()[0] == pytest.approx(float(error[point]))


def test_curvature_along_the_gradient_is_drawn_with_its_bound(results: dict[str, object]) -> None:
    ax = analysis.plot(results["along"], axes())
    np.testing.assert_allclose(line(ax, "rho:").get_ydata(), results["along"].rho)
    np.testing.assert_allclose(line(ax, "hg_ratio:").get_ydata(), results["along"].hg_ratio)


def test_a_trajectory_has_a_line_for_each_task(results: dict[str, object]) -> None:
    ax = analysis.plot(results["tasks"], axes(), names=["displacement"])
    np.testing.assert_allclose(line(ax, "displacement:1").get_ydata(), results["tasks"].displacement[1])
    assert ax.get_ylabel() == "displacement [parameter]"
    with pytest.raises(ValueError, match="has . variables; give one or two"):
        analysis.plot(results["tasks"], axes(), names=[])


def test_a_trajectory_without_a_query_set_is_drawn_by_its_support_loss() -> None:
    states = [torch.full((1,), 1 + k / 10) for k in range(4)]
    recorded = ht.trajectory_from(lambda theta, d: (d * theta**2).sum(), states, torch.ones(1))
    ax = analysis.plot(recorded, axes())
    assert [one.get_gid() for one in ax.lines] == ["support_loss:0"] and ax.get_ylabel() == "support loss [loss]"
    with pytest.raises(ValueError, match="names='query_loss' is not one of support_loss, .*did you mean"):
        analysis.plot(recorded, axes(), names=["query_loss"])


def test_a_long_recorded_trajectory_is_drawn_with_few_ticks() -> None:
    states = [torch.full((1,), 1 + k / 10) for k in range(100)]
    recorded = ht.trajectory_from(lambda theta, d: (d * theta**2).sum(), states, torch.ones(1))
    ax = analysis.plot(recorded, axes(), names=["support_loss"])
    assert len(ax.get_xticks()) < 15
    assert line(ax, "support_loss:0").get_marker() in (None, "None")


def test_a_recorded_trajectory_without_a_query_loss_is_drawn_with_its_support_loss() -> None:
    model = ht.seeded(lambda: torch.nn.Linear(3, 2), seed=0)
    batch = (torch.randn(6, 3, generator=ht.stream(0, "x")), torch.arange(6) % 2)
    recorder = ht.Recorder(model, torch.nn.functional.cross_entropy, batch)
    recorder.step()
    trajectory = recorder.trajectory()
    ax = analysis.plot(trajectory, axes())
    assert [str(one.get_gid()) for one in ax.lines] == ["support_loss:0"]
    assert line(analysis.plot(trajectory, axes(), names=["grad_norm"]), "grad_norm:0").get_ydata().shape == (2,)
    with pytest.raises(ValueError, match="names='query_loss' is not one of support_loss, support_accuracy"):
        analysis.plot(trajectory, axes(), names=["query_loss"])
    with pytest.raises(ValueError, match="option='namse' is not one of names; did you mean 'names'"):
        analysis.plot(trajectory, axes(), namse=["grad_norm"])
    check = ht.check_operator(ht.hessian(recorder.loss, trajectory.thetas[0], batch))
    with pytest.raises(TypeError, match="style='line': a plot of Check has no options; draw on the axes"):
        analysis.plot(check, axes(), style="line")


def test_passed_and_failed_checks_are_drawn_on_either_side_of_1() -> None:
    A = symmetric(SPECTRA["indefinite"])[0]
    H = ht.hessian(lambda theta, A: theta @ A @ theta / 2, torch.zeros(24).double(), A)
    ax = analysis.plot(ht.check_operator(H, num_probes=1), axes())
    assert all(line(ax, f"passed:{name}").get_xdata()[0] < 1 for name in ("symmetry", "differences"))

    class Skewed(type(H)):
        """An operator that is not symmetric."""

        def products(self, V: Tensor) -> Tensor:
            return super().products(V) + V.cumsum(1)

    ax = analysis.plot(ht.check_operator(Skewed(H.prepared, H.single), num_probes=1), axes())
    assert line(ax, "wrong:symmetry").get_xdata()[0] > 1
