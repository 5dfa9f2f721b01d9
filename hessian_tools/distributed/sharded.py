"""The Hessian of a model whose parameters are sharded over processes, with every vector in shards as well.

Each process holds a part of each parameter, as a ``DTensor``, and the same part of every vector. A product gathers one
parameter after the other where the model uses it (Zhang et al. 2024, SimpleFSDP), and its double backward pass returns
the process's part of Hv. A step of Lanczos exchanges the inner products with its m vectors and nothing of length n.
"""

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from hessian_tools.batches import arguments, cast_like, signature_of, split_batch
from hessian_tools.curvature.eigen.batched_lanczos import Limits
from hessian_tools.curvature.eigen.lanczos import lanczos, random_vector
from hessian_tools.curvature.eigen.pairs import basis_size, checked_selection
from hessian_tools.curvature.eigen.rayleigh_ritz import EigenPairs, checked_pairs
from hessian_tools.curvature.eigen.saved_runs import SavedRun
from hessian_tools.curvature.eigen.selection import Which
from hessian_tools.curvature.engines.memory import memory_budget
from hessian_tools.curvature.estimates.trace import Estimate, estimate_of
from hessian_tools.curvature.objective.batch_weights import batch_weights
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.shards import Shards
from hessian_tools.loss import Batch, Criterion
from hessian_tools.processes import Ranks, checked_group
from hessian_tools.random_states import drawn_between, global_states
from hessian_tools.rng import stream
from hessian_tools.torch_fixes.function_modes import TwiceDifferentiable
from hessian_tools.torch_fixes.precision import full_precision


class _Gathered(nn.Module):
    """The parametrisation of a sharded parameter: its whole tensor, whose gradient is summed into the shards."""

    def forward(self, shard: Tensor) -> Tensor:
        """The whole tensor on every process."""
        assert isinstance(shard, DTensor)
        placements = [Replicate()] * shard.device_mesh.ndim
        whole = shard.redistribute(placements=placements).to_local(grad_placements=[Partial()] * len(placements))
        if _regathers:
            _regathers[-1].gathered.append((weakref.ref(whole), shard))
        return whole


