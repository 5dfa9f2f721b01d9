"""SHOT_p: pre-training by SHOT's distance alone, without query labels (Lee, Yoo, Kwak 2023).

SHOT's distance compares the network after few large inner steps (the target) and after many small ones (the reference).
In pre-training, the reference's outputs pass through a projector, and query images are augmented. The result is an
initial network whose inner loop is nearly linear; ordinary training then begins from its best checkpoint. Check it with
``hessian_tools.inner.collapse.homogeneity``, because an inner loop that changes nothing has distance 0 too.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.inner.learners import Learner
from hessian_tools.inner.meta_loss import Aux, parameter_parts
from hessian_tools.inner.shot import L2, Shot
from hessian_tools.layout import ParamLayout
from hessian_tools.loss import Batch, Loss
from hessian_tools.validation import check_choice

PROJECTORS = ("trained", "fixed", "absent")


@dataclass(frozen=True)
class Augmentation:
    """Random changes that are drawn for each image: it is mirrored, moved, resized and made brighter or darker.

    flip: whether an image is mirrored left to right with probability 1/2.
    shift: the largest move, as a fraction of the image's side; pixels that come in at the border are 0.
    zoom: the scale is drawn from [1 - zoom, 1 + zoom].
    brightness: the factor is drawn from [1 - brightness, 1 + brightness].
    """

    flip: bool = True
    shift: float = 0.1
    zoom: float = 0.1
    brightness: float = 0.2

    def __call__(
        self, images: Float[Tensor, "image channel height width"], generator: torch.Generator
    ) -> Float[Tensor, "image channel height width"]:
        """The changed images; ``generator`` is one of the CPU."""
        # Five numbers are drawn for each image, so that no option changes the draws of another. They are for the scale,
        # the mirror, the two shifts and the brightness.
        uniform = torch.rand(len(images), 5, generator=generator, device="cpu").to(images)
        centred = 2 * uniform - 1
        scale = 1 / (1 + self.zoom * centred[:, 0])
        mirror = torch.where(uniform[:, 1] < 0.5, -1.0, 1.0).to(images) if self.flip else torch.ones_like(scale)
        zero = torch.zeros_like(scale)
        # Each image has a 2 x 3 matrix, whose six entries follow. By it affine_grid maps positions in the output to
        # positions in the input, in units of half a side.
        rows = [scale * mirror, zero, 2 * self.shift * centred[:, 2], zero, scale, 2 * self.shift * centred[:, 3]]
        grid = torch.nn.functional.affine_grid(
            torch.stack(rows, -1).view(-1, 2, 3), list(images.shape), align_corners=False
        )
        moved = torch.nn.functional.grid_sample(images, grid, align_corners=False)
        return moved * (1 + self.brightness * centred[:, 4])[:, None, None, None]


@dataclass(frozen=True)
class ShotPretraining:
    """The settings of SHOT_p, which is pre-training by SHOT's distance alone.

    projector: what becomes of the projector, the network of two layers that is applied to the reference's outputs: it
        is "trained", or "fixed" at its random start, or "absent".
    hidden: the width of the projector's hidden layer.
    augmentation: the random changes of query images; None changes nothing.
    """

    projector: str = "trained"
    hidden: int = 64
    augmentation: Augmentation | None = Augmentation()

    def __post_init__(self) -> None:
        check_choice("projector", self.projector, PROJECTORS)

    def check(self, learner: Learner, shot: Shot | None, *, input_shape: tuple[int, ...]) -> None:
        """Raise ValueError for a learner, penalty or inputs that cannot be pre-trained in this way."""
        if shot is None or learner.outer != "query":
            raise ValueError(
                f"pretraining descends SHOT's distance alone, so {learner.name} needs outer='query' and a shot"
            )
        if learner.latent is not None:
            raise ValueError(
                "pretraining compares networks after the inner loop, but a latent learner's inner loop moves codes; use"
                " pretraining=None"
            )
        if shot.distance == L2 and self.projector != "absent":
            raise ValueError(
                f"projector={self.projector!r} acts on outputs, but distance={L2!r} compares parameters; use 'absent'"
            )
        if self.augmentation is not None and len(input_shape) != 3:
            raise ValueError(f"augmentation changes images, but inputs of shape {input_shape} are no images; use None")

    def size(self, outputs: int) -> int:
        """The number of the projector's parameters for a number of outputs of the network."""
        return self._layout(outputs).numel

    def initial(self, outputs: int, generator: torch.Generator) -> Float[Tensor, " projector"]:
        """The projector's initial parameters as one vector; empty where it is absent."""
        if self.projector == "absent":
            return torch.zeros(0, device="cpu")
        # As torch draws a linear layer: all entries are uniform within +-1 / sqrt(number of the layer's inputs).
        pieces = [2 * torch.rand(size, generator=generator, device="cpu") - 1 for size in self._layout(outputs).sizes]
        layer_inputs = [outputs, outputs, self.hidden, self.hidden]
        return torch.cat([piece / sqrt(n) for piece, n in zip(pieces, layer_inputs, strict=True)])

    def project(self, outputs: Float[Tensor, "example output"], parameters: Float[Tensor, " projector"]) -> Tensor:
        """The outputs of the reference after the projector; the target's outputs are compared with these."""
        if self.projector == "absent":
            return outputs
        if self.projector == "fixed":
            parameters = parameters.detach()
        matrix_1, bias_1, matrix_2, bias_2 = self._layout(outputs.shape[-1]).unflatten(parameters).values()
        return torch.relu(outputs @ matrix_1.T + bias_1) @ matrix_2.T + bias_2

    def _layout(self, outputs: int) -> ParamLayout:
        """The layout of the projector's parameters: matrix and bias of the first layer, then of the second."""
        h, names = self.hidden, ("matrix_1", "bias_1", "matrix_2", "bias_2")
        shapes = map(torch.Size, ((h, outputs), (h,), (outputs, h), (outputs,)))
        return ParamLayout((), ()) if self.projector == "absent" else ParamLayout(names, tuple(shapes))


def pretraining_loss(
    learner: Learner,
    loss: Loss,
    theta: Float[Tensor, " meta"],
    support: Batch,
    query: Batch,
    *,
    shot: Shot,
    pretraining: ShotPretraining,
    checkpointing: bool = False,
) -> tuple[Float[Tensor, ""], Aux]:
    """The objective of SHOT_p: weight x D(projected reference, target) on the query inputs.

    theta: the learner's meta-parameters, with the projector's as the last entries.
    query: the query batch (x, y), whose labels are used only for the numbers in ``Aux``.
    checkpointing: see ``meta_loss``.
    """

    def project(reference: Tensor) -> Tensor:
        # A slice theta[-size:] would be all of theta where the projector has no parameters.
        projector = theta[len(theta) - pretraining.size(reference.shape[-1]) :]
        return pretraining.project(reference, projector)

    _, distance, aux = parameter_parts(
        learner, loss, theta, support, query, shot=shot, project=project, checkpointing=checkpointing
    )
    return shot.weight * distance, aux
