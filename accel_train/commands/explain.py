"""`explain`: what is behind a message with a code."""

import difflib
import json
import re
from pathlib import Path

from accel_train.commands.arguments import columns, make_parser, wrapped
from accel_train.errors import UserError

PAGE = Path(__file__).parents[1] / "errors.md"
"""docs/errors.md, which the package holds too."""
SECTION = re.compile(r"^## (AT\d{3})\n\*\*(.+?)\*\*\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def explain(argv: list[str]) -> None:
    """Explains a message: what it means, why the rule is there, and what to do.

    CODE stands at the end of the message, for example AT120. Without one, all codes are listed.
    """
    parser = make_parser(explain, "accel-train explain AT120")
    parser.add_argument("code", metavar="CODE", nargs="?", help="code of a message (default: list all of them)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    arguments = parser.parse_args(argv)
    sections = read_sections()
    if arguments.code is None:
        titles = {code: title for code, (title, _) in sections.items()}
        listed = "\n".join(f"{code}  {title}" for code, title in titles.items())
        print(json.dumps(titles, indent=1, ensure_ascii=False) if arguments.json else listed)
        return
    code = arguments.code.upper().removeprefix("(").rstrip(":)")
    if code not in sections:
        near = difflib.get_close_matches(code, sections, n=1, cutoff=0.5)
        hint = f"Nearest: {near[0]}. " if near else ""
        raise UserError(f"no message has the code {arguments.code!r}. {hint}`accel-train explain` lists all of them.")
    title, text = sections[code]
    if arguments.json:
        print(json.dumps({"code": code, "title": title, "text": text}, indent=1, ensure_ascii=False))
    else:
        print("\n\n".join("\n".join(lines) for lines in paragraphs(f"{code}: {title}\n\n{text}", columns())))


def paragraphs(text: str, width: int) -> list[list[str]]:
    """The lines of each, wrapped; what is fenced stays as it is, without the fence."""
    found = []
    for paragraph in text.split("\n\n"):
        fenced = paragraph.startswith("```")
        found.append(paragraph.splitlines()[1:-1] if fenced else wrapped(" ".join(paragraph.split()), width))
    return found


def read_sections() -> dict[str, tuple[str, str]]:
    """Title and text of each code, in the page's order."""
    found = SECTION.findall(PAGE.read_text(encoding="utf-8"))
    return {code: (title, text.strip()) for code, title, text in found}
