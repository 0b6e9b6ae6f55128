"""The commands of docs/slurm.md, each one found by the comment behind it."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "slurm.md"
FENCED = re.compile(r"```bash\n(.*?)```", re.DOTALL)


class Page:
    """Remembers which lines were followed."""

    def __init__(self) -> None:
        blocks = FENCED.findall(PAGE.read_text(encoding="utf-8"))
        self.left = [line for block in blocks for line in block.splitlines() if line]

    def line(self, comment: str) -> str:
        """The one line whose comment begins like this; each is given once."""
        (found,) = [line for line in self.left if line.partition("# ")[2].startswith(comment)]
        self.left.remove(found)
        return found
