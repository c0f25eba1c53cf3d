"""The one exception that the command line turns into one line."""


class InputError(ValueError):
    """The user's input is wrong. The message is one line: which file or key, what was expected,
    what to do."""
