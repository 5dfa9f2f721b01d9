# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Curvature along my own training
#
# You have a training loop. You want to know what the curvature does while it runs, how sure a number is that was
# measured on a few batches, and what happens in a fine-tuning. A `Recorder` is put into the loop with three lines and
# changes nothing in it.
#
# 1. **The edge of stability**: the largest eigenvalue during plain gradient descent, beside 2 / learning rate.
# 2. **A `DataLoader`**: the Hessian of all data, and an error over the data.
# 3. **A fine-tuning** with frozen layers, Adam and mini-batches.

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot
from torch.utils.data import DataLoader, TensorDataset

import analysis
import hessian_tools as ht
from hessian_tools.data import open_tasks

# %% [markdown]
# The tests of this notebook, and the site of the documentation, set the environment variable `HESSIAN_TOOLS_SMOKE`,
# which makes the second and the third part shorter.

# %%
smoke = "HESSIAN_TOOLS_SMOKE" in os.environ
steps, every = (400, 20) if smoke else (600, 5)

# %% [markdown]
# The data are 80 drawings of five kinds of things, at 8 by 8 pixels, from the QuickDraw collection that comes with the
# package. They are shuffled once. The loss is the mean squared error of the five outputs, as in most experiments on
# the edge of stability.

# %%
tasks = open_tasks("quickdraw", ways=5, shots=16, queries=4, image_size=8)
(x, y), _ = tasks.episode(seed=0, split="train", index=0)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
x, y = x[order], y[order]
targets = one_hot(y, 5).float()

# %% [markdown]
# ## 1. The edge of stability
#
# Gradient descent with learning rate η on a quadratic loss converges only if the largest eigenvalue of the Hessian,
# the *sharpness*, is below 2 / η. A network is not quadratic. Cohen and others (2021) found that its sharpness *rises*
# during full-batch gradient descent until it reaches 2 / η, and then hovers just above it, while the loss goes on
# falling.
#
# Here are two trainings from the same start, with two learning rates. The three lines of the recorder are marked.

# %%
rates = [0.5, 1.0]
recorders = {}
for rate in rates:
    torch.manual_seed(0)
    model = ht.MLP([64, 24, 24, 5], activation=nn.Tanh)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    recorders[rate] = ht.Recorder(model, mse_loss, (x, targets))  # 1: before the loop
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        mse_loss(model(x), targets).backward()
        optimiser.step()
        if step % every == 0:
            recorders[rate].step()  # 2: after an update

# %%
paths = {rate: recorder.trajectory() for rate, recorder in recorders.items()}  # 3: in the end
paths[rates[0]]

# %% [markdown]
# A trajectory holds the recorded parameters, `thetas`, and the loss and gradient at each of them. The Hessian is made
# at all of these points in one call, and so is its largest eigenvalue.

# %%
sharpness = {}
for rate, path in paths.items():
    H = ht.hessian(recorders[rate].loss, path.thetas, (x, targets), shared=True)
    sharpness[rate] = ht.top_eigenpairs(H, k=1, which="LA")

# %% [markdown]
# Now the picture. `to_xarray` names the axis of points and puts the update's number on it, `plot` draws it, and since
# `plot` returns matplotlib's axes, anything can be added.

# %%
fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
for rate, color in zip(rates, ["#4477aa", "#cc6677"], strict=True):
    updates = range(0, steps + 1, every)
    curve = analysis.to_xarray(sharpness[rate], dims=["update"], coords={"update": updates})
    analysis.plot(curve, ax, label=f"η = {rate:g}", color=color)
    ax.axhline(2 / rate, color=color, linestyle="--", label=f"2 / η = {2 / rate:g}")
_ = ax.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))

# %% [markdown]
# With either learning rate the sharpness climbs past its dashed line, drops back, and then stays close to it. The
# larger rate reaches its lower line earlier. The training does not diverge, as it would on a quadratic: each time the
# sharpness exceeds the line, the parameters begin to swing along the steep direction, and the swinging drives them to
# a place that is less steep.

# %%
fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
for rate, color in zip(rates, ["#4477aa", "#cc6677"], strict=True):
    ax.plot(range(0, steps + 1, every), paths[rate].support_loss, color=color, label=f"η = {rate:g}")
