"""Where a rank is in its work: noted by the rank itself in a fraction of a microsecond, read by its watchdog's thread."""


class Whereabouts:
    """Every note counts as a move. A rank without moves waits for something, or works on one thing for very long."""

    __slots__ = ("collective", "doing", "moves", "step")

    def __init__(self) -> None:
        self.step = 0
        """Steps taken."""
        self.doing = "starting"
        self.collective = ""
        """The exchange with other ranks that this one is in; empty outside of one."""
        self.moves = 0

    def begin(self, doing: str) -> None:
        self.doing = doing
        self.moves += 1

    def enter(self, collective: str) -> None:
        """Before a call that returns only when every rank has made it."""
        self.collective = collective
        self.moves += 1

    def leave(self) -> None:
        self.collective = ""
        self.moves += 1

    def move(self) -> None:
        """A part of something long is done."""
        self.moves += 1

    def __str__(self) -> str:
        place = f"step {self.step}, {self.doing}"
        return f"{place}, in the collective {self.collective}" if self.collective else place
