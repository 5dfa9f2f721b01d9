"""The adaptation Jacobian, against dense products, the Jacobian of the inner loop by autograd, and meta-gradients."""

from collections.abc import Callable

import pytest
import torch
from cases import (
    NETWORKS,
    SPECTRA,
    Case,
    network_case,
    quadratic,
    randn,
    seeded,
    small_conv,
    symmetric,
    tanh_mlp,
)
from contract import close
from torch import Tensor, nn
from torch.func import jacrev

from hessian_tools.curvature import (
    Hessian,
    adaptation_jacobian,
    hessian,
    singular_values,
)
from hessian_tools.inner import learners
from hessian_tools.inner.descent import inner_loop
from hessian_tools.inner.meta_loss import meta_loss

K, ALPHA = 3, 0.3


def matrices(tasks: int = 2, steps: int = K, name: str = "indefinite") -> Tensor:
    """The Hessians at every step of every task, [task, step, param, param]."""
    return symmetric(SPECTRA[name], points=tasks * steps, stream_name="adaptation").unflatten(0, (tasks, steps))


def operator(A: Tensor) -> Hessian:
    """The Hessians of quadratic functions, which are the matrices A [task, step, param, param], in task-major order."""
    A = A.flatten(0, -3)
    return hessian(quadratic, torch.zeros(A.shape[:-1], dtype=A.dtype), A)


def dense(A: Tensor, sizes: Tensor) -> Tensor:
    """The product of the factors, the last step leftmost; sizes [task, step, param or 1]."""
    J = torch.eye(A.shape[-1], dtype=A.dtype).expand(A.shape[0], -1, -1)
    for k in range(A.shape[1]):
        J = J - sizes[:, k, :, None] * (A[:, k] @ J)
    return J


