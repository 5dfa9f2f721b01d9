"""``python -m benchmarks``: measures hessian-tools and its peers, prints tables and stores every sample as JSON.

Slow imports are made only when a run begins, so that --help is instant.
"""

import sys

from cyclopts import App

from benchmarks.rows import chosen_rows
from benchmarks.settings import Settings

app = App(
    name="python -m benchmarks",
    help="Compares hessian-tools with its peers, which take turns in their own processes; prints medians and ratios.",
    version_flags=[],
)
DEFAULTS = Settings()


@app.default
def main(*, settings: Settings = DEFAULTS) -> None:
    """Measure hessian-tools and its peers, print tables and store every sample as JSON."""
    import torch

    from benchmarks.run import run

    try:
        rows = chosen_rows(settings.only, quick=settings.quick, device=settings.device)
    except ValueError as error:
        sys.exit(str(error))
    if settings.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: this torch sees no CUDA device; use --device cpu, or install a CUDA build")
    if settings.before is not None and not (settings.before / "benchmarks" / "worker.py").exists():
        sys.exit(f"--before {settings.before}: there is no benchmarks/worker.py; give a checkout of this project")
    run(rows, settings)


if __name__ == "__main__":
    app()
