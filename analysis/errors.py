"""The one error that is the user's to mend; alone in a file, so that the command line can name it without torch."""


class UserError(Exception):
    """A mistake in what the user gave: shown in at most two lines, exit status 2."""
