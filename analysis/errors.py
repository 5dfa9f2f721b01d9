"""The error for mistakes of the user; it has its own file so that the command line can import it without torch."""


class UserError(Exception):
    """A mistake in the user's input; the command line shows it in at most two lines and exits with status 2."""
