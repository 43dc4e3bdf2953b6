"""The one error type that users see."""


class RecpeftError(ValueError):
    """A mistake the user can mend: one sentence with what, where, what is allowed and the remedy.

    The command line prints the sentence alone and exits with code 2; ``--debug`` adds the traceback.
    """


class DiskError(RecpeftError):
    """A full disk or a folder that may not be written: no further run can succeed either."""
