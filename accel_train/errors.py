"""The few ways a command ends early, each with the exit code that scripts rely on.

A message says what was found, where, the rule, and the remedy. The command line prints it without a traceback. `outcome` is
the same in a word, for a batch script that learns no exit code, because launchers have their own.
"""

DONE = "done"
OUTCOME_FILE = "ACCEL_TRAIN_OUTCOME"
"""The environment variable that names the file for the outcome: one line with its word and the message."""


def explained_by(code: str) -> str:
    """Where more stands about a message, to follow it."""
    return f"({code}: accel-train explain {code})"


class _Ending(Exception):
    """`code` names a section of docs/errors.md, which `accel-train explain CODE` prints; the message is complete without."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class UserError(_Ending):
    """Bad configuration, data or launch: nothing was started. Exit code 2."""

    exit_code = 2
    outcome = "refused"


class NotNow(UserError):
    """What stands in the way may be gone later or on other machines, so trying again makes sense. Exit code 2."""

    outcome = "failed"


class CheckFailed(_Ending):
    """The command ran and what it checked does not hold, or training cannot go on. Exit code 1."""

    exit_code = 1
    outcome = "failed"


class Stopped(_Ending):
    """The run was asked to stop, and a checkpoint was written: requeue it. Exit code 75."""

    exit_code = 75
    outcome = "stopped"
