"""The error for mistakes of the user; it has its own file so that the command line can import it without torch."""

MAX_MESSAGE = 900  # characters; a name or a value in a message may be of any length


class UserError(Exception):
    """A mistake in the user's input; the command line shows it in at most two lines and exits with status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


def shortened(message: str) -> str:
    """The message in at most two lines of printable characters; the middle of a long one is left out.

    >>> shortened("a\\x1b\\nb\\nc")
    "a'\\\\x1b' b c"
    """
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c) for c in message)
    if text.count("\n") > 1:
        text = " ".join(text.split("\n"))
    if len(text) <= MAX_MESSAGE:
        return text
    # A message begins with what is wrong and ends with what to do, so both ends stay: 600 and 290 characters.
    return f"{text[: MAX_MESSAGE - 300]} [...] {text[-290:]}"


def with_notes(error: BaseException, message: str | None = None) -> str:
    """The message of an error, with the notes that were added to it, such as which of several runs has raised it.

    message: another text in place of the error's own.

    >>> error = OSError("no such task")
    >>> error.add_note("It was raised by maml seed 5.")
    >>> with_notes(error)
    'no such task It was raised by maml seed 5.'
    """
    return " ".join([str(error) if message is None else message, *getattr(error, "__notes__", ())])
