"""More device cases: quantities that are derived from operators, and the learners.

The derived quantities are curvature along directions, eigenspaces, Jacobians of adaptation, and numbers that describe
inner loops, such as the alignment of their gradients.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from device_cases import OPERATORS, PlacedCase, set_nan, subspace
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import hessian_tools as ht
from hessian_tools.curvature import (
    AdaptationJacobian,
    alignment,
    cos_displacement,
    curvature_along,
    drop_ratio,
    estimate_of,
    filter_normalised,
    filter_scale,
    linearisation_error,
    loss_surface,
    path_ratio,
    principal_angles,
    product_asymmetry,
    random_rotations,
    rho_normalised,
    rounding_error,
    small_step_difference,
    subspace_error,
    tensor_parts,
    vector_error,
)
from hessian_tools.curvature.estimates.multiaffine import is_multiaffine
from hessian_tools.inner.collapse import homogeneity
from hessian_tools.inner.parameters import meta_parameters
from hessian_tools.inner.shot import longer_reference
from hessian_tools.loss import Batch

STEP = 0.05
# The indices of the first and the last point.
ENDS = torch.tensor([0, 2])


def first_batch(placed: PlacedCase) -> Batch:
    """The batch of the first point."""
    return tuple(leaf[0] for leaf in placed.batch)


def pairs(placed: PlacedCase) -> ht.EigenPairs:
    """The top eigenpairs at the first and the last point."""
    return ht.top_eigenpairs(placed.H.select(ENDS), k=3, vectors=True, method="exact")


def eigenvectors(placed: PlacedCase) -> Tensor:
    """The vectors of ``pairs`` [point, param, 3]."""
    vectors = pairs(placed).vectors
    assert vectors is not None
    return vectors


def gauss_newton_part(placed: PlacedCase) -> list[Tensor]:
    """The Gauss-Newton share of the top eigenvalues, without its errors, which depend on rounding."""
    thetas, batch = placed.thetas[ENDS], tuple(leaf[ENDS] for leaf in placed.batch)
    part = ht.gauss_newton_share(pairs(placed), ht.gauss_newton_spectrum(placed.loss, thetas, batch, vectors=True))
    return [part.hessian, part.share, part.overlap]


def subspaces(placed: PlacedCase) -> list[Tensor]:
    """Comparisons of the top eigenspaces of two points."""
    result = pairs(placed)
    U, V = eigenvectors(placed)
    return [
        ht.subspace_overlap(U, V),
        principal_angles(U, V),
        ht.step_overlaps(torch.stack([U, V])),
        ht.curvature.gradient_share(V, placed.random(len(V))),
        subspace_error(result),
        vector_error(result),
    ]


def spectra(placed: PlacedCase) -> list[Tensor]:
    """Whole spectra: by dense matrices, once with a point that is not finite, and by the range finder."""
    one = placed.G.select(torch.tensor([1], device="cpu"))
    small = [ht.spectrum(OPERATORS["restriction"](placed)), ht.spectrum(set_nan(placed).restrict(subspace(placed)))]
    return [*(result.values for result in small), ht.spectrum(one, method="range finder", max_rank=60).values]


def ragged_product(placed: PlacedCase) -> Tensor:
    """A product where the points have batches of 3, 4 and 3 examples."""
    batches = [tuple(leaf[i, : 3 + i % 2] for leaf in placed.batch) for i in range(3)]
    H = ht.hessian(placed.loss, placed.thetas, ht.ragged(batches))
    return H.select(torch.tensor([2, 0], device="cpu")) @ placed.random(H.num_params, 2)


def jacobian(placed: PlacedCase) -> AdaptationJacobian:
    """The Jacobian of an inner loop through the points of the case."""
    return ht.adaptation_jacobian(placed.H, STEP)


def through_the_jacobian(placed: PlacedCase) -> list[Tensor]:
    """Products with the Jacobian, with its transpose, and with J'J."""
    J = jacobian(placed)
    V = placed.random(J.num_params, 2)
    return [J @ V, J.T @ V, J.gram @ V, J.mv(V[:, 0]), J.rmv(V[:, 0])]


