"""The Hessian operator: closed forms, dense references, shapes, batches, and arguments that it refuses."""

import pytest
import torch
from cases import (
    CASES,
    CLOSED_FORM,
    NETWORKS,
    Case,
    dense_hessian,
    linear_regression,
    randn,
    seeded,
    squared_error,
    without_type_checks,
)
from contract import check_operator, close
from torch import Tensor, nn

from hessian_tools.curvature import gradient, hessian
from hessian_tools.curvature.engines.memory import forward_bytes
from hessian_tools.layout import flatten
from hessian_tools.loss import HiddenStateError, make_loss

CONV = next(case for case in NETWORKS if case.name == "conv-batchnorm")


def sum_of_fourth_powers(theta: Tensor, batch: object) -> Tensor:
    return (theta**4).sum()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contract(case: Case) -> None:
    check_operator(hessian, case)


@pytest.mark.parametrize("case", CLOSED_FORM, ids=lambda case: case.name)
def test_the_dense_reference_itself_is_the_closed_form(case: Case) -> None:
    theta, batch, dense = case.at(0)
    close(dense_hessian(case.loss, theta, batch), dense)


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_loop_and_vmap_agree(case: Case) -> None:
    V = randn(case.thetas.shape[-1], 2, stream_name="V")
    loop = hessian(case.loss, case.thetas, case.batch, batching="loop")
    close(loop @ V, case.dense @ V)
    close(gradient(case.loss, case.thetas, case.batch, batching="loop"), gradient(case.loss, case.thetas, case.batch))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradient_agrees_with_autograd(case: Case) -> None:
    rows = []
    for i in range(len(case.thetas)):
        theta, batch, _ = case.at(i)
        theta = theta.clone().requires_grad_()
        rows.append(torch.autograd.grad(case.loss(theta, batch), theta)[0])
    close(gradient(case.loss, case.thetas, case.batch), torch.stack(rows))
    close(gradient(case.loss, case.thetas, case.batch, chunk=2), torch.stack(rows))
    close(gradient(case.loss, *case.at(0)[:2]), rows[0])


def test_derivatives_outside_vmap_are_wrong_through_batchnorm() -> None:
    """This is why products apply vmap outermost. If torch mends it, the order may be chosen for speed."""
    V = randn(*CONV.thetas.shape, stream_name="V")

    def gradients(thetas: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(CONV.loss))(thetas, CONV.batch)

    outside = torch.func.jvp(gradients, (CONV.thetas,), (V,))[1]
    right = hessian(CONV.loss, CONV.thetas, CONV.batch).mv(V)
    assert (outside - right).norm() > 1e-4 * right.norm()


def test_shared_batch() -> None:
    case = linear_regression()
    batch = case.at(0)[1]
    H = hessian(case.loss, case.thetas, batch, shared=True)
    close(H.to_dense(), case.dense[0].expand_as(H.to_dense()))
    close(H.select(torch.tensor([1])).to_dense(), case.dense[:1])
    single = torch.stack([gradient(case.loss, theta, batch) for theta in case.thetas])
    close(gradient(case.loss, case.thetas, batch, shared=True), single)


@pytest.mark.parametrize("points", [False, True])
def test_list_of_unequal_batches_is_the_whole_batch(points: bool) -> None:
    case = linear_regression()
    thetas, (x, y), dense = (case.thetas, case.batch, case.dense) if points else case.at(0)
    pieces = [(x[..., :6, :], y[..., :6]), (x[..., 6:, :], y[..., 6:])]
    close(hessian(case.loss, thetas, pieces).to_dense(), dense)
    close(gradient(case.loss, thetas, pieces), gradient(case.loss, thetas, (x, y)))
    halves = [hessian(case.loss, thetas, piece).to_dense() for piece in pieces]
    equal = hessian(case.loss, thetas, pieces, weights=[1, 1])
    close(equal.to_dense(), (halves[0] + halves[1]) / 2)
    assert not torch.allclose(equal.to_dense(), dense)


def test_products_do_not_need_grad_mode() -> None:
    with torch.no_grad():
        close(hessian(CONV.loss, CONV.thetas, CONV.batch).to_dense(), CONV.dense)
    parameter = nn.Parameter(CONV.thetas.clone())
    close(hessian(CONV.loss, parameter, CONV.batch).to_dense(), CONV.dense)


