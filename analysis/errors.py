"""The error for mistakes of the user; it has a file of its own so that the command line can name it without torch."""


class UserError(Exception):
    """A mistake in what the user gave; the command line shows it in at most two lines and ends with status 2."""
