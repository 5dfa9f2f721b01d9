"""Results in files and in notebooks: what is loaded equals what was saved, and no tensor is printed."""

import inspect
import os
from dataclasses import fields, is_dataclass
from math import nan
from pathlib import Path
from typing import get_type_hints
from xml.etree import ElementTree

import pytest
import torch
from cases import SPECTRA, operator, symmetric
from safetensors.torch import save_file
from torch import Tensor

import hessian_tools as ht
from hessian_tools import curvature
from hessian_tools.curvature import (
    AdaptationJacobian,
    Audit,
    Expansion,
    Extremes,
    GaussNewtonShare,
    Operator,
    Ragged,
    Spectrum,
)
from hessian_tools.inner.collapse import homogeneity
from hessian_tools.result import FORMAT, Result
from hessian_tools.train import Checkpoint, Evaluation
from hessian_tools.trajectory import Trajectory


def trajectory() -> Trajectory:
    column = torch.tensor([[2.0, 1.0, 0.5], [3.0, torch.nan, 4.0]])
    return Trajectory(column, None, column, None, column, column, column, torch.eye(2).expand(2, 2, 2), thetas=None)


def square(theta: Tensor, a: Tensor) -> Tensor:
    return (a * theta**2).sum() / 2


def hessian_of_a_network() -> Operator:
    model = ht.seeded(lambda: ht.MLP((2, 3, 1)), seed=0)
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, torch.nn.functional.mse_loss, layout)
    return ht.hessian(loss, theta, (torch.eye(2), torch.zeros(2, 1)))


def audit_of_a_network() -> Audit:
    model, batch = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.zeros(2, 1))
    return ht.audit(lambda v: v, model, torch.nn.functional.mse_loss, batch, num_probes=1)


COLUMN = torch.tensor([2.0, 1.0])
H = operator(symmetric(SPECTRA["indefinite"]))
OF_A_LOSS = ht.hessian(square, torch.ones(2), torch.tensor([1.0, 4.0]))
RESULTS = {
    "pairs": lambda: ht.top_eigenpairs(H, k=3),
    "extremes": lambda: ht.extremal_eigenpairs(H),
    "spectrum": lambda: ht.spectrum(H),
    "by hand": lambda: Spectrum(torch.tensor([4.0, -3.0]), torch.tensor(1e-6)),
    "estimate": lambda: ht.trace(H, num_probes=4),
    "moments": lambda: ht.moments(H, num_probes=4),
    "density": lambda: ht.spectral_density(H, num_matvecs=8),
    "diagonal": lambda: ht.diagonal(H, num_probes=4),
    "by module": lambda: ht.by_module(hessian_of_a_network(), num_probes=4),
    "jackknife": lambda: ht.curvature.jackknife(ht.hessian(square, torch.ones(2), [COLUMN, COLUMN + 1, COLUMN + 2])),
    "loss along": lambda: ht.loss_along(OF_A_LOSS, torch.eye(2), steps=[1.0, 0.0, -0.5]),
    "gradient curvature": lambda: ht.gradient_curvature(OF_A_LOSS, 0.1),
    "expansion": lambda: Expansion(*COLUMN.expand(5, 2)),
    "gauss-newton share": lambda: GaussNewtonShare(*[COLUMN] * 3, COLUMN[0], *[COLUMN] * 4),
    "singular values": lambda: ht.singular_values(
        ht.adaptation_jacobian(ht.hessian(square, torch.ones(3, 2), torch.ones(2), shared=True), 0.1), k=1
    ),
    "null": lambda: curvature.cosine_null(4),
    "homogeneity": lambda: homogeneity(torch.eye(2)),
    "checkpoint": lambda: Checkpoint(3, COLUMN, 0.5, nan),
    "evaluation": lambda: Evaluation(COLUMN, COLUMN, "test", 0, 5, transductive=True),
    "plan": lambda: ht.plan(OF_A_LOSS),
    "check": lambda: ht.check_operator(H),
    "audit": audit_of_a_network,
    "trajectory": trajectory,
}


WITHOUT_PICTURE = (
    "plan",
    *("audit", "check", "checkpoint", "diagonal", "evaluation", "expansion", "gauss-newton share"),
    *("gradient curvature", "homogeneity", "null"),
)


def assert_equal(a: object, b: object) -> None:
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, Result):
        for field in fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_equal(*pair)
    else:
        assert a == b or a != a


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_loaded_as_it_was_saved_and_shows_itself(name: str, tmp_path: Path) -> None:
    result = RESULTS[name]()
    assert_equal(ht.load(result.save(tmp_path / "new folder" / "result.safetensors")), result)
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["result.safetensors"]
    text = repr(result)
    assert text.startswith(type(result).__name__)
    assert "tensor(" not in text
    assert len(text.splitlines()) <= 12
    tree = ElementTree.fromstring(f"<div>{result._repr_html_()}</div>")
    assert (tree.find(".//svg") is not None) == (name not in WITHOUT_PICTURE)


def test_every_kind_of_result_is_tried() -> None:
    tried = {type(make()).__name__ for make in RESULTS.values()}
    assert tried == set(Result._kinds) - {"Finding"}  # it is a part of a check


