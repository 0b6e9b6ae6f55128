"""Compares two files of `make bench` and names what got slower beyond noise: exits 1 then, 2 for a file that is none.

python scripts/compare_bench.py OLD.json NEW.json
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from accel_train.errors import UserError
from accel_train.tools.bench.figures import Figure, read_figures, slower


def compare(old_path: Path, new_path: Path, console: Console) -> list[str]:
    """Prints both files side by side. Returns the names of the figures that got worse."""
    (old_machine, old), (new_machine, new) = read_figures(old_path), read_figures(new_path)
    differing = [name for name in old_machine if old_machine[name] != new_machine.get(name)]
    if differing:
        console.print(f"The machines differ ({', '.join(differing)}), so a difference may be theirs.")
    table = Table("figure", "old", "new", "", title=f"{old_path.name} → {new_path.name}", title_justify="left")
    worse = []
    for name in sorted(old.keys() | new.keys()):
        verdict = _verdict(old.get(name), new.get(name))
        if verdict.startswith("slower"):
            worse.append(name)
        table.add_row(name, _cell(old.get(name)), _cell(new.get(name)), verdict)
    console.print(table)
    console.print(
        f"slower beyond noise: {', '.join(worse)}" if worse else "nothing got slower beyond noise.", soft_wrap=True
    )
    return worse


def _verdict(old: Figure | None, new: Figure | None) -> str:
    if old is None or new is None:
        return "new" if old is None else "gone"
    if share := slower(old, new):
        return f"slower by {share:.1%}"
    share = slower(new, old)
    return f"faster by {share:.1%}" if share else "within noise"


def _cell(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.4g} ± {figure.spread:.2g} {figure.unit}"


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        return int(bool(compare(Path(arguments[0]), Path(arguments[1]), Console(highlight=False))))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
