"""A model whose parameters are divided over processes, and gathered one after the other where the model uses them.

This is parametrised sharding (Zhang et al. 2024, SimpleFSDP): the gathering is a part of the graph, so that it can be
differentiated twice.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from hessian_tools.freed_blocks import return_freed_blocks
from hessian_tools.processes import Ranks, checked_group

CHANGED = "the parameters have changed since the first product; make the sharded_hessian again"
# The attribute that marks a parameter whose place a DTensor has taken.
REPLACED = "replaced_by_shards"


class _Gathered(nn.Module):
    """The parametrisation of a sharded parameter: its whole tensor, whose gradient is summed into the shards."""

    def forward(self, shard: Tensor) -> Tensor:
        """The whole tensor on every process."""
        assert isinstance(shard, DTensor)
        placements = [Replicate()] * shard.device_mesh.ndim
        whole = shard.redistribute(placements=placements).to_local(grad_placements=[Partial()] * len(placements))
        if _open_contexts and whole.grad_fn is not None:  # the innermost of the open contexts notes the gathering
            _open_contexts[-1].nodes[whole.grad_fn] = shard
            _open_contexts[-1].remember(whole, shard)
        return whole


class Regathering:
    """A context in which autograd's graphs do not hold whole parameters, those gathered from all processes.

    Where a derivative needs a whole parameter, it is gathered again. All processes run the same graph and therefore
    gather in the same order.

    nodes: for each node of the graph that gathers a parameter, the parameter.
    """

    def __init__(self) -> None:
        self.nodes: dict[Any, DTensor] = {}
        # For the address of each whole parameter's storage: a weak reference to the storage, and the shard. The weak
        # reference lets the memory be freed, but no other storage gets the address as long as the reference exists.
        self.whole: dict[int, tuple[StorageWeakRef, DTensor]] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._packed, self._unpacked)

    def __enter__(self) -> "Regathering":
        _open_contexts.append(self)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)
        _open_contexts.pop()
        self.whole.clear()

    def remember(self, whole: Tensor, shard: DTensor) -> None:
        """From now on, graphs do not hold this whole parameter."""
        reference = StorageWeakRef(whole.untyped_storage())
        self.whole[reference.cdata] = reference, shard

    def _packed(self, tensor: Tensor) -> Any:
        """What a graph saves in place of a tensor: for a whole parameter, its shard and the form of the tensor."""
        if tensor.layout is not torch.strided:  # a sparse tensor, which has no storage
            return tensor
        known = self.whole.get(StorageWeakRef(tensor.untyped_storage()).cdata)
        if known is None:
            return tensor
        _, shard = known
        return shard, shard._version, tensor.shape, tensor.stride(), tensor.storage_offset()

    def _unpacked(self, packed: Any) -> Tensor:
        """The tensor for which a graph has saved ``packed``; a whole parameter is gathered again."""
        if isinstance(packed, Tensor):
            return packed
        shard, version, *form = packed
        if shard._version != version:
            raise ValueError(CHANGED)
        with torch.no_grad():
            whole = shard.redistribute(placements=[Replicate()] * shard.device_mesh.ndim).to_local()
        if self in _open_contexts:  # the first derivative is computed now, and saves this tensor for the second one
            self.remember(whole, shard)
        return whole.as_strided(*form)


_open_contexts: list[Regathering] = []  # the contexts that are open, the innermost last


def shard(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Shards the trainable parameters of a model over the processes of a group, in place; returns the model.

    Each parameter becomes a ``DTensor`` that is divided along its first axis, and is gathered whenever the model uses
    it. All processes must give the same model.

    Raises ValueError for models that are wrapped or sharded already, and for processes whose parameters differ.
    """
    refuse_wrapped(model)
    return_freed_blocks()  # otherwise the C library would keep hundreds of MB that nothing uses
    group = checked_group(process_group)
    parameters = [p for _, p in trainable(model)]
    if any(isinstance(p, DTensor) for p in parameters):
        raise ValueError("the model has DTensors as parameters already; give it to sharded_hessian")
    if not parameters:
        raise ValueError("the model has no trainable parameters; set requires_grad")
    for name, p in trainable(model):
        if p.ndim == 0:
            raise ValueError(f"the parameter {name!r} is a single number; give it the shape [1]")
    kind = parameters[0].device.type
    ranks = Ranks(group, parameters[0].device)
    # The sum of all parameters serves as a checksum.
    sums = ranks.numbers([sum(float(p.detach().double().sum()) for p in parameters), len(parameters)])
    if any(row != sums[0] for row in sums):
        raise ValueError("the processes have different parameters; make the model after torch.manual_seed(0) on each")
    mesh = DeviceMesh.from_group(group, kind)
    shared: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.requires_grad:
                if id(parameter) not in shared:
                    setattr(parameter, REPLACED, True)
                    shared[id(parameter)] = nn.Parameter(_divided(parameter.detach(), mesh, ranks))
                module.register_parameter(name, shared[id(parameter)])
                # unsafe=True skips torch's checks, which would gather the parameter here.
                parametrize.register_parametrization(module, name, _Gathered(), unsafe=True)
    return model


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The names and the trainable parameters of a model in the order in which they were before :func:`shard`.

    A parametrisation has moved each sharded parameter into a new submodule, which torch lists after all others.
    """
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, module in model.named_modules():
        named = list(module.named_parameters(recurse=False))
        if parametrize.is_parametrized(module):
            for name, steps in module.parametrizations.items():  # type: ignore[union-attr, operator]
                if isinstance(steps[0], _Gathered):
                    named.append((name, steps.original))
        for name, parameter in named:
            if parameter.requires_grad:
                found.setdefault(id(parameter), (f"{prefix}.{name}" if prefix else name, parameter))
    return list(found.values())


def was_replaced(tensor: Any) -> bool:
    """Whether a tensor is a parameter whose place a DTensor has taken, so that the model should not use it."""
    return getattr(tensor, REPLACED, False)


def _divided(whole: Tensor, mesh: DeviceMesh, ranks: Ranks) -> DTensor:
    """The DTensor of a tensor that every process has; only this process's part stays in memory."""
    rows = -(-whole.shape[0] // ranks.size)  # rounded up, as DTensor divides
    own = whole[ranks.rank * rows : (ranks.rank + 1) * rows].clone(memory_format=torch.contiguous_format)
    stride = torch.empty(whole.shape, device="meta").stride()  # of a contiguous tensor; no memory is allocated
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=stride)


def refuse_wrapped(model: nn.Module) -> None:
    """Raises ValueError for torch's own wrappers of distributed models."""
    for name, module in model.named_modules():
        if isinstance(module, FSDPModule):
            raise ValueError(
                f"the module {name or 'itself'!r} is wrapped by fully_shard, which gives no second derivative; give "
                "the plain model to hessian_tools.distributed.shard"
            )
        if isinstance(module, DistributedDataParallel | nn.DataParallel):
            raise ValueError(f"the module {name or 'itself'!r} is a {type(module).__name__}; give its .module")
