"""Products with the Hessian of a sharded model, of which every process computes the rows of its own shards."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessian_tools.batches import arguments, cast_like, signature_of
from hessian_tools.curvature.objective.batch_weights import batch_weights
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.shards import Shards
from hessian_tools.distributed.gradient import ShardedGradient
from hessian_tools.distributed.sharding import trainable
from hessian_tools.hidden_state import HOOKED, HiddenStateError
from hessian_tools.loss import Criterion, criterion_like, one_number
from hessian_tools.outputs import tensors_of
from hessian_tools.processes import Ranks
from hessian_tools.watches import ForwardWatch


@dataclass(frozen=True, repr=False)
class ShardedProducts(Operator):
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
    kept: list[ShardedGradient]

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
        with self.ranks.named_losses(among_others=True):
            if not self.kept:
                self.kept.append(self.gradient())
            self.ranks.together(self.kept[0].refuse_other_parameters)
            return self.kept[0].product(v)

    def value(self) -> Tensor:
        """This process's part of the loss."""
        return self.weight * criterion_value(self.criterion, call(self.model, self.x), self.y)

    def gradient(self) -> ShardedGradient:
        """The gradient with its graph; raises ValueError where the loss does not depend on a parameter."""
        with ForwardWatch(lambda _: False) as watch:
            gradient = ShardedGradient(self.parameters, self.value)
        if watch.hooked:
            raise HiddenStateError(HOOKED)
        missing = [i for i, g in enumerate(gradient.gradients) if g is None]
        if missing:
            name = trainable(self.model)[missing[0]][0]
            raise ValueError(f"the loss does not depend on {name!r}; set its requires_grad to False")
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
    """The share of this process's loss in the loss of all data, by what the criterion divides its batch."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor):
        raise ValueError(
            "outputs and targets are no tensors, so it is not known how much each batch counts; give weight="
        )
    first = ranks.from_process(0, (outputs.cpu(), y.cpu()))

    def loss(scale: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        return criterion_value(criterion, scale * pair[0], pair[1])

    one = torch.ones(1, 1, dtype=outputs.dtype, device=outputs.device)
    pair = [cast_like(first, one), (outputs, y)]

    def ratio() -> tuple[float, ...]:
        try:
            return batch_weights(loss, one, pair, shared=True)
        except ValueError as error:
            cause, weights, _ = str(error).partition("; give weights=")
            if not weights:
                raise
            # The argument has another name here, and takes one number.
            raise ValueError(
                f"{cause}; give weight=, on each process the number by which its loss counts, such as its number of "
                "examples, or of labels that count"
            ) from error

    of_first, of_own = ranks.together(ratio)
    rows = ranks.numbers([of_own / of_first, float(of_first + of_own == 2)])
    if all(row[1] for row in rows):
        return 1.0
    return of_own / of_first / sum(row[0] for row in rows)
