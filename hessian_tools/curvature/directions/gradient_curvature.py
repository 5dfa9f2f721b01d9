"""Curvature along the gradient: rho = g'Hg / g'g, its bound |Hg| / |g|, and their error.

:func:`gradient_curvature` computes them for an operator. The other functions are the single formulas, pure functions of
products that were already computed, so that a caller who has Hg computes nothing twice. :func:`rho_normalised` is a rho
that does not depend on the scale of filters. :func:`tensor_parts` gives the curvature of each parameter tensor, and
:func:`random_rotations` a null hypothesis for rho.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.operators.composite import Projected
from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.layout import ParamLayout
from hessian_tools.result import Result
from hessian_tools.rng import PathPart, stream

# Lee, Yoo, Kwak 2023, Eq. 3: a step -alpha g is effective if the integral over t in [0, 1] of |g|^2 - alpha t g'Hg is
# positive. The integral is |g|^2 - (alpha/2) g'Hg = |g|^2 (1 - alpha rho / 2), with rho = g'Hg / g'g;
# so it is positive exactly if alpha * rho < 2, which is the descent lemma along the gradient.
DESCENT_THRESHOLD = 2.0

# The part of the rounding error of rho that the asymmetry of products does not show, in units of eps |Hg| / |g|.
ROUNDING_UNITS = 8


@dataclass(frozen=True, repr=False)
class GradientCurvature(Result):
    """Curvature along the gradient g at every point; the ratios are NaN where g = 0.

    rho: g'Hg / g'g, in units of 1 / step size. hg_ratio: |Hg| / |g|, in the same units; by Cauchy and Schwarz
    |rho| <= hg_ratio always. grad_norm: |g|. error: an estimate of the rounding error of rho and of hg_ratio, see
    :func:`rounding_error`; None if it was not computed. step_size: alpha, or None if none was given.
    """

    rho: Float[Tensor, "*point"]
    hg_ratio: Float[Tensor, "*point"]
    grad_norm: Float[Tensor, "*point"]
    error: Float[Tensor, "*point"] | None = None
    step_size: Float[Tensor, "*#point"] | None = None

    @property
    def alpha_rho(self) -> Float[Tensor, "*point"] | None:
        """Step size times rho, a pure number: below DESCENT_THRESHOLD the step is effective. None without step_size."""
        return None if self.step_size is None else self.step_size * self.rho

    @property
    def alpha_rho_error(self) -> Float[Tensor, "*point"] | None:
        """The error of alpha_rho: the step size times ``error``; None where either was not given."""
        return None if self.step_size is None or self.error is None else self.step_size.abs() * self.error


def gradient_curvature(H: Operator, step_size: float | Float[Tensor, "*#point"] | None = None) -> GradientCurvature:
    """The curvature of H along the gradient of its loss, at every point, with its rounding error.

    H: a Hessian or a Gauss-Newton matrix, or a block or restriction of one, for which the gradient is restricted in the
    same way. step_size: alpha, one number or one for each point; ``alpha_rho`` of the result needs it. For a single
    point the results have no point axis. The cost is one gradient and two products at each point: Hg, and H(Hg) for the
    error.
    Raises ValueError for any other operator, because its gradient is not known. (Lee, Yoo, Kwak 2023, Eq. 3.)

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.ones(2), torch.tensor([3.0, 1.0]))
    >>> along = gradient_curvature(H, step_size=0.1)  # g = (3, 1), Hg = (9, 1)
    >>> round(float(along.rho), 4), round(float(along.alpha_rho), 4), round(float(along.hg_ratio) ** 2, 4)
    (2.8, 0.28, 8.2)
    """
    g = _gradients(H)
    g = g[0] if H.num_points is None else g
    hg = H.mv(g)
    # Random probes are nearly orthogonal to the gradient and underestimate the error. The direction Hg does not, so it
    # is worth one more product.
    z, _ = in_units(hg)
    asymmetry = product_asymmetry(hg, g, H.mv(z)[..., None], z[..., None])
    asymmetry = torch.where((hg == 0).all(-1), 0.0, asymmetry)  # z is zero at these points
    curvature = curvature_along(g, hg)
    error = rounding_error(curvature.hg_ratio, asymmetry)
    alpha = None if step_size is None else torch.as_tensor(step_size, device="cpu").to(H.device, H.dtype)
    return replace(curvature, error=error, step_size=alpha)


def _gradients(H: Operator) -> Float[Tensor, "point row"]:
    """The gradient of the loss of H at every point, restricted to the rows of H."""
    if isinstance(H, Projected):  # a block or a restriction
        return H.lower(_gradients(H.whole)[..., None])[..., 0]
    if isinstance(H, LossOperator):
        return H.engine.gradients(H.objective)
    raise ValueError(
        f"the gradient that belongs to a {type(H).__name__} is not known; give the operator of one loss, or a block "
        "of it, or call curvature_along(g, H.mv(g))"
    )


def curvature_along(g: Float[Tensor, "*point param"], hg: Float[Tensor, "*point param"]) -> GradientCurvature:
    """Curvature along g from g and the product Hg; the result has no error and no step size.

    >>> result = curvature_along(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0]))  # H = diag(3, 1)
    >>> round(float(result.rho), 5), round(float(result.hg_ratio) ** 2, 5)
    (2.0, 5.0)
    """
    g, unit = in_units(g)
    hg, hg_unit = in_units(hg)
    length = vector_norm(g)
    ratio = hg_unit / unit
    return GradientCurvature(ratio * ((g * hg).sum(-1) / length**2), ratio * (vector_norm(hg) / length), unit * length)


def in_units(v: Float[Tensor, "*point param"]) -> tuple[Float[Tensor, "*point param"], Float[Tensor, "*point"]]:
    """Splits v into v / u and a unit u, the power of two next below v's largest entry; u is 1 if v is 0 or not finite.

    In float32 the squares of small gradients (1e-20) would vanish and those of large ones (1e20) overflow. Division by
    a power of two makes no rounding error.

    >>> in_units(torch.tensor([2.0, -5.0]))
    (tensor([ 0.5000, -1.2500]), tensor(4.))
    """
    largest = v.abs().amax(-1)
    unit = torch.where((largest > 0) & largest.isfinite(), largest / (2 * largest.frexp().mantissa), 1.0)
    return v / unit[..., None], unit


def product_asymmetry(
    hg: Float[Tensor, "*point param"],
    g: Float[Tensor, "*point param"],
    hz: Float[Tensor, "*point param probe"],
    z: Float[Tensor, "*#point param probe"],
) -> Float[Tensor, "*point"]:
    """Estimates the rounding error of rho by the largest |z'Hg - g'Hz| over probes z, for g and z of unit length.

    H is symmetric, but its computed products are not exactly so. The asymmetry estimates the error of rho = g'Hg / g'g
    from errors of the same kind. It is not a bound, and it is usually too small. In float32, on a Conv4 of width 16
    (32 points), the actual error of rho was 7 times the estimate in the median, and up to 40 times, with 8 random
    probes. With Hg itself as one more probe it was 1.7 times the estimate, so that probe is worth its product where the
    error (1e-7 of rho) matters. The estimate costs no product where H was multiplied by the probes anyway. It is NaN
    where g or a probe is 0.

    >>> e = torch.eye(2)
    >>> float(product_asymmetry(torch.tensor([0.0, 1.0]), e[0], torch.tensor([[1.25], [0.0]]), e[:, 1:]))
    0.25
    """
    g, unit = in_units(g)
    norms = vector_norm(g)[..., None] * vector_norm(z, dim=-2)
    difference = ((hg / unit[..., None])[..., None] * z).sum(-2) - (g[..., None] * hz).sum(-2)
    return (difference.abs() / norms).amax(-1)


def rounding_error(hg_ratio: Float[Tensor, "*point"], asymmetry: Float[Tensor, "*point"]) -> Float[Tensor, "*point"]:
    """An estimate of the rounding error of rho, and of |Hg| / |g|: asymmetry + 8 eps |Hg| / |g|.

    The asymmetry over random probes alone is too small, by a factor of ten in the median on a Conv4, because random
    probes are nearly orthogonal to the gradient. With the second term it covered the error against float64 at 99 % of
    112 points of a Conv4. It is an estimate, not a bound.

    >>> float(rounding_error(torch.tensor(2.0), torch.tensor(0.0))) / torch.finfo(torch.float32).eps
    16.0
    """
    return asymmetry + ROUNDING_UNITS * torch.finfo(hg_ratio.dtype).eps * hg_ratio


def filter_scale(
    layout: ParamLayout, theta: Float[Tensor, "*point param"], normalised: Iterable[str]
) -> Float[Tensor, "*point param"]:
    """The scale d of every parameter: the norm of its filter for the named weights, and 1 for all other parameters.

    normalised: the names, as in the layout, of the weights whose filters (slices along the first axis) are followed by
    normalisation. For a filter w of this kind H ~ 1/|w|^2 and g ~ 1/|w|, so weights that grow look like curvature that
    falls. With D = diag(d), the products D H D and D g do not change when such filters are rescaled.
    Raises ValueError for a name that the layout does not have.
    """
    normalised = set(normalised)
    if unknown := sorted(normalised - set(layout.names)):
        raise ValueError(f"no parameter named {unknown[0]!r}; the layout has {', '.join(layout.names)}")
    scales = []
    for name, shape, weights in zip(layout.names, layout.shapes, theta.split(list(layout.sizes), dim=-1), strict=True):
        if name in normalised:
            filters = weights.unflatten(-1, (shape[0], -1))
            scales.append(vector_norm(filters, keepdim=True).expand_as(filters).flatten(-2))
        else:
            scales.append(torch.ones_like(weights))
    return torch.cat(scales, dim=-1)


def rho_normalised(
    d: Float[Tensor, "*point param"], g: Float[Tensor, "*point param"], h_d2g: Float[Tensor, "*point param"]
) -> Float[Tensor, "*point"]:
    """Curvature along the gradient, independent of filter scales: (Dg)'(DHD)(Dg) / |Dg|^2 = (d^2 g)'H(d^2 g) / |d g|^2.

    d: from :func:`filter_scale`. h_d2g: the product ``H.mv(d**2 * g)``. It does not change when filters that are
    followed by normalisation are rescaled; this holds exactly in the limit where the normalisation's eps goes to 0. NaN
    where g = 0.

    >>> d, g, H = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0]), torch.diag(torch.tensor([3.0, 5.0]))
    >>> float(rho_normalised(d, g, H @ (d**2 * g)))  # 2 * 3 * 2
    12.0
    """
    dg, unit = in_units(d * g)
    product, product_unit = in_units(d * h_d2g)
    return product_unit / unit * ((dg * product).sum(-1) / (dg**2).sum(-1))


def small_step_difference(
    hg: Float[Tensor, "*point param"], *, tau: float, target_steps: int, reference_steps: int
) -> Float[Tensor, "*point param"]:
    """How far R small and T large gradient steps end apart, to leading order: (tau^2 / 2)(1/T - 1/R) Hg.

    It is theta_reference - theta_target with an error of O(tau^3), for R reference steps and T target steps of plain
    gradient descent from the same start on the same batch. Both paths have the same total time tau, which is the step
    size times the number of steps. hg: Hg at the start. Gradient descent with step h follows the gradient flow up to
    -(h/2) tau H g. The result is this term for the reference, h = tau/R, minus the term for the target, h = tau/T. It
    holds for smooth networks only: with kinks (ReLU, max-pooling) the remainder is not of order tau^3.

    >>> small_step_difference(torch.tensor([2.0]), tau=0.3, target_steps=1, reference_steps=3)  # 3 * 0.1**2 * 2
    tensor([0.0600])
    """
    return tau**2 / 2 * (1 / target_steps - 1 / reference_steps) * hg


def tensor_parts(layout: ParamLayout, v: Float[Tensor, "*point param"]) -> Float[Tensor, "*point param tensor"]:
    """One column for each parameter tensor: the entries of v that belong to it, and zeros elsewhere.

    The columns add up to v. If v is the gradient and g_l are its columns, one product of H with the columns gives the
    curvature g_l'H g_l / g_l'g_l of every diagonal block H_ll.

    >>> layout = ParamLayout(("weight", "bias"), (torch.Size([2]), torch.Size([1])))
    >>> tensor_parts(layout, torch.tensor([1.0, 2.0, 3.0]))
    tensor([[1., 0.],
            [2., 0.],
            [0., 3.]])
    """
    owner = torch.arange(len(layout.sizes), device="cpu").repeat_interleave(torch.tensor(layout.sizes, device="cpu"))
    is_owner = owner[:, None] == torch.arange(len(layout.sizes), device="cpu")
    # Not a product with zeros and ones, because an entry that is not finite would then make every column NaN.
    return torch.where(is_owner.to(v.device), v[..., None], 0.0)


def random_rotations(
    layout: ParamLayout,
    g: Float[Tensor, "*point param"],
    num_rotations: int,
    *,
    seed: int = 0,
    path: Sequence[PathPart] = (),
) -> Float[Tensor, "*point param rotation"]:
    """Vectors that are g rotated at random within each parameter tensor: in each of them the norm of g stays the same.

    They give a null hypothesis for the curvature along g: the curvature along a random direction whose norm is divided
    over the tensors as that of g is. The directions within a tensor are uniform on the sphere. They are the same at all
    points of g, so that differences between points are not blurred by different directions. Column i is drawn from
    ``stream(seed, "rotation", *path, i)``, so it does not depend on the number of columns.

    >>> layout = ParamLayout(("weight", "bias"), (torch.Size([2]), torch.Size([2])))
    >>> v = random_rotations(layout, torch.tensor([3.0, 4.0, 0.0, 0.0]), 2)
    >>> v[:2].norm(dim=0), v[2:].norm(dim=0)
    (tensor([5., 5.]), tensor([0., 0.]))
    """
    draws = (
        torch.randn(layout.numel, generator=stream(seed, "rotation", *path, i), dtype=torch.float64, device="cpu")
        for i in range(num_rotations)
    )
    normal = torch.stack(list(draws), -1).to(g.device)
    unit_vectors = [part / vector_norm(part, dim=0) for part in normal.split(list(layout.sizes))]
    # g is divided by a power of two near its largest entry, so that the squares in the norms neither underflow nor
    # overflow in float32, and the rotated vectors are multiplied by it again.
    scaled, unit_of_g = in_units(g)
    norms = [vector_norm(part) for part in scaled.split(list(layout.sizes), dim=-1)]
    rotated = [unit.to(g) * norm[..., None, None] for unit, norm in zip(unit_vectors, norms, strict=True)]
    return torch.cat(rotated, dim=-2) * unit_of_g[..., None, None]
