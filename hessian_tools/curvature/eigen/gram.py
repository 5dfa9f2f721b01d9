"""The whole spectrum of the Gauss-Newton matrix from a Gram matrix as small as the support set.

    G = J'BJ, B = F'F (from the eigenvectors of B), M = FJ:  G = M'M has the eigenvalues of MM'

and zeros. M has one row for each example and output, so MM' is small where G is not.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.curvature.eigen.small_eigh import eigh, eigvalsh, finite, flushed, set_nan, solvable
from hessian_tools.curvature.engines.engine import Engine
from hessian_tools.curvature.engines.evaluate import Batching, evaluate, over_columns
from hessian_tools.curvature.objective.indexing import slices
from hessian_tools.curvature.objective.objective import Objective, Weights
from hessian_tools.curvature.operators.gauss_newton import factors_at, gauss_newton
from hessian_tools.curvature.operators.lengths import lengths
from hessian_tools.loss import Batch, Loss
from hessian_tools.torch_fixes.precision import full_precision

# J, FJ and what the singular value decomposition adds: copies of J held at once.
COPIES = 6


@dataclass(frozen=True)
class GramSpectrum:
    """All eigenvalues of the Gauss-Newton matrix that can differ from zero, falling; the others are zero.

    values: as many as examples times outputs (over all batches), or param if that is less. error: how far a
    value may be off through the rounding of the small eigenvalue problem, rows * eps * the largest value, and
    through what was clipped where rounding made the criterion's curvature negative; J and B themselves
    carry the rounding of their dtype on top. vectors: orthonormal columns in the order of values, where asked
    for; those of values below the error mean nothing. NaN at a point that is not finite.
    """

    values: Float[Tensor, "*point k"]
    error: Float[Tensor, "*point"]
    vectors: Float[Tensor, "*point param k"] | None

    @property
    def trace(self) -> Float[Tensor, "*point"]:
        """Of the Gauss-Newton matrix: the sum of its eigenvalues."""
        return self.values.sum(-1)

    @property
    def frobenius(self) -> Float[Tensor, "*point"]:
        """Frobenius norm of the Gauss-Newton matrix."""
        return lengths(self.values).to(self.values)

    def effective_dimension(self, *, ridge: float | None = None) -> Float[Tensor, "*point"]:
        """How many directions carry the curvature: trace^2 / Frobenius^2 (1 for one, k for k equal eigenvalues).

        With ridge, in the units of the eigenvalues: sum of value / (value + ridge) (MacKay 1992). NaN where
        the matrix is zero, without ridge. Raises ValueError for a ridge that is not positive.

        >>> spectrum = GramSpectrum(torch.tensor([3.0, 3.0, 3.0, 3.0, 0.0]), torch.tensor(0.0), None)
        >>> float(spectrum.effective_dimension()), float(spectrum.effective_dimension(ridge=1.0))
        (4.0, 3.0)
        """
        if ridge is None:
            return (self.trace / self.frobenius) ** 2
        if not ridge > 0:
            raise ValueError(f"ridge={ridge}: give a positive number, in the units of the eigenvalues, or None")
        return (self.values / (self.values + ridge)).sum(-1)


@full_precision
def gauss_newton_spectrum(
    loss: Loss,
    thetas: Float[Tensor, "*point param"],
    batch: Batch | list[Batch],
    *,
    shared: bool = False,
    weights: Weights = "size",
    vectors: bool = False,
    chunk: int | None = None,
    batching: Batching = "vmap",
    max_memory: float | int | None = None,
) -> GramSpectrum:
    """Every eigenvalue of the Gauss-Newton matrix at every point, exactly; arguments as for :func:`gauss_newton`.

    Any criterion convex in the outputs, also one that couples examples: its full Hessian in the outputs is
    used. Costs one backward pass for each example and output, and memory for J at one point:
    param * examples * outputs numbers, six times over (ResNet-12 with 125 outputs: 24 GB); points go in
    chunks that keep to max_memory bytes, None for 512 MiB (see ``hessian`` for CUDA), where one fits. Raises ValueError
    as gauss_newton does, and for a criterion that is not convex at some point. (Gram matrix as in Dangel 2022, ViViT.)

    >>> from hessian_tools.layout import flatten
    >>> from hessian_tools.loss import make_loss
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> loss = make_loss(model, lambda out, y: ((out - y) ** 2).mean(), flatten(model)[1])
    >>> x = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> gauss_newton_spectrum(loss, torch.ones(3), (x, torch.zeros(2, 1))).values  # of 2 X'X / 2
    tensor([4., 1.])
    """
    G = gauss_newton(
        loss,
        thetas,
        batch,
        shared=shared,
        weights=weights,
        chunk=chunk,
        batching=batching,
        max_memory=max_memory,
    )
    objective, engine = G.objective, G.engine
    if len(objective.groups) > 1:
        raise ValueError("spectra of ragged batches differ in length; ask for the points of each size apart")
    passes = engine.products_at_once(objective)
    pieces = torch.arange(len(objective.thetas), device="cpu").split(_points_at_once(objective, engine, passes))
    parts = [_spectrum(loss, objective.select(rows), engine, passes, vectors=vectors) for rows in pieces]
    values, error = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "error"))
    Q = torch.cat([part.vectors for part in parts if part.vectors is not None]) if vectors else None
    if G.single:
        return GramSpectrum(values[0], error[0], None if Q is None else Q[0])
    return GramSpectrum(values, error, Q)


def _points_at_once(objective: Objective, engine: Engine, passes: int) -> int:
    """As many points as have their backward passes, and their J, within the budget; at least one."""
    theta, rows = objective.thetas[0], sum(num_outputs(objective))
    budget = engine.memory.budget(theta.device)
    bytes_of_J = COPIES * rows * theta.numel() * theta.element_size()
    return max(1, min(passes // max(1, rows), budget // max(1, bytes_of_J)))


def num_outputs(objective: Objective) -> list[int]:
    """Numbers that the network puts out at one point for each batch: examples times outputs."""
    loss = objective.loss
    assert isinstance(loss, Loss)
    with torch.no_grad():  # not under vmap, which has no rule for recurrent networks' forward pass
        outputs = [loss.outputs(objective.thetas[0], batch[0]) for batch in objective.batches_at(0)]
    return [sum(leaf.numel() for leaf in pytree.tree_leaves(o) if isinstance(leaf, Tensor)) for o in outputs]


def _spectrum(loss: Loss, objective: Objective, engine: Engine, passes: int, *, vectors: bool) -> GramSpectrum:
    """At some points: M' of all batches side by side, then its Gram matrix or its singular values."""

    def derivatives(theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return _derivatives(loss, theta, batch, passes, engine.batching)

    factors = evaluate(objective, derivatives, batching=engine.batching)
    roots = [_root(Jt.detach(), w * B.detach()) for w, (Jt, B) in zip(objective.weights, factors, strict=True)]
    Mt, bad = finite(torch.cat([root for root, _ in roots], dim=-1))
    Q = None
    if vectors:
        Q, singular, _ = torch.linalg.svd(flushed(Mt), full_matrices=False)
        values = singular**2
    else:
        gram = Mt.mT @ Mt if Mt.shape[-1] <= Mt.shape[-2] else Mt @ Mt.mT
        values = eigvalsh(solvable(gram)).to(gram.dtype).flip(-1).clamp(min=0)
    largest = values.amax(-1) if values.shape[-1] else values.new_zeros(len(values))
    error = Mt.shape[-1] * torch.finfo(values.dtype).eps * largest + torch.stack([c for _, c in roots]).sum(0)
    values, error = set_nan(values, bad), set_nan(error, bad)
    return GramSpectrum(values, error, None if Q is None else set_nan(Q, bad))


def _derivatives(
    loss: Loss, theta: Float[Tensor, " param"], batch: Batch, at_once: int, batching: Batching
) -> tuple[Float[Tensor, "param row"], Float[Tensor, "row row"]]:
    """J' and B at one point; at_once: how many of their columns are computed together."""
    count, pull, curve = factors_at(loss, theta, batch)
    unit = torch.eye(count, dtype=theta.dtype, device=theta.device)
    pieces = [unit[:, columns] for columns in slices(count, at_once)]
    Jt = [over_columns(pull, piece, batching=batching) for piece in pieces]
    B = [over_columns(curve, piece, batching=batching) for piece in pieces]
    return torch.cat(Jt, dim=-1), torch.cat(B, dim=-1)


def _root(
    Jt: Float[Tensor, "point param row"], B: Float[Tensor, "point row row"]
) -> tuple[Float[Tensor, "point param row"], Float[Tensor, " point"]]:
    """J'F', F'F = B, from B = U diag(b) U'; and the trace of what clipping b at zero left out of J'BJ."""
    B, bad = finite((B + B.mT) / 2)
    b, U = (part.to(B.dtype) for part in eigh(solvable(B)))
    _refuse_concave(b)
    turned = set_nan(Jt, bad) @ U
    clipped = (b.clamp(max=0).abs() * (turned**2).sum(-2)).sum(-1)
    return turned * b.clamp(min=0).sqrt()[:, None, :], clipped


def _refuse_concave(b: Float[Tensor, "point row"]) -> None:
    """Negative eigenvalues of rounding's size are let pass.

    Confident predictions leave nothing but rounding of B, so its own scale cannot be the only measure.
    """
    eps = torch.finfo(b.dtype).eps
    least, most = b.amin(-1), b.amax(-1)
    if ((least < -(eps**0.5) * most) & (least < -64 * eps)).any():
        raise ValueError(
            "the criterion is not convex in the outputs, so Gauss-Newton has no Gram matrix; "
            "use gauss_newton and top_eigenpairs"
        )
