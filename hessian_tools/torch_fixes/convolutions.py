"""Convolutions as matrix products, for derivatives at many points on a GPU.

Where each point has its own kernels, ``vmap`` makes one grouped convolution of the convolutions of all points, and
cuDNN computes it group by group. On an H200 that takes some 20 microseconds for each point and convolution, whatever
their size. The product of a matrix of kernels and a matrix of image patches, by contrast, is one batched matrix product
for all points: a product with 256 Hessians of a Conv4-64 on 28x28 images takes a sixth of the time.

The convolution of images x with kernels w, and the gradients in w and in x of a loss whose gradient in the result is y,
are the three partial derivatives of one function, which is linear in x, in w and in y:

    T(x, w, y) = sum over all entries of (y times the convolution of x with w).

The derivatives of each of the three, in forward and in reverse mode and to any order, are therefore made of the same
three. All are computed here as a matrix times the patches of an image:

    dT/dy = w times the patches of x, which is the convolution
    dT/dw = y times the transposed patches of x
    dT/dx = w, turned by half a turn, times the patches of y; y has zeros between its pixels where the stride is above 1
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.overrides import TorchFunctionMode

# A matrix of patches that has more bytes at one point than this is not made. It is written once and read once, which
# takes 16 microseconds at the 4.2 TB/s of an H200, and so about as long as the grouped convolution that it saves.
MAX_PATCH_BYTES = 2**25


def pays(*, device: str, points: int, patch_bytes: int = 0) -> bool:
    """Whether convolutions at so many points are computed as matrix products, judged by sizes only.

    device: the type of the device. patch_bytes: the bytes of the largest matrix of patches at one point; 0 asks whether
    any convolution would be. At one point nothing is grouped, and on a CPU grouped convolutions are faster.

    >>> pays(device="cuda", points=256, patch_bytes=2_000_000), pays(device="cuda", points=1, patch_bytes=2_000_000)
    (True, False)
    """
    return device == "cuda" and points > 1 and patch_bytes <= MAX_PATCH_BYTES


def at_many_points(points: int, device: torch.device) -> AbstractContextManager[Any]:
    """The context for derivatives at so many points by ``vmap``: convolutions are matrix products in it if that pays.

    It is entered around the call of the function that ``vmap`` returns, or around the tracing of one point of it.
    """
    return MatrixConvolutions(points) if pays(device=device.type, points=points) else nullcontext()


class MatrixConvolutions(TorchFunctionMode):
    """While it is entered, 2-d convolutions for which it pays at so many points are matrix products.

    Grouped and transposed convolutions, those whose padding is a word such as "same", and all within two nested forward
    modes remain as they are. Results and derivatives agree to rounding.
    """

    def __init__(self, points: int) -> None:
        super().__init__()
        self.points = points

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the convolution of this file in place of ``F.conv2d``, and every other function as it is."""
        if func is F.conv2d:
            result = self._convolution(*args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))

    def _convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        """The convolution as a matrix product; None where it is not computed in this way. The arguments are torch's."""
        if groups != 1 or input.ndim != 4 or input.dtype != weight.dtype or isinstance(padding, str):
            return None
        form = Form(tuple(input.shape), tuple(weight.shape), _pair(stride), _pair(padding), _pair(dilation))
        if not pays(device=input.device.type, points=self.points, patch_bytes=form.patch_bytes(input.element_size())):
            return None
        result = _partial("result", input, weight, form)
        return result if bias is None else result + bias[:, None, None]


