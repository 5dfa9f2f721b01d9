"""Standard errors over batches: against formulas, against refitting by hand, and their coverage on simulated data."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hessian_tools as ht
from hessian_tools.curvature import Jackknife, Operator, hessian, jackknife

DTYPE = torch.float64


def half_squares(theta: Tensor, x: Tensor) -> Tensor:
    """A loss whose Hessian is X'X / n."""
    return ((x @ theta) ** 2).mean() / 2


def rows(num_points: int, size: int, spectrum: Tensor, *name: Any) -> Tensor:
    """Normal examples whose covariance has these eigenvalues, as one batch for each data set."""
    n = len(spectrum)
    Q = torch.linalg.qr(torch.randn(n, n, generator=ht.stream(0, "basis"), dtype=DTYPE)).Q
    x = torch.randn(num_points, size, n, generator=ht.stream(1, *name), dtype=DTYPE)
    return (x * spectrum.sqrt()) @ Q.mT


def simulated(
    quantity: Any, *, spectrum: Tensor, sizes: list[int], data_sets: int, method: Any = "first_order"
) -> Jackknife:
    batches = [rows(data_sets, size, spectrum, "batch", i) for i, size in enumerate(sizes)]
    H = hessian(half_squares, torch.zeros(data_sets, len(spectrum), dtype=DTYPE), batches)
    return jackknife(H, quantity, method=method)


class NoLoss(Operator):
    """The identity, which has no batches."""

    num_params, num_points, dtype, device = 3, None, DTYPE, torch.device("cpu")

    def products(self, V: Tensor) -> Tensor:
        return V

    def select(self, points: Tensor) -> Operator:
        raise NotImplementedError


def coverage(result: Jackknife, truth: float) -> float:
    low, high = result.interval()
    return float(((low <= truth) & (truth <= high)).double().mean())


SPECTRUM = torch.tensor([4.0, 1.0, 0.5, 0.2], dtype=DTYPE)


@pytest.mark.parametrize("sizes", [[16] * 24, [32] * 12 + [8] * 12], ids=["equal", "unequal"])
@pytest.mark.parametrize(("quantity", "truth"), [("top_eigenvalue", 4.0), ("trace", 5.7)])
def test_the_interval_covers_the_value_of_the_population(quantity: Any, truth: float, sizes: list[int]) -> None:
    result = simulated(quantity, spectrum=SPECTRUM, sizes=sizes, data_sets=400)
    assert bool(result.converged.all())
    assert 0.92 <= coverage(result, truth) <= 0.98
    spread = result.value.std()
    assert (result.stderr**2).mean().sqrt() == pytest.approx(float(spread), rel=0.15)


def test_first_order_is_too_small_where_two_eigenvalues_are_close_and_says_so() -> None:
    """With few examples the top eigenvalue is too large in expectation, which only leaving out batches can see."""
    near = torch.tensor([4.0, 3.9, 0.5], dtype=DTYPE)
    results = {
        method: simulated("top_eigenvalue", spectrum=near, sizes=[12] * 8, data_sets=200, method=method)
        for method in ("first_order", "leave_one_out")
    }
    first, left_out = results["first_order"], results["leave_one_out"]
    bias = float(first.value.mean()) - 4.0
    assert bias > 0.3 * float(first.stderr.mean())
    assert float(first.bias.abs().max()) < 1e-9 and float(left_out.bias.mean()) > bias / 2
    far = simulated("top_eigenvalue", spectrum=SPECTRUM, sizes=[12] * 8, data_sets=200)
    ratios = [float((each.second_order / each.stderr).median()) for each in (first, far)]
    assert ratios[0] > 0.2 and ratios[1] < 0.05


