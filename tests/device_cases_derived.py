"""As ``everywhere``: what is derived from operators (directions, eigenspaces, inner loops), and the learners."""

from collections.abc import Callable
from typing import Any

import torch
from device_cases import OPERATORS, Place, set_nan, subspace
from torch import Tensor

import hessian_tools as ht
from hessian_tools.curvature import (
    AdaptationJacobian,
    GaussNewtonShare,
    alignment,
    cos_displacement,
    curvature_along,
    estimate_of,
    filter_scale,
    principal_angles,
    product_asymmetry,
    rho_normalised,
    rounding_error,
    small_step_difference,
    subspace_error,
    vector_error,
)
from hessian_tools.curvature.estimates.multiaffine import is_multiaffine
from hessian_tools.inner.collapse import homogeneity
from hessian_tools.inner.parameters import meta_parameters
from hessian_tools.inner.shot import longer_reference
from hessian_tools.loss import Batch

STEP = 0.05
ENDS = torch.tensor([0, 2])


def first_batch(here: Place) -> Batch:
    return tuple(leaf[0] for leaf in here.batch)


def pairs(here: Place) -> ht.EigenPairs:
    return ht.top_eigenpairs(here.H.select(ENDS), k=3, vectors=True, method="exact")


def eigenvectors(here: Place) -> Tensor:
    vectors = pairs(here).vectors
    assert vectors is not None
    return vectors


def explained(here: Place) -> GaussNewtonShare:
    there = here.thetas[ENDS], tuple(leaf[ENDS] for leaf in here.batch)
    G = ht.gauss_newton_spectrum(here.loss, *there, vectors=True)
    return ht.gauss_newton_share(pairs(here), G)


def subspaces(here: Place) -> list[Tensor]:
    found = pairs(here)
    U, V = eigenvectors(here)
    return [
        ht.subspace_overlap(U, V),
        principal_angles(U, V),
        ht.step_overlaps(torch.stack([U, V])),
        ht.gradient_share(V, here.drawn(len(V))),
        subspace_error(found),
        vector_error(found),
    ]


def spectra(here: Place) -> list[Tensor]:
    """Dense, with a point that is not finite, and by the range finder."""
    one = here.G.select(torch.tensor([1], device="cpu"))
    small = [ht.spectrum(OPERATORS["restriction"](here)), ht.spectrum(set_nan(here).restrict(subspace(here)))]
    return [*(found.values for found in small), ht.spectrum(one, method="range finder", max_rank=60).values]


def ragged_product(here: Place) -> Tensor:
    batches = [tuple(leaf[i, : 3 + i % 2] for leaf in here.batch) for i in range(3)]
    H = ht.hessian(here.loss, here.thetas, ht.ragged(batches))
    return H.select(torch.tensor([2, 0], device="cpu")) @ here.drawn(H.num_params, 2)


def jacobian(here: Place) -> AdaptationJacobian:
    return ht.adaptation_jacobian(here.H, STEP)


def through_the_jacobian(here: Place) -> list[Tensor]:
    J = jacobian(here)
    V = here.drawn(J.num_params, 2)
    return [J @ V, J.T @ V, J.gram @ V, J.mv(V[:, 0]), J.rmv(V[:, 0])]


def several_tasks(here: Place) -> Tensor:
    sizes = here.drawn(3, 1).abs()
    J = ht.adaptation_jacobian(here.H, sizes, steps=1)
    return J.select(torch.tensor([2, 1], device="cpu")) @ here.drawn(J.num_params, 1)


def cubic(here: Place) -> list[Tensor]:
    g = ht.gradient(here.loss, here.thetas, here.batch)
    found = ht.third_derivative(here.loss, here.thetas, here.batch, g)
    return [found.value, found.first, found.second, found.third, found.change(-STEP)]


