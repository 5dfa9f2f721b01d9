"""The curvature of each parameter tensor's block of the Hessian, and of the blocks of the head and of the body."""

import torch
from torch import Tensor

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import Variable, point_variable
from hessian_tools.curvature import curvature_along, estimate_of, product_asymmetry, rounding_error, tensor_parts
from hessian_tools.layout import ParamLayout

# The names of variables contain one of these kinds of blocks. Each has the words for the owner of such a block, and the
# further axis of its variables: there are as many blocks of kind "layer" as the network has parameter tensors.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "layer": ("each parameter tensor's", ("layer",)),
    "head": ("the head's", ()),
    "body": ("the body's", ()),
}


def measure(points: Points) -> Values:
    """The curvature of each block along the block's own gradient, and the trace of each block.

    H_bb is the diagonal block of the Hessian that belongs to one tensor, to the head or to the body, and g_b is the
    part of the gradient g there. The curvature g_b'H_bb g_b / g_b'g_b and the ratio |H_bb g_b| / |g_b| contain no
    curvature between blocks. g is the gradient in all parameters, also where the inner loop moves only some of them, so
    that the curvature of a body that stands still is known too. Both are NaN where g_b is zero.

    The trace of a block is the mean over the probes z of the block's part of z'Hz. It costs no further product.
    """
    values = curvature_of_blocks(points, torch.ones_like(points.products.scale))
    return values | traces_of_blocks(points, points.probes.unsqueeze(1) * points.products.hz)


def curvature_of_blocks(points: Points, scale: Tensor) -> dict[str, Tensor]:
    """The curvature of each block of D H D along the block's part of D g, by the names of the variables of ``measure``.

    scale: the diagonal of D [task, step, param]; with ones these are the blocks of H itself. In the coordinates
    theta / D the gradient is D g and the Hessian is D H D.

    The errors are those of rounding: H is symmetric, so z'(H v) and v'(H z) would be equal in exact arithmetic. Their
    difference estimates the error of the product with v, where z is the gradient or a probe (see
    ``gradient_curvature``). The same number estimates the error of rho and of |Hg| / |g|. All errors of a point are NaN
    where its ``scale`` has a zero, as for a filter of norm 0, because z is then divided by it.
    """
    layout, d = points.loss.layout, scale[..., None]
    parts = tensor_parts(layout, scale * points.gradient_on(points.examples))  # [task, step, param, tensor]
    h_parts = d * points.unflatten(points.hessian @ (d * parts).flatten(0, 1))
    probes = points.probes.unsqueeze(1).expand_as(points.products.hz)
    # The vectors whose products with D H D are known: D^-1 z, for the gradient and the probes as z.
    z = torch.cat([points.gradients[..., None], probes], -1) / d
    hz = d * torch.cat([points.products.hg[..., None], points.products.hz], -1)

    rows_of_tensors = tensor_parts(layout, torch.ones_like(scale[0, 0])) > 0  # [param, tensor]
    rho, ratio, error = [], [], []
    for block in _tensors_of_blocks(layout, z.device):
        g_b, hg_b = parts[..., block].sum(-1), h_parts[..., block].sum(-1)
        curvature = curvature_along(g_b, hg_b)
        rho.append(curvature.rho)
        in_block = torch.where(rows_of_tensors[:, block].any(-1), hg_b, 0.0)
        ratio.append(curvature_along(g_b, in_block).hg_ratio)
        error.append(rounding_error(curvature.hg_ratio, product_asymmetry(hg_b, g_b, hz, z)))
    values: dict[str, Tensor] = {}
    for name, of_blocks in (("rho_{}", rho), ("rho_{}_error", error), ("hg_ratio_{}", ratio)):
        values |= {name.format(kind): value for kind, value in _by_kind(of_blocks, layer_axis=-1).items()}
    return values


def traces_of_blocks(points: Points, zhz: Tensor) -> dict[str, Tensor]:
    """The trace of each block and its standard error, by the names of ``trace_variables``.

    zhz: z times Hz, entry by entry, for random signs z [task, step, param, probe]. Its sum over a block's parameters
    estimates the trace of the block.
    """
    layout = points.loss.layout
    sums = torch.stack([part.sum(-2) for part in zhz.split(list(layout.sizes), -2)], -2)  # [task, step, tensor, probe]
    samples = [sums[..., block, :].sum(-2) for block in _tensors_of_blocks(layout, zhz.device)]
    values: dict[str, Tensor] = {}
    for kind, samples_of_kind in _by_kind(samples, layer_axis=-2).items():
        trace = estimate_of(samples_of_kind)
        values |= {f"trace_{kind}": trace.value, f"trace_{kind}_stderr": trace.stderr}
    return values


def _tensors_of_blocks(layout: ParamLayout, device: torch.device) -> list[Tensor]:
    """A mask of the parameter tensors of each block: of every tensor alone, then of the head, then of the body."""
    is_head = torch.tensor([name in layout.under("head") for name in layout.names], device=device)
    return [*torch.eye(len(layout.names), dtype=torch.bool, device=device), is_head, ~is_head]


def _by_kind(of_blocks: list[Tensor], *, layer_axis: int) -> dict[str, Tensor]:
    """Numbers of the blocks of ``_tensors_of_blocks`` by the kinds; those of single tensors get an axis of tensors."""
    *layers, head, body = of_blocks
    return dict(zip(KINDS, (torch.stack(layers, layer_axis), head, body), strict=True))


def curvature_variables(suffix: str = "", words: str = "") -> tuple[Variable, ...]:
    """The variables of ``curvature_of_blocks``; their names end in ``suffix`` and their meanings in ``words``."""
    variables: list[Variable] = []
    for kind, (owner, axes) in KINDS.items():
        error = f"rho_{kind}_error{suffix}"
        variables += [
            point_variable(
                f"rho_{kind}{suffix}", f"curvature along {owner} part of the gradient{words}", *axes, error=error
            ),
            point_variable(error, f"float32 error of the curvature of {owner} block{words}", *axes),
            point_variable(
                f"hg_ratio_{kind}{suffix}", f"|H_bb g_b| / |g_b| of {owner} block{words}", *axes, error=error
            ),
        ]
    return tuple(variables)


def trace_variables(suffix: str = "", words: str = "") -> tuple[Variable, ...]:
    """The variables of ``traces_of_blocks``; their names end in ``suffix`` and their meanings in ``words``."""
    variables: list[Variable] = []
    for kind, (owner, axes) in KINDS.items():
        variables += [
            point_variable(
                f"trace_{kind}{suffix}", f"trace of {owner} block{words}", *axes, error=f"trace_{kind}_stderr{suffix}"
            ),
            point_variable(
                f"trace_{kind}_stderr{suffix}", f"standard error of the trace of {owner} block{words}", *axes
            ),
        ]
    return tuple(variables)


QUANTITY = Quantity(
    name="blocks",
    title="curvature along the gradient and trace by layer, head and body",
    formula="g_b'H g_b / g_b'g_b, |H_bb g_b| / |g_b| and tr H_bb for the part g_b of g and the block H_bb of H in one "
    "tensor, in the head, or in the body",
    variables=(*curvature_variables(), *trace_variables()),
    measure=measure,
    library="hessian_tools.curvature.tensor_parts, .curvature_along",
    cost="one product with the Hessian for each parameter tensor, and one gradient",
    reference="Sankar 2021 (Hessians of layers); Raghu 2020, Oh 2021 (head and body, ANIL and BOIL)",
)
