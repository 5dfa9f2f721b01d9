"""The Hessian of a model whose parameters are sharded over processes, with every vector in shards as well.

Each process holds a part of each parameter, as a ``DTensor``, and the same part of every vector. A product gathers one
parameter after the other where the model uses it, and its double backward pass returns the process's part of Hv. A step
of Lanczos exchanges the inner products with its m vectors and nothing of length n.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from hessian_tools.batches import batches_of, cast_like, signature_of, split_batch
from hessian_tools.curvature.eigen.lanczos import lanczos, random_vector
from hessian_tools.curvature.eigen.pairs import checked_selection, joined, lanczos_limits
from hessian_tools.curvature.eigen.rayleigh_ritz import EigenPairs, checked_pairs
from hessian_tools.curvature.eigen.saved_runs import SavedRun
from hessian_tools.curvature.eigen.selection import Which
from hessian_tools.curvature.engines.memory import memory_budget
from hessian_tools.curvature.estimates.trace import Estimate, estimate_of, signs
from hessian_tools.curvature.objective.shares import refuse_different_constants
from hessian_tools.curvature.operators.lengths import Shards
from hessian_tools.distributed.look import look_at_shards, refuse_wrong_derivative
from hessian_tools.distributed.products import ShardedProducts, weight_among
from hessian_tools.distributed.sharding import refuse_wrapped, trainable
from hessian_tools.freed_blocks import return_freed_blocks
from hessian_tools.loss import Batch, Criterion
from hessian_tools.processes import Ranks
from hessian_tools.rng import stream
from hessian_tools.torch_fixes.precision import full_precision


@dataclass(frozen=True)
class ShardedHessian:
    """The Hessian of a sharded model; made by :func:`sharded_hessian`.

    Every vector that is given or returned is the part that this process holds of a vector in the space of theta: the
    entries in the shards of the parameters, flattened and joined in the order of the plain model's
    ``named_parameters()``. All processes must make every call.
    """

    operator: ShardedProducts

    @property
    def num_params(self) -> int:
        """The number of rows of the whole matrix."""
        return self.operator.shards.total

    @property
    def shard_size(self) -> int:
        """How many entries of a vector this process holds."""
        return self.operator.shards.length

    @full_precision  # float32 products are computed in float32 and not in TF32
    def mv(self, v: Float[Tensor, " shard"]) -> Float[Tensor, " shard"]:
        """This process's part of the product with a vector, from its part of the vector."""

        def check() -> None:
            if v.shape != (self.shard_size,) or v.dtype != self.operator.dtype:
                raise ValueError(
                    f"v has shape {tuple(v.shape)} and {v.dtype}; give this process's part of the vector, "
                    f"[{self.shard_size}] of {self.operator.dtype}"
                )

        self.operator.ranks.with_shared_errors(check)  # an error of one process is raised on all of them
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

        The arguments mean the same as there, but further copies of multiple eigenvalues are not searched for.
        ``vectors`` of the result are this process's entries [shard, k]. max_basis: None chooses a number of vectors
        that fit into 512 MiB of each process (CUDA: 4 GiB or less), but at least 2 k + 8.
        """
        H, total = self.operator, self.num_params
        selections = (checked_selection(which, k, rtol, total),)
        # The size of the largest shard (the quotient is rounded up), so that all processes find the same limits.
        largest_shard = -(-total // H.shards.ranks.size)
        fit = memory_budget(H.device) // (H.dtype.itemsize * largest_shard)
        limits = lanczos_limits(k, total, fit, seed, max_matvecs, max_basis, copies=False)
        saved = None
        if folder is not None:
            # A saved run is recognised by the product of its matrix with a random vector.
            saved = SavedRun(Path(folder), H, selections, limits, random_vector(H, 0, "saved run"))
        (pairs,) = checked_pairs(H, lanczos(H, selections, limits, saved=saved), selections)
        if saved is not None:
            saved.remove()
        return joined([pairs if vectors else replace(pairs, vectors=None)], single=True)

    @full_precision
    def trace(self, *, num_probes: int = 64, seed: int = 0) -> Estimate:
        """The trace, from the same Rademacher probes as :func:`hessian_tools.trace` with ``method="probes"`` draws."""
        if num_probes < 2:
            raise ValueError(f"num_probes={num_probes}: a standard error needs 2 probes or more")
        H, samples = self.operator, []
        for column in range(num_probes):
            draw = partial(signs, generator=stream(seed, "rademacher", column))
            z = H.shards.own_numbers(draw, torch.int8).to(H.device, H.dtype)
            # Products take and return [point, param, probe], here with one point and one probe.
            product = H.products(z[None, :, None])[0, :, 0]
            samples.append(H.shards.inner((z * product).sum()))  # z'Hz, added up over the processes
        return estimate_of(torch.stack(samples))


def sharded_hessian(
    model: nn.Module, criterion: Criterion, batch: Batch, *, weight: float | None = None
) -> ShardedHessian:
    """The Hessian of a model whose trainable parameters are DTensors, at their present values.

    model: made by :func:`shard`, or a model whose parameters are DTensors that are divided along their first axis over
        one group of processes, and whose forward pass gathers them so that it can be differentiated twice. It must be
        a function of its parameters: a model that changes its buffers or draws random numbers is refused.
    criterion: ``criterion(outputs, targets)``. batch: the pair (inputs, targets) of this process; the objective is the
        loss of the data of all processes.
    weight: by how much this process's loss counts, relative to the other processes. None takes the number by which the
        criterion divides the sum over the batch, such as its number of examples. Give a number on every process if
        the outputs or targets are no single tensor.

    Raises ValueError where parameters are no DTensors or divided in another way, for FSDP2's ``fully_shard``, which
    gives no second derivative, for ``DistributedDataParallel``, and where the processes hold different buffers or
    frozen parameters. Raises HiddenStateError, a ValueError, for a loss that is no function of the parameters alone, or
    whose hand-written derivatives are wrong.
    """
    refuse_wrapped(model)
    return_freed_blocks()  # otherwise the C library would keep hundreds of MB that nothing uses
    parameters = _checked_parameters(model)
    ranks = Ranks(parameters[0].device_mesh.get_group(), parameters[0].to_local().device)
    if criterion is None:
        raise ValueError("criterion is None; give criterion(outputs, targets), also for a model that returns its loss")
    if len(batches_of(batch, of_network=True)) > 1:
        raise ValueError("the batch is a list of batches; give each process one batch")
    batch = cast_like(batch, parameters[0].to_local())
    x, y = split_batch(batch, signature_of(model))
    # Buffers and frozen parameters are not divided, and must be equal on all processes.
    named = [*model.named_buffers(), *model.named_parameters()]
    refuse_different_constants({name: t for name, t in named if not isinstance(t, DTensor)}, ranks)
    outputs, name = ranks.with_shared_errors(lambda: look_at_shards(model, criterion, x, y, ranks.device))
    if weight is None:
        weight = weight_among(criterion, outputs, y, ranks)
    else:
        weights = [row[0] for row in ranks.numbers([float(weight)])]
        if not (all(w >= 0 for w in weights) and 0 < sum(weights) < float("inf")):
            raise ValueError(
                f"the weights of the processes are {weights}; give numbers of 0 or more, one of them above 0"
            )
        weight = weight / sum(weights)
    H = ShardedProducts(model, criterion, x, y, weight, parameters, _shards_of(parameters, ranks), [])
    # All processes take part in the check, whichever of them runs a hand-written derivative.
    if names := [each for each in ranks.gather(name) if each]:
        refuse_wrong_derivative(H, names[0])
    return ShardedHessian(H)


def _checked_parameters(model: nn.Module) -> tuple[Any, ...]:
    """The trainable parameters. Raises ValueError where they are not divided in the one way that is supported."""
    named = trainable(model)
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
    return tuple(p for _, p in named)


def _shards_of(parameters: tuple[Any, ...], ranks: Ranks) -> Shards:
    """The parts of the whole vector that this process holds."""
    segments, start = [], 0
    for p in parameters:
        # The rows of each process, rounded up, as DTensor divides; the last processes may have fewer rows or none.
        rows = -(-p.shape[0] // ranks.size)
        first = min(ranks.rank * rows, p.shape[0])
        offset = start + first * (p.numel() // p.shape[0])  # the quotient is the number of entries of a row
        segments.append((offset, offset + p.to_local().numel()))
        start += p.numel()
    return Shards(ranks, start, segments)
