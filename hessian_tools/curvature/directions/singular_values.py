"""The largest singular values of an adaptation Jacobian, each with the residuals that bound its error."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.directions.adaptation import AdaptationJacobian
from hessian_tools.curvature.eigen.pairs import top_eigenpairs
from hessian_tools.torch_fixes.precision import full_precision


@dataclass(frozen=True)
class SingularValues:
    """The largest singular values of a Jacobian, falling, with their quality.

    left_residuals: |J v - s u|; right_residuals: |J'u - s v| of the unit vectors u, v, from true products. A singular
    value of J lies within ``error`` = sqrt(left^2 + right^2) / sqrt(2) of s. complete: none was missed, as for
    ``EigenPairs``.
    converged: error <= max(rtol s, 64 eps |J|^2 / s), |J| the largest value; where False, raise max_matvecs.
    u, v [*task, param, k]: where asked for; u is zero where s is. num_matvecs: Hessian-vector products of each task.
    """

    values: Float[Tensor, "*task k"]
    left_residuals: Float[Tensor, "*task k"]
    right_residuals: Float[Tensor, "*task k"]
    converged: Bool[Tensor, "*task k"]
    u: Float[Tensor, "*task param k"] | None
    v: Float[Tensor, "*task param k"] | None
    num_matvecs: Int[Tensor, "*task"]
    complete: Bool[Tensor, "*task"]

    @property
    def error(self) -> Float[Tensor, "*task k"]:
        """How near a singular value of J lies."""
        return _error(self.left_residuals, self.right_residuals)


@full_precision
def singular_values(
    J: AdaptationJacobian,
    *,
    k: int = 5,
    rtol: float = 1e-3,
    vectors: bool = False,
    seed: int = 0,
    max_matvecs: int | None = None,
    copies: bool | None = None,
) -> SingularValues:
    """The k largest singular values of J at every task, from eigenpairs of J'J (Lanczos), certified by products.

    They say how far apart starts grow or shrink in the inner loop: 1 along directions without curvature, more than
    1 along negative curvature and where alpha lambda > 2. Only the largest are promised: J'J squares
    the condition, which costs a value s a relative error of eps (|J| / s)^2. max_matvecs: products with J'J, each
    2 K Hessian-vector products; None, and copies: as for :func:`top_eigenpairs`.
    Raises ValueError for k outside 1..param.

    >>> from hessian_tools.curvature import adaptation_jacobian, hessian
    >>> a = torch.tensor([2.0, -1.0])
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(3, 2), a, shared=True)
    >>> [round(s, 4) for s in singular_values(adaptation_jacobian(H, 0.1), k=2).values.tolist()]
    [1.331, 0.512]
    """
    # The same tolerance for s^2 as for s: |J'Jv - s^2 v| = s |J'u - s v|.
    pairs = top_eigenpairs(
        J.gram, k=k, which="LA", rtol=rtol, vectors=True, seed=seed, max_matvecs=max_matvecs, copies=copies
    )
    assert pairs.vectors is not None
    s, u, v = _falling(J @ pairs.vectors, pairs.vectors)
    left = (J @ v - u * s[..., None, :]).norm(dim=-2)
    right = (J.T @ u - v * s[..., None, :]).norm(dim=-2)
    rounding = 64 * torch.finfo(s.dtype).eps * s[..., :1] ** 2 / s.clamp(min=torch.finfo(s.dtype).tiny)
    converged = _error(left, right) <= torch.maximum(rtol * s, rounding)
    products = J.steps * (2 * pairs.num_matvecs + 3 * k)
    return SingularValues(
        s, left, right, converged, u if vectors else None, v if vectors else None, products, pairs.complete
    )


def _falling(
    images: Float[Tensor, "*task param k"], v: Float[Tensor, "*task param k"]
) -> tuple[Float[Tensor, "*task k"], Float[Tensor, "*task param k"], Float[Tensor, "*task param k"]]:
    """s, u = Jv / s and v, by falling s, which may differ in order from the eigenvalues by rounding."""
    s, order = images.norm(dim=-2).sort(dim=-1, descending=True, stable=True)
    images, v = (columns.gather(-1, order[..., None, :].expand_as(columns)) for columns in (images, v))
    return s, torch.where(s[..., None, :] == 0, 0.0, images / s[..., None, :]), v


def _error(left: Float[Tensor, "*task k"], right: Float[Tensor, "*task k"]) -> Float[Tensor, "*task k"]:
    return ((left**2 + right**2) / 2).sqrt()
