"""One contestant in its own process: gets ready, then runs once for every line it reads.

    python -m benchmarks.worker POINTS.safetensors '{"workload": "W2", "contestant": "ours", ...}'

Answers one line of JSON each: ready (or missing, or failed), then a measurement for every line read.
What libraries print goes to standard error.
"""

import importlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.places import place
from benchmarks.problem import Job


def main() -> None:
    path, text = sys.argv[1:3]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    order = json.loads(text)
    torch.set_num_threads(order["threads"])
    torch.backends.cudnn.allow_tf32 = False  # on CUDA too float32 is float32, for every contestant alike, as for ours
    job = _ready(Path(path), order, answers)
    for _ in sys.stdin if job else ():
        assert job is not None
        _say(answers, _measured(job, order["device"]))


def _ready(path: Path, order: dict[str, Any], answers: TextIO) -> Job | None:
    try:
        module = importlib.import_module(f"{place(order['workload']).contestants}.{order['contestant']}")
        problem = _problem(path, order)
        job: Job = module.build(problem, order["quantity"])
    except ImportError as error:
        _say(answers, {"missing": f"not installed ({error.name})"})
        return None
    except NotImplementedError as error:
        _say(answers, {"missing": str(error)})
        return None
    except Exception as error:
        traceback.print_exc()
        _say(answers, {"failed": _in_short(error)})
        return None
    _say(answers, {"note": job.note})
    return job


def _problem(path: Path, order: dict[str, Any]) -> Any:
    problem = place(order["workload"]).load(order["workload"], path).first(order["points"])
    return problem.to(order["device"], getattr(torch, order["dtype"]))


def _measured(job: Job, device: str) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    _wait(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        answer = job.run()
    except Exception as error:
        traceback.print_exc()
        return {"failed": _in_short(error)}
    _wait(device)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if answer.seconds is not None:
        seconds, processor = answer.seconds
    return {
        "seconds": seconds,
        "cpu_seconds": processor,
        "system_seconds": after.ru_stime - before.ru_stime,
        "page_faults": after.ru_minflt - before.ru_minflt,
        "peak_mib": after.ru_maxrss / 1024,
        **({"device_peak_mib": torch.cuda.max_memory_allocated() / 2**20} if device == "cuda" else {}),
        "num_matvecs": answer.num_matvecs,
        **answer.rates,
        "values": None if answer.values is None else answer.values.double().cpu().tolist(),
        "stderr": None if answer.stderr is None else answer.stderr.double().cpu().tolist(),
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
