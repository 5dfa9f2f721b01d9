"""Normalisation written from primitives, for derivatives of third order.

torch's own kernels (2.13) are right to second order and some silently wrong beyond: third derivatives through
training-mode ``F.batch_norm`` were 5-7 % off, through ``F.layer_norm`` and ``F.instance_norm`` 3 to 180 %.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from hessian_tools.torch_fixes import operations as written_out


class PrimitiveNormalisation(TorchFunctionMode):
    """While entered, normalisations are computed as mean, square and square root, by torch's exact derivatives.

    Covers batch, instance, layer and group normalisation, called as modules, in ``nn.functional`` or
    in ``torch``, and all that :class:`TwiceDifferentiable` replaces. Raises ValueError for the few operations of
    ``torch.linalg`` whose third derivatives are wrong and have no short way round. Values agree to rounding.
    Running statistics are read, where a module uses them, and never moved. Enter it inside the function that is
    differentiated.

    >>> x = torch.tensor([[1.0], [3.0]])
    >>> with PrimitiveNormalisation():
    ...     F.batch_norm(x, None, None, training=True, eps=0.0)
    tensor([[-1.],
            [ 1.]])
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The replacement where there is one."""
        if func in _WRONG_THIRD:
            raise ValueError(
                f"third derivatives through {_WRONG_THIRD[func]} are wrong in torch: write it in another way"
            )
        return _THIRD_ORDER.get(func, func)(*args, **(kwargs or {}))


def _standardised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred / ((centred**2).mean(dims, keepdim=True) + eps).sqrt()


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _by_channel(x: Tensor) -> list[int]:
    return [1, -1, *[1] * (x.ndim - 2)]


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    shape = _by_channel(x)
    if training or running_mean is None or running_var is None:
        y = _standardised(x, [0, *range(2, x.ndim)], eps)
    else:
        y = (x - running_mean.reshape(shape)) / (running_var.reshape(shape) + eps).sqrt()
    return _scaled(y, weight, bias, shape)


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    return _scaled(_standardised(x, list(range(2, x.ndim)), eps), weight, bias, _by_channel(x))


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    return _scaled(_standardised(x, dims, eps), weight, bias, list(normalized_shape))


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    groups = _standardised(x.reshape(x.shape[0], num_groups, -1), [-1], eps)
    return _scaled(groups.reshape(x.shape), weight, bias, _by_channel(x))


def _torch_order(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.batch_norm`` and ``torch.instance_norm`` take the affine weights before the statistics."""

    def reordered(
        x: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, on_batch: bool, *rest: Any
    ) -> Tensor:
        return norm(x, running_mean, running_var, weight, bias, on_batch, *rest[:2])

    return reordered


def _by_sums(attention: Callable[..., Any]) -> Callable[..., Any]:
    """torch's fused kernels of attention have no second derivative; its way by matrix products and softmax has."""

    def attended(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return attention(*args, **kwargs)

    return attended


def _in_reverse_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """Refused within torch.func, in the words by which the kept route is found."""

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise RuntimeError(f"{_WRONG_THIRD[function]} under vmap and forward AD is silently wrong in torch")
        return function(*args, **kwargs)

    return guarded


class TwiceDifferentiable(TorchFunctionMode):
    """While entered, what torch cannot differentiate twice is computed in another way, to the same values.

    Weight normalisation as square, sum and root: torch's kernel (2.13) has no forward derivative, and its second
    derivative in reverse mode is silently wrong, by 20 to 90 % on a 3-2 linear layer, and not symmetric. Attention
    by matrix products and softmax. The others stand in :mod:`hessian_tools.torch_fixes.operations`.
    ``met``: whether there was
    any of it.

    >>> with TwiceDifferentiable() as mode:
    ...     torch._weight_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0]]), 0)
    tensor([[6., 8.]])
    >>> mode.met
    True
    """

    met = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The replacement where there is one."""
        replacement = _SECOND_ORDER.get(func)
        self.met = self.met or replacement is not None
        return (replacement or func)(*args, **(kwargs or {}))


# Third derivatives wrong by 1 to 70 %, and no short way round.
_WRONG_THIRD = {
    torch.linalg.eig: "torch.linalg.eig",
    torch.linalg.eigvals: "torch.linalg.eigvals",
    torch.linalg.householder_product: "torch.linalg.householder_product",
    torch.linalg.tensorsolve: "torch.linalg.tensorsolve",
    torch.linalg.lu_solve: "torch.linalg.lu_solve",
    torch.lu_solve: "torch.lu_solve",
}
# Second derivatives wrong by factors under two vmap, right in reverse mode.
_WRONG_FORWARD = [function for function in _WRONG_THIRD if function is not torch.linalg.householder_product]
_SECOND_ORDER: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: written_out.weight_norm,
    F.scaled_dot_product_attention: _by_sums(F.scaled_dot_product_attention),
    F.multi_head_attention_forward: _by_sums(F.multi_head_attention_forward),
    torch.prelu: written_out.prelu,
    torch.Tensor.prelu: written_out.prelu,
    F.hardsigmoid: written_out.hardsigmoid,
    F.rrelu: written_out.rrelu,
    torch.conv_tbc: written_out.conv_tbc,
    torch.cdist: written_out.cdist,
    torch.pdist: written_out.pdist,
    torch.ldexp: written_out.ldexp,
    torch.Tensor.ldexp: written_out.ldexp,
    torch.cholesky_inverse: written_out.cholesky_inverse,
    torch.Tensor.cholesky_inverse: written_out.cholesky_inverse,
    F.mse_loss: written_out.mse_loss,
    F.huber_loss: written_out.huber_loss,
    F.soft_margin_loss: written_out.soft_margin_loss,
    F.embedding_bag: written_out.embedding_bag,
    F.glu: written_out.glu,
    torch.linalg.solve: written_out.solve,
    torch.linalg.det: written_out.det,
    torch.det: written_out.det,
    torch.Tensor.det: written_out.det,
    torch.linalg.slogdet: written_out.slogdet,
    torch.slogdet: written_out.slogdet,
    torch.Tensor.slogdet: written_out.slogdet,
    torch.logdet: written_out.logdet,
    torch.Tensor.logdet: written_out.logdet,
    **{function: _in_reverse_only(function) for function in _WRONG_FORWARD},
}
_THIRD_ORDER: dict[Any, Callable[..., Any]] = {
    **_SECOND_ORDER,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.batch_norm: _torch_order(_batch_norm),
    torch.instance_norm: _torch_order(_instance_norm),
    torch.layer_norm: _layer_norm,
    torch.group_norm: _group_norm,
}