def test_batch_is_any_pytree_and_takes_the_dtype_of_theta() -> None:
    def loss(theta: Tensor, batch: dict[str, object]) -> Tensor:
        return batch["scale"] * (batch["pair"][0] * theta**2).sum() / 2

    batch = {"pair": (torch.arange(6.0).view(2, 3),), "scale": 2.0}
    H = hessian(loss, torch.zeros(2, 3, dtype=torch.float64), batch)
    close(H.to_dense(), 2 * torch.diag_embed(torch.arange(6.0, dtype=torch.float64).view(2, 3)))
    assert hessian(sum_of_fourth_powers, torch.ones(3), None).to_dense().trace() == 36


def test_loss_that_branches_on_its_data_needs_the_loop() -> None:
    def loss(theta: Tensor, a: Tensor) -> Tensor:
        return (theta**2).sum() if bool(a > 0) else (theta**4).sum()

    thetas, a = torch.ones(2, 3), torch.tensor([1.0, -1.0])
    with pytest.raises(RuntimeError, match="batching='loop'"):
        hessian(loss, thetas, a).to_dense()
    H = hessian(loss, thetas, a, batching="loop")
    close(H.to_dense(), torch.eye(3) * torch.tensor([2.0, 12.0])[:, None, None])


def test_random_loss_gets_advice() -> None:
    thetas = torch.ones(2, 3)
    with pytest.raises(HiddenStateError, match="draws random numbers"):
        hessian(lambda theta, _: (theta * torch.rand(3)).sum() ** 2, thetas, None).mv(thetas)


@pytest.mark.parametrize("points", [False, True])
def test_hidden_state_is_refused(points: bool) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))
    theta, layout = flatten(model)
    loss = make_loss(model, squared_error, layout)
    x, y = randn(4, 2, stream_name="x"), randn(4, 1, stream_name="y")
    thetas, batch = (theta.expand(2, -1), (x.expand(2, 4, 2), y.expand(2, 4, 1))) if points else (theta, (x, y))
    with pytest.raises(HiddenStateError, match=r"'1' .*BatchNorm1d"):
        hessian(loss, thetas, batch)
    model.eval()
    assert torch.isfinite(hessian(make_loss(model, squared_error, layout), thetas, batch).mv(thetas)).all()


BAD_INPUTS = {
    "integer": (torch.ones(3, dtype=torch.long), None, {}, "floating-point"),
    "three-axes": (torch.ones(2, 2, 3), None, {}, r"\[param\] or \[point, param\]"),
    "empty": (torch.ones(0, 3), None, {}, "not empty"),
    "point-axis": (torch.ones(2, 3), (torch.ones(4, 3),), {}, "shared=True"),
    "scalar-leaf": (torch.ones(2, 3), torch.tensor(1.0), {}, "shared=True"),
    "shared-single": (torch.ones(3), None, {"shared": True}, "leave shared out"),
    "no-batches": (torch.ones(3), [], {}, "at least one"),
    "chunk": (torch.ones(3), None, {"chunk": 0}, "chunk=0 must be at least 1"),
    "half-a-chunk": (torch.ones(3), None, {"chunk": 1.5}, "chunk=1.5 is not a whole number"),
    "batching": (torch.ones(3), None, {"batching": "map"}, "must be one of vmap, loop"),
    "sizes": (torch.ones(3), [None, None], {}, "weights="),
    "weights": (torch.ones(3), [None, None], {"weights": [1.0]}, "one number for each batch"),
    "weights-of-one": (torch.ones(3), None, {"weights": [1.0, 2.0]}, "one number for each batch"),
    "weights-by-name": (torch.ones(3), [None, None], {"weights": "mean"}, "weights=.mean. must be one of size"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_refused_in_plain_words(name: str) -> None:
    thetas, batch, options, words = BAD_INPUTS[name]
    with without_type_checks(), pytest.raises(ValueError, match=words) as refusal:
        hessian(sum_of_fourth_powers, thetas, batch, **options)
    assert len(str(refusal.value)) < 240


@pytest.mark.parametrize("route", ["direct", "kept"])
def test_a_loss_that_is_not_one_number_is_refused(route: str) -> None:
    model = nn.Linear(2, 1)
    theta, layout = flatten(model)
    batch = torch.ones(4, 2), torch.zeros(4, 1)
    for criterion, kind in ((torch.sub, r"a tensor \[4, 1\]"), (lambda out, y: 1.0, "a float")):
        with pytest.raises(ValueError, match=f"the criterion gives {kind}; .* take the mean over examples"):
            hessian(make_loss(model, criterion, layout), theta, batch, route=route) @ theta
    with without_type_checks(), pytest.raises(RuntimeError, match="take the mean over examples"):
        hessian(lambda theta, _: theta**2, theta, None, route=route) @ theta


def test_the_route_is_reported_after_products_of_parts() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))).double()
    theta, layout = flatten(model)
    batch = randn(6, 4, 2, stream_name="x"), randn(6, 4, 1, stream_name="y")
    for route in ("direct", "kept", "traced"):
        H = hessian(make_loss(model, squared_error, layout), theta.repeat(6, 1), batch, route=route, max_memory=20_000)
        parts = H.parts()
        assert len(parts) > 1
        for part in parts:
            part @ theta
        assert H.route == route


