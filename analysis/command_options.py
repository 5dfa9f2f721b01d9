"""The options of the commands (``analysis.cli``). Modules that import torch are imported inside the methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, Token

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from analysis.engines.engine import Engine
    from analysis.engines.place import Place
    from analysis.progress import Reporter
    from analysis.study import Study

Trust = Annotated[
    bool,
    Parameter(
        negative="",  # there is no option --no-trust
        help="Import the modules and files that the study names (network, quantities, claims), which runs their code.",
    ),
]


def _whole_number(_: object, tokens: Sequence[Token]) -> int:
    """The number of a token, as a converter of cyclopts, which itself would round 1.5 to 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number; give one, such as 1") from None


WholeNumber = Annotated[int, Parameter(converter=_whole_number)]


@Parameter(name="*")  # each field is an option of the command, without the name of this class before it
@dataclass(frozen=True)
class ComputeOptions:
    """The options of every command that trains or measures."""

    workers: Annotated[
        WholeNumber | None,
        Parameter(
            help="Number of worker processes, with one thread each; 0 works in this process"
            " [default: one per core; 0 for a small study; on a card, one per learner that fits in its memory]."
        ),
    ] = None
    devices: Annotated[
        str | None,
        Parameter(
            help="Devices of this machine, e.g. cuda:0,cuda:1, with one worker process for each of them; a card that is"
            " listed twice has two, which share its memory."
        ),
    ] = None
    cluster: Annotated[
        Path | None,
        Parameter(help="File with the settings of a SLURM cluster, in whose jobs the work runs (docs/cluster.md)."),
    ] = None
    dask: Annotated[
        str | None, Parameter(help="Address of the scheduler of a Dask cluster on whose workers the work runs.")
    ] = None
    device: Annotated[
        Literal["cpu", "cuda"],
        Parameter(
            help="Where the tensors live; with cuda, all seeds of a learner are trained together on the first card, and"
            " several learners at once. --workers above the number of learners divides their seeds."
        ),
    ] = "cpu"
    trust: Trust = False
    yes: Annotated[
        bool,
        Parameter(negative="", help="Go on where the study would take over 10000 hours, or more memory than there is."),
    ] = False
    no_fsync: Annotated[
        bool,
        Parameter(
            negative="", help="Do not wait until each file is on the disk; a power cut may then cost finished work."
        ),
    ] = False

    @property
    def place(self) -> "Place":
        """Where the work runs."""
        from analysis.engines.place import Place, parse_devices

        return Place(self.workers, parse_devices(self.devices), self.cluster, self.dask)

    @property
    def kind_of_device(self) -> str:
        """The device of the study, "cpu" or "cuda"."""
        return self.place.device(self.device)

    def session(self, study: "Study") -> "AbstractContextManager[tuple[Engine, Reporter]]":
        """Lock the study's folder, and provide the engine that does the work, and the reporter."""
        from analysis.pipeline import session

        return session(study, place=self.place, progress=True, fsync=not self.no_fsync)


@Parameter(name="*")
@dataclass(frozen=True)
class BeginOptions:
    """The options of every command that can begin a study."""

    out: Annotated[Path | None, Parameter(help="Folder of the study [default: runs/NAME].")] = None
    seeds: Annotated[
        tuple[WholeNumber, ...] | None,
        Parameter(
            name=["--seeds", "--seed"],
            consume_multiple=True,
            help="Seeds, e.g. --seeds 0 1 2; more can be added later.",
        ),
    ] = None
    claims: Annotated[Path | None, Parameter(help="Plan of the claims of a new study [default: the bundled one].")] = (
        None
    )
    data: Annotated[
        Path | None,
        Parameter(help="Folder or file of images, or features (.npz), in place of the study's own data."),
    ] = None
    kept: Annotated[
        Path | None,
        Parameter(
            name="--from",
            help="Folder of kept results of this study, whose runs are not made again; or of a study whose trained "
            "networks are taken over, to be measured in another way.",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        Parameter(
            negative="", help="Only check everything, and say what would be run, in what time and on how much disk."
        ),
    ] = False

    def prepare(self, source: Path, compute: ComputeOptions) -> "tuple[Study, str | None]":
        """Check the study; returns it and the text of its plan of the claims (None: the bundled plan)."""
        from analysis.pipeline import prepare

        given = vars(self) | {"data": None if self.data is None else str(self.data)}
        del given["dry_run"]  # the commands read this option themselves
        return prepare(source, **given, device=compute.kind_of_device, trust=compute.trust, yes=compute.yes)


@Parameter(name="*")
@dataclass(frozen=True)
class FigureOptions:
    """The options of the command ``figures``; without any of them it draws the figures of the report."""

    only: Annotated[
        tuple[str, ...] | None,
        Parameter(consume_multiple=True, help="Names of figures, such as alpha_rho, or of variables."),
    ] = None
    learners: Annotated[
        tuple[str, ...] | None, Parameter(consume_multiple=True, help="Learners that are shown [default: a selection].")
    ] = None
    steps: Annotated[
        tuple[WholeNumber, ...] | None,
        Parameter(consume_multiple=True, help="Points of the inner loop [default: all]."),
    ] = None
    width: Annotated[
        str | None,
        Parameter(help="Inches, single, double, icml, icml-full, neurips, iclr or jmlr [default: by panels]."),
    ] = None
    labels: Annotated[
        tuple[str, ...] | None,
        Parameter(consume_multiple=True, help='Other names for learners, such as fomaml="first-order MAML".'),
    ] = None
    formats: Annotated[
        tuple[str, ...] | None,
        Parameter(name="--format", consume_multiple=True, help="pdf, png, svg, or csv for the numbers."),
    ] = None
    out: Annotated[Path | None, Parameter(help="Folder of figures drawn with options [default: FOLDER/paper].")] = None

    def draw(self, study: "Study", reporter: "Reporter") -> "list[Path]":
        """Draw the figures that these options describe."""
        from analysis.own_figures import own_figures

        given = vars(self) | {"labels": _labels_by_name(self.labels)}
        return own_figures(study, reporter, **given | {"out": self.out or study.path / "paper"})


# Paths rather than texts, so that a shell completes the names of files.
File = Annotated[
    Path,
    Parameter(help="A study's YAML file, a bundled study (demo, quickdraw, ...), or the folder of a study."),
]
Folder = Annotated[Path, Parameter(help="Folder of a study.")]


def _labels_by_name(labels: Sequence[str] | None) -> dict[str, str] | None:
    """The labels of learners by the learners' names, from words such as ``fomaml=first-order MAML``."""
    from analysis.errors import UserError

    for word in labels or ():
        if "=" not in word:
            raise UserError(f'--labels {word}: give a name and its label, such as {word}="first-order MAML"')
    return None if labels is None else dict(word.split("=", 1) for word in labels)
