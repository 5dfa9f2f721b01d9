"""The parts of a vector that belong to each parameter tensor, and random rotations within these parts."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.directions.gradient_curvature import in_units
from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.layout import ParamLayout
from hessian_tools.rng import PathPart, stream
from hessian_tools.torch_fixes.precision import full_precision


def tensor_parts(layout: ParamLayout, v: Float[Tensor, "*point param"]) -> Float[Tensor, "*point param tensor"]:
    """One column for each parameter tensor: the entries of v that belong to it, and zeros elsewhere.

    The columns add up to v. If v is the gradient and g_l are its columns, one product of H with the columns gives the
    curvature g_l'H g_l / g_l'g_l of every diagonal block H_ll.

    >>> layout = ParamLayout(("weight", "bias"), (torch.Size([2]), torch.Size([1])))
    >>> tensor_parts(layout, torch.tensor([1.0, 2.0, 3.0]))
    tensor([[1., 0.],
            [2., 0.],
            [0., 3.]])
    """
    owner = torch.arange(len(layout.sizes), device="cpu").repeat_interleave(torch.tensor(layout.sizes, device="cpu"))
    is_owner = owner[:, None] == torch.arange(len(layout.sizes), device="cpu")
    # Not a product with zeros and ones, because an entry that is not finite would then make every column NaN.
    return torch.where(is_owner.to(v.device), v[..., None], 0.0)


@full_precision
def random_rotations(
    layout: ParamLayout,
    g: Float[Tensor, "*point param"],
    num_rotations: int,
    *,
    seed: int = 0,
    path: Sequence[PathPart] = (),
) -> Float[Tensor, "*point param rotation"]:
    """Vectors that are g rotated at random within each parameter tensor: in each of them the norm of g stays the same.

    They give a null hypothesis for the curvature along g: the curvature along a random direction whose norm is divided
    over the tensors as that of g is. The directions within a tensor are uniform on the sphere. They are the same at all
    points of g, so that differences between points are not blurred by different directions. Column i is drawn from
    ``stream(seed, "rotation", *path, i)``, so it does not depend on the number of columns.

    >>> layout = ParamLayout(("weight", "bias"), (torch.Size([2]), torch.Size([2])))
    >>> v = random_rotations(layout, torch.tensor([3.0, 4.0, 0.0, 0.0]), 2)
    >>> v[:2].norm(dim=0), v[2:].norm(dim=0)
    (tensor([5., 5.]), tensor([0., 0.]))
    """
    draws = (
        torch.randn(layout.numel, generator=stream(seed, "rotation", *path, i), dtype=torch.float64, device="cpu")
        for i in range(num_rotations)
    )
    normal = torch.stack(list(draws), -1).to(g.device)
    unit_vectors = [part / vector_norm(part, dim=0) for part in normal.split(list(layout.sizes))]
    # g is divided by a power of two near its largest entry, so that the squares in the norms neither underflow nor
    # overflow in float32, and the rotated vectors are multiplied by it again.
    scaled, unit_of_g = in_units(g)
    norms = [vector_norm(part) for part in scaled.split(list(layout.sizes), dim=-1)]
    rotated = [unit.to(g) * norm[..., None, None] for unit, norm in zip(unit_vectors, norms, strict=True)]
    return torch.cat(rotated, dim=-2) * unit_of_g[..., None, None]
