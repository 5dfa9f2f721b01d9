"""The facts besides the code on which timings depend: versions, processor and load, without names of hosts or users."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def facts(device: str) -> dict[str, Any]:
    """Describe the machine, the packages that are installed on it, and the commit of this repository."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "python": platform.python_version(),
        "versions": {package.name: package.version for package in metadata.distributions()},
        "commit": _commit(),
    }


def _cpu() -> str:
    """The name of the processor's model on Linux; elsewhere the name of its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """The commit of the measured code, followed by + if tracked files differ from it; None without git."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.check_output(command, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
