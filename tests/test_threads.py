"""Tests that idle threads of torch sleep instead of spinning, or that the user is warned once that they spin."""

import os
import subprocess
import sys

import pytest

# This line makes a script believe that it runs on a busy machine, and shows all warnings.
BUSY = "import os, warnings; os.getloadavg = lambda: (9999.0, 0.0, 0.0); warnings.simplefilter('always')\n"


def run(script: str, **policy: str) -> subprocess.CompletedProcess[str]:
    """Run a script on a machine that seems busy. policy: environment variables of OpenMP, which are unset otherwise."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")} | policy
    done = subprocess.run([sys.executable, "-c", BUSY + script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.heavy
def test_threads_sleep_if_torch_is_loaded_after_the_library():
    show = "import hessian_tools; print(os.environ['OMP_WAIT_POLICY'])"
    assert run(show).stdout == "PASSIVE\n"
    assert run(show, OMP_WAIT_POLICY="ACTIVE").stdout == "ACTIVE\n"  # the user's setting is kept


@pytest.mark.heavy
def test_threads_sleep_in_a_study_too_although_its_modules_import_torch_first():
    done = run("import analysis.pipeline; print(os.environ['OMP_WAIT_POLICY'])")
    assert done.stdout == "PASSIVE\n"
    assert "OMP_WAIT_POLICY" not in done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("threads", "load", "warned"), [(2, 9999.0, True), (1, 9999.0, False), (2, 0.0, False)], ids=["spin", "one", "idle"]
)
def test_a_user_who_loaded_torch_first_is_warned_once_on_a_busy_machine(threads, load, warned):
    script = f"import torch; torch.set_num_threads({threads}); os.getloadavg = lambda: ({load}, 0.0, 0.0)\n"
    script += "import hessian_tools, hessian_tools as again"
    assert run(script).stderr.count("set OMP_WAIT_POLICY=PASSIVE") == warned