def several_tasks(placed: PlacedCase) -> Tensor:
    """A product with the Jacobians of three tasks, each of which has a step size of its own."""
    sizes = placed.random(3, 1).abs()
    J = ht.adaptation_jacobian(placed.H, sizes, steps=1)
    return J.select(torch.tensor([2, 1], device="cpu")) @ placed.random(J.num_params, 1)


def taylor_expansion(placed: PlacedCase) -> list[Tensor]:
    """The terms of the loss's expansion along the gradient up to the third order, and the change that they predict."""
    g = ht.gradient(placed.loss, placed.thetas, placed.batch)
    result = ht.third_derivative(placed.loss, placed.thetas, placed.batch, g)
    return [result.value, result.first, result.second, result.third, result.change(-STEP)]


def at_unit_filter_norm(placed: PlacedCase) -> list[Tensor]:
    """Curvature along the gradient at unit filter norm, its rounding error, and ``small_step_difference``.

    The last one is the distance, to leading order, between the ends of one large and of three small gradient steps.
    """
    g = ht.gradient(placed.loss, placed.thetas, placed.batch)
    d = filter_scale(placed.loss.layout, placed.thetas, placed.loss.layout.names[:1])
    Z, hg = placed.random(len(g[0]), 2), placed.H.mv(g)
    result = curvature_along(g, hg)
    asymmetry = product_asymmetry(hg, g, placed.random(*g.shape, 2), Z)
    return [
        rho_normalised(d, g, placed.H.mv(d**2 * g)),
        rounding_error(result.hg_ratio, asymmetry),
        small_step_difference(hg, tau=0.3, target_steps=1, reference_steps=3),
    ]


def around_a_point(placed: PlacedCase) -> list[Tensor]:
    """The loss near a point, its gradient tensor by tensor, rotations of it, and numbers about a path through it."""
    loss, thetas, layout, batch = placed.loss, placed.thetas, placed.loss.layout, first_batch(placed)
    g = ht.gradient(loss, thetas, placed.batch)
    direction = filter_normalised(layout, thetas[0], g[0])
    grid = placed.random(2)
    return [
        loss_surface(loss, thetas[0], batch, direction, thetas[1] - thetas[0], grid),
        tensor_parts(layout, g),
        random_rotations(layout, g, 2),
        path_ratio(thetas),
        drop_ratio(placed.random(3), g, thetas),
        linearisation_error(lambda theta: loss.outputs(theta, batch[0]), thetas[0], thetas[1]),
    ]


def of_modules_and_directions(placed: PlacedCase) -> list[Tensor]:
    """Traces of the modules and errors over batches, the loss along two directions, and a product in another metric."""
    H = placed.H
    along = ht.loss_along(H, placed.random(H.num_params, 2), steps=[-0.1, 0.1])
    metric = 1 + placed.random(H.num_params).abs()
    modules = ht.by_module(H, num_probes=4)
    several = OPERATORS["batches"](placed)
    errors = [ht.curvature.jackknife(several, "trace").stderr, ht.curvature.jackknife(several, rtol=1e-9).samples]
    return [
        *errors,
        modules.trace,
        along.loss,
        along.quadratic,
        ht.preconditioned(H, metric) @ placed.random(H.num_params, 1),
    ]


def read_from_a_loader(placed: PlacedCase) -> list[Tensor]:
    """A product and a gradient over the batches of a loader on the CPU, which is read again for each of them."""
    leaves = [leaf[:, : len(placed.batch[0][0])].flatten(0, 1).cpu() for leaf in placed.batch]
    loader = DataLoader(TensorDataset(*leaves), batch_size=4)
    H = ht.hessian(placed.loss, placed.thetas[0], loader, max_memory=1)
    product = H.mv(placed.random(H.num_params))
    return [product, ht.gradient(placed.loss, placed.thetas[0], loader, max_memory=1)]


def inner_loop_numbers(placed: PlacedCase) -> list[Tensor]:
    """Numbers that describe an inner loop, such as the alignment of its gradients; the gradients are random here."""
    g = placed.random(2, 4, 9)  # [task, step, param]
    return [alignment(g @ g.mT), cos_displacement(g, placed.random(2, 9)), estimate_of(g[0]).stderr]


