"""Support sets of different sizes: ragged batches give every point its own Hessian.

A mask in the criterion gives the same Hessians only for networks without batch statistics.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from cases import CASES, NETWORKS, Case, at, dense_hessian, randn, relu_mlp
from contract import check_operator, close
from torch import Tensor, nn
from torch.nn import functional as F

from hessian_tools.curvature import (
    check_operator as self_check,
)
from hessian_tools.curvature import (
    gauss_newton,
    gauss_newton_spectrum,
    gradient,
    hessian,
    ragged,
    top_eigenpairs,
)
from hessian_tools.layout import flatten
from hessian_tools.loss import make_loss

CONV = NETWORKS[1]
RELU = relu_mlp()
SIZES = (6, 4, 4)


@cache
def cut(case: Case, sizes: tuple[int, ...] = SIZES) -> Case:
    """The case with fewer examples at some points, as a list of batches, one for each point."""
    batches = [tuple(leaf[:n] for leaf in at(case.batch, i)) for i, n in enumerate(sizes)]
    dense = torch.stack([dense_hessian(case.loss, case.thetas[i], b) for i, b in enumerate(batches)])
    return replace(case, batch=batches, hessians=dense)


def make(loss: object, thetas: Tensor, batch: object, **options: object) -> object:
    """The Hessian operator, for ragged batches if they come as a list."""
    return hessian(loss, thetas, ragged(batch) if isinstance(batch, list) else batch, **options)


def test_contract() -> None:
    check_operator(make, cut(CASES[5]))


@pytest.mark.slow
@pytest.mark.parametrize("route", ["direct", "kept", "traced"])
def test_every_route(route: str) -> None:
    case = cut(CONV)
    H = make(case.loss, case.thetas, case.batch, route=route)
    V = randn(3, H.num_params, 2, stream_name="V")
    close(H.products(V), case.dense @ V)
    assert H.route == route
    assert [len(group.positions) for group in H.objective.groups] == [1, 2]
    close(gradient(case.loss, case.thetas, ragged(case.batch))[1], gradient(case.loss, case.thetas[1], case.batch[1]))


def test_points_can_be_selected_in_any_order_and_repeatedly() -> None:
    case = cut(CONV)
    H = make(case.loss, case.thetas, case.batch, route="kept")
    V = randn(H.num_params, 2, stream_name="V")
    for rows in ([2, 0, 1], [1, 1, 0, 2, 2], [-1, 0], [0]):
        chosen = torch.tensor(rows)
        close(H.select(chosen) @ V, case.dense[chosen] @ V)
    parts = make(case.loss, case.thetas, case.batch, max_memory=1).parts()
    close(torch.cat([part @ V for part in parts]), case.dense @ V)


def test_several_ragged_batches_are_weighted_by_their_sizes_at_each_point() -> None:
    case, cuts = (
        NETWORKS[0],
        [2, 3, 2],
    )  # without batch statistics, the mean over the parts is the mean over all examples
    batches = [at(case.batch, i) for i in range(len(cuts))]
    first = [tuple(leaf[:n] for leaf in b) for b, n in zip(batches, cuts, strict=True)]
    rest = [tuple(leaf[n:] for leaf in b) for b, n in zip(batches, cuts, strict=True)]
    H = hessian(case.loss, case.thetas, [ragged(first), ragged(rest)])
    close(H.to_dense(), case.dense)
    equal = hessian(case.loss, case.thetas, [ragged(first), ragged(rest)], weights=[1, 1])
    assert not torch.allclose(equal.to_dense(), case.dense)


def test_eigenpairs_gauss_newton_and_the_self_check() -> None:
    case = cut(RELU)
    G = gauss_newton(case.loss, case.thetas, ragged(case.batch))
    single = gauss_newton(case.loss, case.thetas[1], case.batch[1])
    close(G.to_dense()[1], single.to_dense())
    H = hessian(case.loss, case.thetas, ragged(case.batch))
    assert torch.allclose(
        top_eigenpairs(H, k=1, which="LA", rtol=1e-9).values, torch.linalg.eigvalsh(case.dense)[:, -1:]
    )
    assert self_check(H).ok
    with pytest.raises(ValueError, match="points of each batch size separately"):
        gauss_newton_spectrum(case.loss, case.thetas, ragged(case.batch))


def masked_cross_entropy(out: Tensor, y: dict[str, Tensor]) -> Tensor:
    each = F.cross_entropy(out, y["labels"], reduction="none")
    return (each * y["mask"]).sum() / y["mask"].sum()


@pytest.mark.slow
def test_a_mask_gives_the_same_hessian_only_without_batch_statistics() -> None:
    for case, same in ((RELU, True), (CONV, False)):
        x, labels = case.batch
        mask = torch.stack([torch.arange(x.shape[1]) < n for n in SIZES]).double()
        loss = make_loss(case.loss.model, masked_cross_entropy, case.loss.layout)
        grouped = cut(case)
        for route in ("direct", "kept", "traced"):
            V = randn(case.thetas.shape[1], 1, stream_name="V")
            masked = hessian(loss, case.thetas, (x, {"labels": labels, "mask": mask}), route=route) @ V
            assert torch.allclose(masked, grouped.dense @ V, rtol=1e-8, atol=1e-10) == same


def test_bad_ragged_batches_are_refused_in_plain_words() -> None:
    model = nn.Linear(2, 1)
    theta, layout = flatten(model)
    loss = make_loss(model, lambda out, y: ((out - y) ** 2).mean(), layout)
    pair = torch.ones(3, 2), torch.ones(3, 1)
    thetas = theta.expand(2, -1)
    for bad, words in (
        (ragged([pair]), "there are 1 for thetas"),
        ([ragged([pair, pair]), pair], "some batches of the list are ragged and others are not"),
    ):
        with pytest.raises(ValueError, match=words):
            hessian(loss, thetas, bad)
    with pytest.raises(ValueError, match="one batch for each point"):
        hessian(loss, theta, ragged([pair]))
    with pytest.raises(ValueError, match="and shared=True"):
        hessian(loss, thetas, ragged([pair, pair]), shared=True)
    with pytest.raises(ValueError, match="a list of batches"):
        ragged([])


def test_a_boolean_mask_is_not_stacked_with_indices() -> None:
    """A boolean mask and a tensor of indices may have the same shape, but mean different things."""

    def loss(theta: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, chosen = batch
        return ((x * theta)[chosen] ** 2).sum() / 2

    x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    batches = [(x, torch.tensor([False, True, True])), (x, torch.tensor([0, 1, 1]))]
    H = hessian(loss, torch.zeros(2, 1, dtype=torch.float64), ragged(batches), batching="loop")
    assert H.to_dense().flatten().tolist() == [20.0, 9.0]
