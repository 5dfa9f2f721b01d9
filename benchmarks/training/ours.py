"""hessian-tools: the outer step of ``meta_train``, from drawn episodes to the mean meta-gradient."""

from dataclasses import dataclass

import hessian_tools as ht
from benchmarks.problem import Answer, Job
from benchmarks.training.loads import TrainingProblem, sampled
from hessian_tools.data import Episode
from hessian_tools.meta.learners import maml
from hessian_tools.meta.shot import Shot
from hessian_tools.train import TrainConfig
from hessian_tools.train.outer import accumulate_gradient, is_batched


@dataclass(frozen=True)
class Given:
    """The load's own tasks as a source of tasks: what meta_train draws from."""

    episodes: list[Episode]
    kind: str
    input_shape: tuple[int, ...]
    outputs: int
    digest: str = "given"

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        return self.episodes[index]


def build(problem: TrainingProblem, quantity: str) -> Job:
    """MAML without SHOT."""
    return outer_step(problem, None)


def outer_step(problem: TrainingProblem, shot: Shot | None) -> Job:
    """One meta-gradient after another, all from the same parameters."""
    load = problem.load
    theta, layout = ht.flatten(problem.model)
    loss = ht.make_loss(problem.model, problem.criterion, layout)
    regression = problem.query[1].is_floating_point()
    given = Given(problem.episodes, "regression" if regression else "classification", load.input_shape, 5)
    config = TrainConfig(
        maml(load.steps, load.step_size, first_order=load.first_order),
        given,
        lambda: problem.model,
        shot=shot,
        meta_batch=len(given.episodes),
        device=str(theta.device),
    )
    theta.requires_grad_()

    def run() -> Answer:
        theta.grad = None
        accumulate_gradient(config, loss, theta, 0)
        assert theta.grad is not None
        return Answer(0, sampled(theta.grad))

    return Job(run, "all tasks at once" if is_batched(config, problem.model) else "task by task")
