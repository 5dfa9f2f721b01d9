"""Somebody else's product as an operator, and the largest difference from exact products that rounding explains.

Our products are those of this library.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.checks.findings import Finding, in_dtype, judged
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.failures import described
from hessian_tools.layout import ParamLayout

# An exact product differs from the one in float64 by rounding alone. On the networks of the tests, products of plain
# torch in other orders of differentiation stay below 100 eps of |Hv|. This number of eps leaves a factor of 10; in
# float32 it is 0.012 %.
EXACT_EPS = 1e3
# Some losses lose digits, as a saturated softmax does, and then no product in the model's dtype is exact. How much is
# lost is measured by the error of our own product in float32. Another order of operations may have up to this many
# times our error (on a network trained to a loss of 0 it had 1.3 times our error).
OWN_ERROR_FACTOR = 4
# A parameter may have nearly no part in Hv, such as a bias before a normalisation. In every parameter an error of this
# many eps of |Hv| therefore passes, because sums over all parameters round at that size.
SMALLEST_PART = 16
# A finding's sentence states the error of a parameter's part of Hv in units of that part if the part has more than this
# share of |Hv|, and in units of |Hv| otherwise.
VISIBLE_PART = 1e-6
# Where a larger relative error than this passes, the sentence says that the dtype resolves no more of the loss.
RESOLVED = 5e-4

Matvec = Callable[[Tensor], Any]


class ForeignProduct(Operator):
    """Somebody else's product as an operator at one point. like: the model's parameters, for size, dtype and device."""

    num_points = None

    def __init__(self, matvec: Matvec, like: Float[Tensor, " param"]) -> None:
        self.matvec, self.like = matvec, like

    @property
    def num_params(self) -> int:
        """The length of the vector."""
        return len(self.like)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.like.device

    def products(self, V: Tensor) -> Tensor:
        """The products with the columns of V, one after the other. Autograd is on, because the tool may need it."""
        with torch.inference_mode(False), torch.enable_grad():
            # V[0]: the vectors of the only point.
            return torch.stack([self._product(v.clone()) for v in V[0].unbind(-1)], dim=-1)[None]

    def _product(self, v: Tensor) -> Tensor:
        """The product with one vector, in the dtype and on the device of the vector."""
        product = self.matvec(v)
        if isinstance(product, np.ndarray):
            product = torch.from_numpy(product)
        if not isinstance(product, Tensor) or product.shape != v.shape:
            raise ValueError(f"it returns {described(product)}; a product is a tensor [{len(v)}]")
        return product.detach().to(v)


@dataclass(frozen=True)
class Limits:
    """Which errors of products in a dtype pass: rtol, or what rounding explains, in each parameter of the layout."""

    layout: ParamLayout
    dtype: torch.dtype
    rtol: float | None

    @property
    def eps(self) -> float:
        """The machine epsilon of the dtype."""
        return torch.finfo(self.dtype).eps

    def relative(self, exact: Tensor, rounding: Tensor) -> float:
        """The largest relative error of whole products that passes; the arguments are those of :meth:`compare`."""
        norm = float(exact.norm(dim=0).max()) or 1.0
        return self.rtol or EXACT_EPS * self.eps + OWN_ERROR_FACTOR * float(rounding.norm(dim=0).max()) / norm

    def compare(self, name: str, found: Tensor, exact: Tensor, rounding: Tensor) -> Finding:
        """Judges products [param, probe] beside the exact ones, as a whole and in each parameter.

        name: that of the finding. found: the products that are judged. rounding: the error of our own products in this
        dtype. The largest norms over the probes are compared, because a short parameter's part of one product may be
        small by chance.
        """
        where = ("all parameters", *self.layout.names)
        # One entry for the product as a whole, and then one for each parameter, as in ``where``.
        error, norm, own_error = (
            torch.stack([part.norm(dim=0).amax() for part in (columns, *columns.split(list(self.layout.sizes)))])
            for columns in (found.double() - exact, exact, rounding)
        )
        if self.rtol is None:
            allowed = EXACT_EPS * self.eps * norm + OWN_ERROR_FACTOR * own_error + SMALLEST_PART * self.eps * norm[0]
        else:
            allowed = self.rtol * norm + SMALLEST_PART * self.eps * norm[0]
        ratio = torch.where(error == 0, 0.0, error / allowed).nan_to_num(nan=torch.inf)
        # A parameter is named only where its part is wrong although the product as a whole passes.
        at = int(ratio.argmax()) if ratio[0] <= 1 < ratio.max() else 0
        has_a_part = bool(norm[at] > VISIBLE_PART * norm[0])
        unit = float(norm[at] if has_a_part else norm[0]) or 1.0
        of = "|Hv|" if at == 0 else f"the part of {where[at]!r}" if has_a_part else f"|Hv|, in {where[at]!r}"
        value, limit = float(error[at]) / unit, float(allowed[at]) / unit
        text = f"products differ from the exact ones by {{}} of {of}"
        finding = judged(name, value, limit, text, "so they are not this Hessian's")
        if finding.passed and self.rtol is None and limit > RESOLVED:
            advice = f"{self.dtype}".removeprefix("torch.") + " resolves no more of this loss; audit model.double()"
            return replace(finding, sentence=f"{finding.sentence}; {advice}")
        return finding


def exact_products(
    ours: LossOperator, V: Float[Tensor, "param probe"]
) -> tuple[Float[Tensor, "param probe"], Float[Tensor, "param probe"]]:
    """The products with V in float64, and the error that our own products have in the dtype of V.

    The latter is measured in float32, and scaled to the dtype of V.
    """
    exact = ours @ V.double()
    single = in_dtype(ours, torch.float32) @ V.float()
    scale = torch.finfo(V.dtype).eps / torch.finfo(torch.float32).eps
    error = (single.double() - exact) * scale
    # Where float32 overflows, the error is not known, and rounding explains no difference.
    return exact, torch.where(error.isfinite(), error, 0.0)
