"""Measures the memory that prepared products hold between two products."""

from hessian_tools.curvature.engines.compiled.compiled_products import CompiledProducts, Stacked
from hessian_tools.curvature.engines.double_backward import KeptGraphs
from hessian_tools.curvature.engines.engine import PreparedProducts


def bytes_kept(prepared: PreparedProducts) -> int:
    """The bytes of the tensors that an engine keeps for the next product.

    They are the tensors of a compiled trace at all points, or the gradients, with their graphs, of the engine that
    differentiates twice. Other engines keep nothing.
    """
    current = prepared.current
    kept = list(current.gradients) if isinstance(current, KeptGraphs) else []
    for part in current.parts if isinstance(current, CompiledProducts) else ():
        kept += part.tensors if isinstance(part, Stacked) else [t for tensors in part.kept for t in tensors]
    return sum(t.numel() * t.element_size() for t in kept)
