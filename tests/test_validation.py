"""Counts and paths that a script gives, in a Python that does not check annotations as these tests do."""

import subprocess
import sys

import numpy as np
import pytest

from hessian_tools.validation import check_whole

SCRIPT = """
import torch, hessian_tools as ht
H = ht.hessian(lambda t, a: (a * t**2).sum() / 2, torch.zeros(4), torch.arange(4.0))
sine, build = ht.data.open_tasks("sine-line"), lambda: ht.MLP((1, 4, 1))
maml = ht.learners.maml(1, 0.1)
for call in (
    lambda: ht.top_eigenpairs(H, k=2.5),
    lambda: ht.top_eigenpairs(H, k=2, max_matvecs=50.5),
    lambda: ht.trace(H, num_probes=2.5),
    lambda: ht.spectral_density(H, num_probes=2.5),
    lambda: ht.spectral_density(H, num_matvecs=2.5),
    lambda: ht.check_operator(H, num_probes=2.5),
    lambda: ht.learners.maml(2.5, 0.1),
    lambda: ht.Shot(target_steps=2.5),
    lambda: ht.TrainConfig(maml, sine, build, meta_batch=2.5),
    lambda: ht.meta_loss(maml, lambda t, b: (t**2).sum(), torch.zeros(3), None, None),
    lambda: ht.record(maml, lambda t, b: (t**2).sum(), torch.zeros(3), None, None),
):
    try:
        print("taken", call())
    except ValueError as error:
        print("refused", error)
model = torch.nn.Linear(2, 2)
loss, batch = ht.make_loss(model, lambda o, y: (o**2).mean(), ht.flatten(model)[1]), (torch.ones(3, 2), None)
for states in ("a.safetensors", model.state_dict(), [torch.zeros(6).numpy()], [model],
               [{k: v.numpy() for k, v in model.state_dict().items()}], [torch.zeros(6, dtype=torch.long)]):
    try:
        print("taken", ht.trajectory_from(loss, states, batch))
    except ValueError as error:
        print("refused", error)
(begun,) = ht.meta_train(ht.TrainConfig(maml, sine, build, checkpoints=(0,), folder="run"))
print(begun.theta.numel())
"""


def test_what_a_script_may_give_is_taken_or_refused_in_a_line(working_folder):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=working_folder, check=True
    )
    *refused, trained = done.stdout.splitlines()
    assert len(refused) == 17 and all(line.startswith("refused ") for line in refused)
    assert all("=2.5 is not a whole number; give one, such as 2" in line for line in refused[:1] + refused[2:9])
    assert refused[1].startswith("refused max_matvecs=50.5")
    assert all("use ht.make_loss" in line for line in refused[9:11])
    of_states = ["one str, not several", "one OrderedDict, not", "type ndarray; give", "type Linear; give",
                 "'weight' is of type ndarray", "numbers of torch.int64"]  # fmt: skip
    assert all(said in line for said, line in zip(of_states, refused[11:], strict=True))
    assert trained == "13" and (working_folder / "run" / "checkpoints").is_dir()


def test_whole_numbers_are_pythons_and_numpys():
    check_whole(k=3, n=np.int64(3), none=None)
    for wrong in (2.0, True, "2", float("nan"), 1e300):
        with pytest.raises(ValueError, match="is not a whole number; give one"):
            check_whole(k=wrong)
