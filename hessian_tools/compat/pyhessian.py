"""PyHessian's interface on top of this library: a script has to change only its import line.

    from hessian_tools.compat.pyhessian import hessian  # was: from pyhessian import hessian

The same calls give the same shapes in the same order (Yao, Gholami, Keutzer, Mahoney 2020). These things differ on
purpose:

- The iteration for eigenvalues stops on their residuals. PyHessian stops on the change between two iterations, which
  becomes small too early: its eigenvalues are off by up to 2 %.
- ``trace`` stops when its standard error is below tol times the mean, not when the mean happens to change little.
- ``density`` works, whereas PyHessian's release needs ``torch.eig``, which torch has removed. It also reorthogonalises
  every Lanczos vector against all earlier ones.
- Random numbers come from ``seed``, so that a call repeats exactly, and the global random state is left alone.
- The model is left as it was: its mode, gradients, buffers and device. As in PyHessian it is measured in eval mode, but
  on a copy that is made at construction, which later training does not change.
- A dataloader is read once and its batches are kept, so that shuffling and augmentation cannot change the matrix
  between products.
- On a machine without CUDA, ``cuda=True`` (the default) warns and measures on the CPU.
- ``params`` and ``gradsH`` can be read but not assigned to, and ``gradsH`` holds no graph. Where a script multiplies by
  ``hessian_vector_product(comp.gradsH, comp.params, v)``, write ``comp.dataloader_hv_product(v)[1]``; where it assigns
  to them to restrict the Hessian to a layer, write ``comp.operator.block("name")``.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hessian_tools.curvature import gradient, quadrature, rademacher, top_eigenpairs, trace
from hessian_tools.curvature.operators.hessian import hessian as hessian_operator
from hessian_tools.failures import warn
from hessian_tools.layout import flatten, unwrapped
from hessian_tools.loss import make_loss
from hessian_tools.random_states import restored_random_states
from hessian_tools.validation import check_whole

# The number of probes of the trace between two checks of its standard error.
PROBES_PER_ROUND = 10


class hessian:
    """The Hessian of ``criterion(model(inputs), targets)`` in the parameters that require gradients.

    data: one batch ``(inputs, targets)``. dataloader: several such batches instead; the loss is then their mean,
    weighted by their sizes. cuda: True measures on the current CUDA device and False on the CPU, wherever the model is.
    seed: the seed of all random numbers.
    The attribute ``operator`` is this library's operator of the same Hessian. Pass it to ``hessian_tools.trace`` and
    its other functions, whose results state how accurate they are.
    Raises ValueError for data of any other form, and HiddenStateError if the network changes state even in eval mode.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[..., Tensor],
        data: Any = None,
        dataloader: Iterable[Any] | None = None,
        cuda: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        self.device = _device(cuda)
        self.seed = seed
        self.model, self.criterion = model, criterion
        batches = _batches(data, dataloader)
        with torch.inference_mode(False):  # because no derivative can be taken of tensors made in that mode
            model = _copied(unwrapped(model)).eval().to(self.device)
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            if not trained:
                raise ValueError("no parameter of the model requires a gradient, so there is no Hessian to measure")
            theta, self._layout = flatten(model, where=lambda name: name in trained)
            loss = make_loss(model, criterion, self._layout)
            self.operator = hessian_operator(loss, theta, batches)
        self._gradient = partial(gradient, loss, theta, batches)

    @property
    def params(self) -> list[nn.Parameter]:
        """The model's own parameters that require gradients, in the order of the Hessian's rows."""
        parameters = dict(unwrapped(self.model).named_parameters())
        return [parameters[name] for name in self._layout.names]

    @property
    def gradsH(self) -> list[Tensor]:
        """The gradient at construction, in the shapes of the parameters."""
        return self._shaped(self._gradient())

    def dataloader_hv_product(self, v: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        """v'Hv and Hv, of one batch or of several; v and Hv are lists in the shapes of the parameters."""
        flat = torch.cat([piece.detach().reshape(-1) for piece in v]).to(self.operator.device, self.operator.dtype)
        product = self.operator @ flat
        return float(flat @ product), self._shaped(product)

    def eigenvalues(
        self, maxIter: int = 100, tol: float = 1e-3, top_n: int = 1
    ) -> tuple[list[float], list[list[Tensor]]]:
        """The top_n eigenvalues largest in magnitude, largest first, and their unit eigenvectors.

        An eigenvector is a list in the shapes of the parameters. tol: the largest residual |Hv - value v| allowed, as a
        fraction of |value|. maxIter: the number of products allowed for each eigenvalue; a warning says how many
        eigenvalues have not converged by then.
        """
        limit = max(2 * top_n, maxIter * top_n)  # two products are needed to find and to check a pair
        pairs = top_eigenpairs(self.operator, k=top_n, rtol=tol, vectors=True, seed=self.seed, max_matvecs=limit)
        num_missed = int((~pairs.converged).sum())
        if num_missed:
            warn(f"{num_missed} of {top_n} eigenvalues have not converged to tol={tol}; raise maxIter={maxIter}")
        assert pairs.vectors is not None
        return pairs.values.tolist(), [self._shaped(vector) for vector in pairs.vectors.T]

    def trace(self, maxIter: int = 100, tol: float = 1e-3) -> list[float]:
        """v'Hv of each Rademacher probe v; their mean estimates the trace.

        There are maxIter probes, or fewer if the standard error of the mean falls below tol times the mean earlier.
        """
        # A standard error needs two probes. With maxIter=1 the second sample is dropped below.
        first, limit = max(2, min(PROBES_PER_ROUND, maxIter)), max(2, maxIter)
        rtol = max(tol, 0.0)  # scripts ask for all maxIter probes by tol=-inf
        estimate = trace(self.operator, num_probes=first, rtol=rtol, max_probes=limit, seed=self.seed, method="probes")
        return estimate.samples[:maxIter].tolist()

    def density(self, iter: int = 100, n_v: int = 1) -> tuple[list[list[float]], list[list[float]]]:
        """Nodes and weights of n_v runs of stochastic Lanczos quadrature with iter products each: [n_v][iter].

        PyHessian's density plot takes lists of this form. The nodes of each run are in ascending order, and there are
        never more of them than parameters. Raises ValueError for fewer than one run or product.
        """
        check_whole(iter=iter, n_v=n_v)
        if iter < 1 or n_v < 1:
            raise ValueError(f"iter={iter}, n_v={n_v}: give 1 or more of each")
        probes = rademacher(self.operator.num_params, n_v, seed=self.seed)
        nodes, weights = quadrature(self.operator, probes, num_matvecs=iter, seed=self.seed)
        return nodes.tolist(), weights.tolist()

    def _shaped(self, vector: Tensor) -> list[Tensor]:
        return list(self._layout.unflatten(vector.contiguous()).values())


def _device(cuda: bool) -> torch.device:
    """The device to measure on; warns where CUDA is requested and missing."""
    if cuda and not torch.cuda.is_available():
        warn("cuda=True, but torch sees no CUDA device; the CPU is used instead, as with cuda=False")
        return torch.device("cpu")
    return torch.device("cuda" if cuda else "cpu")


def _copied(model: nn.Module) -> nn.Module:
    """A copy of the model, without the graphs of tensors that a forward pass has left in its modules."""
    # nn.utils.weight_norm leaves such tensors, and deepcopy refuses them.
    results = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in results})


def _batches(data: Any, dataloader: Iterable[Any] | None) -> list[tuple[Any, Any]]:
    """The batches (inputs, targets), from the one of the two arguments that is given."""
    if (data is None) == (dataloader is None):
        raise ValueError("give either data=(inputs, targets) for one batch or dataloader= for several, not both")
    with restored_random_states():  # a loader that shuffles or augments draws from the global random generators
        batches = [tuple(batch) for batch in ([data] if dataloader is None else dataloader)]
    if not batches or any(len(batch) != 2 for batch in batches):
        raise ValueError("a batch is a pair (inputs, targets); give at least one batch, and each in this form")
    return batches
