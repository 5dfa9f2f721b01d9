"""SHOT_p: pre-training by SHOT's distance alone, without query labels (Lee, Yoo, Kwak 2023).

The reference's outputs pass a projector, and query images are augmented. What it learns is an
initial network whose inner loop is nearly linear; ordinary training begins from its best checkpoint.
Watch ``homogeneity``: an inner loop that does nothing has distance 0 too.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.inner.adapt import learner_path
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.meta_loss import Aux, shot_distance, summary
from hessian_tools.inner.shot import L2, Shot
from hessian_tools.loss import Batch, Loss

PROJECTORS = ("trained", "fixed", "absent")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of images, each image its own: mirrored, moved, resized, brightened.

    flip: mirrored left to right with probability 1/2. shift: largest move, as a share of the side.
    zoom: scale drawn from [1 - zoom, 1 + zoom]. brightness: factor drawn from [1 - b, 1 + b].
    What comes in at the border is 0.
    """

    flip: bool = True
    shift: float = 0.1
    zoom: float = 0.1
    brightness: float = 0.2

    def __call__(
        self, images: Float[Tensor, "image channel height width"], generator: torch.Generator
    ) -> Float[Tensor, "image channel height width"]:
        """The changed images; random numbers are drawn on the CPU, equally many whatever the options."""
        drawn = torch.rand(len(images), 5, generator=generator, device="cpu").to(images)
        centred = 2 * drawn - 1
        scale = 1 / (1 + self.zoom * centred[:, 0])
        mirror = torch.where(drawn[:, 1] < 0.5, -1.0, 1.0).to(images) if self.flip else torch.ones_like(scale)
        zero = torch.zeros_like(scale)
        # affine_grid maps output places to input places, in units of half a side.
        rows = [scale * mirror, zero, 2 * self.shift * centred[:, 2], zero, scale, 2 * self.shift * centred[:, 3]]
        grid = torch.nn.functional.affine_grid(
            torch.stack(rows, -1).view(-1, 2, 3), list(images.shape), align_corners=False
        )
        moved = torch.nn.functional.grid_sample(images, grid, align_corners=False)
        return moved * (1 + self.brightness * centred[:, 4])[:, None, None, None]


@dataclass(frozen=True)
class ShotPretraining:
    """How SHOT_p trains.

    projector: what the reference's outputs pass: a two-layer network that is "trained" or "fixed" at
        its random start, or "absent". hidden: its width. augmentation: of query images; None: none.
    """

    projector: str = "trained"
    hidden: int = 64
    augmentation: Augmentation | None = Augmentation()

    def __post_init__(self) -> None:
        if self.projector not in PROJECTORS:
            raise ValueError(f"projector={self.projector!r} is not one of {', '.join(PROJECTORS)}")
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden} of the projector must be at least 1")

    def check(self, learner: Learner, shot: Shot | None, *, input_shape: tuple[int, ...]) -> None:
        """Refuse what cannot be pre-trained so."""
        if shot is None or learner.outer != "query":
            raise ValueError(f"pretraining descends SHOT alone: {learner.name} needs outer='query' and a shot")
        if learner.latent is not None:
            raise ValueError("pretraining compares networks after the inner loop; a latent learner cannot take it")
        if shot.distance == L2 and self.projector != "absent":
            raise ValueError(f"projector={self.projector!r} acts on outputs, distance={L2!r} has none; use 'absent'")
        if self.augmentation is not None and len(input_shape) != 3:
            raise ValueError(f"augmentation changes images; inputs of shape {input_shape} are none; use None")

    def size(self, outputs: int) -> int:
        """Number of the projector's parameters."""
        return 0 if self.projector == "absent" else sum(prod(s) for s in self._shapes(outputs))

    def initial(self, outputs: int, generator: torch.Generator) -> Float[Tensor, " projector"]:
        """The projector's parameters as one vector; empty where it is absent."""
        if self.projector == "absent":
            return torch.zeros(0, device="cpu")
        drawn = [2 * torch.rand(prod(s), generator=generator, device="cpu") - 1 for s in self._shapes(outputs)]
        inputs = [outputs, outputs, self.hidden, self.hidden]
        return torch.cat([d / sqrt(n) for d, n in zip(drawn, inputs, strict=True)])

    def project(self, outputs: Float[Tensor, "example output"], parameters: Float[Tensor, " projector"]) -> Tensor:
        """The reference's outputs as the target is to have them."""
        if self.projector == "absent":
            return outputs
        held = parameters.detach() if self.projector == "fixed" else parameters
        shapes = self._shapes(outputs.shape[-1])
        pieces = held.split([prod(s) for s in shapes])
        first, bias, second, last = (p.view(s) for p, s in zip(pieces, shapes, strict=True))
        return torch.relu(outputs @ first.T + bias) @ second.T + last

    def _shapes(self, outputs: int) -> list[tuple[int, ...]]:
        layers = list(pairwise([outputs, self.hidden, outputs]))
        return [shape for inputs, width in layers for shape in ((width, inputs), (width,))]


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
    """weight x D(projected reference, target) on the query inputs; the query labels serve ``Aux`` alone.

    theta: the learner's meta-parameters, and the projector's as the last entries. checkpointing: as in ``meta_loss``.
    """
    x, y = query
    path = learner_path(learner, loss, theta, support, checkpointing=checkpointing)
    outputs = loss.outputs(path.adapted, x)
    projector = theta[len(theta) - pretraining.size(outputs.shape[-1]) :]
    distance = shot_distance(
        shot,
        learner,
        loss,
        theta,
        path,
        support,
        x,
        own_outputs=outputs,
        project=lambda reference: pretraining.project(reference, projector),
        checkpointing=checkpointing,
    )
    return shot.weight * distance, summary(loss.criterion(outputs, y), distance, path.gradients[0].loss, outputs, y)
