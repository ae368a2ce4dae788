"""The error for input that cannot be used: its message is one line that says what was wrong and what is allowed."""


class InputError(ValueError):
    """Something the user gave (a file, an argument, a folder) cannot be used; the command line exits with 1."""
