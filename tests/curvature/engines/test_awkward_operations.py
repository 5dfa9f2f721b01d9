"""Operations whose second derivative torch computes wrongly or not at all, by every route against differences."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import randn, seeded, squared_error
from contract import close
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hessian_tools.curvature import gauss_newton, gradient, hessian, third_derivative, trace
from hessian_tools.layout import flatten
from hessian_tools.loss import Batch, Loss, make_loss


class Layer(nn.Module):
    """An operation between a linear layer and the outputs."""

    def __init__(self, operation: Callable[[Tensor], Tensor], width: int = 4) -> None:
        super().__init__()
        self.inner, self.operation = nn.Linear(3, width), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.inner(x))


def spd(z: Tensor) -> Tensor:
    """Symmetric positive definite 3 by 3 matrices, made of the numbers in z."""
    A = z.reshape(-1, 3, 3)
    return A @ A.mT + torch.eye(3, dtype=z.dtype)


def convolved(z: Tensor) -> Tensor:
    """A convolution whose input, kernel and bias all come from z."""
    return torch.conv_tbc(z[..., None], z[:2, None, :2], z[0, :2], 1)


# Operations that torch cannot differentiate twice, or whose second derivative it has wrong, with their input width.
OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "prelu": (nn.PReLU(4), 4),
    "hardsigmoid": (nn.Hardsigmoid(), 4),
    "rrelu": (nn.RReLU().eval(), 4),
    "conv_tbc": (convolved, 4),
    "cdist": (lambda z: torch.cdist(z, torch.sin(z) + 1), 4),
    "cdist to itself": (lambda z: torch.exp(-(torch.cdist(z, z, p=3.0) ** 2)), 4),
    "pdist": (lambda z: F.pdist(z), 4),
    "ldexp": (lambda z: torch.ldexp(torch.tanh(z), torch.tensor(2)), 4),
    "cholesky_inverse": (lambda z: torch.cholesky_inverse(torch.linalg.cholesky(spd(z))), 9),
    "glu": (nn.GLU(), 4),
    "solve": (lambda z: torch.linalg.solve(spd(z), z[:, :3]), 9),
    "solve_ex": (lambda z: torch.linalg.solve_ex(spd(z), z[:, :3]).result, 9),
    "triangular_solve": (lambda z: torch.triangular_solve(z[:, :3, None], spd(z)).solution[..., 0], 9),
    "cayley": (lambda z: torch.linalg.solve(torch.eye(3) + spd(z)[0], torch.eye(3) - spd(z)[1]), 9),
    "determinant of one": (lambda z: torch.det(spd(z)[0]) * z[0], 9),
    "eigvals": (lambda z: torch.linalg.eigvals(spd(z)[0] + torch.diag(torch.arange(3.0))).real, 9),
    "embedding_bag": (lambda z: F.embedding_bag(torch.tensor([[0, 2], [1, 1]]), z).sin(), 4),
    "determinants": (lambda z: torch.det(spd(z)) + torch.slogdet(spd(z))[1] * torch.logdet(spd(z)), 9),
}


def loss_with(name: str) -> tuple[Loss, Tensor, Batch]:
    """The loss of a network with the named operation, two points, and their batches."""
    operation, width = OPERATIONS[name]
    model = seeded(lambda: Layer(operation, width)).double()
    theta, layout = flatten(model)
    loss = make_loss(model, lambda out, _: ((out - 0.3) ** 2).mean(), layout)
    return (
        loss,
        theta + 0.1 * randn(2, len(theta), stream_name="thetas"),
        (randn(2, 3, 3, stream_name="x"), torch.zeros(2)),
    )


def quotients(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """The Jacobian by central differences whose error is of fourth order."""
    steps = 1e-3 * torch.eye(len(theta), dtype=theta.dtype)
    columns = [
        (8 * (function(theta + e) - function(theta - e)) - function(theta + 2 * e) + function(theta - 2 * e)) / 12e-3
        for e in steps
    ]
    return torch.stack(columns, dim=-1)


def plain_outputs(loss: Loss, theta: Tensor, x: Tensor) -> Tensor:
    """The outputs of the network as torch runs it, without the library's corrections."""
    return functional_call(loss.model, loss.layout.unflatten(theta), (x,))


