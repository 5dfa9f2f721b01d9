"""Two modes that replace torch's operations by those of this package, for derivatives of second and third order.

The tables at the end of the file say which operation is replaced by which function.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from hessian_tools.torch_fixes import normalisation, operations


class TwiceDifferentiable(TorchFunctionMode):
    """While it is entered, operations that torch cannot differentiate twice have replacements with equal values.

    replaced: whether any operation has been replaced since the mode was made.

    >>> with TwiceDifferentiable() as mode:
    ...     torch._weight_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0]]), 0)
    tensor([[6., 8.]])
    >>> mode.replaced
    True
    """

    replaced = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the replacement where there is one."""
        if func in _CONDITIONAL and (call := _CONDITIONAL[func](func, args, kwargs or {})) is not None:
            self.replaced = True
            return call()
        replacement = self._replacement(func)
        self.replaced = self.replaced or replacement is not None
        return (replacement or func)(*args, **(kwargs or {}))

    def _replacement(self, func: Any) -> Callable[..., Any] | None:
        return _SECOND_ORDER.get(func)


class PrimitiveNormalisation(TwiceDifferentiable):
    """While it is entered, normalisations too are computed from primitives, whose derivatives of every order are right.

    It covers batch, instance, layer and group normalisation, called as modules, in ``nn.functional`` or in ``torch``,
    and all that :class:`TwiceDifferentiable` replaces. Values agree to rounding. Enter it inside the function that is
    differentiated. Raises ValueError for the few operations of ``torch.linalg`` whose third derivatives are wrong in
    torch and for which there is no short replacement.

    >>> x = torch.tensor([[1.0], [3.0]])
    >>> with PrimitiveNormalisation():
    ...     F.batch_norm(x, None, None, training=True, eps=0.0)
    tensor([[-1.],
            [ 1.]])
    """

    def _replacement(self, func: Any) -> Callable[..., Any] | None:
        if func in _WRONG_THIRD:
            raise ValueError(
                f"third derivatives through {_WRONG_THIRD[func]} are wrong in torch; write it out in other operations"
            )
        return _THIRD_ORDER.get(func)


def _by_matrix_products(attention: Callable[..., Any]) -> Callable[..., Any]:
    """Attention by matrix products and a softmax, because torch's fused kernels have no second derivative."""

    def attended(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return attention(*args, **kwargs)

    return attended


def _in_reverse_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, refused within ``torch.func``, where its second derivatives are wrong.

    The refusal is an error of the kind that torch itself raises, so that the products are then taken by reverse mode.
    """

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise RuntimeError(f"{_WRONG_THIRD[function]} under vmap and forward AD is silently wrong in torch")
        return function(*args, **kwargs)

    return guarded


# The third derivatives of these functions are wrong by 1 to 70 %, and there is no short replacement.
_WRONG_THIRD: dict[Any, str] = {torch.lu_solve: "torch.lu_solve"} | {
    getattr(torch.linalg, name): f"torch.linalg.{name}"
    for name in ("eig", "eigvals", "householder_product", "tensorsolve", "lu_solve")
}
# The second derivatives of these functions are wrong under two nested vmap, those of eigvals by factors of 2 to 50. In
# reverse mode they are right.
_WRONG_FORWARD = [function for function in _WRONG_THIRD if function is not torch.linalg.householder_product]

# The functions and methods of torch that are replaced by the function of the same name in ``operations``. Methods are
# listed too, because a mode receives torch.Tensor.det, for example, as another object than torch.det.
_REPLACED: dict[Any, str] = {
    torch: "prelu conv_tbc cdist pdist ldexp cholesky_inverse det slogdet logdet triangular_solve",
    torch.Tensor: "prelu ldexp cholesky_inverse det slogdet logdet triangular_solve",
    torch.linalg: "solve solve_ex det slogdet",
    F: "hardsigmoid rrelu glu embedding_bag mse_loss huber_loss soft_margin_loss",
}
_SECOND_ORDER: dict[Any, Callable[..., Any]] = {
    getattr(owner, name): getattr(operations, name) for owner, names in _REPLACED.items() for name in names.split()
}
_SECOND_ORDER |= {torch._weight_norm: operations.weight_norm}
_SECOND_ORDER |= {
    attention: _by_matrix_products(attention)
    for attention in (F.scaled_dot_product_attention, F.multi_head_attention_forward)
}
_SECOND_ORDER |= {function: _in_reverse_only(function) for function in _WRONG_FORWARD}

# Functions of which only some calls are replaced: each entry makes such a call, or None for one that is left to torch.
_CONDITIONAL: dict[Any, Callable[..., Callable[[], Tensor] | None]] = {F.embedding: operations.padded_embedding}
# torch's losses that take weights as tensors, which must have the dtype of the input.
_WEIGHTED: tuple[Any, ...] = (F.cross_entropy, F.nll_loss, F.multi_margin_loss, F.multilabel_soft_margin_loss)
_WEIGHTED += (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)
_CONDITIONAL |= dict.fromkeys(_WEIGHTED, operations.with_weights_like_input)

_THIRD_ORDER: dict[Any, Callable[..., Any]] = _SECOND_ORDER | {
    F.batch_norm: normalisation.batch_norm,
    F.instance_norm: normalisation.instance_norm,
    F.layer_norm: normalisation.layer_norm,
    F.group_norm: normalisation.group_norm,
    torch.batch_norm: normalisation.in_torch_order(normalisation.batch_norm),
    torch.instance_norm: normalisation.in_torch_order(normalisation.instance_norm),
    torch.layer_norm: normalisation.layer_norm,
    torch.group_norm: normalisation.group_norm,
}
