"""The Gauss-Newton part of the curvature, along the gradient and along the top eigenvector."""

import torch

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable
from hessian_tools.curvature import (
    curvature_along,
    gauss_newton,
    gauss_newton_share,
    gauss_newton_spectrum,
    product_asymmetry,
    rounding_error,
)


def measure(points: Points) -> Values:
    """g'Gg / g'g, and v'Gv / v'Hv for the eigenvector v of H whose eigenvalue is largest in magnitude.

    g is the inner gradient and H the Hessian. G = J'BJ is H without the second derivatives of the network: J is the
    Jacobian of the outputs in the parameters, and B is the Hessian of the loss in the outputs. The error of the first
    number is that of rounding. G is symmetric, so z'(Gg) and g'(Gz) would be equal in exact arithmetic for any vector
    z; here z = Hg, and the difference estimates the error (see ``gradient_curvature``). The error of the second number
    is a bound that follows from the residuals and from the gap to the next eigenvalue; it is large where this gap is
    small.
    """
    thetas, batch = points.thetas.flatten(0, 1), points.at_points(points.examples)
    g, hg = points.gradients, points.products.hg
    G = gauss_newton(points.loss, thetas, batch)
    G_g, G_hg = points.unflatten(G @ torch.stack([g, hg], -1).flatten(0, 1)).unbind(-1)
    curvature = curvature_along(g, G_g)  # of G, so that its field hg_ratio is |Gg| / |g|
    error = rounding_error(curvature.hg_ratio, product_asymmetry(G_g, g, G_hg[..., None], hg[..., None]))
    spectrum = gauss_newton_spectrum(points.loss, thetas, batch, vectors=True)
    share = gauss_newton_share(points.extremes.magnitude, spectrum)
    # The shares are those of all eigenvectors that were computed, of which the first has the largest magnitude.
    return {
        "rho_gauss_newton": curvature.rho,
        "rho_gauss_newton_error": error,
        "gauss_newton_share": points.unflatten(share.share[..., 0]),
        "gauss_newton_share_error": points.unflatten(share.share_error[..., 0]),
    }


QUANTITY = Quantity(
    name="gauss_newton",
    title="Gauss-Newton part of the curvature",
    formula="g'Gg / g'g with G = J'BJ (J: Jacobian of the outputs, B: Hessian of the loss in the outputs);"
    " v'Gv / v'Hv for the top eigenvector v of H",
    variables=(
        point_variable(
            "rho_gauss_newton",
            "Gauss-Newton part g'Gg / g'g of the curvature along the gradient",
            error="rho_gauss_newton_error",
        ),
        point_variable("rho_gauss_newton_error", "float32 error of g'Gg / g'g, estimated as the error of rho is"),
        point_variable(
            "gauss_newton_share",
            "share v'Gv / v'Hv of the Gauss-Newton matrix in the eigenvalue of largest magnitude",
            error="gauss_newton_share_error",
        ),
        point_variable(
            "gauss_newton_share_error", "bound on the error of that share, from residuals and from the eigenvalue gap"
        ),
    ),
    measure=measure,
    library="hessian_tools.gauss_newton, hessian_tools.gauss_newton_spectrum, hessian_tools.gauss_newton_share",
    cost="two products with the Gauss-Newton matrix, a backward pass for each output of each example, and the products"
    " with the Hessian for one eigenpair more than measure.full or measure.light asks for",
    reference="Schraudolph 2002; Martens 2020; Davis, Kahan 1970",
    eigenvectors=True,
)