def plain_gradient(loss: Loss, theta: Tensor, x: Tensor) -> Tensor:
    theta = theta.requires_grad_()
    return torch.autograd.grad(((plain_outputs(loss, theta, x) - 0.3) ** 2).mean(), theta)[0]


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_that_torch_differentiates_badly(name: str) -> None:
    """Compared with differences of first derivatives, which torch computes correctly."""
    loss, thetas, (x, y) = loss_with(name)
    H, G = [], []
    for theta, inputs in zip(thetas, x, strict=True):
        H.append(quotients(lambda t, inputs=inputs: plain_gradient(loss, t, inputs), theta))
        J = quotients(lambda t, inputs=inputs: plain_outputs(loss, t, inputs).flatten(), theta)
        G.append(2 * J.mT @ J / len(J))
    traced = ("traced",) if name in ("ldexp", "prelu", "cayley") else ()
    for route in ("direct", "kept", *traced) if name != "eigvals" else ("auto", "kept"):
        found = hessian(loss, thetas, (x, y), route=route).to_dense()
        torch.testing.assert_close(found, torch.stack(H), rtol=1e-7, atol=1e-8)
    if name == "eigvals":
        with pytest.raises(RuntimeError, match=r"torch.linalg.eigvals under vmap .* is silently wrong in torch"):
            gauss_newton(loss, thetas, (x, y), route="direct") @ theta
    G_found = gauss_newton(loss, thetas, (x, y))
    torch.testing.assert_close(G_found.to_dense(), torch.stack(G), rtol=1e-7, atol=1e-8)
    close(trace(G_found, method="exact").value, G_found.to_dense().diagonal(dim1=-2, dim2=-1).sum(-1))


@pytest.mark.parametrize("name", ["glu", "solve", "determinants", "cholesky_inverse"])
def test_third_derivatives_of_such_operations(name: str) -> None:
    """Compared with differences of Hessians. For ``linalg.solve`` torch's third derivative is wrong by a third."""
    loss, thetas, (x, y) = loss_with(name)
    theta, batch, d = thetas[0], (x[0], y), randn(thetas.shape[-1], stream_name="d")
    d = d / d.norm()

    def along(t: Tensor) -> Tensor:
        return (d @ hessian(loss, theta + t * d, batch, route="kept").to_dense() @ d)[None]

    expected = quotients(lambda t: along(t[0]), torch.zeros(1, dtype=theta.dtype))[0, 0]
    torch.testing.assert_close(third_derivative(loss, theta, batch, d).third, expected, rtol=1e-6, atol=1e-7)


def test_third_derivatives_of_a_plain_function() -> None:
    """For 2 by 2 matrices det(1 + t A) = 1 + t tr A + t^2 det A. Its square has the third derivative 12 tr A det A."""
    A = randn(2, 2, stream_name="A")
    t, d = torch.zeros(1, dtype=A.dtype), torch.ones(1, dtype=A.dtype)
    third = third_derivative(lambda t, A: torch.det(torch.eye(2) + t * A) ** 2, t, A, d).third
    close(third, 12 * A.trace() * torch.det(A))


def test_third_derivatives_that_torch_has_wrong_are_refused() -> None:
    model = Layer(lambda z: torch.linalg.householder_product(spd(z), z[:, :3]), 9).double()
    theta, layout = flatten(model)
    loss = make_loss(model, squared_error, layout)
    with pytest.raises(
        ValueError, match=r"third derivatives through torch.linalg.householder_product are wrong in torch"
    ):
        third_derivative(loss, theta, (randn(2, 3, stream_name="x"), torch.zeros(2, 3, 3)), theta)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", [nn.MSELoss, nn.HuberLoss, nn.SoftMarginLoss])
def test_criteria_without_a_forward_derivative(kind: type[nn.Module], reduction: str) -> None:
    """Tracing ``nn.MSELoss(reduction="sum")`` once ended the process."""
    model = seeded(lambda: nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))).double()
    theta, layout = flatten(model)
    criterion, batch = kind(reduction=reduction), (randn(5, 1, stream_name="x"), 3 * randn(5, 1, stream_name="y"))
    loss = make_loss(model, criterion, layout)
    expected = torch.autograd.functional.hessian(
        lambda t: criterion(functional_call(model, layout.unflatten(t), (batch[0],)), batch[1]), theta
    )
    for route in ("direct", "kept", "traced"):
        close(hessian(loss, theta, batch, route=route).to_dense(), expected)
    along = third_derivative(loss, theta, batch, theta)
    close(along.second, theta @ expected @ theta)


