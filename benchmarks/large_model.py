"""The trace and the largest eigenvalue of a transformer of a hundred million parameters, with the memory they took.

Run as ``python -m benchmarks.large_model [--parameters 1e8] [--tokens 128] [--threads 1]``; Linux only. The model is a
language model with untrained weights in float32. The activations of its blocks are recomputed in the backward pass, and
its cross-entropy is computed by chunks. "Planned" is the memory that ``ht.plan`` predicts before a calculation. "Added"
is the peak of the resident memory less what it was before the calculation.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hessian_tools as ht
from benchmarks.memory_plan import resident
from hessian_tools.nets import linear_cross_entropy

VOCABULARY, HEADS, DEPTH = 30_000, 12, 12
PROBES, RTOL, MAX_MATVECS = 8, 1e-2, 100


class Block(nn.Module):
    """Causal attention, then a hidden layer of four times the width; both take normalised inputs and are residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, token, width]."""
        projected = self.queries_keys_values(self.before_attention(x)).unflatten(-1, (3, HEADS, -1))
        q, k, v = projected.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.attended(attended)
        return x + self.mlp(self.before_mlp(x))


class LanguageModel(nn.Module):
    """A decoder that returns the cross-entropy of each next token; its embedding matrix is also its output layer."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(width)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [batch, token + 1]; the loss of all tokens but the first of each row."""
        x = self.embedding(ids[:, :-1]) + self.positions(torch.arange(ids.shape[1] - 1))
        for block in self.blocks:
            x = block(x)
        return linear_cross_entropy(self.norm(x), self.embedding.weight, ids[:, 1:])


def width_for(num_params: float) -> int:
    """The multiple of ``HEADS`` at which the model comes nearest to ``num_params`` parameters.

    A block has about 12 width^2 parameters, and the embedding has VOCABULARY width.
    """
    widths = range(HEADS, 100_000, HEADS)
    return min(widths, key=lambda w: abs(12 * DEPTH * w**2 + VOCABULARY * w - num_params))


def measured(H: ht.Operator, planned: ht.curvature.MemoryPlan, calculate: Callable[[], object]) -> None:
    """Run a calculation, and print its result, its time, and its memory beside the planned memory."""
    print(f"{planned}\n", flush=True)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # tells Linux to count the peak from here on
    start = time.perf_counter()
    result = calculate()
    seconds, added = time.perf_counter() - start, resident("VmHWM") - before
    print(f"{result}")
    print(
        f"{seconds:.0f} s; planned {planned.bytes_added / 1e9:.2f} GB, added {added / 1e9:.2f} GB "
        f"({100 * (added / planned.bytes_added - 1):+.1f} %)\n",
        flush=True,
    )


def hessian_at(width: int, tokens: int) -> ht.Operator:
    """The Hessian of the model on one sequence of random tokens."""
    model = ht.seeded(lambda: LanguageModel(width, tokens), seed=0)
    theta, layout = ht.flatten(model)
    ids = torch.randint(VOCABULARY, (1, tokens + 1), generator=ht.stream(0, "ids"))
    return ht.hessian(ht.make_loss(model, None, layout, recompute=["blocks.*"]), theta, ids)


def main() -> None:
    """Print the plan, the result, the time and the memory of both calculations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=1e8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hessian_at(HEADS, 8).mv(torch.ones(hessian_at(HEADS, 8).num_params))  # a tiny model, to warm up the process
    H = hessian_at(width_for(options.parameters), options.tokens)
    print(f"{H!r}, {options.tokens} tokens, {options.threads} threads, torch {torch.__version__}\n", flush=True)
    measured(H, ht.plan(H, "trace", num_probes=PROBES), lambda: ht.trace(H, num_probes=PROBES, method="probes", seed=0))
    measured(
        H,
        ht.plan(H, "top_eigenpairs", k=1, max_matvecs=MAX_MATVECS),
        lambda: ht.top_eigenpairs(H, k=1, max_matvecs=MAX_MATVECS, rtol=RTOL, seed=0, progress=True),
    )


if __name__ == "__main__":
    main()