def scaled(here: Place) -> list[Tensor]:
    g = ht.gradient(here.loss, here.thetas, here.batch)
    d = filter_scale(here.loss.layout, here.thetas, here.loss.layout.names[:1])
    Z, hg = here.drawn(len(g[0]), 2), here.H.mv(g)
    found = curvature_along(g, hg)
    asymmetry = product_asymmetry(hg, g, here.drawn(*g.shape, 2), Z)
    return [
        rho_normalised(d, g, here.H.mv(d**2 * g)),
        rounding_error(found.hg_ratio, asymmetry),
        small_step_difference(hg, tau=0.3, target_steps=1, reference_steps=3),
    ]


def path_numbers(here: Place) -> list[Tensor]:
    g = here.drawn(2, 4, 9)
    return [alignment(g @ g.mT), cos_displacement(g, here.drawn(2, 9)), estimate_of(g[0]).stderr]


def answers(here: Place) -> Tensor:
    """Of what gives numbers or truths of Python."""
    outputs = here.loss.outputs(here.thetas[0], first_batch(here)[0])
    found = is_multiaffine(here.loss, here.thetas[0], first_batch(here)), homogeneity(here.drawn(6, 3)).variation
    return torch.tensor(found, dtype=here.thetas.dtype, device="cpu").to(outputs)


def through_scipy(here: Place) -> Tensor:
    v = here.drawn(here.H.num_params).cpu().numpy()
    return torch.from_numpy(here.H.to_scipy(point=2) @ v).to(here.thetas.device)


def estimates(here: Place) -> list[Tensor]:
    return [
        ht.trace(here.G).value,
        ht.trace(OPERATORS["restriction"](here), method="exact").value,
        ht.diagonal(here.H, num_probes=5).value,
        ht.frobenius_squared(here.H, num_probes=5).value,
        ht.trace(set_nan(here), num_probes=4, method="probes").value,
    ]


DERIVED: dict[str, Callable[[Place], Any]] = {
    "estimates": estimates,
    "spectrum": spectra,
    "gauss_newton_share": lambda here: [getattr(explained(here), f) for f in ("hessian", "share", "overlap")],
    "subspaces": subspaces,
    "ragged": ragged_product,
    "adaptation_jacobian": through_the_jacobian,
    "adaptation_jacobian-tasks": several_tasks,
    "singular_values": lambda here: ht.singular_values(jacobian(here), k=2).values,
    "third_derivative": cubic,
    "scaled": scaled,
    "path": path_numbers,
    "answers": answers,
    "to_scipy": through_scipy,
}

LEARNERS: dict[str, tuple[ht.Learner, ht.Shot | None]] = {
    "maml": (ht.learners.maml(2, STEP), None),
    "maml, with SHOT": (ht.learners.maml(2, STEP), ht.Shot(0.3, distance="squared_error")),
    "maml, SHOT by l2": (ht.learners.maml(2, STEP), ht.Shot(0.3, distance="l2_parameters")),
    "first order, a longer reference": (
        ht.learners.maml(2, STEP, first_order=True),
        longer_reference(ht.learners.maml(2, STEP), 0.3, distance="squared_error"),
    ),
    "anil": (ht.learners.anil(2, STEP), None),
    "boil": (ht.learners.boil(2, STEP), None),
    "meta_sgd": (ht.learners.meta_sgd(2, STEP), None),
    "reptile": (ht.learners.reptile(2, STEP), None),
}


def learned(name: str) -> Callable[[Place], list[Tensor]]:
    """The adapted parameters; the outer loss and its gradient."""
    learner, shot = LEARNERS[name]

    def compute(here: Place) -> list[Tensor]:
        batch = first_batch(here)
        theta = meta_parameters(learner, here.loss.layout, here.thetas[0]).detach().clone().requires_grad_()
        value, aux = ht.meta_loss(learner, here.loss, theta, batch, batch, shot=shot)
        (gradient,) = torch.autograd.grad(value, theta)
        adapted = ht.adapt(learner, here.loss, theta, batch).detach()
        network = ht.network_parameters(here.loss, theta).detach()
        return [value.detach(), gradient, adapted, network, *(number.detach() for number in vars(aux).values())]

    return compute


LEARNED = {name: learned(name) for name in LEARNERS}
