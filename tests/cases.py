"""Losses with known Hessians, in float64 and at a few points each, on which the curvature tests run.

CLOSED_FORM are losses whose Hessians have a formula, NETWORKS are networks with dense Hessians by autograd, and LINEAR
and GAUSS_NEWTON are cases whose ``dense`` holds Gauss-Newton matrices.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import config
from torch import Tensor, nn

from benchmarks.references.spectra import DTYPE, SPECTRA
from hessian_tools.curvature import Hessian, hessian
from hessian_tools.layout import flatten
from hessian_tools.loss import Batch, Loss, LossFunction, make_loss
from hessian_tools.rng import stream

POINTS = 3


@dataclass(frozen=True)
class Case:
    """A loss at POINTS points, and its Hessians.

    thetas: [point, param]. batch: every tensor has a leading point axis. hessians: [point, param, param], or a function
    that computes them at their first use, because those of a network take a second.
    """

    name: str
    loss: LossFunction
    thetas: Tensor
    batch: Batch
    hessians: Tensor | Callable[[], Tensor]

    @cached_property
    def dense(self) -> Tensor:
        """The Hessians [point, param, param]."""
        return self.hessians if isinstance(self.hessians, Tensor) else self.hessians()

    def at(self, point: int) -> tuple[Tensor, Batch, Tensor]:
        """The parameters, the batch and the Hessian of one point."""
        return self.thetas[point], at(self.batch, point), self.dense[point]


def at(batch: Batch, point: int) -> Batch:
    """The batch of one point."""
    return tuple(leaf[point] for leaf in batch) if isinstance(batch, tuple) else batch[point]


def randn(*shape: int, stream_name: str, dtype: torch.dtype = DTYPE) -> Tensor:
    """Standard normal numbers from the stream that this name selects."""
    return torch.randn(*shape, generator=stream(0, "cases", stream_name), dtype=dtype, device="cpu")


def quadratic(theta: Tensor, A: Tensor) -> Tensor:
    """theta'A theta / 2, whose Hessian is A where A is symmetric."""
    return theta @ A @ theta / 2


def operator(A: Tensor) -> Hessian:
    """The Hessians of quadratic functions, which are the given matrices A [point, n, n], or one matrix A [n, n]."""
    return hessian(quadratic, torch.zeros(A.shape[:-1], dtype=A.dtype), A)


def symmetric(spectrum: Tensor, *, points: int = POINTS, stream_name: str = "basis") -> Tensor:
    """Symmetric matrices [point, n, n] that all have the given spectrum, each in a random basis."""
    n = len(spectrum)
    Q = torch.linalg.qr(randn(points, n, n, stream_name=f"{stream_name}/{n}")).Q
    A = (Q * spectrum) @ Q.mT
    return (A + A.mT) / 2


def quadratic_case(name: str) -> Case:
    """Quadratic functions whose Hessians have the named spectrum."""
    A = symmetric(SPECTRA[name], stream_name=name)
    return Case(f"quadratic-{name}", quadratic, randn(POINTS, A.shape[-1], stream_name="theta"), A, A)


def linear_regression() -> Case:
    """Linear regression by mean squared error, whose Hessian is 2 X'X / n."""
    x, y = randn(POINTS, 8, 5, stream_name="x"), randn(POINTS, 8, stream_name="y")

    def loss(theta: Tensor, batch: Batch) -> Tensor:
        return ((batch[0] @ theta - batch[1]) ** 2).mean()

    return Case("linear-regression", loss, randn(POINTS, 5, stream_name="theta"), (x, y), 2 * x.mT @ x / 8)


def logistic_regression() -> Case:
    """Logistic regression, whose Hessian is X' diag(p (1 - p)) X / n."""
    x, theta = randn(POINTS, 8, 5, stream_name="x"), randn(POINTS, 5, stream_name="theta")
    y = (randn(POINTS, 8, stream_name="y") > 0).to(DTYPE)

    def loss(theta: Tensor, batch: Batch) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(batch[0] @ theta, batch[1])

    p = torch.sigmoid(x @ theta[..., None])
    return Case("logistic-regression", loss, theta, (x, y), x.mT @ (p * (1 - p) * x) / 8)


