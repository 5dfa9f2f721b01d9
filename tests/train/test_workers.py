"""Outer steps whose tasks are shared by worker processes give the numbers of one process to the bit."""

import multiprocessing
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch

from hessian_tools import Conv4, Shot, TrainConfig, learners, meta_train
from hessian_tools.data import open_tasks
from hessian_tools.inner.learners import Latent

pytestmark = pytest.mark.heavy

CONFIG = TrainConfig(
    learner=learners.leo(2, 0.5, latent=Latent(4, fine_tuning_steps=1, dropout=0.2)),
    tasks=open_tasks("quickdraw", ways=3, shots=1, queries=2),
    network=partial(Conv4, 3, width=2),
    checkpoints=(0, 2, 5),
    meta_batch=3,
    validation_tasks=1,
    learning_rate=0.01,
    shot=Shot(0.3, schedule="linear", schedule_steps=4),
    save_every=1,
)


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


def test_two_workers_give_the_numbers_of_one_process_and_a_killed_run_resumes(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = list(meta_train(CONFIG))
    torch.set_num_threads(threads)
    shared = replace(CONFIG, workers=2, folder=tmp_path)

    def kill_one(meta_step: int, _: float) -> None:
        if meta_step == 3:
            workers = multiprocessing.active_children()
            assert len(workers) == 2
            os.kill(workers[0].pid, signal.SIGKILL)

    yielded = []
    with pytest.raises(RuntimeError, match=r"worker process \d ended \(exit code -9\) while it was "):
        yielded.extend(meta_train(shared, progress=kill_one))
    assert multiprocessing.active_children() == []
    # The run resumes from its last state, also with another number of processes.
    resumed = list(meta_train(replace(shared, workers=1)))
    for a, b in zip(resumed, expected, strict=True):
        assert torch.equal(a.theta, b.theta)
        assert a.validation_loss == b.validation_loss
    assert not torch.equal(resumed[1].theta, resumed[0].theta)


def fails_in_training(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    raise ArithmeticError("no criterion today")


def test_an_error_in_a_worker_is_raised_and_work_that_cannot_be_sent_is_refused():
    from hessian_tools.train import task_loss
    from hessian_tools.train.outer import SharedStep

    config = replace(CONFIG, learner=learners.maml(1, 0.1), shot=None, meta_batch=1)
    loss, theta = task_loss(config)
    loss._criterion = fails_in_training
    with pytest.raises(ArithmeticError, match="no criterion today"):
        SharedStep(config, loss, theta).accumulate_gradient(theta, 0)
    assert multiprocessing.active_children() == []
    loss._criterion = lambda out, y: out.sum()
    with pytest.raises(ValueError, match="cannot be sent to another process"):
        SharedStep(config, loss, theta).accumulate_gradient(theta, 0)


def test_configurations_that_workers_cannot_compute_are_refused():
    with pytest.raises(ValueError, match="workers=4 must be at least 1 and at most meta_batch=3"):
        replace(CONFIG, workers=4)
    with pytest.raises(ValueError, match="workers=2 take tasks in turn on the CPU"):
        replace(CONFIG, learner=learners.maml(1, 0.1), workers=2, batched=True)
