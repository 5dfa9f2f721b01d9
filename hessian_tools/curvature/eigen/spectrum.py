"""All eigenvalues at every point, for small networks and for matrices of small rank."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from hessian_tools.curvature.eigen.exact import SolvedPoints, largest_rounding, solve
from hessian_tools.curvature.eigen.gram import NotConvexError, gram_points, has_gram_matrix, num_outputs
from hessian_tools.curvature.eigen.selection import rounding
from hessian_tools.curvature.engines.evaluate import Batching
from hessian_tools.curvature.engines.torch_errors import NoForwardDerivative
from hessian_tools.curvature.html import eigenvalues_html
from hessian_tools.curvature.objective.objective import Weights
from hessian_tools.curvature.operators.gauss_newton import gauss_newton
from hessian_tools.curvature.operators.lengths import lengths
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.terms import magnitude, terms
from hessian_tools.loss import Batch, Loss
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.result import Result
from hessian_tools.rng import stream

Method = Literal["auto", "dense", "range finder"]

# The number of random vectors from which the Frobenius norms of the terms of a sum are estimated.
TERM_PROBES = 4


@dataclass(frozen=True, repr=False)
class Spectrum(Result):
    """All eigenvalues at each point that can differ from zero, by falling magnitude, with a bound on their error.

    values: in the units of the matrix (loss / parameter^2). Eigenvalues that are not listed are zero.
    error: no exact eigenvalue is further than this from the value stated for it, or from zero if it is not listed.
    vectors: unit eigenvectors of the first values as columns, or None if they were not requested. A column is zero
    where no vector was computed for an eigenvalue of zero. Vectors of values below the error mean nothing.
    dense: True where the whole matrix was computed. num_matvecs: products at each point, or backward passes where a
    Gram matrix was used. Both are None in a spectrum that was made by hand.
    At a point where the matrix is not finite, values, error and vectors are NaN and the rank is 0.
    """

    values: Float[Tensor, "*point value"]
    error: Float[Tensor, "*point"]
    vectors: Float[Tensor, "*point param k"] | None = None
    dense: Bool[Tensor, "*point"] | None = None
    num_matvecs: Int[Tensor, "*point"] | None = None

    def _repr_html_(self) -> str:
        error = self.error[..., None].expand(self.values.shape)
        return eigenvalues_html(self.values, error, self.values.abs() > error, "Spectrum (± error)")

    @property
    def rank(self) -> Int[Tensor, "*point"]:
        """How many eigenvalues are larger in magnitude than the error."""
        return (self.values.abs() > self.error[..., None]).sum(-1)

    @property
    def trace(self) -> Float[Tensor, "*point"]:
        """The sum of the eigenvalues."""
        return self.values.sum(-1)

    @property
    def frobenius(self) -> Float[Tensor, "*point"]:
        """The Frobenius norm, which is the root of the sum of squares of the eigenvalues."""
        return lengths(self.values).to(self.values)

    def effective_dimension(self, *, ridge: float | None = None) -> Float[Tensor, "*point"]:
        """How many directions carry the curvature: trace^2 / Frobenius^2, which is k for k equal eigenvalues.

        With ridge, a number in the units of the eigenvalues, it is the sum of value / (value + ridge) (MacKay 1992). It
        is meant for matrices without negative eigenvalues, such as Gauss-Newton. Without ridge it is NaN where the
        matrix is zero.
        Raises ValueError for a ridge that is not positive.

        >>> spectrum = Spectrum(torch.tensor([3.0, 3.0, 3.0, 3.0, 0.0]), torch.tensor(0.0))
        >>> float(spectrum.effective_dimension()), float(spectrum.effective_dimension(ridge=1.0))
        (4.0, 3.0)
        """
        if ridge is None:
            return (self.trace / self.frobenius) ** 2
        if not ridge > 0:
            raise ValueError(f"ridge={ridge}: give a positive number, in the units of the eigenvalues, or None")
        return (self.values / (self.values + ridge)).sum(-1)


def spectrum(
    H: Operator,
    *,
    method: Method = "auto",
    rtol: float | None = None,
    max_rank: int | None = None,
    vectors: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Spectrum:
    """All ``param`` eigenvalues of H at every point, by falling magnitude.

    method: "dense" computes the whole matrix, by param products and work of order param^3 at each point. "range finder"
    compresses the matrix by products with random vectors. It takes about 2 (rank + 32) products and work of order
    param rank^2 at points whose rank is at most max_rank, and gives NaN at the other points. "auto" uses the Gram
    matrix (``gauss_newton_spectrum``) for a Gauss-Newton matrix with no more outputs, counted over all examples, than
    parameters, and a criterion that is convex in the outputs. For other matrices it is "dense" up to 128 parameters.
    Above that it is "range finder", and "dense" at points whose rank is too large for the range finder.
    rtol: what the range finder may leave out, as a share of the Frobenius norm; None for the size of rounding.
    max_rank: None for a quarter of the parameters. Eigenvalue problems are solved in float64.
    progress: called with (done, total) points.

    The error of the result bounds the part that the range finder left out (this bound fails with a probability of 1e-6
    at each point), plus rounding, which is 64 eps |H| with |H| the largest magnitude of an eigenvalue. For a sum of
    operators c_i A_i, rounding is larger by 64 eps sum_i |c_i| |A_i|_F, where these norms are estimated from 4 random
    vectors. Raises ValueError for options out of range, and where the whole matrix would need more than 8 GiB at a
    point.

    >>> from hessian_tools.curvature import hessian
    >>> a = torch.tensor([4.0, -3.0, 1.0, 0.0])
    >>> result = spectrum(hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(4), a))
    >>> result.values.tolist(), int(result.rank), float(result.trace)
    ([4.0, -3.0, 1.0, 0.0], 3, 2.0)
    """
    count = ProgressCounter(H.num_points or 1, progress)
    solved = _solved_by_gram(H, vectors=vectors, count=count) if method == "auto" else None
    if solved is None:
        solved = list(solve(H, method, rtol, max_rank, vectors=vectors, seed=seed, done=count.add))
    result = _assembled(H, solved, H.num_params)
    if len(terms(H)) == 1 or result.num_matvecs is None:
        return result
    # Where the terms of a sum nearly cancel, rounding is in proportion to the terms and not to the sum.
    shape = (H.num_params, TERM_PROBES)
    drawn = torch.randn(shape, generator=stream(seed, "terms"), dtype=torch.float64, device="cpu")
    size = rounding(H.dtype) * magnitude(H, drawn.to(H.device, H.dtype)).mean(-1)
    return replace(result, error=result.error + size.to(H.dtype), num_matvecs=result.num_matvecs + TERM_PROBES)


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
) -> Spectrum:
    """The eigenvalues of the Gauss-Newton matrix J'BJ that can differ from zero, exactly, from its Gram matrix.

    J is the Jacobian of the outputs in theta, and B the Hessian of the criterion in the outputs. Arguments as for
    :func:`gauss_newton`. There are as many values as outputs of all examples in all batches, or param if that is less.
    :func:`spectrum` of a Gauss-Newton matrix with no more outputs than parameters does the same and adds the zeros. The
    error stated here covers the small eigenvalue problem and negative eigenvalues of B of the size of rounding, which
    count as zero. It does not include the rounding of J and B.

    The criterion must be convex in the outputs, but may couple examples: its full Hessian in the outputs is used. This
    costs one backward pass for each output of each example, and memory for six matrices of the size of J, which has
    param * examples * outputs per example numbers (ResNet-12 with 25 examples of 5 outputs: 24 GB for all six). Points
    are computed in chunks of as many as fit in max_memory bytes, but at least one; None allows 512 MiB (see ``hessian``
    for CUDA). Raises ValueError as gauss_newton does, for ragged batches, and for a criterion that is not convex at
    some point. (Gram matrix as in Dangel 2022, ViViT.)

    >>> from hessian_tools.layout import flatten
    >>> from hessian_tools.loss import make_loss
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> loss = make_loss(model, lambda out, y: ((out - y) ** 2).mean(), flatten(model)[1])
    >>> x = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> gauss_newton_spectrum(loss, torch.ones(3), (x, torch.zeros(2, 1))).values  # J'BJ = 2 X'X / 2 = diag(4, 1, 0)
    tensor([4., 1.])
    """
    G = gauss_newton(
        loss, thetas, batch, shared=shared, weights=weights, chunk=chunk, batching=batching, max_memory=max_memory
    )
    if not loss.has_criterion:
        raise ValueError(
            "the spectrum from outputs needs the criterion, but the network computes its loss itself; use "
            "spectrum(gauss_newton(...)), or give the criterion: ht.make_loss(model, criterion)"
        )
    if G.objective.ranks is not None:
        raise ValueError(
            "the outputs lie with several processes, so there is no Gram matrix of all of them; use "
            "ht.spectrum(ht.gauss_newton(loss, theta, data_parallel(batches))), whose values are these "
            "and, in addition, zeros"
        )
    if not has_gram_matrix(G):
        raise ValueError("spectra of ragged batches differ in length; compute the points of each batch size separately")
    try:
        return _assembled(G, [gram_points(G, vectors=vectors)])
    except NoForwardDerivative as error:
        raise ValueError(
            "the Jacobian of this network cannot be computed for all outputs together; use "
            "ht.spectrum(ht.gauss_newton(loss, thetas, batch)), whose values are these and, in addition, zeros"
        ) from error


def _solved_by_gram(H: Operator, *, vectors: bool, count: ProgressCounter) -> list[SolvedPoints] | None:
    """The spectra of all points from their Gram matrices.

    Returns None if H has no Gram matrix, if that would be larger than H, or if the criterion is not convex.
    """
    if not has_gram_matrix(H) or sum(num_outputs(H.objective)) > H.num_params:
        return None
    try:
        solved = gram_points(H, vectors=vectors, done=count.add)
    except NotConvexError:
        count.done = 0  # another method will compute all points again
        return None
    # The derivatives J and B have rounding errors as well.
    return [replace(solved, error=solved.error + largest_rounding(solved.values, H.dtype))]


def _assembled(H: Operator, solved: list[SolvedPoints], num_values: int | None = None) -> Spectrum:
    """The spectrum of all points, in order.

    solved: the results for parts of the points. num_values: the number of values at each point after padding with
    zeros; None for as many as were computed.
    """
    order = torch.cat([part.points for part in solved]).argsort().to(H.device)
    width = num_values or solved[0].values.shape[1]
    values = torch.cat([pad(part.values, (0, width - part.values.shape[1])) for part in solved]).to(H.dtype)[order]
    error = torch.cat([part.error for part in solved]).to(H.dtype)[order]
    lost = error.isnan()[:, None]  # the points without a result
    values.masked_fill_(lost, torch.nan)
    dense, num_matvecs = (
        torch.cat([torch.full(part.points.shape, getattr(part, name), device=H.device) for part in solved])[order]
        for name in ("dense", "num_matvecs")
    )
    Q, rows = None, [part.vectors for part in solved if part.vectors is not None]
    if rows:
        # The vectors are rows until they are transposed at the end. A point without a result has NaN in all its values,
        # so it gets a vector of NaN for each of them.
        max_rows = width if lost.any() else max(part.shape[1] for part in rows)
        Q = torch.cat([pad(part, (0, 0, 0, max_rows - part.shape[1])) for part in rows])[order].mT
        Q = Q.masked_fill(lost[..., None], torch.nan)
    if H.num_points is None:
        return Spectrum(values[0], error[0], None if Q is None else Q[0], dense[0], num_matvecs[0])
    return Spectrum(values, error, Q, dense, num_matvecs)
