"""What the SHOT penalty costs in addition to a learner's own training, counted in floating-point operations."""

import pytest
from plain_learners import CASES, episode, network
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hessian_tools import Shot, learners, meta_loss
from hessian_tools.inner.parameters import meta_parameters

LEARNERS = {name: CASES[name].learner for name in ("maml", "fomaml", "anil", "fo-anil", "boil", "meta-sgd", "momentum")}
LEARNERS["reptile"] = learners.reptile(3, 0.05)


def flops(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def outer_step_flops(name: str, shots: int, shot: Shot | None) -> int:
    loss, theta, layout = network()
    support, query = episode(shots=shots)
    meta = meta_parameters(LEARNERS[name], layout, theta).clone().requires_grad_()
    return flops(lambda: meta_loss(LEARNERS[name], loss, meta, support, query, shot=shot)[0].backward())


def query_pass_flops(shots: int) -> int:
    loss, theta, _ = network()
    query = episode(shots=shots)[1]

    def work() -> None:
        t: Tensor = theta.clone().requires_grad_()
        loss(t * 1.0, query).backward()

    return flops(work)


@pytest.mark.slow
@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("name", LEARNERS)
def test_shot_costs_one_query_pass_and_no_support_pass(name, shots):
    plain, one_pass = outer_step_flops(name, shots, None), query_pass_flops(shots)
    assert outer_step_flops(name, shots, Shot()) - plain == one_pass > 0
    # A longer reference takes further passes over the support set, which shows that the equality above can fail.
    assert outer_step_flops(name, shots, Shot(reference_steps=6)) - plain > one_pass


def test_shot_in_parameters_costs_no_pass_at_all():
    assert outer_step_flops("maml", 1, Shot(distance="l2_parameters")) == outer_step_flops("maml", 1, None)


def test_anil_differentiates_with_respect_to_the_head_alone():
    # ANIL's three inner steps save their backward passes through the body.
    assert outer_step_flops("fo-anil", 5, None) < 0.75 * outer_step_flops("fomaml", 5, None)