def loop_points(case: Case, point: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The points theta_0 ... theta_{K-1} of an inner loop, and its support batch."""
    theta, support, _ = case.at(point)
    path = inner_loop(case.loss, theta, support, steps=K, step_size=ALPHA)
    return torch.stack(path.thetas[:-1]).detach(), support


def smooth_conv() -> Case:
    """The small convolutional network with Tanh in place of ReLU."""
    batch = (randn(3, 6, 1, 8, 8, stream_name="images"), torch.tensor([0, 1, 2, 0, 1, 2]).expand(3, 6))
    return network_case("conv-tanh", seeded(lambda: small_conv(activation=nn.Tanh)), nn.functional.cross_entropy, batch)


@pytest.mark.parametrize(
    "step_size",
    [0.1, randn(K, stream_name="a"), randn(2, K, stream_name="b"), randn(2, K, 24, stream_name="c")],
    ids=["number", "step", "task-step", "task-step-param"],
)
def test_products_are_those_of_the_dense_matrix(step_size: float | Tensor) -> None:
    A = matrices()
    J = adaptation_jacobian(operator(A), step_size, steps=K)
    sizes = torch.as_tensor(step_size, dtype=A.dtype)
    sizes = (sizes if sizes.ndim == 3 else sizes[..., None]).expand(2, K, -1)
    expected = dense(A, sizes)
    assert J.shape == expected.shape
    close(J.to_dense(), expected)
    close(J.T.to_dense(), expected.mT)
    assert (expected - expected.mT).abs().max() > 0.1  # so that a forgotten transpose would be noticed
    V, v = randn(2, 24, 3, stream_name="V"), randn(2, 24, stream_name="v")
    close(J @ V, expected @ V)
    close(J.T @ V[0], expected.mT @ V[0])
    close(J @ v[0], expected @ v[0])
    close(J.mv(v), (expected @ v[..., None])[..., 0])
    close(J.rmv(v), (expected.mT @ v[..., None])[..., 0])
    close(J.T.T @ V, expected @ V)
    close(J.gram.to_dense(), expected.mT @ expected)
    close(J.select(torch.tensor([1])).to_dense(), expected[1:])
    scipy_J = J.to_scipy(task=1)
    close(torch.from_numpy(scipy_J @ V[1].numpy()), expected[1] @ V[1])
    close(torch.from_numpy(scipy_J.rmatvec(v[1].numpy())), expected[1].mT @ v[1])


@pytest.mark.slow
@pytest.mark.parametrize("case", [tanh_mlp(), smooth_conv()], ids=lambda case: case.name)
def test_it_is_the_jacobian_of_the_inner_loop(case: Case) -> None:
    """It equals d theta_K / d theta_0 of the loop that training differentiates, also with BatchNorm."""
    thetas, support = loop_points(case, 1)
    J = adaptation_jacobian(hessian(case.loss, thetas, support, shared=True), ALPHA)
    loop: Callable[[Tensor], Tensor] = lambda t: inner_loop(case.loss, t, support, steps=K, step_size=ALPHA).adapted  # noqa: E731
    truth = jacrev(loop)(thetas[0])
    torch.testing.assert_close(J.to_dense(), truth, rtol=1e-9, atol=1e-9)
    assert J.shape == truth.shape
    values = singular_values(J, k=1, rtol=1e-5)
    assert values.converged.all()
    torch.testing.assert_close(values.values, torch.linalg.svdvals(truth)[:1], rtol=1e-5, atol=0)


def test_its_transpose_gives_the_meta_gradient() -> None:
    """MAML's meta-gradient is J' times the query gradient at the adapted point, first-order MAML's is the latter."""
    case = tanh_mlp()
    thetas, support = loop_points(case, 0)
    query = (randn(5, 1, stream_name="query x"), randn(5, 1, stream_name="query y"))
    theta = thetas[0].clone().requires_grad_()
    adapted = inner_loop(case.loss, thetas[0], support, steps=K, step_size=ALPHA).adapted
    at_end = torch.func.grad(case.loss)(adapted, query)
    J = adaptation_jacobian(hessian(case.loss, thetas, support, shared=True), ALPHA)
    for first_order, expected in ((False, J.rmv(at_end)), (True, at_end)):
        learner = learners.maml(K, ALPHA, first_order=first_order)
        (result,) = torch.autograd.grad(meta_loss(learner, case.loss, theta, support, query)[0], theta)
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_several_tasks_at_once_agree_with_single_ones() -> None:
    case = next(case for case in NETWORKS if case.name == "conv-batchnorm")
    paths = [loop_points(case, i) for i in range(3)]
    thetas = torch.cat([path[0] for path in paths])
    batch = tuple(leaf.repeat_interleave(K, 0) for leaf in case.batch)
    J = adaptation_jacobian(hessian(case.loss, thetas, batch), ALPHA, steps=K)
    assert (J.num_tasks, J.steps, J.num_params) == (3, K, thetas.shape[-1])
    V = randn(3, thetas.shape[-1], 2, stream_name="V")
    result = singular_values(J, k=1)
    for i, (points, support) in enumerate(paths):
        one = adaptation_jacobian(hessian(case.loss, points, support, shared=True), ALPHA)
        close((J @ V)[i], one @ V[i])
    alone = singular_values(one, k=1)
    assert alone.values.shape == (1,)
    assert (alone.values - result.values[-1]).abs() <= alone.error + result.error[-1]


def test_wrong_arguments_are_refused_in_plain_words() -> None:
    H = operator(matrices())
    with pytest.raises(ValueError, match="does not divide the"):
        adaptation_jacobian(H, 0.1, steps=4)
    with pytest.raises(ValueError, match="single point"):
        adaptation_jacobian(hessian(quadratic, torch.zeros(2), torch.eye(2)), 0.1)
    with pytest.raises(ValueError, match="give a number"):
        adaptation_jacobian(H, torch.ones(5), steps=K)
    J = adaptation_jacobian(H, 0.1, steps=K)
    for V, words in (
        (torch.ones(24), "write V.to"),
        (randn(5, 2, stream_name="V"), "24, probe"),
        (randn(3, 24, 1, stream_name="V"), "2, 24"),
    ):
        with pytest.raises(ValueError, match=words):
            J @ V
    with pytest.raises(ValueError, match="tasks 0 to 1"):
        J.to_scipy(task=2)


def test_fewer_tasks_fit_in_memory_where_all_steps_are_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gram = adaptation_jacobian(operator(matrices()), 0.1, steps=K).gram
    for at_once, expected in ((7, 2), (2, 1)):
        monkeypatch.setattr(Hessian, "at_once", at_once)
        assert gram.at_once == expected
