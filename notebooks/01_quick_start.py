# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Quick start: the Hessian of my model
#
# The Hessian of a loss is the matrix of its second derivatives with respect to all parameters. It says how the loss
# bends around the present parameters. A network with a million parameters has a Hessian of a million rows and columns,
# which is far too large to be written down, but a product of it with a vector costs only a few passes through the
# network. Everything below is computed from such products, and each number comes with its error.
#
# This notebook takes a plain PyTorch model and one batch, and needs half a minute.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import analysis
import hessian_tools as ht
from hessian_tools.data import open_tasks

# %% [markdown]
# ## My model, my batch
#
# The batch holds 80 drawings of five kinds of things, at 8 by 8 pixels, from the QuickDraw collection that comes with
# the package. The model has about a thousand parameters. In its place put any `nn.Module` and any batch of your own.

# %%
tasks = open_tasks("quickdraw", ways=5, shots=16, queries=4, image_size=8)
(x, y), _ = tasks.episode(seed=0, split="train", index=0)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Flatten(),
    nn.Linear(64, 12),
    nn.Tanh(),
    nn.Linear(12, 12),
    nn.Tanh(),
    nn.Linear(12, 5),
)
x.shape, y.shape

# %% [markdown]
# Train it as you always would:

# %%
optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
for _ in range(100):
    optimiser.zero_grad()
    loss_value = cross_entropy(model(x), y)
    loss_value.backward()
    optimiser.step()
loss_value.item()

# %% [markdown]
# `ht.hessian_of` makes the Hessian of the model's loss at its present parameters. Nothing is computed yet: `H` is an
# *operator*, and `H @ v` is an exact product with a vector.

# %%
H = ht.hessian_of(model, cross_entropy, (x, y))
H

# %% [markdown]
# ## The first picture
#
# The *spectral density* shows all eigenvalues at once: how large a share of them lies at each value. It is estimated
# from a few random vectors, the *probes*, and the band says how far these disagree.

# %%
density = ht.spectral_density(H)
ax = analysis.plot(density)

# %% [markdown]
# Read it from the left. Some eigenvalues are negative: in these directions the loss bends downwards. The bulk lies
# close to zero, so most directions are flat. A few eigenvalues stand far to the right. They are the steep directions,
# and they limit the step size of gradient descent. The vertical axis is logarithmic: without it nothing but the peak
# at zero would be seen.
#
# ## The largest eigenvalues, with residuals
#
# An approximate eigenvalue λ with its vector v has the *residual* |Hv − λv|. Some true eigenvalue lies within that
# distance of λ, so the residual is an error bar that can be trusted.

# %%
top = ht.top_eigenpairs(H, k=8, vectors=True)
top

# %% [markdown]
# `top.values`, `top.residuals` and `top.vectors` are tensors. `top.num_matvecs` says how many products it took, and
# `analysis.plot(top)` draws the eigenvalues with axes.
#
# What does a large eigenvalue look like? Move the parameters along the first two eigenvectors, and along a random
# direction, and follow the loss. The grey lines are the parabolas that gradient and Hessian predict.

# %%
numbers = torch.Generator().manual_seed(1)
random = torch.nn.functional.normalize(torch.randn(H.num_params, generator=numbers), dim=0)
directions = torch.cat([top.vectors[:, :2], random[:, None]], dim=1)
valleys = ht.loss_along(H, directions)
valleys

# %% [markdown]
# ## The trace
#
# The trace is the sum of all eigenvalues. It is estimated from random probes, with a standard error that falls as one
# over the square root of their number.

# %%
estimate = ht.trace(H, num_probes=64)
estimate

# %% [markdown]
# ## Where does the curvature come from?
#
# **By module.** One set of products gives the trace of every module's own block of the Hessian, each with its error.

# %%
ht.by_module(H)

# %% [markdown]
# **By cause.** The Hessian is a sum H = G + R. The Gauss-Newton matrix G is what is left if the network is replaced by
# its linear approximation; it has no negative eigenvalues. The rest R comes from the curvature of the network itself.
# `ht.gauss_newton` takes the loss as a function of one parameter vector, which `ht.flatten` and `ht.make_loss`
# provide.

# %%
theta, layout = ht.flatten(model)
loss = ht.make_loss(model, cross_entropy, layout)
G = ht.gauss_newton(loss, theta, (x, y))
R = H - G
R

# %% [markdown]
# Operators can be added and subtracted, and the result has a spectrum like any other:

# %%
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
analysis.plot(density, ax, label="H", color="black")
analysis.plot(ht.spectral_density(G), ax, label="G", color="#4477aa")
ax = analysis.plot(ht.spectral_density(R), ax, label="H - G", color="#cc6677")

# %% [markdown]
# Each large eigenvalue of H has one of G a little below it. The negative ones come from the rest, which is spread on
# both sides of zero. The same in numbers: the share of each of the eight eigenvalues of H that is due to G. The whole
# spectrum of G is cheap, because G has at most as many nonzero eigenvalues as the batch has outputs.

# %%
spectrum_of_G = ht.gauss_newton_spectrum(loss, theta, (x, y), vectors=True)
share = ht.gauss_newton_share(top, spectrum_of_G)
for value, part in zip(top.values, share.share, strict=True):
    print(f"{value:5.2f}, of which G {part:.0%}")

# %% [markdown]
# ## Is that true?
#
# Two checks. The first asks on *your* network whether the products are those of a Hessian: symmetric, linear, equal to
# differences of gradients.

# %%
ht.check_operator(H)

# %% [markdown]
# The second is possible because this network is small. The whole matrix is written down and its eigenvalues are
# computed directly.

# %%
exact = torch.linalg.eigvalsh(H.to_dense().double())
largest = exact[exact.abs().argsort(descending=True)][:8]
within = (top.values.double() - largest).abs() <= top.residuals.double() + 1e-5
print("eigenvalues within their residuals:", int(within.sum()), "of", len(within))
print(f"exact trace {exact.sum():.2f}, estimate {estimate.value:.2f} ± {estimate.stderr:.2f}")

# %% [markdown]
# ## Keep a result
#
# Every result can be written to a file and read again, without pickle. `analysis.to_xarray(result)` turns it into a
# labelled dataset, with units and meanings.

# %%
from pathlib import Path
from tempfile import mkdtemp

path = top.save(Path(mkdtemp()) / "top.safetensors")
ht.load(path)

# %% [markdown]
# ## What next
#
# | question | where |
# |---|---|
# | What happens along the inner loop of a meta-learner? | notebook 2, `02_inner_loop` |
# | Does meta-learning suppress the Hessian? | notebook 3, `03_suppression` |
# | What does SHOT do? | notebook 4, `04_shot` |
# | I have a training loop of my own, or a `DataLoader` | notebook 5, `05_my_own_training` |
# | I need a figure for a paper | notebook 6, `06_paper_figure` |
# | My model is unusual: inputs by name, frozen parts, a loss of its own | [docs/models.md](../docs/models.md) |
# | Which quantities are there, and what do they cost? | [docs/quantities.md](../docs/quantities.md) |
