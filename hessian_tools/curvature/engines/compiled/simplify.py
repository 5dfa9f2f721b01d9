"""Simplifies traced graphs, so that fewer operations compute the same numbers.

The graphs of second derivatives add and multiply zeros, compute some sums twice, and hold views that undo each other.
Nothing here changes a result by more than rounding.
"""

from collections.abc import Hashable
from operator import attrgetter, getitem
from typing import Any

import torch
from torch import Tensor, fx

ATEN = torch.ops.aten


def operations(names: str) -> tuple[Any, ...]:
    """The operations of ATen with these names; a name without an overload means the overload ``default``.

    >>> operations("view mul.Tensor") == (ATEN.view.default, ATEN.mul.Tensor)
    True
    """
    return tuple(attrgetter(name if "." in name else f"{name}.default")(ATEN) for name in names.split())


# Operations whose result equals their first argument.
_SAME = operations("alias detach lift_fresh lift_fresh_copy")
_RESHAPES = operations("view _unsafe_view reshape")
_ZEROS = operations("zeros zeros_like new_zeros _efficientzerotensor _new_zeros_with_same_feature_meta")
# Operations whose result is zero if their first argument is.
_ZERO_OF_FIRST = _RESHAPES + operations(
    "expand permute t transpose.int unsqueeze squeeze.dim sum.dim_IntList mean.dim neg _to_copy split_with_sizes "
    "div.Tensor div.Scalar threshold_backward max_pool2d_with_indices_backward"
)
# Operations whose result is zero if either of their first two arguments is.
_ZERO_OF_EITHER = operations("mul.Tensor mul.Scalar mm bmm")


def simplify(graph: fx.Graph) -> None:
    """Drops zero terms, computes repeated operations once, joins views of views and removes dead code, in place."""
    zeros: set[fx.Node] = set()
    seen: dict[Hashable, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        _replace_unbatchable(node)
        replacement = _without_zeros(node, zeros) or _same_as_input(node)
        if replacement is None:
            replacement = seen.setdefault(_key(node), node)
        if replacement is not node:
            node.replace_all_uses_with(replacement)
        elif _is_zero(node, zeros):
            zeros.add(node)
    # No operation of a functionalised graph has side effects.
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def agree(found: Tensor, expected: Tensor) -> bool:
    """True if a product differs from the expected one by rounding at most, or if neither is finite."""
    if not torch.isfinite(expected).all():
        return not torch.isfinite(found).all()
    # The factor 10^4 leaves room for the rounding errors of many operations.
    return bool((found - expected).norm() <= 1e4 * torch.finfo(expected.dtype).eps * expected.norm())


def tensor_of(node: Any) -> Tensor | None:
    """A fake tensor with the shape, strides and dtype of the node's result; None if the result is not a tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def _replace_unbatchable(node: fx.Node) -> None:
    """Replaces operations that vmap may not be able to batch: views and ``copy``.

    Once vmap has moved axes, a view of the required shape may be impossible; ``reshape`` then copies. A view of a view
    becomes one ``reshape``.
    """
    if node.target in _RESHAPES:
        node.target = ATEN.reshape.default
        source = _first_two(node)[0]
        if source is not None and source.target is ATEN.reshape.default:
            node.args = (source.args[0], node.args[1])
    elif node.target is ATEN.copy.default:
        node.target = _copied


def _copied(onto: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The source in the dtype and shape of ``onto``, as ``aten.copy`` returns it."""
    return source.to(onto.dtype).expand(onto.shape)


def _same_as_input(node: fx.Node) -> fx.Node | None:
    """The input that the result of this node equals; None if there is none."""
    first, second = _first_two(node)
    if node.target in _SAME:
        return first
    if node.target is _copied and _alike(second, node):
        return second
    if node.target in (ATEN.reshape.default, ATEN.expand.default, ATEN._to_copy.default) and _alike(first, node):
        return first
    if node.target is ATEN.t.default and first is not None and first.target is ATEN.t.default:
        return _first_two(first)[0]
    return None


def _first_two(node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The first two arguments of a node; None for an argument that is not a node."""
    first, second = (*node.args, None, None)[:2]
    return first if isinstance(first, fx.Node) else None, second if isinstance(second, fx.Node) else None


def _alike(one: Any, other: Any) -> bool:
    """True if two results have the same shape, dtype and device."""
    a, b = tensor_of(one), tensor_of(other)
    return a is not None and b is not None and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _without_zeros(node: fx.Node, zeros: set[fx.Node]) -> fx.Node | None:
    """The only term of a sum that is not zero; None if there are more, or if it would have to be broadcast."""
    first, second = _first_two(node)
    if node.kwargs or node.target not in (ATEN.add.Tensor, ATEN.sub.Tensor, ATEN.addcmul.default):
        return None
    zero_terms = zeros.intersection(node.args[1:])  # the second summand, or a factor of addcmul's product
    if zero_terms and first is not None and _alike(first, node):
        return first
    if node.target is ATEN.add.Tensor and first in zeros and second is not None and _alike(second, node):
        return second
    return None


def _is_zero(node: fx.Node, zeros: set[fx.Node]) -> bool:
    """True if the result is zero for all inputs, like the tangent of a value that does not depend on theta.

    A product with such a zero counts as zero, whatever the other factor is: if the other factor is infinite, 0 * inf
    would be NaN, although the derivative is zero.
    """
    if node.target in _ZEROS:
        return True
    args: tuple[Any, ...] = node.args
    if node.target in _ZERO_OF_FIRST or node.target is getitem:
        return args[0] in zeros
    if node.target in _ZERO_OF_EITHER:
        return bool(zeros.intersection(a for a in args[:2] if isinstance(a, fx.Node)))
    if node.target in (ATEN.add.Tensor, ATEN.sub.Tensor):
        return all(a in zeros for a in args[:2])
    if node.target is ATEN.convolution.default:  # of images, weight and bias
        return args[2] is None and bool(zeros.intersection(args[:2]))
    if node.target is ATEN.convolution_backward.default:
        # The derivative in the images is the gradient times the weight, the derivative in the weight is the gradient
        # times the images, and the derivative in the bias is a sum of the gradient. ``wanted`` says which of the three
        # are computed.
        gradient, images, weight, *_, wanted = args
        factors = [f for f, want in ((weight, wanted[0]), (images, wanted[1])) if want]
        return gradient in zeros or (not wanted[2] and all(f in zeros for f in factors))
    return False


def _key(node: fx.Node) -> Hashable:
    """A key of a node; two nodes with the same key compute the same result. The key of a random operation is unique."""
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return node
    return node.target, _frozen(node.args), _frozen(node.kwargs)


def _frozen(value: Any) -> Hashable:
    """The arguments of a node in a form that can be hashed."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in value.items())
    return value if isinstance(value, fx.Node) else (type(value), repr(value))
