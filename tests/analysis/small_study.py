"""A study of one learner and one seed that takes a second or two, for tests that run it many times."""

from pathlib import Path

from analysis import pipeline
from analysis.engines.place import Place

SMALL_STUDY = """
name: small
data: {name: sine-line}
network: {name: mlp, hidden: [3]}
inner: {steps: 1, step_size: 0.1}
learners: {maml: {algorithm: maml}}
seeds: [0]
train: {checkpoints: [0, 2], meta_batch: 1, validation_tasks: 1, save_every: 1}
measure:
  tasks: 2
  full_tasks: 1
  light: {eigenvalues: 1, tolerance: 0.5, probes: 2, max_matvecs: 6}
  full: {eigenvalues: 1, tolerance: 0.5, probes: 2, max_matvecs: 6}
  block: 1
  evaluation_tasks: 1
"""


def train_and_measure(source: str | Path, out: Path, place: Place) -> None:
    """Train and measure a study at a place, without the figures and the report, which take most of the time."""
    study, plan = pipeline.prepare(source, out=out, trust=True)
    with pipeline.session(study, place=place, progress=None) as (engine, reporter):
        pipeline.measure(pipeline.start(study, engine, reporter, plan=plan), engine, reporter)
