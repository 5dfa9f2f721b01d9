"""Products with the Hessian of a sharded model; every process computes the rows that belong to its own shards."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessian_tools.batches import arguments, cast_like, signature_of
from hessian_tools.curvature.objective.batch_weights import batch_weights
from hessian_tools.curvature.operators.lengths import Shards
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.distributed.gradient import ShardedGradient
from hessian_tools.distributed.sharding import trainable
from hessian_tools.hidden_state import HOOKED, HiddenStateError
from hessian_tools.loss import Criterion, criterion_like, one_number
from hessian_tools.outputs import tensors_of
from hessian_tools.processes import Ranks
from hessian_tools.watches import ForwardWatch


@dataclass(frozen=True, repr=False)
class ShardedProducts(Operator):
    """The products with the rows of the Hessian that belong to this process's shards, at one point.

    weight: the factor of this process's loss, such that the losses of all processes add up to the loss of all data.
    own: which entries of a vector this process holds. cached_gradient: an empty list, into which the first product puts
    the gradient with its graph, for all later products.
    """

    model: nn.Module
    criterion: Criterion
    x: Any
    y: Any
    weight: float
    parameters: tuple[Any, ...]
    own: Shards
    cached_gradient: list[ShardedGradient]

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

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """This process's part of the products, one column after the other; every process takes part in each."""
        columns = [self._product(v) for v in V[0].mT]
        # A single column is not copied.
        return torch.stack(columns, dim=-1)[None] if len(columns) > 1 else columns[0][None, :, None]

    def _product(self, v: Tensor) -> Tensor:
        """This process's entries of the product with one vector, from its entries of the vector."""
        with self.ranks.reporting_lost_process(connection_errors_only=True):
            if not self.cached_gradient:
                self.cached_gradient.append(self.gradient())
            (gradient,) = self.cached_gradient
            self.ranks.with_shared_errors(gradient.refuse_other_parameters)  # an error of one is raised on all
            return gradient.product(v)

    def value(self) -> Tensor:
        """This process's summand of the loss of all data."""
        return self.weight * criterion_value(self.criterion, call(self.model, self.x), self.y)

    def gradient(self) -> ShardedGradient:
        """The gradient with its graph; raises ValueError where the loss does not depend on a parameter.

        Raises HiddenStateError where a hook on a tensor changes a gradient, and NoOtherWay, a RuntimeError, for a loss
        without a second derivative. If one process raises an error, every process does.
        """
        # The watch is here to see such hooks. Its argument says which parameters must not be used: none here, because a
        # sharded model is differentiated at the parameters that it holds.
        with ForwardWatch(lambda _: False) as watch:
            gradient = ShardedGradient(self.parameters, self.value)

        def refuse() -> None:
            gradient.refuse_broken_graph()
            if watch.hooked:
                raise HiddenStateError(HOOKED)
            missing = [i for i, g in enumerate(gradient.gradients) if g is None]
            if missing:
                name = trainable(self.model)[missing[0]][0]
                raise ValueError(f"the loss does not depend on {name!r}; set its requires_grad to False")

        self.ranks.with_shared_errors(refuse)
        return gradient


def call(model: nn.Module, x: Any) -> Any:
    """The outputs of a model on inputs of any form."""
    positional, named = arguments(x, signature_of(model))
    return model(*positional, **named)


def criterion_value(criterion: Criterion, outputs: Any, y: Any) -> Tensor:
    """The loss of outputs and targets; tensors that the criterion holds follow the dtype and device of the outputs."""
    like = next((t for t in tensors_of(outputs) if t.is_floating_point()), None)
    return one_number((criterion if like is None else criterion_like(criterion, like))(outputs, y))


def weight_among(criterion: Criterion, outputs: Any, y: Any, ranks: Ranks) -> float:
    """The factor of this process's loss in the loss of all data.

    It is 1 for a criterion that sums over examples. For one that averages, it is the number by which the criterion
    divides the sum over this process's batch, as a fraction of the total of these numbers over all processes.
    """
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor):
        raise ValueError(
            "outputs and targets are no tensors, so it is not known how much each batch counts; give weight="
        )
    # Each process compares its batch with that of process 0 only, so that no process needs the data of all.
    first = ranks.from_process(0, (outputs.cpu(), y.cpu()))

    # ``batch_weights`` takes a function of a parameter vector and a batch. Here a batch holds outputs in place of
    # inputs, and the only parameter is a factor of the outputs.
    def loss(scale: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        return criterion_value(criterion, scale * pair[0], pair[1])

    one = torch.ones(1, 1, dtype=outputs.dtype, device=outputs.device)
    both_batches = [cast_like(first, one), (outputs, y)]

    def weights_of_both() -> tuple[float, ...]:
        try:
            return batch_weights(loss, one, both_batches, shared=True)  # shared: the batches have no point axis
        except ValueError as error:
            cause, advice, _ = str(error).partition("; give weights=")
            if not advice:
                raise
            # The argument is called weight= here, and each process gives one number.
            raise ValueError(
                f"{cause}; give weight=, on each process the number by which its loss counts, such as its number of "
                "examples, or of labels that count"
            ) from error

    of_first, of_own = ranks.with_shared_errors(weights_of_both)
    # Both weights are 1 for a criterion that sums; they add up to 1 for one that averages.
    sums = of_first + of_own == 2
    # A row for each process: its weight as a multiple of process 0's, and whether its criterion sums.
    rows = ranks.numbers([of_own / of_first, float(sums)])
    if all(row[1] for row in rows):
        return 1.0
    return of_own / of_first / sum(row[0] for row in rows)
