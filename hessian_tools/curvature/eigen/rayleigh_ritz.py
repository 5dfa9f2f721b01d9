"""Pairs checked by true products, all at once, whatever way they were found."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hessian_tools.curvature.eigen.batched_lanczos import Ritz
from hessian_tools.curvature.eigen.selection import Selection
from hessian_tools.curvature.operators.lengths import lengths
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.parts import row_products


@dataclass(frozen=True)
class Verified:
    """Every wanted pair of every point once: unit vectors, Rayleigh quotients and true residuals.

    norm: |H|. rows: by wish, which pairs serve it. num_matvecs: with the products of the check. Where a point wants
    fewer pairs than another, zeros follow, which no row names.
    """

    values: Float[Tensor, "point pair"]
    residuals: Float[Tensor, "point pair"]
    vectors: Float[Tensor, "point param pair"]
    norm: Float[Tensor, " point"]
    num_matvecs: Int[Tensor, " point"]
    complete: Bool[Tensor, " point"]
    rows: list[Int[Tensor, "point _"]]


def verified(H: Operator, ritz: list[Ritz], wishes: tuple[Selection, ...]) -> Verified:
    """The wanted pairs checked by one block product.

    The vectors are first turned so that H, seen from them, is diagonal (Rayleigh, Ritz), which costs no product:
    what a search for copies finds beside a pair that is known to a residual only, has that residual in it.
    """
    chosen = [_chosen(point, wishes) for point in ritz]
    counts = torch.tensor([len(vectors) for vectors in chosen], device="cpu")
    X = pad_sequence(chosen, batch_first=True)
    HX = row_products(H, X)
    rows = [torch.zeros(len(ritz), wish.k, dtype=torch.long, device="cpu") for wish in wishes]
    whole = torch.tensor([not point.broken for point in ritz], device="cpu")
    for count in counts.unique().tolist():
        who, here = ((counts == count) & whole).nonzero()[:, 0], slice(count)
        if len(who) == 0:  # only points that are not finite, of which there is nothing to pick from
            continue
        values, S = _diagonal(X[who, here], HX[who, here])
        X[who, here], HX[who, here] = S.mT @ X[who, here], S.mT @ HX[who, here]
        for row, wish in zip(rows, wishes, strict=True):
            row[who] = wish.pick(values)
    values = (X * HX).sum(-1)
    residuals = lengths(HX.addcmul_(values[..., None], X, value=-1)).to(values)
    count = torch.tensor([point.num_matvecs + X.shape[1] for point in ritz], device="cpu").to(H.device)
    norm = torch.tensor([point.norm for point in ritz], dtype=H.dtype, device="cpu").to(H.device)
    complete = torch.tensor([point.complete for point in ritz], device="cpu").to(H.device)
    return Verified(values, residuals, X.mT, norm, count, complete, rows)


def _chosen(point: Ritz, wishes: tuple[Selection, ...]) -> Float[Tensor, "pair param"]:
    """The unit vectors wanted, each once though several wishes may share it."""
    if point.broken:
        return point.vectors[:1]
    columns = torch.cat([wish.pick(point.values) for wish in wishes]).unique()
    vectors = point.vectors[columns.to(point.vectors.device)]
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _diagonal(
    X: Float[Tensor, "point pair param"], HX: Float[Tensor, "point pair param"]
) -> tuple[Float[Tensor, "point pair"], Float[Tensor, "point pair pair"]]:
    """Eigenvalues, on the CPU, and vectors of H as seen from the rows of X; as they are where H is not finite."""
    T = (X @ HX.mT).double().cpu()
    T = (T + T.mT) / 2
    values, S = torch.linalg.eigh(T.masked_fill(~T.isfinite().flatten(1).all(-1)[:, None, None], 0.0))
    return values, S.to(X)