ax.set(xlabel="update", ylabel="loss", yscale="log")
_ = ax.legend()

# %% [markdown]
# The recorder's loss need not be the one that is minimised. With mini-batches, momentum or Adam the threshold is
# another: see `ht.preconditioned` for the Hessian as an adaptive optimiser sees it.
#
# ## 2. A DataLoader, and an error over the data
#
# A `DataLoader` in fixed order may stand wherever a batch stands. The Hessian is then that of the loss of *all* its
# examples, read batch by batch, so that the data may be larger than the memory. A loader that shuffles is refused,
# because every product has to see the same loss.

# %%
loader = DataLoader(TensorDataset(x, y), batch_size=4)
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 5))
optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
for _ in range(3 if smoke else 30):
    for images, labels in loader:
        optimiser.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimiser.step()
H = ht.hessian_of(model, cross_entropy, loader)
H

# %% [markdown]
# An eigenvalue of this matrix is exact up to its residual, but it belongs to these 80 drawings. What would other
# drawings of the same five things have given? The *jackknife* leaves out one batch after the other, and turns the
# changes into a standard error and an interval. It takes the batches as independent draws, which is why the data were
# shuffled.

# %%
interval = ht.curvature.jackknife(H)
interval

# %%
ht.curvature.jackknife(H, "trace")

# %% [markdown]
# Intervals this wide are normal for twenty small batches. The last line of each says how many more would halve it.
#
# ## 3. A fine-tuning
#
# The network has learned five kinds of things. Now it shall learn five others. Its first layer is frozen, and the
# second is trained with Adam on mini-batches that are drawn anew. `ht.flatten`, and so the recorder, takes only
# parameters that are trained: the Hessian has the rows of the second layer and no others.
#
# The recorder gets all new data as its batch, and other drawings of the same things as its query set.

# %%
(new_x, new_y), query = tasks.episode(seed=0, split="train", index=1)
model[1].requires_grad_(False)
recorder = ht.Recorder(model, cross_entropy, (new_x, new_y), query=query)
optimiser = torch.optim.Adam(model[3].parameters(), lr=0.02)
shuffled = DataLoader(TensorDataset(new_x, new_y), batch_size=16, shuffle=True)
for _ in range(2 if smoke else 12):
    for images, labels in shuffled:
        optimiser.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimiser.step()
    recorder.step()
tuning = recorder.trajectory()

# %%
ax = analysis.plot(tuning)
_ = ax.set_xlabel("epoch")

# %% [markdown]
# Along the way: the two largest eigenvalues at each epoch, and the trace with its standard error.

# %%
H = ht.hessian(recorder.loss, tuning.thetas, (new_x, new_y), shared=True)
top, trace = ht.top_eigenpairs(H, k=2), ht.trace(H, num_probes=64)

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
analysis.plot(analysis.to_xarray(top, dims=["epoch"]), left)
analysis.plot(analysis.to_xarray(trace, dims=["epoch"]), right)
_ = right.set_ylabel("trace")

# %% [markdown]
# Only the last layer moves, so that the problem is convex and no eigenvalue is negative. The loss falls while the
# trace rises: a smaller loss need not be a flatter one. Where the network is wrong and sure of it, the cross-entropy
# is nearly a straight line; it bends where the network is in doubt.
#
# Adam does not step along the gradient of the whole loss. `step_cosine` is the cosine between each recorded change and
# the negative gradient, which plain gradient descent would make 1:

# %%
tuning.step_cosine

# %% [markdown]
# Statements that hold for plain gradient steps, such as the threshold 2 / η, do not hold here.
#
# ## What next
#
# - Stored checkpoints instead of a recorder: `ht.trajectory_from(loss, states, batch)`, see
#   [docs/your_own_training.md](../docs/your_own_training.md), which also has learn2learn and batch normalisation.
# - Models with inputs by name, models that return their loss, LoRA: [docs/models.md](../docs/models.md).
# - Memory and time before a large calculation: `ht.plan` and [docs/performance.md](../docs/performance.md).
# - `result.save(path)` keeps any of these results, and `ht.load(path)` reads it.