def plain_numbers(placed: PlacedCase) -> Tensor:
    """The results of functions that return Python numbers, as a tensor."""
    outputs = placed.loss.outputs(placed.thetas[0], first_batch(placed)[0])
    result = (
        is_multiaffine(placed.loss, placed.thetas[0], first_batch(placed)),
        homogeneity(placed.random(6, 3)).variation,  # how far the outputs of 6 examples differ between them
    )
    return torch.tensor(result, dtype=placed.thetas.dtype, device="cpu").to(outputs)


def through_scipy(placed: PlacedCase) -> Tensor:
    """A product at the last point by SciPy, which knows only the CPU."""
    v = placed.random(placed.H.num_params).cpu().numpy()
    return torch.from_numpy(placed.H.to_scipy(point=2) @ v).to(placed.thetas.device)


def saved_and_loaded(placed: PlacedCase) -> list[Tensor]:
    """An estimate that was written to a file and read to the device of theta."""
    with TemporaryDirectory() as folder:
        path = ht.trace(placed.H, num_probes=4).save(Path(folder) / "trace")
        result = ht.load(path, device=placed.thetas.device)
    return [result.value, result.stderr]


def estimates(placed: PlacedCase) -> list[Tensor]:
    """Traces, exact and from probes, the diagonal and the squared Frobenius norm."""
    return [
        ht.trace(placed.G).value,
        ht.trace(OPERATORS["restriction"](placed), method="exact").value,
        ht.diagonal(placed.H, num_probes=5).value,
        ht.frobenius_squared(placed.H, num_probes=5).value,
        ht.trace(set_nan(placed), num_probes=4, method="probes").value,
    ]


DERIVED: dict[str, Callable[[PlacedCase], Any]] = {
    "estimates": estimates,
    "spectrum": spectra,
    "gauss_newton_share": gauss_newton_part,
    "subspaces": subspaces,
    "ragged": ragged_product,
    "adaptation_jacobian": through_the_jacobian,
    "adaptation_jacobian-tasks": several_tasks,
    "singular_values": lambda placed: ht.singular_values(jacobian(placed), k=2).values,
    "third_derivative": taylor_expansion,
    "scaled": at_unit_filter_norm,
    "around a point": around_a_point,
    "modules": of_modules_and_directions,
    "loader": read_from_a_loader,
    "path": inner_loop_numbers,
    "plain numbers": plain_numbers,
    "to_scipy": through_scipy,
    "load": saved_and_loaded,
}

LEARNERS: dict[str, tuple[ht.Learner, ht.Shot | None]] = {
    "maml": (ht.learners.maml(2, STEP), None),
    "maml, with SHOT": (ht.learners.maml(2, STEP), ht.Shot(0.3, distance="squared_error")),
    "maml, SHOT by l2": (ht.learners.maml(2, STEP), ht.Shot(0.3, distance="l2_parameters")),
    # The target is the learner's own inner loop of 2 steps, and the reference takes twice as many.
    "first order, a longer reference": (
        ht.learners.maml(2, STEP, first_order=True),
        longer_reference(ht.learners.maml(2, STEP), 0.3, distance="squared_error"),
    ),
    "anil": (ht.learners.anil(2, STEP), None),
    "boil": (ht.learners.boil(2, STEP), None),
    "meta_sgd": (ht.learners.meta_sgd(2, STEP), None),
    "reptile": (ht.learners.reptile(2, STEP), None),
}


def learned(name: str) -> Callable[[PlacedCase], list[Tensor]]:
    """A function that computes a learner's outer loss, its gradient and further numbers, and the adapted parameters."""
    learner, shot = LEARNERS[name]

    def compute(placed: PlacedCase) -> list[Tensor]:
        batch = first_batch(placed)
        theta = meta_parameters(learner, placed.loss.layout, placed.thetas[0]).detach().clone().requires_grad_()
        value, aux = ht.meta_loss(learner, placed.loss, theta, batch, batch, shot=shot)
        (gradient,) = torch.autograd.grad(value, theta)
        adapted = ht.adapt(learner, placed.loss, theta, batch).detach()
        network = ht.network_parameters(placed.loss, theta).detach()
        return [value.detach(), gradient, adapted, network, *(number.detach() for number in aux)]

    return compute


LEARNED = {name: learned(name) for name in LEARNERS}
