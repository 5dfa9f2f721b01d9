"""Convolutions as matrix products have the values and the derivatives of torch's, and are used where that pays."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from cases import randn
from contract import close
from device_cases import COMPUTED, DEVICE_CASES, compared, place, same
from device_cases_derived import DERIVED
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import hessian_tools as ht
from hessian_tools.curvature.engines.compiled import trace_cache
from hessian_tools.curvature.engines.compiled.compiled_products import Stacked
from hessian_tools.torch_fixes import convolutions
from hessian_tools.torch_fixes.batchnorm import ShortBatchNorm
from hessian_tools.torch_fixes.convolutions import MAX_PATCH_BYTES, Form, MatrixConvolutions, pays


@pytest.fixture
def by_matrix_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions are matrix products on the CPU too, at several points and of any size."""
    monkeypatch.setattr(convolutions, "pays", lambda *, points, **sizes: points > 1)
    yield


# Kernel, stride, padding, dilation and the sides of the images.
FORMS: list[tuple[Any, Any, Any, Any, tuple[int, int]]] = [
    (3, 1, 1, 1, (8, 7)),
    (3, 2, 1, 1, (9, 8)),  # the stride leaves a row out
    (1, 2, 0, 1, (5, 6)),
    (3, 1, 0, 2, (9, 10)),
    ((2, 3), (3, 2), (2, 1), (1, 2), (8, 9)),
    (3, 1, 3, 1, (4, 4)),  # more zeros than the kernel covers
    (5, 1, 0, 1, (5, 5)),  # a single position
]


