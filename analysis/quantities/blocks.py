"""The curvature along the part of the gradient that belongs to each parameter tensor, to the head and to the body."""

import torch

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable
from hessian_tools.curvature import curvature_along, product_asymmetry, rounding_error, tensor_parts


def measure(points: Points) -> Values:
    """g_b'H g_b / g_b'g_b for the part g_b of the gradient that belongs to a tensor, to the head, or to the body.

    This is the curvature of the diagonal block H_bb of the Hessian along its own gradient, and contains no curvature
    between blocks. g is the gradient in all parameters, also where the inner loop moves only some of them, so that the
    curvature of a body that stands still is known too. The curvature is NaN where g_b is zero. Its error is that of
    rounding: H is symmetric, so z'(H g_b) and g_b'(H z) would be equal in exact arithmetic. Their difference estimates
    the error, with g and the probes as the vectors z (see ``gradient_curvature``).
    """
    layout = points.loss.layout
    parts = tensor_parts(layout, points.gradient_on(points.examples))
    h_parts = points.unflatten(points.hessian @ parts.flatten(0, 1))
    is_head = torch.tensor([name in layout.under("head") for name in layout.names], device=parts.device)
    # The head's and the body's parts are sums of the tensors' parts, and so are their products.
    blocks = {"head": is_head, "body": ~is_head}
    vectors = [*parts.unbind(-1), *(parts[..., chosen].sum(-1) for chosen in blocks.values())]
    products = [*h_parts.unbind(-1), *(h_parts[..., chosen].sum(-1) for chosen in blocks.values())]
    probes = points.probes.unsqueeze(1).expand_as(points.products.hz)
    z = torch.cat([points.gradients[..., None], probes], -1)
    hz = torch.cat([points.products.hg[..., None], points.products.hz], -1)
    rho, error = [], []
    for g, hg in zip(vectors, products, strict=True):
        curvature = curvature_along(g, hg)
        rho.append(curvature.rho)
        error.append(rounding_error(curvature.hg_ratio, product_asymmetry(hg, g, hz, z)))
    # The last two entries of both lists are those of the head and of the body.
    values = {"rho_layer": torch.stack(rho[:-2], -1), "rho_layer_error": torch.stack(error[:-2], -1)}
    for name, rho_block, error_block in zip(blocks, rho[-2:], error[-2:], strict=True):
        values |= {f"rho_{name}": rho_block, f"rho_{name}_error": error_block}
    return values


QUANTITY = Quantity(
    name="blocks",
    title="curvature along the gradient by layer, head and body",
    formula="g_b'H g_b / g_b'g_b for the part g_b of g in one tensor, in the head, or in the body",
    variables=(
        point_variable(
            "rho_layer",
            "curvature along each parameter tensor's part of the gradient",
            "layer",
            error="rho_layer_error",
        ),
        point_variable("rho_layer_error", "float32 error of that curvature, estimated as the error of rho is", "layer"),
        point_variable("rho_head", "curvature along the head's part of the gradient", error="rho_head_error"),
        point_variable("rho_head_error", "float32 error of that curvature, estimated as the error of rho is"),
        point_variable("rho_body", "curvature along the body's part of the gradient", error="rho_body_error"),
        point_variable("rho_body_error", "float32 error of that curvature, estimated as the error of rho is"),
    ),
    measure=measure,
    library="hessian_tools.curvature.tensor_parts, .curvature_along",
    cost="one product with the Hessian for each parameter tensor, and one gradient",
    reference="Sankar 2021 (Hessians of layers); Raghu 2020, Oh 2021 (head and body, ANIL and BOIL)",
)