def test_every_public_function_that_returns_a_record_returns_a_result() -> None:
    others = (Operator, Ragged, AdaptationJacobian, ht.ParamLayout, ht.Learner)
    for package in (ht, curvature):
        for name in package.__all__:
            function = getattr(package, name)
            kind = get_type_hints(function).get("return") if inspect.isfunction(function) else None
            if inspect.isclass(kind) and is_dataclass(kind):
                assert issubclass(kind, (Result, *others)), name


def test_what_is_no_result_prints_no_tensor_either() -> None:
    batch = (torch.eye(2), torch.eye(2))
    assert repr(ht.ragged([batch, batch])) == "Ragged(2 batches)"
    jacobian = ht.adaptation_jacobian(ht.hessian(square, torch.ones(3, 2), torch.ones(2), shared=True), 0.1)
    assert repr(jacobian) == "AdaptationJacobian(1 task, 3 steps, 2 parameters, float32, cpu)"


def test_the_names_of_many_modules_are_counted() -> None:
    column = torch.ones(9)
    result = curvature.ByModule(tuple(f"layer.{i}" for i in range(9)), (1,) * 9, column, column, column, column, 4)
    assert "modules=9 from 'layer.0' to 'layer.8', sizes=9 from 1 to 1" in repr(result)


def test_the_loss_along_a_direction_stands_at_its_steps() -> None:
    tree = ElementTree.fromstring(RESULTS["loss along"]()._repr_html_())
    pictures = list(tree.iter("svg"))
    assert len(pictures) == 2  # one for each direction
    assert "along 2 directions" in "".join(tree.itertext())
    quadratic, loss = [line.get("points").split() for line in pictures[0].iter("polyline")]
    places = [float(point.split(",")[0]) for point in loss]
    assert (places[1] - places[0]) / (places[2] - places[0]) == pytest.approx(0.5 / 1.5, abs=0.01)
    assert loss == quadratic  # this loss is quadratic


def test_the_words_of_a_repr_are_the_numbers_of_the_result() -> None:
    assert "support_loss=2x3 in [0.5, 4] (1 not finite), query_loss=None" in repr(trajectory())
    values = torch.tensor([4.0, -3.0])
    pairs = ht.EigenPairs(values, values, values > 0, None, torch.tensor(7), torch.tensor(True))
    assert repr(pairs).splitlines() == [
        "EigenPairs(values=2 in [-3, 4], residuals=2 in [-3, 4], converged=1 of 2 true, vectors=None, num_matvecs=7,",
        "    complete=True)",
    ]
    assert repr(Extremes(pairs, pairs, pairs)).count("EigenPairs(") == 3


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    values = torch.arange(3.0)
    loaded = ht.load(Spectrum(values, values[0], values.expand(2, 3).mT).save(tmp_path / "file"))
    torch.testing.assert_close(loaded.vectors, values.expand(2, 3).mT)


def test_the_losses_of_a_trajectory_are_its_line() -> None:
    tree = ElementTree.fromstring(trajectory()._repr_html_())
    first, second = [line.get("points").split() for line in tree.iter("polyline")]
    assert len(first) == 3 and len(second) == 2  # a loss that is not finite has no place
    heights = [float(point.split(",")[1]) for point in first]
    assert heights == sorted(heights)  # y grows downwards, and the loss falls


def test_files_that_are_no_results_are_refused(tmp_path: Path) -> None:
    save_file({"weights": torch.zeros(2)}, tmp_path / "network")
    with pytest.raises(ValueError, match="not a result of hessian-tools"):
        ht.load(tmp_path / "network")
    (tmp_path / "cut").write_bytes(RESULTS["by hand"]().save(tmp_path / "whole").read_bytes()[:-3])
    with pytest.raises(ValueError, match="is damaged"):
        ht.load(tmp_path / "cut")
    content = (tmp_path / "whole").read_bytes().replace(b"Spectrum", b"Spectrux")
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match="did you mean 'Spectrum'"):
        ht.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        ht.load(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a folder, a pipe or a device"):  # reading it would never end
        ht.load(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a folder"):
        ht.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *("3", "[]", "{}", '{"tensor": "x"}', '{"tensor": {}}', '{"tuple": 3}', '{"odd": []}', "[" * 10**5, "not JSON"),
        *('{"result": 3, "fields": {}}', '{"result": "Spectrum", "fields": 3}', '{"result": "Result", "fields": {}}'),
        '{"result": "Spectrum", "fields": {"a": 1}}',
    ],
)
def test_a_file_that_was_changed_is_refused_in_one_way(content: str, tmp_path: Path) -> None:
    save_file({"values": torch.zeros(2)}, tmp_path / "file", metadata={"format": FORMAT, "result": content})
    with pytest.raises(ValueError, match="is damaged, or was written by another version"):
        ht.load(tmp_path / "file")


def test_the_arguments_of_save_and_load_are_checked() -> None:
    with pytest.raises(ValueError, match="path=5 must be a path"):
        RESULTS["null"]().save(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device='gpu' must be a device of torch"):
        ht.load("file", device="gpu")