def value(form: tuple[Any, ...], x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A number whose derivatives of all orders go through a convolution."""
    _, stride, padding, dilation, _ = form
    y = F.conv2d(x.tanh(), w, b, stride=stride, padding=padding, dilation=dilation)
    return (y.tanh() * y).sum()


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def forward_over_reverse(f: Callable[..., Tensor], points: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Any:
    return jvp(grad(f, argnums=(0, 1, 2)), points, tangents)[1]


def reverse_over_reverse(f: Callable[..., Tensor], points: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Any:
    return vjp(grad(f, argnums=(0, 1, 2)), *points)[1](tangents)


def third_order(f: Callable[..., Tensor], points: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Any:
    def squares(*points: Tensor) -> Tensor:
        return sum((part**2).sum() for part in forward_over_reverse(f, points, tangents))  # type: ignore[return-value]

    return grad(squares, argnums=(0, 1, 2))(*points)


def forward(f: Callable[..., Any], t: Tensor, v: Tensor) -> Any:
    return jvp(f, (t,), (v,))[1]


# Derivatives of f along v in nested modes, each innermost mode last in the name.
NESTED: dict[str, Callable[..., Any]] = {
    "forward, reverse": lambda f, v, t: forward(grad(f), t, v),
    "reverse, forward": lambda f, v, t: grad(lambda u: forward(f, u, v))(t),
    "forward, forward": lambda f, v, t: forward(lambda u: forward(f, u, v), t, v),
    "forward, forward, forward": lambda f, v, t: forward(lambda u: forward(lambda s: forward(f, s, v), u, v), t, v),
    "forward, forward, reverse": lambda f, v, t: forward(lambda u: forward(grad(f), u, v), t, v),
    "forward, reverse, forward": lambda f, v, t: forward(grad(lambda u: forward(f, u, v)), t, v),
    "reverse, forward, forward": lambda f, v, t: grad(lambda u: forward(lambda s: forward(f, s, v), u, v))(t),
    "forward, reverse, reverse": lambda f, v, t: forward(grad(lambda u: (grad(f)(u) * v).sum()), t, v),
    "forward, forward over a pullback": lambda f, v, t: _over_a_pullback(f, t),
}


def _over_a_pullback(f: Callable[..., Any], t: Tensor) -> Tensor:
    value, pull = vjp(lambda u: f(u).sin(), t)
    return forward(lambda c: forward(lambda e: pull(e.sin())[0], c, c.cos()), value, value)


@pytest.mark.usefixtures("by_matrix_products")
@pytest.mark.parametrize("name", NESTED)
def test_nested_modes_are_right(name: str) -> None:
    """torch's forward mode around another one is silently wrong by an autograd.Function."""
    x, w = randn(3, 2, 6, 6, stream_name="nested x"), randn(4, 4, 2, 3, 3, stream_name="nested w")
    v = randn(4, 2, 3, 3, stream_name="nested v")

    def f(w: Tensor) -> Tensor:
        y = F.conv2d((x * w.mean()).tanh(), w, padding=1)
        return (y.tanh() * y).sum()

    together = vmap(partial(NESTED[name], f, v))
    expected = together(w)
    with MatrixConvolutions(4):
        close(together(w), expected)


@pytest.mark.usefixtures("by_matrix_products")
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("derivative", [forward_over_reverse, reverse_over_reverse, third_order])
def test_derivatives_at_many_points_are_those_of_torch(
    form: tuple[Any, ...], derivative: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = form[0] if isinstance(form[0], tuple) else (form[0], form[0])
    shapes = [(4, 3, 2, *form[4]), (4, 5, 2, *kernel), (4, 5)]
    points = tuple(randn(*shape, stream_name=f"conv {i}") for i, shape in enumerate(shapes))
    tangents = tuple(randn(*shape, stream_name=f"conv tangent {i}") for i, shape in enumerate(shapes))
    together = vmap(partial(derivative, partial(value, form)))
    expected = together(points, tangents)
    monkeypatch.setattr(convolutions, "_patches", counted := Counted(convolutions._patches))
    with MatrixConvolutions(4):
        found = together(points, tangents)
    assert counted.calls >= 3
    for a, b in zip(found, expected, strict=True):
        close(a, b)


@pytest.mark.usefixtures("by_matrix_products")
def test_other_convolutions_remain_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = randn(2, 4, 6, 6, stream_name="x"), randn(4, 2, 3, 3, stream_name="w")
    v = randn(4, 4, 3, 3, stream_name="v")
    calls: list[tuple[Tensor, Tensor, dict[str, Any]]] = [
        (x, w, {"groups": 2}),
        (x, v, {"padding": "same"}),
        (x[0], v, {}),  # a single image
    ]
    monkeypatch.setattr(convolutions, "_patches", counted := Counted(convolutions._patches))
    for images, weight, options in calls:
        expected = F.conv2d(images, weight, **options)
        with MatrixConvolutions(4):
            assert torch.equal(F.conv2d(images, weight, **options), expected)
    with MatrixConvolutions(4), pytest.raises(RuntimeError, match="type"):
        F.conv2d(x, v.float())
    assert counted.calls == 0
    with MatrixConvolutions(4):
        F.conv2d(x, v)
    assert counted.calls == 1


# The convolutions of a network at so many points, and whether the rule makes matrix products of all, some or none.
# W1 and W2 are the work loads of the benchmarks.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, str]] = {
    "W2": (partial(ht.Conv4, 5, width=64, input_shape=(1, 28, 28)), (5, 1, 28, 28), 256, "all"),
    "W2, one point": (partial(ht.Conv4, 5, width=64, input_shape=(1, 28, 28)), (5, 1, 28, 28), 1, "none"),
    "W1": (partial(ht.Conv4, 5, width=64, input_shape=(3, 84, 84)), (25, 3, 84, 84), 1, "none"),
    "W1, 16 points": (partial(ht.Conv4, 5, width=64, input_shape=(3, 84, 84)), (25, 3, 84, 84), 16, "some"),
    "ResNet-12": (partial(ht.ResNet12, 5, input_shape=(3, 84, 84)), (5, 3, 84, 84), 8, "some"),
    "ResNet-12 of 28x28": (partial(ht.ResNet12, 5, input_shape=(1, 28, 28)), (5, 1, 28, 28), 32, "all"),
}
# The convolutions of a ResNet-18 for CIFAR-10 with batches of 128, as images and kernels.
RESNET18 = [
    ((128, channels, side, side), (channels, channels, 3, 3))
    for channels, side in ((64, 32), (128, 16), (256, 8), (512, 4))
]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_rule_at_the_sizes_of_known_networks(name: str) -> None:
    """It asks for the device, so that it can be asked here what it says on a GPU."""
    build, shape, points, expected = NETWORKS[name]
    seen: list[bool] = []

    def watch(module: nn.Conv2d, inputs: tuple[Tensor], _: Tensor) -> None:
        form = Form(tuple(inputs[0].shape), tuple(module.weight.shape), module.stride, module.padding, module.dilation)  # type: ignore[arg-type]
        seen.append(pays(device="cuda", points=points, patch_bytes=form.patch_bytes(4)))
        assert not pays(device="cpu", points=points, patch_bytes=form.patch_bytes(4))

    with torch.device("meta"):
        model = build()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(watch)
        model(torch.empty(shape))
    assert seen
    assert {"all": all(seen), "some": any(seen) and not all(seen), "none": not any(seen)}[expected], seen


@pytest.mark.parametrize("points", [1, 2, 8])
def test_the_rule_says_no_to_large_batches_of_a_resnet18(points: int) -> None:
    for images, kernels in RESNET18:
        form = Form(images, kernels, (1, 1), (1, 1), (1, 1))
        assert form.result == images
        assert form.patch_bytes(4) == 9 * 4 * torch.Size(images).numel() > MAX_PATCH_BYTES
        assert not pays(device="cuda", points=points, patch_bytes=form.patch_bytes(4))


def test_the_larger_of_the_two_matrices_of_patches_counts() -> None:
    """Those of the result, with 5 channels on 8x8 pixels; and those of the images, with 5 channels at 12x12 places."""
    more_channels = Form((2, 3, 8, 8), (5, 3, 3, 3), (2, 2), (1, 1), (1, 1))
    more_places = Form((2, 5, 8, 8), (3, 5, 3, 3), (1, 1), (3, 3), (1, 1))
    assert more_channels.result == (2, 5, 4, 4) and more_places.result == (2, 3, 12, 12)
    assert more_channels.patch_bytes(4) == 4 * 2 * 9 * 5 * 8 * 8
    assert more_places.patch_bytes(4) == 4 * 2 * 9 * 5 * 12 * 12


SMALL: dict[str, Callable[[], nn.Module]] = {
    "conv4": partial(ht.Conv4, 3, width=4, input_shape=(1, 16, 16)),
    "resnet12": partial(ht.ResNet12, 3, widths=(2, 3, 4, 5), input_shape=(1, 16, 16)),
    "strided": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2),
        nn.Softplus(),
        nn.Conv2d(3, 2, 3, padding=1, groups=1),
        nn.Flatten(),
        nn.Linear(98, 3),
    ),
}


