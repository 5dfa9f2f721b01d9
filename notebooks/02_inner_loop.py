# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Along an inner loop
#
# A gradient-based meta-learner such as MAML learns an *initial network*, from which a few gradient steps solve a new
# task. These few steps are the *inner loop*. This notebook records one, measures the curvature at each of its steps,
# and compares an untrained initial network with one that was meta-trained for half a minute.

# %%
import os
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy

import analysis
import hessian_tools as ht
from hessian_tools.data import open_tasks

# %% [markdown]
# The tests of this notebook, and the site of the documentation, set the environment variable `HESSIAN_TOOLS_SMOKE`,
# which makes it take seconds. The text speaks of the numbers and pictures of a run without it.

# %%
smoke = "HESSIAN_TOOLS_SMOKE" in os.environ

# %% [markdown]
# ## A task
#
# A task has a *support set* to adapt to, here one drawing of each of five things, and a *query set* to test the
# adapted network on, ten more drawings of each. The things are from the test split: no training task has them.

# %%
tasks = open_tasks("quickdraw", ways=5, shots=1, queries=10, image_size=16)
support, query = tasks.episode(seed=0, split="test", index=0)

fig, axes = plt.subplots(1, 5, figsize=(6, 1.4), layout="constrained")
for ax, drawing in zip(axes, support[0], strict=True):
    ax.imshow(1 - drawing[0], cmap="gray")
    ax.axis("off")

# %% [markdown]
# ## Record it
#
# The learner is MAML with three inner steps of size α = 0.4, and the network a small convolutional one with its random
# initial parameters. `ht.record` runs the very inner loop that meta-training differentiates, and reads it out at its
# four points: the start θ₀, and the parameters after each step. `SaveAt` keeps the parameters themselves.

# %%
build = partial(ht.Conv4, 5, input_shape=(1, 16, 16), width=8)
network = ht.seeded(build, seed=0)
untrained, layout = ht.flatten(network)
loss = ht.make_loss(network, cross_entropy, layout)
learner = ht.learners.maml(steps=3, step_size=0.4)

trajectory = ht.record(learner, loss, untrained, support, query, save=ht.SaveAt(thetas=True))
trajectory

# %%
for k, (norm, correct) in enumerate(zip(trajectory.grad_norm, trajectory.query_accuracy, strict=True)):
    print(f"step {k}  |g| {norm:5.2f}  correct on the query set {correct:.0%}")

# %% [markdown]
# ## Curvature along the gradient
#
# One call makes the Hessian of the support loss at all four points. Along the gradient g the curvature is ρ = g'Hg /
# g'g. A step of size α along g changes the *quadratic model* of the loss by −α|g|² (1 − αρ / 2): it goes down only if
# αρ is below 2. Above 2 the step is too long for the valley it crosses.

# %%
H = ht.hessian(loss, trajectory.thetas, support, shared=True)
along = ht.gradient_curvature(H, step_size=learner.step_size)
for k, (value, error) in enumerate(zip(along.alpha_rho, along.alpha_rho_error, strict=True)):
    print(f"step {k}  alpha rho {value:6.3f} ± {error:.0e}")

# %% [markdown]
# The dashed line in the next picture is |Hg| / |g|, which ρ can never exceed. SHOT, the subject of notebook 4, wants
# that to be small.

# %%
along_steps = analysis.to_xarray(along, dims=["inner_step"])
ax = analysis.plot(along_steps)
ax.axhline(2 / learner.step_size, color="#b2182b", linewidth=0.8)
_ = ax.annotate(r"$2/\alpha$", (2.6, 2 / learner.step_size), va="bottom", color="#b2182b")

# %% [markdown]
# ## The whole spectrum, before and after
#
# The gradient is one direction among thousands. The spectral density shows all of them.

# %%
ends = ht.hessian(loss, trajectory.thetas[[0, -1]], support, shared=True)
density = analysis.to_xarray(ht.spectral_density(ends), dims=["step"], coords={"step": [0, 3]})
ax = analysis.plot(density)

# %%
top = ht.top_eigenpairs(H, k=3, which="LA", vectors=True)
ax = analysis.plot(analysis.to_xarray(top, dims=["inner_step"]))

# %% [markdown]
# How much of the gradient lies in the three steepest directions? By chance it would be 3 in some thousand.

# %%
gradients = ht.gradient(loss, trajectory.thetas, support, shared=True)
share = ht.curvature.gradient_share(top.vectors, gradients)
print("in the three steepest directions:", *(f"{part:.0%}" for part in share[:, -1]))
print(f"by chance: {3 / H.num_params:.2%}")

# %% [markdown]
# A tiny part of all directions holds much of the gradient. That is why curvature along the gradient is large where the
# largest eigenvalues are, and it is a question of its own whether meta-training lowers one more than the other.
#
# ## After meta-training
#
# Meta-training changes the start θ₀ so that the query loss *after* the inner loop falls. Here are 60 outer steps, a
# fraction of a real training.

# %%
config = ht.TrainConfig(
    learner,
    tasks,
    build,
    checkpoints=(0, 2 if smoke else 60),
    meta_batch=4,
    learning_rate=1e-2,
    validation_tasks=10 if smoke else 50,
)
before, after = ht.meta_train(config)
print(f"accuracy on validation tasks: {before.validation_accuracy:.0%} -> {after.validation_accuracy:.0%}")

# %% [markdown]
# One task is an anecdote. Record the same twelve test tasks from both starts, and measure αρ along all of them.

# %%
starts = {"untrained": before.theta, "meta-trained": after.theta}
alpha_rho = {name: [] for name in starts}
for index in range(2 if smoke else 12):
    support, query = tasks.episode(seed=0, split="test", index=index)
    for name, theta in starts.items():
        path = ht.record(learner, loss, theta, support, query, save=ht.SaveAt(thetas=True))
        H = ht.hessian(loss, path.thetas, support, shared=True)
        along = ht.gradient_curvature(H, step_size=learner.step_size)
        alpha_rho[name].append(along.alpha_rho)

# %%
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, values), color in zip(alpha_rho.items(), ["#777777", "#4477aa"], strict=True):
    values = torch.stack(values)
    error = values.std(0) / len(values) ** 0.5
    ax.errorbar(range(4), values.mean(0), error, color=color, marker="o", capsize=2, label=name)
ax.axhline(2, color="black", linestyle="--", linewidth=0.8)
ax.set(xlabel="inner step", ylabel=r"$\alpha\rho$, mean over tasks", xticks=range(4))
_ = ax.legend()

# %% [markdown]
# The bars are standard errors over the tasks. From the untrained start the first step is far too long for the valley
# that it crosses, since αρ is above 2. From the meta-trained start it is not. Is that *suppression of the Hessian*?
# Not yet. This is one seed. The loss is lower too, and a lower loss bends less by itself. And weights that have grown
# lower the curvature without any learning. What it takes to turn such a picture into a statement is the subject of
# notebook 3.
#
# ## What next
#
# - [Notebook 3](03_suppression.ipynb): the same for several seeds and twelve learners, with nulls and verdicts.
# - [docs/quantities.md](../docs/quantities.md) lists everything that can be measured along an inner loop, with its
#   price.
# - [docs/new_learner.md](../docs/new_learner.md): a learner of your own. It is a value, not a class.
# - Your own inner loop, or that of learn2learn, is recorded with `ht.Recorder`: [notebook
#   5](05_my_own_training.ipynb).
