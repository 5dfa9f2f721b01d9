"""What the command line says of an error, and the exit status that it has."""

import errno
from inspect import Parameter as InspectParameter

from cyclopts import CycloptsError, MissingArgumentError, UnusedCliTokensError

from analysis.errors import UserError


def wrong_command(error: CycloptsError) -> str:
    """The message on a command line that does not fit the command, with the command that shows the help."""
    command = " ".join(("hessian-tools", *(error.command_chain or ())))
    message = " ".join(str(error).split())
    if isinstance(error, UnusedCliTokensError):
        message = f"'{command}' takes no further argument, but got {' '.join(error.unused_tokens or ())}"
    elif isinstance(error, MissingArgumentError) and error.argument is not None:
        # The first clause of the option's or argument's help says what is missing.
        name, meaning = error.argument.name, (error.argument.parameter.help or "").partition(";")[0].removesuffix(".")
        is_option = error.argument.field_info.kind is InspectParameter.KEYWORD_ONLY
        lacking = f"{name} needs a value" if error.keyword else f"'{command}' needs {name if is_option else 'this'}"
        message = f"{lacking}: {meaning[:1].lower()}{meaning[1:]}"
    # A full stop is dropped before the semicolon, but not the three dots of a list that goes on.
    return f"{message if message.endswith('...') else message.removesuffix('.')}; see {command} --help"


def describe_os_error(error: OSError) -> str:
    """The message on an error of the operating system."""
    if error.filename is None and error.errno != errno.ENOSPC:
        return f"{error.strerror or error}; run the same command again, which goes on from here"
    place = error.filename or "the study folder"
    if error.errno == errno.ENOSPC:
        return f"no space left on the device ({place}); free some and run the same command"
    return f"{place}: {error.strerror or error}; correct that, or choose another --out"


def exit_status(error: Exception) -> int | None:
    """The exit status of an error that is not a fault of this program; None for a fault of this program."""
    from analysis.claims import NotMeasuredError, PlanError
    from analysis.engines.remote import UnitFailed
    from hessian_tools.loss import HiddenStateError
    from hessian_tools.runs.files import DamagedFileError, FolderInUseError
    from hessian_tools.runs.manifest import ForeignRunError
    from hessian_tools.runs.worker_pool import WorkerLost

    if isinstance(error, WorkerLost):
        return 1
    if isinstance(error, UnitFailed):
        return exit_status(error.error) or 1
    mistakes = (UserError, NotMeasuredError, HiddenStateError, PlanError)
    unusable_files = (DamagedFileError, ForeignRunError, FolderInUseError)
    return 2 if isinstance(error, (*mistakes, *unusable_files)) else None