def problem(name: str, points: int = 4) -> tuple[ht.Loss, Tensor, tuple[Tensor, Tensor]]:
    """The loss of a small network in float64, several points, and their batches."""
    model = ht.seeded(SMALL[name], seed=1).double()
    theta, layout = ht.flatten(model)
    thetas = theta + 0.01 * randn(points, len(theta), stream_name="points")
    batch = (
        randn(points, 6, 1, 16, 16, stream_name="images"),
        torch.arange(3).repeat(2).expand(points, 6).contiguous(),
    )
    return ht.make_loss(model, F.cross_entropy, layout), thetas, batch


@pytest.mark.usefixtures("by_matrix_products")
def test_products_of_several_points_use_matrices_and_those_of_one_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, thetas, batch = problem("strided")
    monkeypatch.setattr(convolutions, "_patches", counted := Counted(convolutions._patches))
    # With chunk no memory is measured, so that every call comes from the products.
    ht.hessian(loss, thetas[0], tuple(leaf[0] for leaf in batch), route="direct", chunk=8) @ thetas[0]
    assert counted.calls == 0
    ht.hessian(loss, thetas, batch, route="direct", chunk=8) @ thetas[0]
    assert counted.calls > 0


@pytest.mark.slow
@pytest.mark.usefixtures("by_matrix_products")
def test_a_trace_for_several_points_is_known_to_a_later_operator_at_several_points() -> None:
    loss, thetas, batch = problem("strided")
    ht.hessian(loss, thetas, batch, route="traced") @ thetas[0]
    for some, route in ((slice(0, 3), "traced"), (slice(0, 1), "kept")):
        H = ht.hessian(loss, thetas[some], tuple(leaf[some] for leaf in batch))
        H.announce(300)  # enough for a trace that exists, and too few to make one
        H @ thetas[0]
        assert H.route == route


@pytest.mark.heavy
@pytest.mark.parametrize("name", SMALL)
def test_every_engine_has_the_products_of_ordinary_convolutions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, thetas, batch = problem(name)
    V = randn(len(thetas), thetas.shape[1], 3, stream_name="V")
    expected = ht.hessian(loss, thetas, batch, route="kept") @ V
    expected_gradient = ht.gradient(loss, thetas, batch)
    ordinary = ht.hessian(loss, thetas, batch, route="traced")
    close(ordinary @ V, expected)
    forward = ordinary.prepared._forward()
    gauss_newton = ht.gauss_newton(loss, thetas, batch, route="direct") @ V
    monkeypatch.setattr(convolutions, "pays", lambda *, points, **sizes: points > 1)
    for route in ("direct", "traced"):
        H = ht.hessian(loss, thetas, batch, route=route)
        close(H @ V, expected)
        close(H.mv(V[..., 0]), expected[..., 0])
        if name != "resnet12":  # whose trace takes ten seconds
            close(ht.gauss_newton(loss, thetas, batch, route=route) @ V, gauss_newton)
    close(ht.gradient(loss, thetas, batch), expected_gradient)
    # Another trace was made, whose larger kept tensors are counted: the patches of images are among them.
    (trace,), (before,) = H.prepared.findings.traces, ordinary.prepared.findings.traces
    assert trace is not before and trace.kept_bytes > before.kept_bytes
    assert trace.work_bytes > before.work_bytes
    assert not any("convolution" in str(node.target) for node in trace.vector_part.graph.nodes)
    assert any(isinstance(part, Stacked) for part in H.prepared.current.parts)
    assert H.prepared._forward() > forward
    # A limit that a few points fit into is kept to.
    limit = max(trace.work_bytes, trace.point_bytes) + 2 * trace.kept_bytes
    close(ht.hessian(loss, thetas, batch, route="traced", max_memory=limit) @ V, expected)
    # At one point convolutions are ordinary, and so is the trace.
    one = ht.hessian(loss, thetas[0], tuple(leaf[0] for leaf in batch), route="traced")
    close(one @ V[0], expected[0])
    assert one.prepared.findings.traces == (before,)


