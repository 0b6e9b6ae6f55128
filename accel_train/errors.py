"""The few ways a command ends early, each with the exit code that scripts rely on.

A message says what was found, where, the rule, and the remedy. The command line prints it without a traceback.
"""


class UserError(Exception):
    """Bad configuration, data or launch: nothing was started. Exit code 2."""

    exit_code = 2


class CheckFailed(Exception):
    """The command ran and what it checked does not hold, or training cannot go on. Exit code 1."""

    exit_code = 1


class Stopped(Exception):
    """A signal asked the run to stop, and a checkpoint was written: requeue it. Exit code 75."""

    exit_code = 75
