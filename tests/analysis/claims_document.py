"""Makes the generated parts of docs/claims.md; run this file to write them anew.

The list of the claims is made from the bundled plan, and the table of the power from simulated studies.
"""

import re
from pathlib import Path

import numpy as np
from claim_scenarios import SCENARIOS, many_verdicts, rates

from analysis.claims import Plan, load_plan

PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
NUMS = (3, 5, 10)  # of the seeds of a study


def claims_part(plan: Plan) -> str:
    """A table of all claims of a plan, and what was fixed about each of them."""
    lines = ["| claim | statement | kind | smallest effect of interest |", "|---|---|---|---|"]
    for name, claim in plan.claims.items():
        lines.append(
            f"| [{name}](#{name}) | {claim.statement} | {claim.kind} | {claim.margin:g} ({_cell(claim.margin_unit)}) |"
        )
    for name, claim in plan.claims.items():
        lines += ["", f"### {name}", "", f"{claim.statement}", ""]
        fields = {
            "Estimand": claim.estimand,
            "Null hypothesis": claim.null_hypothesis,
            "Unit of replication": claim.unit,
            "Decision": claim.rule,
            "Interval": claim.interval,
        }
        lines += [f"- {what}: {text[:1].upper()}{text[1:].rstrip('.')}." for what, text in fields.items()]
        if claim.kind == "primary":
            which = ", ".join(claim.corrected) or "all"
            whose = "learners without SHOT, penalty and control" if claim.learners == "plain" else "all learners"
            lines.append(f"- Corrected by Holm's method: comparisons {which}; {whose}.")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """A text in a cell of a Markdown table, where a bar would end the cell."""
    return text.replace("|", "\\|")


def power_part(*, size_seeds: int = 40_000, power_seeds: int = 10_000) -> str:
    """A table of how often studies of 3, 5 and 10 seeds find an effect that is not there, and one that is there.

    The size of a test is how often p < 5 % without an effect; its power is how often the claim is supported with one.
    size_seeds, power_seeds: the number of simulated seeds without and with the effect, which are cut into studies.
    """
    lines = [
        "| claim | comparison | effect | " + " | ".join(f"size, {num} seeds" for num in NUMS) + " | "
        + " | ".join(f"power, {num} seeds" for num in NUMS) + " |",
        "|---" * (3 + 2 * len(NUMS)) + "|",
    ]  # fmt: skip
    for claim in SCENARIOS:
        without = many_verdicts(claim, true=False, seeds=size_seeds)
        with_effect = many_verdicts(claim, true=True, seeds=power_seeds)
        index = next(i for i, verdict in enumerate(without) if verdict.comparison != "against orthogonal")
        false, true = without[index], with_effect[index]
        sizes = [f"{100 * rates(false, num)[0]:.1f} %" for num in NUMS]
        powers = [f"{100 * rates(true, num)[1]:.0f} %" for num in NUMS]
        effect = f"{true.effect / true.margin:+.1f} margins, {abs(true.effect) / np.nanstd(true.effects):.1f} sd"
        lines.append(f"| {claim} | {false.comparison} | {effect} | {' | '.join(sizes)} | {' | '.join(powers)} |")
    return "\n".join(lines)


def part(name: str) -> str:
    """The generated part of the page between its two markers."""
    found = re.search(rf"<!-- {name} -->\n\n(.*?)\n\n<!-- end of {name} -->", PAGE.read_text(encoding="utf-8"), re.S)
    assert found is not None, f"docs/claims.md has no marker for {name}"
    return found.group(1)


def write(name: str, text: str) -> None:
    """Put a generated part between its two markers."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.replace(part(name), text), encoding="utf-8")


if __name__ == "__main__":
    write("claims", claims_part(load_plan()))
    write("power", power_part())