@pytest.mark.slow
@pytest.mark.usefixtures("by_matrix_products")
def test_rounding_in_float32_is_that_of_ordinary_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, thetas, batch = problem("strided")
    V = randn(len(thetas), thetas.shape[1], 2, stream_name="V")
    exact = ht.hessian(loss, thetas, batch, route="direct") @ V
    model = ht.seeded(SMALL["strided"], seed=1)
    loss = ht.make_loss(model, F.cross_entropy, ht.flatten(model)[1])
    single = thetas.float(), (batch[0].float(), batch[1])
    by_matrices = ht.hessian(loss, *single, route="direct") @ V.float()
    monkeypatch.setattr(convolutions, "pays", lambda **sizes: False)
    ordinary = ht.hessian(loss, *single, route="direct") @ V.float()
    errors = [(found.double() - exact).norm() / exact.norm() for found in (by_matrices, ordinary)]
    assert max(errors) < 1e-6 and errors[0] < 2 * errors[1] + 1e-7, errors


@pytest.mark.usefixtures("by_matrix_products")
def test_a_traced_batch_normalisation_gets_images_without_gaps() -> None:
    """The kernel that is traced on a GPU, cuDNN's, refuses others."""
    loss, (theta, *_), (x, y) = problem("conv4")

    def value(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        with ShortBatchNorm(), convolutions.at_many_points(32, theta.device):
            return loss(theta, (x, y))

    graph = make_fx(value, tracing_mode="fake")(theta, x[0], y[0]).graph
    nodes = [node for node in graph.nodes if "batch_norm" in str(node.target)]
    assert len(nodes) == 4
    assert not any("convolution" in str(node.target) for node in graph.nodes)
    assert all(node.args[0].meta["val"].is_contiguous() for node in nodes)


@pytest.mark.slow
@pytest.mark.usefixtures("by_matrix_products")
def test_a_trace_is_compared_with_a_product_by_the_same_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 the rounding of others may fall on the other side of a kink, and the trace would be refused."""
    loss, thetas, batch = problem("strided")
    agrees, seen = trace_cache._agrees, []
    monkeypatch.setattr(convolutions, "_patches", counted := Counted(convolutions._patches))

    def watched(*args: Any) -> bool:
        before = counted.calls
        result = agrees(*args)
        seen.append(counted.calls - before)
        return result

    monkeypatch.setattr(trace_cache, "_agrees", watched)
    for _ in range(2):  # of a new trace, and of one that is known
        ht.hessian(loss, thetas, batch, route="traced") @ thetas[0, :, None]
    assert len(seen) == 2 and min(seen) > 0


# Quantities that take points together, whose derivatives go beyond products.
QUANTITIES = (
    "product-gauss-newton",
    "product-batches",
    "gradient",
    "gauss_newton_spectrum",
    "gauss_newton_share",
    "third_derivative",
    "adaptation_jacobian-tasks",
    "singular_values",
    "subspaces",
    "ragged",
    "scaled",
)


@pytest.mark.heavy
@pytest.mark.parametrize("name", QUANTITIES)
def test_every_quantity_is_that_of_ordinary_convolutions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute: Callable[[Any], Any] = (COMPUTED | DERIVED)[name]
    case = next(case for case in DEVICE_CASES if case.name == "conv-batchnorm")
    ordinary = compared(compute(place(case, "cpu")))
    monkeypatch.setattr(convolutions, "pays", lambda *, points, **sizes: points > 1)
    fresh = ht.make_loss(case.loss.model, case.loss.criterion, case.loss.layout)  # of which no trace is known
    same(compared(compute(place(replace(case, loss=fresh), "cpu"))), ordinary)
