"""Points of two tasks in float64, made by hand for the tests of single quantities.

``Points`` is what a quantity of a study receives: the inner loops of several tasks, with the loss and the learner.
"""

import torch
from torch import Tensor, nn

from analysis.config import LevelConfig
from analysis.quantities import QUANTITIES, Points, Values
from hessian_tools import SaveAt, learners, make_loss, record, stream
from hessian_tools.curvature import rademacher
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.leo import latent_parameters
from hessian_tools.inner.parameters import meta_parameters
from hessian_tools.layout import flatten
from hessian_tools.trajectory import stack

TASKS, STEPS, ALPHA, CLASSES = 2, 3, 0.3, 3
MAML = learners.maml(STEPS, ALPHA)


class Classifier(nn.Module):
    """A smooth network with a body and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


class Line(nn.Module):
    """A model that is linear in its two parameters, so that the squared error is a quadratic."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight(x)


def points_of(learner: Learner, *, regression: bool = False, scale: float = 1.0) -> Points:
    """The points of two tasks, of which the inputs of the second are multiplied by ``scale``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = (Line() if regression else Classifier()).double()
    theta, layout = flatten(model)
    criterion = nn.functional.mse_loss if regression else nn.functional.cross_entropy
    loss = make_loss(model, criterion, layout)
    meta_theta = meta_parameters(learner, layout, theta.detach())
    if learner.latent is not None:
        meta_theta = torch.cat([meta_theta, latent_parameters(learner, width=4, generator=stream(0)).double()])
    generator = stream(0, "test", "episodes")

    def batch(rows: int, factor: float) -> tuple[Tensor, Tensor]:
        x = factor * torch.randn(rows, 2, generator=generator, dtype=torch.float64)
        y = torch.arange(rows) % CLASSES
        return x, (x.sum(-1, keepdim=True) + 0.1 * y[:, None] if regression else y)

    episodes = [(batch(6, factor), batch(5, factor)) for factor in (1.0, scale)]
    save = SaveAt(thetas=True, gradients=True)
    recorded = [record(learner, loss, meta_theta, *episode, save=save) for episode in episodes]
    # Every set is a pair (x, y). Those of all tasks are stacked along a new leading axis.
    support, query = (
        tuple(torch.stack(leaves) for leaves in zip(*sets, strict=True)) for sets in zip(*episodes, strict=True)
    )
    return Points(
        loss=loss,
        learner=learner,
        meta_theta=meta_theta,
        trajectory=stack(recorded),
        support=support,
        query=query,
        other_support=support,  # a study takes those of other tasks
        normalised=(),
        step_size=float("nan") if learner.why_no_alpha else learner.step_size,
        level=LevelConfig(eigenvalues=1, tolerance=1e-8, probes=2, max_matvecs=100),
        probes=torch.stack([rademacher(layout.numel, 2, seed=0, path=("p", i)) for i in range(TASKS)]).double(),
        tasks=tuple(range(TASKS)),
        task_seed=0,
        seed=0,
    )


def measured(name: str, points: Points) -> Values:
    """The values of a quantity, which must be the variables that it declares."""
    values = QUANTITIES[name].measure(points)
    assert set(values) == {variable.name for variable in QUANTITIES[name].variables}
    return values
