"""Operators made of other operators (sums, blocks, restrictions), against the same operations on dense matrices."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import LINEAR, NETWORKS, POINTS, Case, gauss_newton_case, randn, relu_mlp, tanh_mlp, without_type_checks
from contract import check_operator, close
from torch import Tensor, nn

from hessian_tools.curvature import Operator, gauss_newton, hessian, top_eigenpairs
from hessian_tools.layout import flatten
from hessian_tools.loss import make_loss

TANH, RELU = tanh_mlp(), relu_mlp()
G_TANH = gauss_newton_case(TANH).dense
CONV = next(case for case in NETWORKS if case.name == "conv-batchnorm")
Q = torch.linalg.qr(randn(TANH.thetas.shape[-1], 4, stream_name="Q")).Q
D = 1 + randn(TANH.thetas.shape[-1], stream_name="scale").abs()
BODY = slice(0, 12 + 42)  # the layers 1-6-6-1 with biases have 12, 42 and 7 parameters; the last one is the head


def difference(*args: Any, **options: Any) -> Operator:
    return hessian(*args, **options) - gauss_newton(*args, **options)


def nested(*args: Any, **options: Any) -> Operator:
    return 2 * (hessian(*args, **options) + 0.5 * gauss_newton(*args, **options)) - (-hessian(*args, **options))


COMPOSED: dict[str, tuple[Callable[..., Operator], Tensor]] = {
    "difference": (difference, TANH.dense - G_TANH),
    "nested": (nested, 3 * TANH.dense + G_TANH),
    "body": (lambda *a, **o: hessian(*a, **o).block("body"), TANH.dense[:, BODY, BODY]),
    "layer-of-difference": (lambda *a, **o: difference(*a, **o).block("2"), (TANH.dense - G_TANH)[:, 12:54, 12:54]),
    "layer": (lambda *a, **o: gauss_newton(*a, **o).blocks()["2"], G_TANH[:, 12:54, 12:54]),
    "subspace": (lambda *a, **o: hessian(*a, **o).restrict(Q), Q.T @ TANH.dense @ Q),
    "scaled": (lambda *a, **o: hessian(*a, **o).scaled(D), D[:, None] * TANH.dense * D),
    "multiple": (lambda *a, **o: -hessian(*a, **o), -TANH.dense),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSED)
def test_contract(name: str) -> None:
    make, dense = COMPOSED[name]
    check_operator(make, replace(TANH, hessians=dense))


def test_multiples_by_numbers_of_numpy() -> None:
    H = hessian(TANH.loss, TANH.thetas, TANH.batch)
    close((np.float64(2.5) * H).to_dense(), 2.5 * TANH.dense)
    with without_type_checks():
        close((H * np.float32(2.5)).to_dense(), 2.5 * TANH.dense)


def test_eigenpairs_of_the_hessian_minus_gauss_newton() -> None:
    H_minus_G = difference(CONV.loss, CONV.thetas, CONV.batch)
    expected = torch.linalg.eigvalsh(CONV.dense - gauss_newton_case(CONV).dense)
    close(top_eigenpairs(H_minus_G, k=1, which="LA", rtol=1e-9).values[:, 0], expected[:, -1])


@pytest.mark.parametrize(
    ("prefixes", "names"),
    [
        (("head",), ("9.weight", "9.bias")),
        (("9",), ("9.weight", "9.bias")),
        (("0.weight", "1"), ("0.weight", "1.weight", "1.bias")),
        (("1", "0.weight"), ("0.weight", "1.weight", "1.bias")),
        (("5.", "4"), ("4.weight", "4.bias", "5.weight", "5.bias")),
    ],
)
def test_blocks_are_the_dense_submatrices(prefixes: tuple[str, ...], names: tuple[str, ...]) -> None:
    layout = CONV.loss.layout
    ends = dict(zip(layout.names, torch.tensor(layout.sizes).cumsum(0).tolist(), strict=True))
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    rows = torch.cat([torch.arange(ends[name] - sizes[name], ends[name]) for name in names])
    block = hessian(CONV.loss, CONV.thetas, CONV.batch).block(*prefixes)
    assert block.layout.names == names
    V = randn(POINTS, len(rows), 2, stream_name="V")
    close(block @ V, CONV.dense[:, rows][:, :, rows] @ V)


def test_blocks_by_layer_cover_the_diagonal() -> None:
    layers = hessian(TANH.loss, TANH.thetas, TANH.batch).blocks()
    assert list(layers) == ["0", "2", "4"]
    traces = [layer.to_dense().diagonal(dim1=-2, dim2=-1).sum(-1) for layer in layers.values()]
    close(sum(traces), TANH.dense.diagonal(dim1=-2, dim2=-1).sum(-1))
    inner = hessian(TANH.loss, TANH.thetas, TANH.batch).block("body").blocks()
    close(inner["2"].to_dense(), layers["2"].to_dense())


@pytest.mark.slow
def test_in_the_block_of_a_linear_head_hessian_and_gauss_newton_are_equal() -> None:
    head = (hessian(CONV.loss, CONV.thetas, CONV.batch) - gauss_newton(CONV.loss, CONV.thetas, CONV.batch)).block(
        "head"
    )
    assert head.to_dense().abs().max() < 1e-12 * CONV.dense.abs().max()


def test_another_module_can_be_the_head() -> None:
    H = hessian(TANH.loss, TANH.thetas, TANH.batch)
    close(H.block("body", head="0").to_dense(), TANH.dense[:, 12:, 12:])
    close(H.block("head", head="0").to_dense(), TANH.dense[:, :12, :12])
    with pytest.raises(ValueError, match="'head'"):
        H.block("body", head="conv")


def test_restriction_to_a_different_subspace_at_each_point() -> None:
    n = TANH.thetas.shape[-1]
    bases = torch.linalg.qr(randn(POINTS, n, 3, stream_name="each")).Q
    R = hessian(TANH.loss, TANH.thetas, TANH.batch).restrict(bases)
    close(R.to_dense(), bases.mT @ TANH.dense @ bases)
    close(R.select(torch.tensor([2, 0])).to_dense(), (bases.mT @ TANH.dense @ bases)[[2, 0]])
    H = hessian(TANH.loss, TANH.thetas, TANH.batch)
    close(H.block("head").restrict(torch.eye(7, 2).double()).to_dense(), TANH.dense[:, 54:56, 54:56])


def test_scaling_by_different_numbers_at_each_point() -> None:
    d = randn(POINTS, TANH.thetas.shape[-1], stream_name="scales")
    S = hessian(TANH.loss, TANH.thetas, TANH.batch).scaled(d)
    dense = d[:, :, None] * TANH.dense * d[:, None]
    close(S.to_dense(), dense)
    close(S.select(torch.tensor([2, 0])).to_dense(), dense[[2, 0]])
    close(S.block("head").to_dense(), dense[:, 54:, 54:])
    close(top_eigenpairs(S, k=1, rtol=1e-9).values[:, 0].abs(), torch.linalg.eigvalsh(dense).abs().amax(-1))


def test_the_restriction_to_eigenvectors_is_diagonal() -> None:
    H = hessian(TANH.loss, TANH.thetas, TANH.batch)
    pairs = top_eigenpairs(H, k=3, rtol=1e-9, vectors=True)
    assert pairs.vectors is not None
    close(H.restrict(pairs.vectors).to_dense(), torch.diag_embed(pairs.values))


def test_nan_at_one_point_stays_there() -> None:
    thetas = RELU.thetas.clone()
    thetas[1, 0] = torch.nan
    H, G = (make(RELU.loss, thetas, RELU.batch) for make in (hessian, gauss_newton))
    n = thetas.shape[-1]
    frame = torch.eye(n, 2, dtype=thetas.dtype).expand(POINTS, n, 2).clone()
    frame[1] = torch.nan
    for operator in (H - G, H.block("head"), H.restrict(frame), H.scaled(frame[..., 0])):
        finite = operator.to_dense().isfinite().flatten(1)
        assert finite.all(-1).tolist() == [True, False, True]


def test_wrong_arguments_are_refused_in_plain_words() -> None:
    H = hessian(TANH.loss, TANH.thetas, TANH.batch)
    plain = hessian(lambda theta, _: (theta**2).sum(), TANH.thetas, None)
    single = hessian(TANH.loss, *TANH.at(0)[:2])
    small = hessian(LINEAR[0].loss, LINEAR[0].thetas, LINEAR[0].batch)
    refused = [
        (lambda: H + single, "cannot be added"),
        (lambda: H - small, "same parameters and points"),
        (lambda: H + hessian(TANH.loss, TANH.thetas.float(), TANH.batch), "one dtype"),
        (lambda: plain.block("body"), "no names"),
        (lambda: (H + plain).block("body"), "no names"),
        (lambda: H.restrict(Q).blocks(), "no names"),
        (lambda: H.block("conv"), "no parameter under 'conv'"),
        (lambda: H.block(), "no prefix"),
        (lambda: H.restrict(2 * Q), r"torch.linalg.qr\(Q\).Q"),
        (lambda: H.restrict(Q[:-1]), r"give shape \[61, k\]"),
        (lambda: H.restrict(Q.float()), "torch.float32"),
        (lambda: H.restrict(Q.expand(2, -1, -1)), "one such matrix for each point"),
        (lambda: H.scaled(D[:-1]), r"give shape \[61\]"),
        (lambda: H.scaled(D.float()), "torch.float32"),
        (lambda: H.scaled(D.expand(2, -1)), "one such vector for each point"),
        (lambda: single.restrict(Q[None]), "one such matrix for each point"),
        (lambda: single.block("head").select(torch.tensor([0])), "no points to select"),
    ]
    for refuse, words in refused:
        with pytest.raises(ValueError, match=words) as refusal:
            refuse()
        assert len(str(refusal.value)) < 240
    with without_type_checks(), pytest.raises(TypeError):
        H * "two"
    with without_type_checks(), pytest.raises(TypeError):
        H + 1


def test_prefixes_match_whole_names_between_dots() -> None:
    """In a network of eleven layers the prefix "1" does not match the layer "10"."""
    model = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(11)])
    theta, layout = flatten(model)
    loss = make_loss(model, lambda out, y: (out**2).mean(), layout)
    H = hessian(loss, theta, (torch.ones(2, 1), torch.zeros(2)))
    assert H.block("1").shape == (1, 1)
    assert layout.indices("1").tolist() == [1]
    assert layout.under("head") == ("10.weight",)


def test_the_head_is_the_module_of_that_name_or_the_last_one() -> None:
    named = nn.Module()
    named.head, named.tail = nn.Linear(2, 2), nn.Linear(2, 2)
    named.forward = lambda x: named.tail(named.head(x))
    assert flatten(named)[1].under("head") == ("head.weight", "head.bias")
    assert flatten(named)[1].under("body") == ("tail.weight", "tail.bias")
    body = flatten(named, where="tail")[1]  # the head is that of the whole network, not the last of the chosen layers
    assert body.under("body") == ("tail.weight", "tail.bias")
    with pytest.raises(ValueError, match="'head'"):
        body.under("head")
    assert list(hessian_of_linear().blocks()) == [""]


def hessian_of_linear() -> Operator:
    case: Case = LINEAR[0]
    return hessian(case.loss, case.thetas, case.batch)