class _Regathers:
    """A context in which graphs do not hold whole parameters: where a derivative needs one, it is gathered again.

    All processes run the same graph and therefore gather in the same order.
    """

    def __init__(self) -> None:
        self.gathered: list[tuple[weakref.ref[Tensor], DTensor]] = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._packed, self._unpacked)

    def __enter__(self) -> None:
        _regathers.append(self)
        self.hooks.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)
        _regathers.pop()

    def _packed(self, tensor: Tensor) -> Any:
        for reference, shard in self.gathered:
            whole = reference()
            if whole is not None and whole.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
                return shard, shard._version, tensor.shape, tensor.stride(), tensor.storage_offset()
        return tensor

    def _unpacked(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        shard, version, *form = packed
        if shard._version != version:
            raise ValueError("the parameters have changed since the first product; make the sharded_hessian again")
        with torch.no_grad():
            whole = shard.redistribute(placements=[Replicate()] * shard.device_mesh.ndim).to_local()
            return whole.as_strided(*form)


_regathers: list[_Regathers] = []  # the contexts that are open


def shard(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Shards the trainable parameters of a model over the processes of a group, in place; returns the model.

    Each parameter becomes a ``DTensor`` that is divided along its first axis, and is gathered whenever the model uses
    it. All processes must give the same model.

    Raises ValueError for models that are wrapped or sharded already, and for processes whose parameters differ.
    """
    _refuse_wrapped(model)
    group = checked_group(process_group)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if any(isinstance(p, DTensor) for p in parameters):
        raise ValueError("the model has DTensors as parameters already; give it to sharded_hessian")
    if not parameters:
        raise ValueError("the model has no trainable parameters; set requires_grad")
    kind = parameters[0].device.type
    ranks = Ranks(group, parameters[0].device)
    sums = ranks.numbers([sum(float(p.detach().double().sum()) for p in parameters), len(parameters)])
    if any(row != sums[0] for row in sums):
        raise ValueError("the processes have different parameters; make the model after torch.manual_seed(0) on each")
    mesh = DeviceMesh.from_group(group, kind)
    shared: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad:
                if parameter.ndim == 0:
                    raise ValueError(f"the parameter {name!r} is a single number; give it the shape [1]")
                if id(parameter) not in shared:
                    shared[id(parameter)] = nn.Parameter(_divided(parameter.detach(), mesh, ranks))
                module.register_parameter(name, shared[id(parameter)])
                parametrize.register_parametrization(module, name, _Gathered(), unsafe=True)
    return model


def _divided(whole: Tensor, mesh: DeviceMesh, ranks: Ranks) -> DTensor:
    """The DTensor of a tensor that every process has; only this process's part stays in memory."""
    rows = -(-whole.shape[0] // ranks.size)
    own = whole[ranks.rank * rows : (ranks.rank + 1) * rows].clone(memory_format=torch.contiguous_format)
    stride = torch.empty(whole.shape, device="meta").stride()
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=stride)


@dataclass(frozen=True)
class ShardedHessian:
    """The Hessian of a sharded model; made by :func:`sharded_hessian`.

    Vectors are those parts of theta that this process holds: the shards of the parameters, in the order of
    ``named_parameters()``, flattened and put together. All processes must make every call.
    """

    operator: "_Products"

    @property
    def num_params(self) -> int:
        """The number of rows of the whole matrix."""
        return self.operator.shards.total

    @property
    def shard_size(self) -> int:
        """How many entries of a vector this process holds."""
        return self.operator.shards.length

    @full_precision
    def mv(self, v: Float[Tensor, " shard"]) -> Float[Tensor, " shard"]:
        """This process's part of the product with a vector, from its part of the vector."""
        if v.shape != (self.shard_size,) or v.dtype != self.operator.dtype:
            raise ValueError(
                f"v has shape {tuple(v.shape)} and {v.dtype}; give this process's part of the vector, "
                f"[{self.shard_size}] of {self.operator.dtype}"
            )
        return self.operator.products(v[None, :, None])[0, :, 0]

    @full_precision
    def top_eigenpairs(
        self,
        *,
        k: int = 5,
        which: Which = "LM",
        rtol: float = 1e-3,
        vectors: bool = False,
        seed: int = 0,
        max_matvecs: int | None = None,
        max_basis: int | None = None,
        folder: str | Path | None = None,
    ) -> EigenPairs:
        """k eigenpairs by Lanczos with residuals from true products, as :func:`hessian_tools.top_eigenpairs` gives.

        The arguments are those of that function, without the search for further copies of multiple eigenvalues.
        ``vectors`` of the result are shards [shard, k]. max_basis: None takes as many vectors as fit into 512 MiB of
        each process (CUDA: 4 GiB or less), but at least 2 k + 8.
        """
        H, total = self.operator, self.num_params
        selections = (checked_selection(which, k, rtol, total),)
        budget = max(100, 20 * k) if max_matvecs is None else max_matvecs
        if budget < 2 * k:
            raise ValueError(f"max_matvecs={budget} cannot find and check {k} eigenpairs; give {2 * k} or more")
        if max_basis is not None and max_basis < min(total, 2 * k + 2):
            raise ValueError(f"max_basis={max_basis} cannot restart {k} eigenpairs; give {2 * k + 2} or more")
        if max_basis is None:
            fit = memory_budget(H.device) // (H.dtype.itemsize * -(-total // H.shards.ranks.size))
            max_basis = basis_size(fit, k)
        limits = Limits(seed, budget - k, min(max_basis, budget + 1, total))
        saved = None
        if folder is not None:
            saved = SavedRun(Path(folder), H, selections, limits, random_vector(H, 0, "saved run"))
        (pairs,) = checked_pairs(H, lanczos(H, selections, limits, saved=saved), selections)
        if saved is not None:
            saved.remove()
        assert pairs.vectors is not None
        return EigenPairs(
            pairs.values[0],
            pairs.residuals[0],
            pairs.converged[0],
            pairs.vectors[0] if vectors else None,
            pairs.num_matvecs[0],
            pairs.complete[0],
        )

    @full_precision
    def trace(self, *, num_probes: int = 64, seed: int = 0) -> Estimate:
        """The trace from Rademacher probes: those of :func:`hessian_tools.trace` with ``method="probes"``."""
        if num_probes < 2:
            raise ValueError(f"num_probes={num_probes}: a standard error needs 2 probes or more")
        H, samples = self.operator, []
        for column in range(num_probes):
            generator = stream(seed, "rademacher", column)

            def bits(count: int, generator: torch.Generator = generator) -> Tensor:
                return torch.randint(0, 2, (count,), generator=generator, dtype=torch.int8, device="cpu")

            z = H.shards.own_numbers(bits, torch.int8).mul_(2).sub_(1).to(H.device, H.dtype)
            samples.append(H.shards.inner((z * H.products(z[None, :, None])[0, :, 0]).sum()))
        return estimate_of(torch.stack(samples))


def sharded_hessian(
    model: nn.Module, criterion: Criterion, batch: Batch, *, weight: float | None = None
) -> ShardedHessian:
    """The Hessian of a model whose trainable parameters are DTensors, at their present values.

    model: made by :func:`shard`, or a model whose parameters are DTensors that are divided along their first axis over
        one group of processes, and whose forward pass gathers them so that it can be differentiated twice. It must be
        a function of its parameters: buffers that move and random numbers are refused.
    criterion: ``criterion(outputs, targets)``. batch: the pair (inputs, targets) of this process; the objective is the
        loss of the data of all processes.
    weight: how much this process's loss counts; None finds by what the criterion divides each batch, as ``hessian``
        does. Give a number on every process for outputs that are no tensor.

    Raises ValueError where parameters are no DTensors or divided in another way, for FSDP2's ``fully_shard``, which
    gives no second derivative, for ``DistributedDataParallel``, and for a forward pass that changes state.
    """
    _refuse_wrapped(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, p in named:
        if not isinstance(p, DTensor):
            raise ValueError(
                f"the parameter {name!r} is no DTensor; call shard(model) first, before any optimiser is made"
            )
        if p.device_mesh.ndim != 1 or tuple(p.placements) != (Shard(0),) or p.device_mesh != named[0][1].device_mesh:  # type: ignore[attr-defined]
            raise ValueError(
                f"the parameter {name!r} is placed as {p.placements} on {p.device_mesh}; only parameters that are "
                "divided along their first axis over one group of processes are supported: give a plain model to shard"
            )
        if p.dtype not in (torch.float32, torch.float64) or p.dtype != named[0][1].dtype:
            raise ValueError(f"the parameter {name!r} is {p.dtype}; give all in float32 or all in float64")
    if not named:
        raise ValueError("the model has no trainable parameters; set requires_grad before shard(model)")
    parameters: list[Any] = [p for _, p in named]
    ranks = Ranks(parameters[0].device_mesh.get_group(), parameters[0].to_local().device)
    segments, start = [], 0
    for p in parameters:
        rows = -(-p.shape[0] // ranks.size)  # as DTensor divides them; the last processes may have fewer or none
        first = min(ranks.rank * rows, p.shape[0])
        offset = start + first * (p.numel() // p.shape[0])
        segments.append((offset, offset + p.to_local().numel()))
        start += p.numel()
    shards = Shards(ranks, start, segments)
    batch = cast_like(batch, parameters[0].to_local())
    x, y = split_batch(batch, signature_of(model))
    outputs = ranks.together(lambda: _outputs_without_change(model, x, ranks.device))
    if weight is None:
        weight = _weight(criterion, outputs, y, ranks)
    else:
        weight = weight / sum(row[0] for row in ranks.numbers([weight]))
    return ShardedHessian(_Products(model, criterion, x, y, weight, tuple(parameters), shards, []))


@dataclass(frozen=True, repr=False)
class _Products(Operator):
    """The products with this process's part of the matrix, at one point; rows are those of its shards.

    kept: the gradient with its graph, once the first product has made it.
    """

    model: nn.Module
    criterion: Criterion
    x: Any
    y: Any
    weight: float
    parameters: tuple[Any, ...]
    own: Shards
    kept: list[Any]

    @property
    def shards(self) -> Shards:
        """The division of vectors over the processes."""
        return self.own

    @property
    def ranks(self) -> Ranks:
        """The processes."""
        return self.own.ranks

    @property
    def num_params(self) -> int:
        """The number of rows that this process holds."""
        return self.own.length

    @property
    def num_points(self) -> None:
        """None, for a single point."""
        return

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self.parameters[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of the shards."""
        return self.own.ranks.device

    def select(self, points: Tensor) -> Operator:
        """There is one point only."""
        raise ValueError("an operator at a single point has no points to select")

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """This process's part of the products, one column after the other; every process takes part in each."""
        columns = [self._product(v) for v in V[0].mT]
        return torch.stack(columns, dim=-1)[None] if len(columns) > 1 else columns[0][None, :, None]

    def _product(self, v: Tensor) -> Tensor:
        if not self.kept:
            self.kept.append(self._gradient())
        chosen = [(g, part) for g, part in zip(self.kept[0], self._as_parameters(v), strict=True) if g.requires_grad]
        if not chosen:
            return torch.zeros_like(v)
        gradients, directions = zip(*chosen, strict=True)
        return self._own(
            torch.autograd.grad(gradients, self.parameters, directions, retain_graph=True, allow_unused=True)
        )

    def _gradient(self) -> tuple[Any, ...]:
        with torch.enable_grad(), TwiceDifferentiable(), _Regathers():
            value = self.weight * self.criterion(_call(self.model, self.x), self.y)
            gradients = torch.autograd.grad(value, self.parameters, create_graph=True, allow_unused=True)
        missing = [i for i, g in enumerate(gradients) if g is None]
        if missing:
            names = [name for name, p in self.model.named_parameters() if p.requires_grad]
            raise ValueError(f"the loss does not depend on {names[missing[0]]!r}; set its requires_grad to False")
        return gradients

    def _as_parameters(self, v: Tensor) -> list[DTensor]:
        """The vector as DTensors with the shapes of the parameters."""
        locals_ = [p.to_local() for p in self.parameters]
        pieces = v.split([each.numel() for each in locals_])
        return [
            DTensor.from_local(
                piece.reshape(each.shape),
                p.device_mesh,
                p.placements,
                run_check=False,
                shape=p.shape,
                stride=p.stride(),
            )
            for piece, each, p in zip(pieces, locals_, self.parameters, strict=True)
        ]

    def _own(self, tensors: Any) -> Tensor:
        """This process's shards of DTensors like the parameters, as one vector; zeros where there is none."""
        parts = []
        for tensor, p in zip(tensors, self.parameters, strict=True):
            if tensor is None:
                parts.append(torch.zeros_like(p.to_local()).flatten())
                continue
            parts.append(tensor.redistribute(placements=p.placements).to_local().flatten())
        return torch.cat(parts)


def _call(model: nn.Module, x: Any) -> Any:
    positional, named = arguments(x, signature_of(model))
    return model(*positional, **named)


def _outputs_without_change(model: nn.Module, x: Any, device: torch.device) -> Any:
    """The outputs at the present parameters; raises ValueError if the forward pass changes buffers or draws numbers."""
    before, buffers = global_states(device), [b.detach().clone() for b in model.buffers()]
    with torch.no_grad():
        outputs = _call(model, x)
    if drawn_between(before, global_states(device)) == "surely":
        raise ValueError("the model draws random numbers in its forward pass; call model.eval()")
    if any(not torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True)):
        raise ValueError("the model changes its buffers in its forward pass; call model.eval()")
    return outputs


def _weight(criterion: Criterion, outputs: Any, y: Any, ranks: Ranks) -> float:
    """The share of this process's loss in the loss of all data, by what the criterion divides its batch."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor):
        raise ValueError(
            "outputs and targets are no tensors, so it is not known how much each batch counts; give weight="
        )
    first = ranks.from_process(0, (outputs.cpu(), y.cpu()))

    def loss(scale: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        return criterion(scale * pair[0], pair[1])

    one = torch.ones(1, 1, dtype=outputs.dtype, device=outputs.device)
    pair = [cast_like(first, one), (outputs, y)]
    of_first, of_own = ranks.together(lambda: batch_weights(loss, one, pair, shared=True))
    rows = ranks.numbers([of_own / of_first, float(of_first + of_own == 2)])
    if all(row[1] for row in rows):
        return 1.0
    return of_own / of_first / sum(row[0] for row in rows)


def _refuse_wrapped(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, FSDPModule):
            raise ValueError(
                f"the module {name or 'itself'!r} is wrapped by fully_shard, which gives no second derivative; give "
                "the plain model to hessian_tools.distributed.shard"
            )
        if isinstance(module, DistributedDataParallel | nn.DataParallel):
            raise ValueError(f"the module {name or 'itself'!r} is a {type(module).__name__}; give its .module")