def test_leaving_out_a_batch_is_an_eigenvalue_of_the_others() -> None:
    """The samples and the error by dense eigenvalues and the formulas of Busing, Meijer and van der Leeden (1999)."""
    sizes = [5, 9, 14, 6]
    batches = [rows(1, size, SPECTRUM, "dense", size)[0] for size in sizes]
    H = hessian(half_squares, torch.zeros(4, dtype=DTYPE), batches)
    result = jackknife(H, method="leave_one_out", rtol=1e-9)
    n, g = sum(sizes), len(sizes)
    whole = torch.linalg.eigvalsh(torch.cat(batches).mT @ torch.cat(batches) / n)[-1]
    left = []
    for i in range(g):
        others = torch.cat(batches[:i] + batches[i + 1 :])
        left.append(torch.linalg.eigvalsh(others.mT @ others / len(others))[-1])
    h = torch.tensor([n / size for size in sizes], dtype=DTYPE)
    pseudo = h * whole - (h - 1) * torch.stack(left)
    estimate = g * whole - ((1 - 1 / h) * torch.stack(left)).sum()
    variance = ((pseudo - estimate) ** 2 / (h - 1)).sum() / g
    torch.testing.assert_close(result.value, whole)
    torch.testing.assert_close(result.samples, pseudo, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.bias, whole - estimate, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(result.stderr, variance.sqrt(), rtol=1e-6, atol=0)
    low, high = result.interval()
    torch.testing.assert_close(high - low, 2 * 3.182446 * result.stderr, rtol=1e-6, atol=0)  # t with 3 degrees
    assert result.more_batches == 12 and result.weights == pytest.approx([size / n for size in sizes])


def test_an_interval_of_a_network_from_a_loader_that_is_read_at_every_product() -> None:
    model = ht.seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), seed=0).double()
    x, reports = torch.randn(50, 3, generator=ht.stream(0, "x"), dtype=DTYPE), []
    data = torch.utils.data.TensorDataset(x, torch.sin(x.sum(-1, keepdim=True)))
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    for quantity, options in (("top_eigenvalue", {}), ("trace", {"num_probes": 8})):
        kept, read = (
            jackknife(
                ht.hessian_of(model, nn.MSELoss(), batches, max_memory=1),
                quantity,  # type: ignore[arg-type]
                progress=lambda done, total: reports.append((done, total)),
                **options,  # type: ignore[arg-type]
            )
            for batches in ([tuple(batch) for batch in loader], loader)
        )
        torch.testing.assert_close(read.stderr, kept.stderr, rtol=1e-8, atol=0)
        torch.testing.assert_close(read.samples, kept.samples, rtol=1e-8, atol=1e-12)
    assert reports[:7] == [(i + 1, 7) for i in range(7)]


def test_the_error_of_a_trace_holds_that_of_the_probes() -> None:
    batches = [rows(1, 8, SPECTRUM, "trace", i)[0] for i in range(6)]
    H = hessian(half_squares, torch.zeros(4, dtype=DTYPE), batches)
    exact = jackknife(H, "trace")
    assert float(exact.probe_stderr) == 0
    torch.testing.assert_close(exact.value, H.to_dense().trace())
    probed = jackknife(H, "trace", num_probes=3)
    expected = ht.trace(H, num_probes=3, method="probes", seed=0)
    torch.testing.assert_close(probed.value, expected.value)
    torch.testing.assert_close(probed.probe_stderr, expected.stderr)
    over_batches = (probed.samples.var() / 6).sqrt()
    torch.testing.assert_close(probed.stderr, torch.hypot(over_batches, expected.stderr))


def test_blocks_and_sums_have_errors_and_what_has_no_batches_is_refused() -> None:
    model = ht.seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), seed=0).double()
    x = torch.randn(40, 3, generator=ht.stream(0, "x"), dtype=DTYPE)
    batches = [(part, torch.sin(part.sum(-1, keepdim=True))) for part in x.split(10)]
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, nn.MSELoss(), layout)
    H, G = ht.hessian(loss, theta, batches), ht.gauss_newton(loss, theta, batches)
    dense = [ht.hessian(loss, theta, b).to_dense() - ht.gauss_newton(loss, theta, b).to_dense() for b in batches]
    rows_of_head = layout.positions(["2.weight", "2.bias"])
    result = jackknife((H - G).block("2"), "trace", num_probes=5)
    expected = torch.stack([each[rows_of_head][:, rows_of_head].trace() for each in dense])
    torch.testing.assert_close(result.samples, expected, rtol=1e-9, atol=1e-14)
    for of, words in (
        (ht.hessian(loss, theta, batches[0]), "has one batch"),
        (ht.hessian(ht.make_loss(model, nn.MSELoss(reduction="sum"), layout), theta, batches), "add up"),
        (H + ht.hessian(loss, theta, batches[:2]), "other batches or weights"),
        (NoLoss(), "not made of losses"),
    ):
        with pytest.raises(ValueError, match=words):
            jackknife(of)
