"""One complete verdict, which tests show as it is or with some fields replaced."""

from analysis.claims.verdict import Verdict

VERDICT = Verdict(
    claim="suppression",
    title="meta-training lowers the curvature",
    learner="maml",
    baseline="untrained",
    steps="step 0",
    comparison="raw",
    quantity="alpha_rho",
    units="1",
    predicted="negative",
    effect=-0.4,
    low=-0.5,
    high=-0.3,
    bootstrap_low=-0.45,
    bootstrap_high=-0.35,
    margin=0.1,
    baseline_value=1.0,
    trained_value=0.6,
    num_seeds=3,
    num_tasks=16,
    num_diverged=0,
    share_compared=1.0,
    seeds_to_decide=None,
    outcome="supported",
    sentence="Supported: step 0 of maml, raw.",
)
