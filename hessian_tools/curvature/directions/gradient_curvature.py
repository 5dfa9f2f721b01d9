"""Curvature along given directions: pure functions of products already computed, so nothing is computed twice."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.layout import ParamLayout
from hessian_tools.torch_fixes.precision import full_precision

# Lee 2023, Eq. 3: a step -alpha g is effective if the integral over t in [0, 1] of |g|^2 - alpha t g'Hg is positive.
# The integral is |g|^2 - (alpha/2) g'Hg = |g|^2 (1 - alpha rho / 2), with rho = g'Hg / g'g;
# so it is positive exactly if alpha * rho < 2: the descent lemma, along the gradient.
DESCENT_THRESHOLD = 2.0


@dataclass(frozen=True)
class AlongGradient:
    """rho = g'Hg / g'g [1/step size], hg_ratio = |Hg| / |g| [1/step size], grad_norm = |g|; NaN ratios where g = 0."""

    rho: Float[Tensor, "*point"]
    hg_ratio: Float[Tensor, "*point"]
    grad_norm: Float[Tensor, "*point"]


@full_precision
def along(g: Float[Tensor, "*point param"], hg: Float[Tensor, "*point param"]) -> AlongGradient:
    """Curvature along the gradient, from g and the product Hg.

    Compare alpha * rho with DESCENT_THRESHOLD. |rho| <= hg_ratio always (Cauchy and Schwarz).

    >>> result = along(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0]))  # H = diag(3, 1)
    >>> round(float(result.rho), 5), round(float(result.hg_ratio) ** 2, 5)
    (2.0, 5.0)
    """
    g, size = in_units(g)
    hg, hg_size = in_units(hg)
    norm = g.norm(dim=-1)
    ratio = hg_size / size
    return AlongGradient(ratio * ((g * hg).sum(-1) / norm**2), ratio * (hg.norm(dim=-1) / norm), size * norm)


def in_units(v: Float[Tensor, "*point param"]) -> tuple[Float[Tensor, "*point param"], Float[Tensor, "*point"]]:
    """v / u and u, a power of two the size of v, so nothing is rounded; 1 where v is 0 or not finite.

    Squares of small gradients (1e-20) would vanish in float32, those of large ones (1e20) overflow.

    >>> in_units(torch.tensor([2.0, -5.0]))
    (tensor([ 0.5000, -1.2500]), tensor(4.))
    """
    most = v.abs().amax(-1)
    unit = torch.where((most > 0) & most.isfinite(), most / (2 * most.frexp().mantissa), 1.0)
    return v / unit[..., None], unit


@full_precision
def cos_displacement(
    gradients: Float[Tensor, "*point step param"], displacement: Float[Tensor, "*point param"]
) -> Float[Tensor, "*point step"]:
    """cos(-g_k, theta_K - theta_0) at every inner step (Lee 2023, figure 3); NaN where either is zero.

    Compare with :func:`cosine_null`: orthogonal gradients already reach it.

    >>> cos_displacement(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([-1.0, -1.0]))
    tensor([0.7071, 0.7071])
    """
    gradients, displacement = in_units(gradients)[0], in_units(displacement)[0]
    dot = -(gradients * displacement[..., None, :]).sum(-1)
    return dot / (gradients.norm(dim=-1) * displacement.norm(dim=-1)[..., None])


def alignment(gram: Float[Tensor, "*point step step"]) -> Float[Tensor, "*point"]:
    """A = (|sum_k g_k|^2 / sum_k |g_k|^2 - 1) / (K - 1), from the Gram matrix of the K inner gradients.

    0 when they are orthogonal whatever their norms, 1 when equal, negative when they oscillate. NaN for
    K < 2 and for zero gradients. Orthogonality is a weak null: A -> 1 as the step size -> 0 for any network.

    >>> float(alignment(torch.ones(3, 3))), float(alignment(torch.eye(3)))
    (1.0, 0.0)
    """
    steps = gram.shape[-1]
    gram = gram / in_units(gram.diagonal(dim1=-2, dim2=-1))[1][..., None, None]
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (gram.sum((-2, -1)) - trace) / ((steps - 1) * trace)


def cosine_null(steps: int) -> tuple[float, float]:
    """Where the mean cosine of ``cos_displacement`` lies if the gradients are orthogonal: [1/K, 1/sqrt(K)].

    Then the squared cosines sum to one: the mean is 1/sqrt(K) for equal norms, 1/K if one gradient is all.

    >>> cosine_null(4)
    (0.25, 0.5)
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: give the number of inner gradients, 1 or more")
    return 1 / steps, steps**-0.5


