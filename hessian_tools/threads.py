"""How torch's idle threads wait; imported before torch, because OpenMP reads the policy when torch is loaded.

Beside another busy process, two idle OpenMP threads that spin made a search for eigenvalues 12 times slower (27.8 s
against 2.4 s). Threads that sleep cost nothing.
"""

import os
import sys
import warnings


def _torch_spins_on_a_busy_machine() -> bool:
    """Whether torch, which was loaded before us, has several threads that spin while others need the cores."""
    import torch

    busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1)
    return busy and torch.get_num_threads() > 1 and "OMP_WAIT_POLICY" not in os.environ


if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
elif _torch_spins_on_a_busy_machine():
    warnings.warn(
        f"this machine has {os.cpu_count()} cores and more work than that, and torch was imported before hessian_tools,"
        " so that its idle threads spin, which can make everything several times slower; set OMP_WAIT_POLICY=PASSIVE,"
        " or import hessian_tools first",
        RuntimeWarning,
        stacklevel=2,
    )
