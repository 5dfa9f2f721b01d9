"""Watches over a forward and a backward pass, which note what makes a derivative incomplete or wrong in silence."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# Losses that compare outputs and targets entry by entry, and expand them where their shapes differ.
COMPARISONS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
# The functions that take the numbers of a tensor without its graph, and what messages call them.
CUTS: dict[Any, str] = {Tensor.detach: "detach()", Tensor.data.__get__: ".data", Tensor.item: "item()"}  # type: ignore[attr-defined]
CUTS |= {Tensor.__float__: "float()", Tensor.tolist: "tolist()", Tensor.numpy: "numpy()"}


class ForwardWatch(TorchFunctionMode):
    """Sees which stored parameters a forward pass uses where theta should have taken their place.

    is_stored: whether a tensor is such a parameter. used: the stored parameters that the pass has used; reading the
    shape of one or detaching it does not count.
    spread: the error message for a loss that would compare every output with every target; "" if there is none.
    sparse, scaled: whether an embedding has been called whose gradients are sparse, or scaled by frequency. hooked:
    whether a hook on a tensor has changed a gradient. constant: whether the loss has differentiated inside itself
    without a graph. cut: the call, such as "detach()", by which a tensor with a graph has been used without it; "" if
    there was none. no_grad: whether Python code has switched graphs off, as torch.no_grad() does. That torch itself
    switches them off inside a torch.autograd.Function does not count.
    """

    def __init__(self, is_stored: Callable[[Any], bool]) -> None:
        super().__init__()
        self.is_stored = is_stored
        self.used: list[Tensor] = []
        self.spread = self.cut = ""
        self.sparse = self.scaled = self.hooked = self.constant = self.no_grad = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, and notes what the attributes of this class say."""
        if func is Tensor.register_hook:  # the tensor gets a hook that also notes whether it changes the gradient
            args, kwargs = (args[0], self._noted(*args[1:], **(kwargs or {}))), {}
        if func in COMPARISONS:
            self._refuse_spread(func, signature(func).bind(*args, **(kwargs or {})).arguments)
        result = func(*args, **(kwargs or {}))
        if func in (F.embedding, F.embedding_bag):
            call = signature(func).bind(*args, **(kwargs or {})).arguments
            trained = call["weight"].requires_grad
            self.sparse |= bool(call.get("sparse")) and trained
            self.scaled |= bool(call.get("scale_grad_by_freq")) and trained
        if func in (torch.autograd.grad, Tensor.backward) and torch.is_grad_enabled():
            call = signature(func).bind(*args, **(kwargs or {})).arguments
            self.constant |= not call.get("create_graph")
        if func is torch._C._set_grad_enabled:  # torch.no_grad and torch.enable_grad call it
            self.no_grad = not args[0]
        without_graph = (self.no_grad and not torch.is_grad_enabled()) or torch.is_inference_mode_enabled()
        if func in CUTS and args[0].requires_grad:
            self.cut = CUTS[func]
        # Another function that is called where graphs are off cuts the graphs of its arguments.
        elif without_graph and isinstance(result, Tensor) and result.is_floating_point():
            has_graph = any(
                isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves((args, kwargs))
            )
            self.cut = "torch.no_grad()" if has_graph else self.cut
        if isinstance(result, Tensor) and result.requires_grad:
            self.used += [leaf for leaf in pytree.tree_leaves((args, kwargs)) if self.is_stored(leaf)]
        return result

    def _refuse_spread(self, func: Any, call: Mapping[str, Any]) -> None:
        """Raise ValueError where torch would compare every output with every target.

        Outputs [n, 1] and targets [n] are expanded to [n, n]. Torch warns of it and goes on.
        """
        a, b = call["input"], call["target"]
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape == b.shape:
            return
        try:
            broadcast = torch.broadcast_shapes(a.shape, b.shape)
        except RuntimeError:
            return  # torch's own error says which sizes do not fit
        if broadcast.numel() > max(a.numel(), b.numel()):
            self.spread = (
                f"{func.__name__} gets outputs {list(a.shape)} and targets {list(b.shape)}, and would compare every "
                f"output with every target; give targets of the shape {list(a.shape)}, such as "
                f"y.reshape({', '.join(map(str, a.shape))})"
            )
            raise ValueError(self.spread)

    def _noted(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
        """The hook of a tensor, which notes if it changes the gradient."""

        def noting(gradient: Tensor) -> Tensor | None:
            changed = hook(gradient)
            self.hooked |= changed is not None and not torch.equal(changed, gradient)
            return changed

        return noting


class BackwardWatch(TorchDispatchMode):
    """Sees whether a backward pass uses a stored parameter, which happens only if it runs a module again."""

    def __init__(self, is_stored: Callable[[Any], bool]) -> None:
        super().__init__()
        self.is_stored = is_stored
        self.used: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operation, and notes a stored parameter among its arguments."""
        if self.used is None:
            self.used = next((leaf for leaf in pytree.tree_leaves((args, kwargs)) if self.is_stored(leaf)), None)
        return func(*args, **(kwargs or {}))