@full_precision
def filter_scale(
    layout: ParamLayout, theta: Float[Tensor, "*point param"], normalised: Iterable[str]
) -> Float[Tensor, "*point param"]:
    """d: the norm of its filter on each entry of the named weights, 1 elsewhere.

    normalised: names in the layout of weights whose filters (slices along their first axis) are
    followed by normalisation. There H ~ 1/|w|^2 and g ~ 1/|w|, so growing weights fake falling curvature;
    D H D and D g, D = diag(d), do not change when such filters are rescaled. Raises ValueError for unknown names.
    """
    normalised = set(normalised)
    if unknown := sorted(normalised - set(layout.names)):
        raise ValueError(f"no parameter named {unknown[0]!r}; the layout has {', '.join(layout.names)}")
    pieces = []
    for name, shape, piece in zip(layout.names, layout.shapes, theta.split(list(layout.sizes), dim=-1), strict=True):
        if name in normalised:
            filters = piece.unflatten(-1, (shape[0], -1))
            pieces.append(filters.norm(dim=-1, keepdim=True).expand_as(filters).flatten(-2))
        else:
            pieces.append(torch.ones_like(piece))
    return torch.cat(pieces, dim=-1)


@full_precision
def rho_normalised(
    d: Float[Tensor, "*point param"], g: Float[Tensor, "*point param"], h_d2g: Float[Tensor, "*point param"]
) -> Float[Tensor, "*point"]:
    """Scale-free curvature along the gradient: (Dg)'(DHD)(Dg) / |Dg|^2 = (d^2 g)'H(d^2 g) / |d g|^2.

    h_d2g: the product ``H.mv(d**2 * g)``. Unchanged by rescaling filters under normalisation, exactly as
    its eps -> 0. NaN where g = 0.

    >>> d, g, H = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0]), torch.diag(torch.tensor([3.0, 5.0]))
    >>> float(rho_normalised(d, g, H @ (d**2 * g)))  # 2 * 3 * 2
    12.0
    """
    dg, size = in_units(d * g)
    product, product_size = in_units(d * h_d2g)
    return product_size / size * ((dg * product).sum(-1) / (dg**2).sum(-1))


@full_precision
def product_asymmetry(
    hg: Float[Tensor, "*point param"],
    g: Float[Tensor, "*point param"],
    hz: Float[Tensor, "*point param probe"],
    z: Float[Tensor, "*#point param probe"],
) -> Float[Tensor, "*point"]:
    """The rounding error of bilinear forms of H: the largest |z'Hg - g'Hz| over the probes, g and z at unit length.

    H is symmetric, its computed products are not quite. This measures the error of rho = g'Hg / g'g by
    errors of the same kind: an estimate, not a bound, and on the low side. In float32, on Conv4 of width 16
    (32 points), the actual error of rho was 7 times this in the median and up to 40 times with 8 random
    probes; 1.7 times with Hg itself as one more direction, worth its product where the error matters
    (it was 1e-7 of rho). Costs nothing where probes were multiplied anyway. NaN where g or a probe is 0.

    >>> e = torch.eye(2)
    >>> float(product_asymmetry(torch.tensor([0.0, 1.0]), e[0], torch.tensor([[1.25], [0.0]]), e[:, 1:]))
    0.25
    """
    g, size = in_units(g)
    norms = g.norm(dim=-1)[..., None] * z.norm(dim=-2)
    difference = ((hg / size[..., None])[..., None] * z).sum(-2) - (g[..., None] * hz).sum(-2)
    return (difference.abs() / norms).amax(-1)


def rounding_error(hg_ratio: Float[Tensor, "*point"], asymmetry: Float[Tensor, "*point"]) -> Float[Tensor, "*point"]:
    """The error of rho (and of |Hg|/|g|) from arithmetic in the dtype at hand: asymmetry + 8 eps |Hg| / |g|.

    The asymmetry alone reads low, by ten times in the median on a Conv4, as random probes hardly meet the
    gradient. With the second term, errors against float64 stayed below it at 99 % of 112 points of a Conv4; no bound.

    >>> float(rounding_error(torch.tensor(2.0), torch.tensor(0.0))) / torch.finfo(torch.float32).eps
    16.0
    """
    return asymmetry + 8 * torch.finfo(hg_ratio.dtype).eps * hg_ratio


@full_precision
def small_step_difference(
    hg: Float[Tensor, "*point param"], *, tau: float, target_steps: int, reference_steps: int
) -> Float[Tensor, "*point param"]:
    """theta_reference - theta_target to leading order: (tau^2 / 2)(1/T - 1/R) Hg, with an error of O(tau^3).

    T target steps and R reference steps of plain gradient descent from one start, on one batch, each of
    total time tau = step size times steps. Gradient descent with step h follows the flow up to
    -(h/2) tau H g: so T steps and R steps differ by that with h = tau/T less h = tau/R. Smooth networks only:
    kinks (ReLU, max-pool) break the order.

    >>> small_step_difference(torch.tensor([2.0]), tau=0.3, target_steps=1, reference_steps=3)  # 3 * 0.1**2 * 2
    tensor([0.0600])
    """
    return tau**2 / 2 * (1 / target_steps - 1 / reference_steps) * hg