class Form(NamedTuple):
    """The shapes and options of a convolution.

    images: [example, channel, height, width]. kernels: [out, channel, height, width].
    """

    images: tuple[int, ...]
    kernels: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def result(self) -> tuple[int, ...]:
        """The shape of the result, [example, out, height, width]."""
        sides = zip(self.images[2:], self.reach, self.padding, self.stride, strict=True)
        return self.images[0], self.kernels[0], *((n + 2 * p - reach) // s + 1 for n, reach, p, s in sides)

    @property
    def reach(self) -> tuple[int, int]:
        """The height and width that the kernel covers, with the gaps of the dilation."""
        height, width = self.kernels[2:]
        return self.dilation[0] * (height - 1) + 1, self.dilation[1] * (width - 1) + 1

    def patch_bytes(self, element_size: int) -> int:
        """The bytes of the larger of the two matrices of patches: those of the images and those of the result."""
        (examples, channels, *image), (out, _, *kernel), result = self.images, self.kernels, self.result[2:]
        numbers = max(channels * result[0] * result[1], out * image[0] * image[1])
        return element_size * examples * kernel[0] * kernel[1] * numbers


# The three arguments x, w and y of T. A partial derivative in one of them takes the other two in this order.
_ROLES = ("images", "kernels", "result")


class _Partial(Function):
    """One partial derivative of T: the result, the gradient in the kernels, or the gradient in the images."""

    generate_vmap_rule = True

    @staticmethod
    def forward(first: Tensor, second: Tensor, wanted: str, form: Form) -> Tensor:
        """The partial derivative in the role ``wanted``, from the two other roles in their order."""
        return {"result": _result, "kernels": _kernels, "images": _images}[wanted](first, second, form)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.wanted, ctx.form = inputs
        ctx.set_materialize_grads(False)  # a gradient or tangent that is zero arrives as None
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        """Each gradient is the partial derivative of T in its role, at the other role and g."""
        if g is None:
            return None, None, None, None
        roles = [role for role in _ROLES if role != ctx.wanted]
        values = dict(zip(roles, ctx.saved_tensors, strict=True)) | {ctx.wanted: g}
        gradients: list[Tensor | None] = [None, None]
        for i, role in enumerate(roles):
            if ctx.needs_input_grad[i]:
                first, second = (values[other] for other in _ROLES if other != role)
                gradients[i] = _partial(role, first, second, ctx.form)
        return *gradients, None, None

    @staticmethod
    def jvp(ctx: Any, d_first: Tensor | None, d_second: Tensor | None, *_: None) -> Tensor:
        """The product rule; a tangent that is None is zero."""
        first, second = ctx.saved_tensors
        pairs = [(d_first, second), (first, d_second)]
        terms = [_partial(ctx.wanted, a, b, ctx.form) for a, b in pairs if a is not None and b is not None]
        return terms[0] + terms[1] if len(terms) == 2 else terms[0]


def _partial(wanted: str, first: Tensor, second: Tensor, form: Form) -> Tensor:
    """The partial derivative of T in the role ``wanted``, from the two other roles in their order."""
    # torch computes the tangents of an autograd.Function with forward mode switched off, so that a forward mode around
    # another one is silently wrong (torch 2.13). Within two forward modes the convolutions are therefore torch's own.
    if _num_forward_modes() > 1:
        return _by_torch(wanted, first, second, form)
    return _Partial.apply(first, second, wanted, form)


def _num_forward_modes() -> int:
    """How many forward modes of ``torch.func`` enclose this call."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return sum(interpreter.key() == TransformType.Jvp for interpreter in stack)


def _by_torch(wanted: str, first: Tensor, second: Tensor, form: Form) -> Tensor:
    """The partial derivative in the role ``wanted`` by torch's own convolutions."""
    options = form.stride, form.padding, form.dilation
    if wanted == "result":
        return F.conv2d(first, second, None, *options)
    if wanted == "kernels":
        return conv2d_weight(first, form.kernels, second, *options)
    return conv2d_input(form.images, first, second, *options)


def _result(x: Tensor, w: Tensor, form: Form) -> Tensor:
    """The convolution of x with w."""
    patches = _patches(x, form.kernels[2:], form.stride, form.padding, form.padding, form.dilation)
    return _with_axes(torch.mm(w.flatten(1), patches), form.result)


def _kernels(x: Tensor, y: Tensor, form: Form) -> Tensor:
    """The gradient in the kernels."""
    patches = _patches(x, form.kernels[2:], form.stride, form.padding, form.padding, form.dilation)
    # The patches are not transposed, because a traced graph would then hold them twice: as they are, and transposed.
    return torch.mm(patches, y.transpose(0, 1).flatten(1).mT).mT.reshape(form.kernels)


def _images(w: Tensor, y: Tensor, form: Form) -> Tensor:
    """The gradient in the images."""
    # The zeros before the first and behind the last pixel of y, such that there is one patch for each pixel of x.
    low, high = [], []
    for side, kernel_reach, padding, stride, size in zip(
        form.images[2:], form.reach, form.padding, form.stride, form.result[2:], strict=True
    ):
        low.append(kernel_reach - 1 - padding)
        spread = (size - 1) * stride + 1  # the side of y with zeros between its pixels
        high.append(side + kernel_reach - 1 - spread - low[-1])
    turned = w.flip(2, 3).transpose(0, 1).flatten(1)
    patches = _patches(_spread(y, form.stride), form.kernels[2:], (1, 1), tuple(low), tuple(high), form.dilation)
    return _with_axes(torch.mm(turned, patches), form.images)


def _patches(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    low: tuple[int, ...],
    high: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """The patches under the kernel as columns: [channel and pixel of the kernel, example and position of the kernel].

    low, high: how many zeros are put before the first and behind the last pixel of each axis. A negative number cuts
    off pixels.
    """
    # The patches are a view of the padded images, so that one copy arranges all of them. torch's own im2col would be
    # called once for each example on a GPU.
    x = F.pad(x.transpose(0, 1), (low[1], high[1], low[0], high[0]))
    for axis in (0, 1):
        x = x.unfold(2 + axis, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])
    if dilation != (1, 1):
        x = x[..., :: dilation[0], :: dilation[1]]
    channels, examples, height, width = x.shape[:4]
    return x.permute(0, 4, 5, 1, 2, 3).reshape(channels * kernel[0] * kernel[1], examples * height * width)


def _spread(y: Tensor, stride: tuple[int, ...]) -> Tensor:
    """y with zeros between its pixels, one less than the stride."""
    if stride == (1, 1):
        return y
    examples, channels, height, width = y.shape
    y = F.pad(y.reshape(examples, channels, height, 1, width, 1), (0, stride[1] - 1, 0, 0, 0, stride[0] - 1))
    y = y.reshape(examples, channels, height * stride[0], width * stride[1])
    return y[:, :, : (height - 1) * stride[0] + 1, : (width - 1) * stride[1] + 1]


def _with_axes(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A matrix [channel, example and position] as images of this shape; they lie in memory by channel first."""
    examples, channels, *sides = shape
    return matrix.reshape(channels, examples, *sides).transpose(0, 1)


def _pair(option: Any) -> tuple[int, int]:
    """An option of a convolution for both axes."""
    first, *rest = option if isinstance(option, tuple | list) else (option,)
    return int(first), int(rest[0] if rest else first)
