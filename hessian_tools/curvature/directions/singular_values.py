"""The largest singular values of an adaptation Jacobian, each with the residuals that bound its error."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.directions.adaptation import AdaptationJacobian
from hessian_tools.curvature.eigen.pairs import top_eigenpairs
from hessian_tools.curvature.html import eigenvalues_html
from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.progress import Progress
from hessian_tools.result import Result


@dataclass(frozen=True, repr=False)
class SingularValues(Result):
    """The largest singular values s of a Jacobian in falling order, with their quality.

    left_residuals, right_residuals: |Jv - su| and |J'u - sv| of the unit vectors u and v, from true products.
    error: sqrt(left^2 + right^2) / sqrt(2); at least one singular value of J lies within this distance of s.
    converged: error <= max(rtol s, 64 eps |J|^2 / s), where |J| is the largest singular value. Where it is False, raise
    max_matvecs.
    u, v: the singular vectors as columns, or None if they were not requested; u is zero where s is zero.
    num_matvecs: Hessian-vector products of each task. complete: True if a check found that no value was missed, see
    ``EigenPairs``.
    """

    values: Float[Tensor, "*task k"]
    left_residuals: Float[Tensor, "*task k"]
    right_residuals: Float[Tensor, "*task k"]
    converged: Bool[Tensor, "*task k"]
    u: Float[Tensor, "*task param k"] | None
    v: Float[Tensor, "*task param k"] | None
    num_matvecs: Int[Tensor, "*task"]
    complete: Bool[Tensor, "*task"]

    def _repr_html_(self) -> str:
        return eigenvalues_html(self.values, self.error, self.converged, title="SingularValues (± error)")

    @property
    def error(self) -> Float[Tensor, "*task k"]:
        """The distance from s within which a singular value of J lies."""
        return _error(self.left_residuals, self.right_residuals)


def singular_values(
    J: AdaptationJacobian,
    *,
    k: int = 5,
    rtol: float = 1e-3,
    vectors: bool = False,
    seed: int = 0,
    max_matvecs: int | None = None,
    copies: bool | None = None,
    progress: Progress | None = None,
) -> SingularValues:
    """The k largest singular values of J at every task, from eigenpairs of J'J, with residuals from true products.

    They are the factors by which the distance between two nearby starting points grows or shrinks in the inner loop.
    They are 1 along directions without curvature, and more than 1 along negative curvature and where step size times
    curvature exceeds 2. Only the largest are accurate: J'J squares the condition number, which gives a value s a
    relative error of eps (|J| / s)^2.
    max_matvecs: products with J'J, each of which is 2 K Hessian-vector products for K inner steps. rtol,
    vectors, seed and copies are those of :func:`top_eigenpairs`. progress: called with (done, total) tasks.
    Raises ValueError for k outside 1..param.

    >>> from hessian_tools.curvature import adaptation_jacobian, hessian
    >>> a = torch.tensor([2.0, -1.0])
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(3, 2), a, shared=True)
    >>> [round(s, 4) for s in singular_values(adaptation_jacobian(H, 0.1), k=2).values.tolist()]
    [1.331, 0.512]
    """
    # The tolerance for s^2 is that for s, because |J'Jv - s^2 v| = s |J'u - s v|.
    options: dict[str, Any] = {"seed": seed, "max_matvecs": max_matvecs, "copies": copies, "progress": progress}
    pairs = top_eigenpairs(J.gram, k=k, which="LA", rtol=rtol, vectors=True, **options)
    assert pairs.vectors is not None
    # s, u = Jv / s and v in descending order of s, which rounding may make differ from the order of the eigenvalues.
    images = J @ pairs.vectors
    s, order = vector_norm(images, dim=-2).sort(dim=-1, descending=True, stable=True)
    images, v = (columns.gather(-1, order[..., None, :].expand_as(columns)) for columns in (images, pairs.vectors))
    u = torch.where(s[..., None, :] == 0, 0.0, images / s[..., None, :])
    left = vector_norm(J @ v - u * s[..., None, :], dim=-2)
    right = vector_norm(J.T @ u - v * s[..., None, :], dim=-2)
    # Lanczos on J'J rounds s^2 by some eps |J|^2, and hence s by some eps |J|^2 / s.
    rounding = 64 * torch.finfo(s.dtype).eps * s[..., :1] ** 2 / s.clamp(min=torch.finfo(s.dtype).tiny)
    converged = _error(left, right) <= torch.maximum(rtol * s, rounding)
    # In units of products with J or J', of which a product with J'J takes two. J @ vectors, J @ v and J.T @ u above are
    # k products each.
    products = J.steps * (2 * pairs.num_matvecs + 3 * k)
    return SingularValues(
        s, left, right, converged, u if vectors else None, v if vectors else None, products, pairs.complete
    )


def _error(left: Float[Tensor, "*task k"], right: Float[Tensor, "*task k"]) -> Float[Tensor, "*task k"]:
    """The field ``error`` of :class:`SingularValues`, from the two residuals."""
    return ((left**2 + right**2) / 2).sqrt()
