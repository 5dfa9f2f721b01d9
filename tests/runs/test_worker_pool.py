"""The pool of worker processes computes every unit of work once, reports errors and lost workers, and ends cleanly."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hessian_tools.runs.worker_pool import WorkerLost, WorkerPool

pytestmark = pytest.mark.heavy

# Seconds in which a worker has to end on a busy machine; on a quiet one it takes about 0.1. A worker that outlived its
# parent would sleep for 600.
PATIENCE = 120

SCRIPT = """
import sys, time
from hessian_tools.runs.worker_pool import WorkerPool

def wait_for_ever(unit, emit):
    emit(1, "begun")
    time.sleep(600)

if __name__ == "__main__":
    with WorkerPool(1) as pool:
        def emit(amount, note):
            print(*pool.pids, flush=True)
        try:
            pool.run(wait_for_ever, ["sleeping"], emit=emit)
        except KeyboardInterrupt:
            pool.close()
            sys.exit("stopped")
"""


class UnsendableError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def work(unit, emit):
    match unit:
        case "fail" | "fail unsendably":
            error = ArithmeticError("it does not add up") if unit == "fail" else UnsendableError("told", "lost")
            error.add_note("It was raised by maml seed 5.")
            raise error
        case "sleeping":
            emit(0, "sleeping")
            time.sleep(600)
        case number:
            assert torch.get_num_threads() == 1
            emit(number, f"pid {os.getpid()}")


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2) as pool:
        yield pool
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_every_unit_is_computed_once_and_reported_to_the_caller(workers, pool):
    reports: list[tuple[float, str]] = []
    threads = torch.get_num_threads()
    (pool if workers else WorkerPool(0)).run(work, range(1, 8), emit=lambda *report: reports.append(report))
    assert sorted(amount for amount, _ in reports) == list(range(1, 8))
    notes = {note for _, note in reports}
    assert (notes == {f"pid {os.getpid()}"}) == (workers == 0)
    assert len(notes) <= max(workers, 1)
    assert torch.get_num_threads() == threads


def test_a_worker_that_is_killed_is_named_with_what_it_was_doing(pool):
    pool.run(work, [1, 2])
    idle = pool._started[1].process
    os.kill(idle.pid, signal.SIGKILL)
    idle.join()
    ended = r"^worker process 1 ended \(exit code -9\) while it was waiting for work; what was saved is complete:\n"
    with pytest.raises(WorkerLost, match=ended):
        pool.run(work, [1, 2])
    assert pool.pids == []
    ended = r"^worker process 1 ended \(exit code -9\) while it was sleeping; what was saved is complete:\n"
    with pytest.raises(WorkerLost, match=ended) as error:
        pool.run(work, ["sleeping", "sleeping"], emit=lambda *_: os.kill(pool.pids[1], signal.SIGKILL))
    assert str(error.value).count("\n") == 1
    assert multiprocessing.active_children() == []


def test_an_error_of_a_unit_is_raised_in_the_caller_and_the_pool_can_be_used_again(pool):
    with pytest.raises(ArithmeticError, match="it does not add up") as error:
        pool.run(work, [1, "fail"])
    assert error.value.__notes__ == ["It was raised by maml seed 5."]
    assert multiprocessing.active_children() == []
    with pytest.raises(RuntimeError, match=r"UnsendableError: told It was raised by maml seed 5\."):
        pool.run(work, ["fail unsendably"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_workers_end_with_their_parent_and_say_nothing(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits "ignored"
    try:
        parent = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 1
    if how == signal.SIGINT:
        os.killpg(parent.pid, how)  # as a terminal does
    else:
        parent.kill()
    limit = time.monotonic() + PATIENCE
    while any(map(is_running, workers)):
        assert time.monotonic() < limit, "a worker outlives its parent"
        time.sleep(0.02)
    _, errors = parent.communicate()
    assert errors == ("stopped\n" if how == signal.SIGINT else "")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