def test_repr_is_one_line_without_tensors() -> None:
    H = hessian(CONV.loss, CONV.thetas, CONV.batch)
    size = f"3 points, {H.num_params} parameters, float64"
    assert repr(H) == f"Hessian({size}, engine auto, cpu)"
    H.mv(CONV.thetas[0])
    assert repr(H) == f"Hessian({size}, engine auto -> double_backward, cpu)"
    assert repr(2 * H - H) == f"Combination({size}, engine auto -> double_backward, cpu)"
    kept = hessian(sum_of_fourth_powers, torch.ones(3), None, route="kept")
    assert repr(kept) == "Hessian(1 point, 3 parameters, float32, engine double_backward, cpu)"


def test_a_list_that_begins_with_a_tensor_is_one_batch() -> None:
    """A ``DataLoader`` gives lists."""
    model = nn.Linear(2, 1)
    theta, layout = flatten(model)
    loss, pair = make_loss(model, squared_error, layout), (torch.ones(4, 2), torch.zeros(4, 1))
    assert torch.equal(hessian(loss, theta, list(pair)).to_dense(), hessian(loss, theta, pair).to_dense())


def test_bad_vectors_are_refused_in_plain_words() -> None:
    H = hessian(sum_of_fourth_powers, torch.ones(2, 3), None)
    for V, words in (
        (torch.ones(3, dtype=torch.float64), "torch.float32"),
        (torch.ones(4, 2), r"\[\.\.\., 3, probe\]"),
        (torch.ones(5, 3, 2), "must be 1, 2 or absent"),
        (torch.tensor(1.0), r"\[\.\.\., 3, probe\]"),
    ):
        with without_type_checks(), pytest.raises(ValueError, match=words):
            H @ V
    with pytest.raises(ValueError, match="points 0 to 1"):
        H.to_scipy(point=2)
    with pytest.raises(ValueError, match="no points to select"):
        hessian(sum_of_fourth_powers, torch.ones(3), None).select(torch.tensor([0]))


def test_the_number_of_products_at_once_follows_from_the_bytes_of_a_forward_pass() -> None:
    theta, batch, _ = CONV.at(0)
    measured = forward_bytes(CONV.loss, theta, batch)
    activations = 6 * 4 * (64 + 16) * 8  # examples, channels, pixels of the two blocks, bytes
    assert 3 * activations < measured < 8 * activations
    H = hessian(CONV.loss, CONV.thetas, CONV.batch)
    assert H.engine.products_at_once(H.objective) == 2**29 // (8 * measured)  # FORWARDS_PER_PRODUCT is 8


def test_points_are_selected_by_position_and_positions_never_wrap_around() -> None:
    case = CASES[0]
    H = hessian(case.loss, case.thetas, case.batch)
    close(H.select(torch.tensor([-1])).to_dense(), case.dense[[-1]])
    with without_type_checks():
        for wrong in ([3], [-4], [0, 5], [], [False, True, True], [0.0], [[0]]):
            with pytest.raises(ValueError, match="give"):
                H.select(torch.tensor(wrong))


def test_a_theta_of_the_wrong_length_or_type_is_refused() -> None:
    with without_type_checks():
        for thetas in (CONV.thetas[:, :-1], CONV.thetas.numpy()):
            with pytest.raises(ValueError, match="give"):
                hessian(CONV.loss, thetas, CONV.batch)
        with pytest.raises(ValueError, match="V is a NumPy array .*; give torch.from_numpy"):
            hessian(CONV.loss, CONV.thetas, CONV.batch) @ CONV.thetas.numpy()
