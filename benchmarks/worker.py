"""Runs one contestant in a process of its own: it is prepared, and then runs once for every line of standard input.

    python -m benchmarks.worker PROBLEM.safetensors '{"workload": "W2", "contestant": "ours", ...}'

Each answer is one line of JSON on standard output. The first says whether the contestant is ready, missing or failed,
and each later one is a measurement. Whatever libraries print goes to standard error.
"""

import importlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.problem import Job
from benchmarks.race import Order
from benchmarks.workloads import WORKLOADS, load


def main() -> None:
    path, text = sys.argv[1:3]
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # the original standard output, flushed at each line
    os.dup2(2, 1)  # from here on, whatever is printed goes to standard error
    order = Order(**json.loads(text))
    torch.set_num_threads(order.threads)
    # By default, torch rounds the inputs of float32 convolutions to TF32 on CUDA. This is off for every contestant.
    torch.backends.cudnn.allow_tf32 = False
    job, message = _ready(Path(path), order)
    print(json.dumps(message), file=answers)
    for _ in sys.stdin if job else ():  # each line of the standard input asks for one run
        assert job is not None
        print(json.dumps(_measured(job, order.device)), file=answers)


def _ready(path: Path, order: Order) -> tuple[Job | None, dict[str, Any]]:
    """The contestant's job, or None if it is missing or has failed, and the first answer."""
    # "ours" means the function build of the module ours, and "ours.eigsh" means its function eigsh.
    module, _, function = order.contestant.partition(".")
    try:
        peer = importlib.import_module(f"{WORKLOADS[order.workload].contestants}.{module}")
        problem = load(order.workload, path).first(order.points).to(order.device, getattr(torch, order.dtype))
        job: Job = getattr(peer, function or "build")(problem, order.quantity)
    except ImportError as error:
        return None, {"missing": f"not installed ({error.name})"}
    except NotImplementedError as error:
        return None, {"missing": str(error)}
    except Exception as error:
        return None, _failure(error)
    return job, {"note": job.note}


def _measured(job: Job, device: str) -> dict[str, Any]:
    """Run the job once; returns its time, its memory and its results as the entries of an answer."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        answer = job.run()
    except Exception as error:
        return _failure(error)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if answer.seconds is not None:
        seconds, cpu_seconds = answer.seconds
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "system_seconds": after.ru_stime - before.ru_stime,
        "page_faults": after.ru_minflt - before.ru_minflt,
        "peak_mib": after.ru_maxrss / 1024,
        **({"device_peak_mib": torch.cuda.max_memory_allocated() / 2**20} if device == "cuda" else {}),
        "num_matvecs": answer.num_matvecs,
        **answer.rates,
        "values": None if answer.values is None else answer.values.double().cpu().tolist(),
        "stderr": None if answer.stderr is None else answer.stderr.double().cpu().tolist(),
    }


def _failure(error: Exception) -> dict[str, str]:
    """An answer with the error in one line; the traceback goes to standard error."""
    traceback.print_exception(error)
    first_line = str(error).splitlines()[0][:160] if str(error) else ""
    return {"failed": f"{type(error).__name__}: {first_line}"}


if __name__ == "__main__":
    main()
