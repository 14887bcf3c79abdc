"""The one error that a user causes and a user can mend."""


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do. The command line prints it and exits 2."""
