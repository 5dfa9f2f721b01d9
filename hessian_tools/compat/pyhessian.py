"""PyHessian's interface over this engine: change one import line.

    from hessian_tools.compat.pyhessian import hessian  # was: from pyhessian import hessian

The same calls give the same shapes in the same order (Yao, Gholami, Keutzer, Mahoney 2020). What differs, on purpose:

- eigenvalues are stopped by residuals, not by the change between two iterations, which stops early by up to 2 %;
- ``trace`` stops when the standard error is below tol of the mean, not when the mean changes little by chance;
- ``density`` works (the release needs ``torch.eig``, which is gone) and reorthogonalises in full;
- random numbers come from ``seed``, so a call repeats exactly; the global random state is left alone;
- the model is left as found: mode, gradients, buffers, device. It is measured in eval mode, as PyHessian does, on a
  copy made at construction, which later training does not change;
- a dataloader is read once and kept, so that shuffling and augmentation cannot change the matrix between products;
- without CUDA, ``cuda=True`` (the default) warns in a line and measures on the CPU;
- ``params`` and ``gradsH`` can be read, not assigned to, and ``gradsH`` holds no graph: where scripts multiply by
  ``hessian_vector_product(comp.gradsH, comp.params, v)``, write ``comp.dataloader_hv_product(v)[1]``, and where they
  assign to restrict the Hessian to a layer, ``comp.operator.block("name")``.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hessian_tools.curvature import gradient, quadrature, rademacher, top_eigenpairs, trace
from hessian_tools.curvature.operators.hessian import hessian as hessian_operator
from hessian_tools.layout import flatten
from hessian_tools.loss import make_loss
from hessian_tools.validation import check_whole

# Probes of one round of the trace, before it is asked whether they are enough.
ROUND = 10


class hessian:
    """The Hessian of ``criterion(model(inputs), targets)`` in the parameters that require gradients.

    data: one batch ``(inputs, targets)``; or dataloader: batches of the same, whose mean is weighted by their sizes.
    cuda: measure on the current CUDA device, else on the CPU; wherever the model is. operator: the
    Hessian of this library, for ``hessian_tools.trace`` and the rest, which say how good their numbers are.
    Raises ValueError for other data, HiddenStateError where even eval mode changes state.
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
        with torch.inference_mode(False):  # whose tensors take part in no derivative
            model = _copied(model).eval().to(self.device)
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            if not trained:
                raise ValueError("no parameter of the model requires a gradient, so there is no Hessian to measure")
            theta, self._layout = flatten(model, where=lambda name: name in trained)
            loss = make_loss(model, _differentiable(criterion), self._layout)
            self.operator = hessian_operator(loss, theta, batches)
        self._gradient = partial(gradient, loss, theta, batches)

    @property
    def params(self) -> list[nn.Parameter]:
        """The model's own parameters that the Hessian is in, in its order."""
        own = dict(self.model.named_parameters())
        return [own[name] for name in self._layout.names]

    @property
    def gradsH(self) -> list[Tensor]:
        """The gradient at construction, shaped as the parameters."""
        return self._shaped(self._gradient())

    def dataloader_hv_product(self, v: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        """v'Hv and Hv, v and Hv as lists shaped as the parameters; of one batch or of several."""
        flat = torch.cat([piece.detach().reshape(-1) for piece in v]).to(self.operator.device, self.operator.dtype)
        product = self.operator @ flat
        return float(flat @ product), self._shaped(product)

    def eigenvalues(
        self, maxIter: int = 100, tol: float = 1e-3, top_n: int = 1
    ) -> tuple[list[float], list[list[Tensor]]]:
        """The top_n largest in magnitude, largest first, and unit eigenvectors, each a list shaped as the parameters.

        tol: residual |Hv - value v| over |value|. maxIter: products per eigenvalue; where they do not suffice,
        a warning says so.
        """
        most = max(2 * top_n, maxIter * top_n)
        pairs = top_eigenpairs(self.operator, k=top_n, rtol=tol, vectors=True, seed=self.seed, max_matvecs=most)
        short = int((~pairs.converged).sum())
        if short:
            warnings.warn(f"{short} of {top_n} eigenvalues miss tol={tol}; raise maxIter={maxIter}", stacklevel=2)
        assert pairs.vectors is not None
        return pairs.values.tolist(), [self._shaped(vector) for vector in pairs.vectors.T]

    def trace(self, maxIter: int = 100, tol: float = 1e-3) -> list[float]:
        """v'Hv of each Rademacher probe, of which the mean estimates the trace; maxIter of them at most.

        Fewer where the standard error of the mean falls below tol times the mean.
        """
        rounds, most = max(2, min(ROUND, maxIter)), max(2, maxIter)
        rtol = max(tol, 0.0)  # tol=-inf is how scripts ask for all maxIter probes
        estimate = trace(self.operator, num_probes=rounds, rtol=rtol, max_probes=most, seed=self.seed, method="probes")
        samples: list[float] = estimate.samples[:maxIter].tolist()
        return samples

    def density(self, iter: int = 100, n_v: int = 1) -> tuple[list[list[float]], list[list[float]]]:
        """Nodes and weights of n_v runs of stochastic Lanczos quadrature with iter products each: [n_v][iter].

        What PyHessian's density plot takes. Never more nodes than parameters; rising in each run. Raises ValueError
        for fewer than one run or product.
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
    if cuda and not torch.cuda.is_available():
        warnings.warn("cuda=True, but torch sees no CUDA device; measuring on the CPU (cuda=False)", stacklevel=3)
        return torch.device("cpu")
    return torch.device("cuda" if cuda else "cpu")


def _copied(model: nn.Module) -> nn.Module:
    """A copy; what a forward pass left in the modules with its graph (``nn.utils.weight_norm``) without the graph."""
    left = [t for module in model.modules() for t in vars(module).values() if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in left})


def _batches(data: Any, dataloader: Iterable[Any] | None) -> list[tuple[Any, Any]]:
    if (data is None) == (dataloader is None):
        raise ValueError("give either data=(inputs, targets), one batch, or dataloader=, several, and not both")
    with torch.random.fork_rng(devices=[]):  # from which a shuffling loader draws
        batches = [tuple(batch) for batch in ([data] if dataloader is None else dataloader)]
    if not batches or any(len(batch) != 2 for batch in batches):
        raise ValueError("a batch is (inputs, targets), and at least one is needed")
    return batches


def _differentiable(criterion: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The criterion; nn.MSELoss written out, for torch has no forward-over-reverse derivative of it."""
    if not isinstance(criterion, nn.MSELoss):
        return criterion
    reduce = torch.sum if criterion.reduction == "sum" else torch.mean
    return lambda outputs, targets: reduce((outputs - targets) ** 2)
