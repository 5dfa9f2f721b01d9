"""The page of results: every number from the JSON files, beside what was published."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.learning.figures import Results, draw_all
from benchmarks.learning.published import PUBLISHED
from benchmarks.learning.results import held
from benchmarks.learning.tables import across_sets, learners, one_run, regression, step_sizes, to_accuracy
from hessian_tools.runs.files import write_text

INTRODUCTION = """\
# Learning: what was trained, on what budget, and what came of it

Made by `python -m benchmarks.learning page` from the JSON files beside it. 5-way 1-shot throughout, 15 query images per
class to judge by, transductive: batch statistics are those of the whole query set, as usual in this field. Classes of
validation and test are never trained on. "+-" is half a 95 % interval over test tasks for one trained network; it does
not cover other seeds, which are listed one by one. Test tasks are the same for all learners of a seed, so SHOT's
difference is paired by task. Processor time is that of one thread, of training alone (validation and test come on top),
while other work shared the machine.
"""

Section = Callable[[Results], list[str]]


def write_page(folder: Path) -> Path:
    """Figures and page, of whatever experiments have results."""
    kept = held(folder)
    if not kept:
        raise ValueError(
            f"{folder} holds no results; run an experiment first, e.g. python -m benchmarks.learning quickdraw"
        )
    draw_all(kept, folder)
    parts = [INTRODUCTION]
    for name, section in SECTIONS.items():
        if name in kept:
            parts += section(kept[name])
    path = folder / "README.md"
    write_text(path, "\n".join(parts).rstrip() + "\n")
    return path


def _omniglot(results: Results) -> list[str]:
    limit = results["setting"]["finish"]["cpu_seconds"] / 60
    return [
        _head("Omniglot, MAML", "omniglot PLACE", results),
        _budget(results),
        "One inner step of .4 in training, three on a new task (Finn et al. 2017), Conv4-32, second order. The second",
        f"part begins at the best checkpoint of the first, with new tasks, and ends at one past {limit:.1f} min",
        "of processor time. The outer step and the tasks in it were picked on another seed, by validation, in some",
        "five minutes. Each part's test was run once, at its end.",
        "",
        *one_run(results),
        _published("omniglot"),
        _picture("omniglot", "Validation accuracy over training, with its interval, and the test"),
    ]


def _quickdraw(results: Results) -> list[str]:
    return [
        _head("QuickDraw, every learner under one budget", "quickdraw", results),
        _budget(results),
        _recipe(results),
        *learners(results),
        *to_accuracy(results),
        *step_sizes(results),
        _published("shot"),
        _picture("quickdraw", "Validation accuracy over meta-training, with and without SHOT"),
    ]


def _cifar_fs(results: Results) -> list[str]:
    return [
        _head("CIFAR-FS", "cifar-fs PLACE", results),
        _budget(results),
        _recipe(results),
        *learners(results),
        *to_accuracy(results),
        *step_sizes(results),
        _published("cifar-fs"),
        _picture("cifar-fs", "Validation accuracy over meta-training"),
    ]


def _regression(results: Results) -> list[str]:
    return [
        _head("Sines and lines, first-order MAML, the authors' recipe", "regression", results),
        _budget(results),
        "MLP 1-40-40-1 (ReLU), five inner steps of .001, first order. SHOT: squared error between the ends of two",
        "steps of 2.5 times the size and of its own five, weight .1.",
        "",
        *regression(results),
        _published("regression"),
        _picture("regression", "Query squared error after the inner loop, on validation tasks"),
    ]


def _transfer(results: Results) -> list[str]:
    return [
        "## Trained on one set, judged on another\n",
        f"`python -m benchmarks.learning transfer --omniglot PLACE --cifar-fs PLACE`: {results['tasks']} tasks of the",
        "other set's test classes, brought to the shape the network was trained on (CIFAR-FS in grey at 28 x 28 for",
        "the networks of Omniglot and QuickDraw; these in three equal channels at 32 x 32 for that of CIFAR-FS).",
        "Seeds one by one.",
        "",
        *across_sets(results),
    ]


SECTIONS: dict[str, Section] = {
    "omniglot": _omniglot,
    "quickdraw": _quickdraw,
    "cifar-fs": _cifar_fs,
    "regression": _regression,
    "transfer": _transfer,
}


def _head(title: str, command: str, results: Results) -> str:
    return f"## {title}\n\n`python -m benchmarks.learning {command}`: {results['data']}.\n"


def _budget(results: Results) -> str:
    setting, machine = results["setting"], results["machine"]
    limit = f", at most {setting['cpu_seconds'] / 60:.0f} min of processor time" if setting["cpu_seconds"] else ""
    target = f" or {100 * setting['target']:.0f} % in validation" if setting["target"] else ""
    return (
        f"Budget: up to {setting['meta_steps']} outer steps of {setting['meta_batch']} tasks{limit}{target}; Adam at"
        f" {setting['learning_rate']:g}; validated every {setting['every']} steps on"
        f" {setting['validation_tasks']} tasks, tested on {setting['test_tasks']};"
        f" seeds {', '.join(map(str, results['seeds']))}."
        f" Machine: {machine['cpu']}, one thread, torch {machine['versions']['torch']}.\n"
    )


def _recipe(results: Results) -> str:
    setting: Mapping[str, Any] = results["setting"]
    own = "".join(text for name, text in OWN_WAYS.items() if name in setting["learners"])
    return (
        f"Conv4-{setting['width']}, batch normalisation, three inner steps, {setting['queries']} query images per class"
        f" in training, the best of the validated checkpoints tested.{own} SHOT: weight .1, one step of three times"
        " the size against the learner's own loop, KL, reference detached; the inner step size is that chosen without"
        " SHOT, below.\n"
    )


OWN_WAYS = {
    "leo": " LEO takes five steps on codes and five of fine-tuning; SHOT's one step there has five times the size.",
    "reptile": " Reptile descends its displacement by the same Adam.",
    "supervised": " Supervised training sees as many images per outer step.",
}


def _published(name: str) -> str:
    return "\n".join(["Published, for comparison:", "", *PUBLISHED[name], ""])


def _picture(name: str, text: str) -> str:
    return f"![{text}]({name}.png)\n"