def softmax_regression() -> Case:
    """Softmax regression, where theta is the row-major [class, feature] matrix.

    Its Hessian is the mean over examples of (diag(p) - p p') kron x x'.
    """
    x, theta = randn(POINTS, 8, 4, stream_name="x"), randn(POINTS, 12, stream_name="theta")
    y = torch.randint(0, 3, (POINTS, 8), generator=stream(0, "cases", "labels"))

    def loss(theta: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(batch[0] @ theta.view(3, 4).T, batch[1])

    p = (x @ theta.view(POINTS, 3, 4).mT).softmax(-1)
    classes = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    dense = torch.einsum("...nab,...nc,...nd->...acbd", classes, x, x).reshape(POINTS, 12, 12) / 8
    return Case("softmax-regression", loss, theta, (x, y), dense)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error, in a form that torch can differentiate forward over reverse."""
    return ((outputs - targets) ** 2).mean()


def network_case(name: str, model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor], batch: Batch) -> Case:
    """A network at POINTS points near its weights, with dense Hessians by autograd."""
    theta, layout = flatten(model)
    loss = make_loss(model, criterion, layout)
    thetas = theta.to(DTYPE) + 0.1 * randn(POINTS, layout.numel, stream_name=name)

    def hessians() -> Tensor:
        return torch.stack([dense_hessian(loss, thetas[i], at(batch, i)) for i in range(POINTS)])

    return Case(name, loss, thetas, batch, hessians)


def tanh_mlp() -> Case:
    """A smooth network with layers 1-6-6-1."""
    model = seeded(lambda: nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)))
    batch = (randn(POINTS, 7, 1, stream_name="x"), randn(POINTS, 7, 1, stream_name="y"))
    return network_case("tanh-mlp", model, squared_error, batch)


def relu_mlp() -> Case:
    """A ReLU network 2-5-5-3 without normalisation, so that Hessian and Gauss-Newton matrix have the same trace."""
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)))
    batch = (randn(POINTS, 6, 2, stream_name="x"), torch.tensor([0, 1, 2, 0, 1, 2]).expand(POINTS, 6))
    return network_case("relu-mlp", model, nn.functional.cross_entropy, batch)


def linear_networks() -> list[Case]:
    """Linear and softmax regression as networks. Their Gauss-Newton matrix is their Hessian."""

    def network(case: Case, outputs: int, criterion: Callable[[Tensor, Tensor], Tensor]) -> Case:
        model = nn.Linear(case.thetas.shape[-1] // outputs, outputs, bias=False)
        return replace(case, loss=make_loss(model, criterion, flatten(model)[1]))

    return [
        network(linear_regression(), 1, lambda out, y: squared_error(out[..., 0], y)),
        network(softmax_regression(), 3, nn.functional.cross_entropy),
    ]


def conv_batchnorm() -> Case:
    """Two blocks of convolution, BatchNorm on batch statistics, ReLU and max-pooling; 3 classes."""
    batch = (randn(POINTS, 6, 1, 8, 8, stream_name="images"), torch.tensor([0, 1, 2, 0, 1, 2]).expand(POINTS, 6))
    return network_case("conv-batchnorm", seeded(small_conv), nn.functional.cross_entropy, batch)


def small_conv(*, eps: float = 1e-5, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """A small convolutional network with 221 parameters, built like the networks of the study."""

    def block(inputs: int) -> list[nn.Module]:
        norm = nn.BatchNorm2d(4, eps=eps, track_running_stats=False)
        return [nn.Conv2d(inputs, 4, 3, padding=1), norm, activation(), nn.MaxPool2d(2)]

    return nn.Sequential(*block(1), *block(4), nn.Flatten(), nn.Linear(16, 3))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """A model with reproducible weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def dense_hessian(loss: LossFunction, theta: Tensor, batch: Batch) -> Tensor:
    """The Hessian row by row, by reverse over reverse, because torch.func.hessian may be wrong through F.batch_norm."""
    theta = theta.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(theta, batch), theta, create_graph=True)
    rows = [torch.autograd.grad(g[i], theta, retain_graph=True, materialize_grads=True)[0] for i in range(len(theta))]
    return torch.stack(rows).detach()


def dense_gauss_newton(loss: Loss, theta: Tensor, batch: Batch) -> Tensor:
    """J'BJ, where J is the Jacobian of the outputs in theta and B the Hessian of the criterion in the outputs.

    Each row of J and of B takes one reverse pass.
    """
    x, y = batch
    theta = theta.detach().clone().requires_grad_()
    outputs = loss.outputs(theta, x)
    J = rows_of(outputs, theta)
    leaf = outputs.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss.criterion(leaf, y), leaf, create_graph=True)
    return J.T @ rows_of(slope, leaf) @ J


def rows_of(outputs: Tensor, inputs: Tensor) -> Tensor:
    """The Jacobian [output, input] of flattened outputs in flattened inputs."""
    options = {"retain_graph": True, "materialize_grads": True}
    rows = [torch.autograd.grad(out, inputs, **options)[0].flatten() for out in outputs.flatten()]
    return torch.stack(rows).detach()


def gauss_newton_case(case: Case) -> Case:
    """The case with its Gauss-Newton matrices in place of its Hessians."""

    def matrices() -> Tensor:
        points = ((case.thetas[i], at(case.batch, i)) for i in range(POINTS))
        return torch.stack([dense_gauss_newton(case.loss, theta, batch) for theta, batch in points])

    return replace(case, hessians=matrices)


@contextmanager
def without_type_checks() -> Iterator[None]:
    """Switches off the type checks of tests, so that wrong arguments reach the code's own checks, as for users."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)


CLOSED_FORM = [
    *(quadratic_case(name) for name in SPECTRA),
    linear_regression(),
    logistic_regression(),
    softmax_regression(),
]
NETWORKS = [tanh_mlp(), conv_batchnorm()]
CASES = CLOSED_FORM + NETWORKS
LINEAR = linear_networks()
GAUSS_NEWTON = LINEAR + [gauss_newton_case(case) for case in (*NETWORKS, relu_mlp())]
