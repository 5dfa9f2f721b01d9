"""A sharded model beside the same model in one process; a run that is resumed; a process that is killed.

The parameters of a sharded model are divided among the processes of a group. Each process holds its shard, a part of
every parameter, and gathers the whole parameters while it computes. The functions below run in each process of a group.
"""

import os
import signal
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from data_parallel_cases import Team, problem
from first_look_cases import Cube, CubeOnce, Exponential, StraightThrough
from teams import message_of
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn import functional as F

import hessian_tools as ht
from hessian_tools.curvature.estimates.plan import PeakBytes
from hessian_tools.distributed import shard, sharded_hessian

Pair = tuple[Any, Any]
SIZES = (4, 7, 3, 5)


class Tied(nn.Module):
    """A network with layer normalisation, a weight that is used twice, and parameters smaller than the group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 3)
        self.second = nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(self.norm(torch.tanh(self.first(x))))))


def model() -> nn.Module:
    """The network of most cases, with the same weights each time."""
    return ht.seeded(Tied, seed=0).double()


def data(size: int) -> list[Any]:
    """One batch for each process of a group of this size."""
    draw = torch.Generator().manual_seed(1)
    numbers = [torch.randn(n, 5, generator=draw, dtype=torch.float64) for n in SIZES[:size]]
    return [(x, torch.randint(0, 3, (len(x),), generator=draw)) for x in numbers]


def products(group: Any) -> list[Pair]:
    """Products, eigenpairs and probes of the sharded model.

    Each stands beside the part that belongs to this process of what one process computes with the whole model.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    pairs = []
    for criterion in (F.cross_entropy, _summed):
        alone = ht.hessian_of(model(), criterion, data(size))
        H = sharded_hessian(shard(model(), group), criterion, data(size)[rank])
        V = torch.randn(H.num_params, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        pairs.append((H.mv(own_part(H, V)), own_part(H, alone.mv(V))))
    options: dict[str, Any] = {"k": 3, "rtol": 1e-7, "vectors": True, "max_basis": 12, "max_matvecs": 200}
    ours = H.top_eigenpairs(**options)
    whole = ht.top_eigenpairs(alone, method="lanczos", copies=False, **options)
    assert ours.vectors is not None and whole.vectors is not None
    pairs += [(ours.values, whole.values), (ours.num_matvecs, whole.num_matvecs), (ours.converged, whole.converged)]
    # The sign of an eigenvector is arbitrary. A process whose shard is empty has nothing to compare.
    expected = own_part(H, whole.vectors)
    signs = torch.sign((ours.vectors * expected).sum(0))
    pairs.append((ours.vectors * signs.where(signs != 0, 1.0), expected) if H.shard_size else (0, 0))
    pairs.append((H.trace(num_probes=3).samples, ht.trace(alone, num_probes=3, method="probes").samples))
    return pairs


def own_part(H: Any, V: Tensor) -> Tensor:
    """The rows of whole vectors V [param, ...] that belong to the shard of this process."""
    return torch.cat([V[start:stop] for start, stop in H.operator.shards.segments])


def _summed(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="sum")


WIDTH, DEPTH = 64, 12


class PeakBytesOfShards(PeakBytes):
    """Counts the bytes of ordinary tensors only, because a DTensor has no memory besides that of its shard."""

    def add(self, tensor: Tensor) -> None:
        if not isinstance(tensor, DTensor):
            super().add(tensor)


def memory(group: Any) -> dict[str, float]:
    """The memory that products of a deep network take besides vectors in shards, in units of one whole weight matrix.

    It is measured between two products, and at the peak of the first and of the second product. The last number is 1 if
    the gradient is not freed together with the graphs that the operator keeps, because it refers to itself.
    """

    def build() -> nn.Module:
        return nn.Sequential(*[m for _ in range(DEPTH) for m in (nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh())])

    network = ht.seeded(build, seed=0).double()
    batch = torch.ones(1, WIDTH, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    H = sharded_hessian(shard(network, group), F.cross_entropy, batch)
    v, weight = torch.ones(H.shard_size, dtype=torch.float64), 8 * WIDTH**2
    with PeakBytesOfShards() as first:
        H.mv(v)
    kept = first.now
    with PeakBytesOfShards() as second:
        H.mv(v)
    gradient = weakref.ref(H.operator.cached_gradient[0].gradients[0])
    H.operator.cached_gradient.clear()
    vector = 8 * H.shard_size  # the parameters, v, the gradient, and the product
    return {
        "kept": (kept - 3 * vector) / weight,
        "first": (first.peak - 4 * vector) / weight,
        "second": (second.peak - 3 * vector) / weight,
        "gradient that holds itself": float(gradient() is not None),
    }


def other_models(group: Any) -> list[Pair]:
    """Products of models that use their parameters in other ways than by one matrix product each."""
    rank, size, pairs = dist.get_rank(group), dist.get_world_size(group), []
    for build in (Views, Recurrent, Gathering, Functions):
        draw = torch.Generator().manual_seed(3)
        x = torch.randn(size, 2, 3, 8, generator=draw, dtype=torch.float64)
        y = torch.randn(size, 2, 3, 8, generator=draw, dtype=torch.float64)
        whole, sharded = (ht.seeded(build, seed=0).double() for _ in range(2))
        alone = ht.hessian_of(whole, F.mse_loss, [(x[i], y[i]) for i in range(size)])
        sharded = sharded.divided(group) if isinstance(sharded, Gathering) else shard(sharded, group)
        H = sharded_hessian(sharded, F.mse_loss, (x[rank], y[rank]))
        V = torch.randn(H.num_params, generator=draw, dtype=torch.float64)
        for _ in range(2):  # the second product uses the graphs that the first one has kept
            pairs.append((H.mv(own_part(H, V)), own_part(H, alone.mv(V))))
    return pairs


class Views(nn.Module):
    """Attention, a convolution, and a parameter that is used as it is, transposed, cut and multiplied by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.convolution = nn.Conv1d(3, 3, 3, padding=1)
        self.matrix = nn.Parameter(torch.randn(8, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(self.attention(x, x, x, need_weights=False)[0])
        W = self.matrix
        top, bottom = W.chunk(2)
        x = torch.tanh(x @ W) + x @ W.t() @ W
        return Cube.apply(x[..., :4] @ top + x[..., 4:] @ bottom.contiguous() * W.view(-1)[3])


class Recurrent(nn.Module):
    """A recurrent network, which uses its weights at each of three steps, and parameters that enter linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.shift = nn.LSTMCell(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            outputs.append(self.shift(state[0]))
        return torch.stack(outputs, 1)


class Functions(nn.Module):
    """A layer whose outputs go through a function with a backward pass of its own, and a parameter with two names."""

    def __init__(self, function: Any = Cube) -> None:
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.again = self.factor = nn.Parameter(torch.ones(8))
        self.register_buffer("shift", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.again * self.last(self.function.apply(self.factor * self.first(x))) + self.shift


class Stored(nn.Module):
    """A model that reads its weights from a list which it has made beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.own = [self.layer.weight, self.layer.bias]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(self.layer(x), *self.own))


def silent(group: Any) -> list[str]:
    """The messages on losses that would silently give wrong numbers, in the order of the calls below."""
    rank = dist.get_rank(group)
    draw = torch.Generator().manual_seed(4 + rank)
    x = torch.randn(3, 8, generator=draw, dtype=torch.float64)

    def noisy(out: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(out + torch.randn_like(out), y)

    calls_so_far = iter(range(1, 100))

    def counting(out: Tensor, y: Tensor) -> Tensor:
        return next(calls_so_far) * F.mse_loss(out, y)

    def hooked(out: Tensor, y: Tensor) -> Tensor:
        if out.requires_grad:
            out.register_hook(lambda slope: 2 * slope)
        return F.mse_loss(out, y)

    def product(function: Any, criterion: Any) -> Tensor:
        H = sharded_hessian(made(lambda: Functions(function)), criterion, (x, x))
        return H.mv(torch.ones(H.shard_size, dtype=torch.float64))

    def made(build: Callable[[], nn.Module], shift: float = 0.0) -> nn.Module:
        network = shard(ht.seeded(build, seed=0).double(), group)
        for buffer in network.buffers():
            buffer.fill_(shift)
        return network

    calls = [
        lambda: sharded_hessian(made(Functions), noisy, (x, x)),
        lambda: sharded_hessian(made(lambda: Functions(Exponential)), F.mse_loss, (x, x)),
        lambda: sharded_hessian(made(lambda: Functions(StraightThrough)), F.mse_loss, (x, x)),
        lambda: sharded_hessian(made(Stored), F.mse_loss, (x, x)),
        lambda: sharded_hessian(made(Functions, shift=rank), F.mse_loss, (x, x)),
        lambda: sharded_hessian(made(lambda: nn.Embedding(9, 8, sparse=True)), F.mse_loss, (x[:, 0].long().abs(), x)),
        lambda: shard(nn.ParameterList([torch.ones(()), torch.ones(2)]), group),
        lambda: _parameters_stay(made(Functions), x),
        lambda: sharded_hessian(made(Functions), counting, (x, x)),
        lambda: product(Cube, hooked),
        lambda: product(CubeOnce, F.mse_loss),
        lambda: product(StraightThrough if rank else SimpleNamespace(apply=torch.tanh), F.mse_loss),
        lambda: sharded_hessian(made(Functions), F.mse_loss, (x, x), weight=1 - 2 * rank),
        lambda: sharded_hessian(made(Functions), lambda out, y: (out - y) ** 2, (x, x)),
    ]
    return [message_of(call) for call in calls]


def refused_by_one(group: Any) -> list[str]:
    """The messages where only the loss of process 1 has no second derivative, or a hook that changes a gradient."""
    rank = dist.get_rank(group)
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(3, 8)
    tanh = SimpleNamespace(apply=torch.tanh)

    def hooked(out: Tensor, y: Tensor) -> Tensor:
        if rank and out.requires_grad:
            out.register_hook(lambda slope: 2 * slope)
        return F.mse_loss(out, y)

    def product(function: Any, criterion: Any) -> Tensor:
        H = sharded_hessian(shard(ht.seeded(lambda: Functions(function), seed=0).double(), group), criterion, (x, x))
        return H.mv(torch.ones(H.shard_size, dtype=torch.float64))

    calls = [lambda: product(CubeOnce if rank else tanh, F.mse_loss), lambda: product(tanh, hooked)]
    return [message_of(call) for call in calls]


def _parameters_stay(network: nn.Module, x: Tensor) -> None:
    """Say, by an error, whether the parameters are the same after the library has checked a hand-written derivative."""
    before = [p.detach().to_local().clone() for p in network.parameters()]  # type: ignore[operator]
    sharded_hessian(network, F.mse_loss, (x, x))
    after = [p.detach().to_local() for p in network.parameters()]  # type: ignore[operator]
    raise ValueError(f"equal: {all(torch.equal(a, b) for a, b in zip(before, after, strict=True))}")


def class_weights(group: Any) -> list[Pair]:
    """Products for a criterion with class weights in float32, by whose sum it divides.

    The weights of the processes are first those that the library finds, and then given ones.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]), label_smoothing=0.1)
    alone = ht.hessian_of(model(), criterion, data(size))
    H = sharded_hessian(shard(model(), group), criterion, data(size)[rank])
    V = torch.randn(H.num_params, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pairs = [(H.mv(own_part(H, V)), own_part(H, alone.mv(V)))]
    weights = [3.0, *(1.0 for _ in range(size - 1))]
    alone = ht.hessian_of(model(), criterion, data(size), weights=[weight / sum(weights) for weight in weights])
    H = sharded_hessian(shard(model(), group), criterion, data(size)[rank], weight=weights[rank])
    return [*pairs, (H.mv(own_part(H, V)), own_part(H, alone.mv(V)))]


class Gathering(nn.Module):
    """A model whose parameter is a DTensor that it gathers by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8) / 3)

    def divided(self, group: Any) -> nn.Module:
        mesh = dist.device_mesh.DeviceMesh.from_group(group, "cpu")
        self.weight = nn.Parameter(distribute_tensor(self.weight.detach(), mesh, [Shard(0)]))
        return self

    def forward(self, x: Tensor) -> Tensor:
        W: Any = self.weight
        if isinstance(W, DTensor):
            W = W.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
        return torch.tanh(torch.tanh(x @ W) @ W.t())


def refusals(group: Any) -> list[str]:
    """The messages on models, operators and arguments that must be refused, in the order of the calls below."""
    batch = data(2)[dist.get_rank(group)]
    mesh = dist.device_mesh.DeviceMesh.from_group(group, "cpu")
    sharded = shard(model(), group)

    def of(network: nn.Module) -> Any:
        return lambda: sharded_hessian(network, F.cross_entropy, batch)

    def made(*modules: nn.Module) -> nn.Module:
        network = nn.Sequential(*modules).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(0.5)
        return network

    other = made(nn.Linear(5, 3))
    with torch.no_grad():
        other[0].bias.fill_(dist.get_rank(group))
    calls = [
        of(model()),
        of(fully_shard(model(), mesh=mesh)),
        of(shard(made(nn.Linear(5, 3), nn.Dropout(0.5)), group)),
        of(shard(made(nn.BatchNorm1d(5), nn.Linear(5, 3)), group)),
        lambda: shard(sharded, group),
        lambda: shard(other, group),
        lambda: ht.trace(of(sharded)()),
        lambda: of(sharded)().mv(torch.ones(3)),
        lambda: _after_a_step(of(sharded)()),
        lambda: _after_a_step(of(sharded)(), of_data=True),
        lambda: sharded_hessian(sharded, F.cross_entropy, [batch, batch]),
        lambda: sharded_hessian(sharded, F.cross_entropy, batch, weight=0),
        lambda: sharded_hessian(sharded, None, batch),  # type: ignore[arg-type]
    ]
    return [message_of(call) for call in calls]


def _after_a_step(H: Any, *, of_data: bool = False) -> Tensor:
    """A product after the parameters have changed, which must be refused. of_data: change them by way of ``.data``."""
    v = torch.ones(H.shard_size, dtype=torch.float64)
    H.mv(v)
    with torch.no_grad():
        for parameter in H.operator.parameters:
            (parameter.data if of_data else parameter).mul_(2)
    return H.mv(v)


def resumed(group: Any, folder: Path) -> list[Pair]:
    """A search for eigenpairs by processes that divide the data, which is interrupted at a product and then resumed."""
    loss, theta, batches = problem()
    H = ht.hessian(loss, theta, Team(group).share(batches))
    options: dict[str, Any] = {"k": 2, "rtol": 1e-10, "max_basis": 8, "max_matvecs": 500, "method": "lanczos"}
    whole = ht.top_eigenpairs(H, **options)
    calls = []

    class Stopping(type(H)):
        """The operator, whose 15th product is interrupted."""

        def products(self, V: Tensor) -> Tensor:
            calls.append(len(calls))
            if len(calls) == 15:
                raise KeyboardInterrupt
            return super().products(V)

    with suppress(KeyboardInterrupt):
        ht.top_eigenpairs(Stopping(H.prepared, H.single), folder=folder, **options)
    saved = sorted(path.parent.parent.name for path in folder.glob("*/*/run.safetensors"))
    again = ht.top_eigenpairs(H, folder=folder, **options)
    return [(again.values, whole.values), (again.num_matvecs, whole.num_matvecs), (len(saved) >= 1, True)]


def killed_in_shards(group: Any) -> tuple[str, float]:
    """The same as ``killed`` for a model in shards, whose products gather parameters."""
    H = sharded_hessian(shard(model(), group), F.cross_entropy, data(4)[dist.get_rank(group)])
    return _without_process_2(lambda: H.mv(torch.ones(H.shard_size, dtype=torch.float64)))


def killed(group: Any) -> tuple[str, float]:
    """What a process says, and after how many seconds, when another one is killed between its products."""
    loss, theta, batches = problem()
    H = ht.hessian(loss, theta, Team(group).share(batches))
    return _without_process_2(lambda: H.mv(theta))


def _without_process_2(product: Callable[[], Tensor]) -> tuple[str, float]:
    """Kill process 2; in the others, repeat a product until it raises an error. Returns the error and the seconds."""
    product()
    dist.barrier()
    if dist.get_rank() == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    try:
        while True:
            product()
    except Exception as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - start
