"""The multi-layer perceptron of the regression tasks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from hessian_tools.failures import described


class MLP(nn.Module):
    """Linear layers with an activation between them; inputs are flattened.

    sizes: the number of inputs, the number of units in each hidden layer, and the number of outputs.
    """

    def __init__(self, sizes: Sequence[int], *, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(
                f"sizes={list(sizes)} needs at least two entries, the number of inputs and the number of outputs"
            )
        hidden: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes[:-1]):
            hidden += [nn.Linear(inputs, outputs), layer := activation()]
            if not isinstance(layer, nn.Module):
                raise ValueError(f"activation gives {described(layer)}; give a class of layers, such as torch.nn.Tanh")
        self.body = nn.Sequential(*hidden)
        self.head = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [example, ...] -> outputs [example, output]."""
        return self.head(self.body(x.flatten(1)))
