"""The bundled plan of the claims with few claims and few resamples, so that tests are fast."""

from dataclasses import replace

from analysis.claims import Plan, load_plan

EARLIER = ("suppression", "shot", "alignment")  # the claims that version 0.1 had


def quick_plan(*claims: str, resamples: int = 200) -> Plan:
    """The bundled plan with the given claims alone, by default those of version 0.1."""
    plan = load_plan()
    chosen = {name: plan.claims[name] for name in claims or EARLIER}
    return replace(plan, bootstrap=replace(plan.bootstrap, resamples=resamples), claims=chosen)