class Hooked(torch.autograd.Function):
    """A sine as an autograd.Function that torch.func cannot transform; backward hooks are such functions too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("operation", [Hooked.apply, lambda z: torch.sin(z) if z.sum() > -1e9 else z])
def test_the_kept_route_is_taken_where_forward_mode_or_vmap_fails(operation: Callable[[Tensor], Tensor]) -> None:
    """For 12 points the direct route would otherwise be taken."""
    losses = []
    for form in (operation, torch.sin):
        model = seeded(lambda form=form: Layer(form)).double()
        theta, layout = flatten(model)
        losses.append(make_loss(model, squared_error, layout))
    thetas = theta + 0.1 * randn(12, len(theta), stream_name="thetas")
    batch, V = (
        (randn(12, 5, 3, stream_name="x"), randn(12, 5, 4, stream_name="y")),
        randn(len(theta), 2, stream_name="V"),
    )
    H = hessian(losses[0], thetas, batch)
    close(H @ V, hessian(losses[1], thetas, batch, route="direct") @ V)
    close(gradient(losses[0], thetas, batch), gradient(losses[1], thetas, batch))
    assert H.route == "kept"
    assert H.select(torch.tensor([3])).route == "kept"
    with pytest.raises(RuntimeError, match=r"pass route='kept'|pass batching='loop'"):
        hessian(losses[0], thetas, batch, route="direct") @ V


def test_operations_whose_second_derivative_reverse_mode_gets_wrong_are_refused() -> None:
    """Products were once silently wrong by 59 to 92 %.

    A checkpoint runs its second pass with other parameters than theta, and where the graph ends the derivative is zero.
    """

    class OnceDifferentiable(Hooked):
        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * ctx.saved_tensors[0].cos()

    batch = randn(2, 3, stream_name="x"), torch.zeros(2, 4)
    again = partial(checkpoint, torch.sin, use_reentrant=False)
    constant = randn(2, 4, stream_name="constant")
    where = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]])

    def sparse(z: Tensor) -> Tensor:
        return torch.sparse.mm(torch.sparse_coo_tensor(where, z.sin()[0], (2, 2), check_invariants=True), constant)

    for operation, match in (
        (OnceDifferentiable.apply, "once_diff"),
        (sparse, "sparse tensor"),
        (again, "checkpoint.* switch it off"),
    ):
        model = seeded(lambda operation=operation: Layer(operation)).double()
        theta, layout = flatten(model)
        loss = make_loss(model, squared_error, layout)
        for route in ("auto", "kept"):
            with pytest.raises(RuntimeError, match=match):
                hessian(loss, theta, batch, route=route) @ theta


def test_a_criterion_without_a_second_derivative_is_refused() -> None:
    model = seeded(lambda: nn.Linear(3, 4)).double()
    theta, layout = flatten(model)
    batch = randn(2, 3, stream_name="x"), torch.tensor([0, 2])
    loss = make_loss(model, nn.MultiMarginLoss(), layout)
    with pytest.raises(RuntimeError, match="no second derivative of an operation in this loss: write it out"):
        hessian(loss, theta, batch).to_dense()


def test_a_constant_sparse_matrix() -> None:
    A = torch.tensor([[2.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    batch, found = (randn(2, 3, stream_name="x"), torch.zeros(2, 4)), []
    for matrix in (A, A.to_sparse()):
        model = seeded(lambda matrix=matrix: Layer(lambda z: matrix @ torch.sin(z))).double()
        theta, layout = flatten(model)
        found.append(hessian(make_loss(model, squared_error, layout), theta, batch).to_dense())
    close(found[1], found[0])


class Labelled(nn.Linear):
    """A layer whose outputs also hold a string and None."""

    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x), "of": "a name", "none": None}


def test_outputs_that_are_not_tensors_are_ignored() -> None:
    model = seeded(lambda: Labelled(3, 2)).double()
    theta, layout = flatten(model)
    batch = randn(2, 3, stream_name="x"), randn(2, 2, stream_name="y")
    H = hessian(make_loss(model, lambda out, y: squared_error(out["logits"], y), layout), theta, batch)
    close(trace(H, method="exact").value, H.to_dense().trace())


def test_a_scripted_network_that_has_been_trained() -> None:
    """After training TorchScript uses its own derivative, through which forward over reverse silently gives zero."""
    plain = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))).double()
    theta, layout = flatten(nn.Sequential(plain))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = nn.Sequential(torch.jit.script(plain))
    batch = randn(12, 5, 3, stream_name="x"), randn(12, 5, 2, stream_name="y")
    thetas = theta + 0.1 * randn(12, len(theta), stream_name="thetas")
    for _ in range(8):
        scripted(batch[0][0]).sum().backward()
    loss, V = make_loss(scripted, squared_error, layout), randn(len(theta), 2, stream_name="V")
    expected = hessian(make_loss(nn.Sequential(plain), squared_error, layout), thetas, batch, route="direct") @ V
    close(hessian(loss, thetas, batch) @ V, expected)
    for route in ("direct", "traced"):
        with pytest.raises(ValueError, match="scripted.* pass route='kept'"):
            hessian(loss, thetas, batch, route=route) @ V
