"""Reads a shell script for the command that it would start, without starting anything.

Understood are comments, quotes, continued lines, assignments (also exported and appended ones) and $NAME, ${NAME},
${NAME:-default} and $1. What needs a shell, such as `pwd` or an assignment inside an `if`, makes a value unknown; that is
an error only where the value is needed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from accel_train.errors import UserError

_NAME = re.compile(r"\{([A-Za-z_]\w*|\d+)(?:\}|:?(-))|([A-Za-z_]\w*|\d)")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=")
_CLOSING = {"(": ")", "{": "}", '"': '"', "`": "`"}
_ENDS = "\n;&|"
_DECLARES = ("export", "declare", "local", "readonly", "typeset")
_OPENS, _CLOSES, _INSIDE = ("if", "for", "while", "until", "case"), ("fi", "done", "esac", "}"), ("then", "do", "else")


@dataclass(slots=True)
class Word:
    """One word after substitution. `unknown` says why its text isn't complete; None if it is."""

    text: str
    line: int
    unknown: str | None = None


@dataclass(slots=True)
class _Piece:
    text: str
    is_variable: bool = False
    is_quoted: bool = False
    default: list["_Piece"] | None = None


@dataclass(slots=True)
class _RawWord:
    line: int
    pieces: list[_Piece] = field(default_factory=list)

    def add(self, text: str, *, quoted: bool) -> None:
        self.pieces.append(_Piece(text, is_quoted=quoted))

    @property
    def start(self) -> str:
        """The literal text it begins with."""
        return self.pieces[0].text if self.pieces and not self.pieces[0].is_variable else ""


class Shell:
    """Variables of a script, as far as they are known without running it."""

    def __init__(self, arguments: list[str], variables: dict[str, str]) -> None:
        self.given = variables
        self.variables: dict[str, str | None] = {**variables, **{str(i): text for i, text in enumerate(arguments, 1)}}
        self.reasons: dict[str, str] = {}
        self.depth = 0

    def commands(self, script: str) -> Iterator[list[Word]]:
        """Every simple command of a script with its words substituted, in order."""
        for statement in _statements(script):
            words = self._without_keywords(statement)
            while words and (found := _ASSIGNMENT.match(words[0].start)):
                self._assign(words.pop(0), found)
            if words:
                yield [word for raw in words for word in self.expand(raw)]

    def _without_keywords(self, words: list[_RawWord]) -> list[_RawWord]:
        """The statement after `then`, `export` and the like; counts how deep it stands in the script's branches."""
        while words:
            start = words[0].start if len(words[0].pieces) == 1 else ""
            if start in _OPENS or start.endswith("()") or start == "function":
                self.depth += 1
                return []
            if start in _CLOSES:
                self.depth = max(0, self.depth - 1)
                return []
            if start not in _INSIDE and start not in _DECLARES:
                return words
            words = words[1:]
            while start in _DECLARES and words and words[0].start.startswith("-"):
                words = words[1:]
        return words

    def _assign(self, word: _RawWord, found: re.Match[str]) -> None:
        name, appends = found[1], found[2]
        if name in self.given:
            return
        first = _Piece(word.pieces[0].text[found.end() :], is_quoted=word.pieces[0].is_quoted)
        parts = self.expand(_RawWord(word.line, [first, *word.pieces[1:]]), split=False)
        value = parts[0] if parts else Word("", word.line)
        reason = value.unknown
        if self.depth:
            reason = f"line {word.line} sets {name} inside a branch, a loop or a function"
        elif value.text.startswith("("):
            reason = f"line {word.line} makes {name} an array"
        text = (self.variables.get(name) or "") + value.text if appends else value.text
        if reason is None and not (appends and name in self.reasons):
            self.variables[name] = text
            self.reasons.pop(name, None)
        else:
            self.variables[name] = None
            self.reasons.setdefault(name, reason or "")

    def expand(self, raw: _RawWord, *, split: bool = True) -> list[Word]:
        """The words that a raw one becomes: none, where it is an empty variable; several, where one holds blanks."""
        done: list[Word] = []
        current: Word | None = None
        for piece, is_default in self._with_defaults(raw.pieces):
            text, unknown = self._value(piece, raw.line)
            splits = split and (piece.is_variable or is_default) and not piece.is_quoted and not unknown
            for part in re.findall(r"\s+|\S+", text) if splits else [text]:
                if splits and part.isspace():
                    done += [current] if current else []
                    current = None
                elif part or piece.is_quoted or unknown:
                    current = current or Word("", raw.line)
                    current.text += part
                    current.unknown = current.unknown or unknown
        return [*done, current] if current else done

    def _with_defaults(self, pieces: list[_Piece], *, inside: bool = False) -> Iterator[tuple[_Piece, bool]]:
        """Each piece, or those of its default where its variable is empty; and whether it is of a default."""
        for piece in pieces:
            if piece.default is None or self.variables.get(piece.text) or piece.text in self.reasons:
                yield piece, inside
            else:
                yield from self._with_defaults(piece.default, inside=True)

    def _value(self, piece: _Piece, line: int) -> tuple[str, str | None]:
        if not piece.is_variable:
            return piece.text, None
        if piece.text.startswith("("):
            return "", f"line {line} needs a shell for {piece.text[1:]}"
        value = self.variables.get(piece.text)
        if value is None and piece.text in self.reasons:
            return "", self.reasons[piece.text]
        if value is None:
            if piece.text.isdigit():
                return "", f"line {line} takes argument {piece.text} of the script, which was not given"
            return "", f"line {line} takes ${{{piece.text}}}, which the script does not set"
        return value, None


def _statements(script: str) -> Iterator[list[_RawWord]]:
    """Words of every statement. Redirections are left out."""
    at, line = 0, 1
    words: list[_RawWord] = []
    word: _RawWord | None = None
    text = script.replace("\r\n", "\n")
    while at < len(text):
        character = text[at]
        if character == "\\":
            escaped = text[at + 1 : at + 2]
            line += escaped == "\n"
            if escaped != "\n":
                word = word or _RawWord(line)
                word.add(escaped, quoted=True)
            at += 2
        elif character in " \t" or character in _ENDS:
            words += [word] if word else []
            word = None
            if character in _ENDS:
                yield words
                words = []
            line += character == "\n"
            at += 1
        elif character == "#" and word is None:
            at = end if (end := text.find("\n", at)) >= 0 else len(text)
        elif character in "<>":
            if word and len(word.pieces) == 1 and word.start.isdigit():
                word = None  # a file descriptor
            target = re.compile(r"[<>]+&?[ \t]*[^\s;|&]*").match(text, at)
            assert target
            at = target.end()
        else:
            word = word or _RawWord(line)
            stop = _piece(text, at, word)
            line += text.count("\n", at, stop)
            at = stop
    yield words + ([word] if word else [])


def _piece(text: str, at: int, word: _RawWord) -> int:
    """Adds the quoted, substituted or plain piece that begins at `at`, and returns where it ends."""
    character = text[at]
    if character == "'":
        end = _end(text, at + 1, "'", word.line)
        word.add(text[at + 1 : end], quoted=True)
        return end + 1
    if character == '"':
        at += 1
        word.add("", quoted=True)
        while text[at : at + 1] != '"':
            if at >= len(text):
                _end(text, at, '"', word.line)
            at = _inside_quotes(text, at, word)
        return at + 1
    if character in "$`":
        return _substitution(text, at, word, quoted=False)
    found = re.compile(r"[^ \t\n;&|<>'\"\\$`]+").match(text, at)
    assert found
    word.add(found[0], quoted=False)
    return found.end()


def _inside_quotes(text: str, at: int, word: _RawWord) -> int:
    if text[at] in "$`":
        return _substitution(text, at, word, quoted=True)
    if text[at] == "\\" and text[at + 1 : at + 2] in ('"', "\\", "$", "`", "\n"):
        word.add(text[at + 1].strip("\n"), quoted=True)
        return at + 2
    word.add(text[at], quoted=True)
    return at + 1


def _substitution(text: str, at: int, word: _RawWord, *, quoted: bool) -> int:
    """`$NAME` and its like. What a command would print is unknown: it stands in the piece after a `(`."""
    if text[at] == "`":
        end = _end(text, at + 1, "`", word.line)
        word.pieces.append(_Piece("(" + text[at : end + 1], is_variable=True, is_quoted=quoted))
        return end + 1
    found = _NAME.match(text, at + 1)
    if found and found[2]:
        end = _end_of_substitution(text, found.end(), "}", word.line)
        word.pieces.append(_Piece(found[1], True, quoted, _default(text[found.end() : end], word.line, quoted=quoted)))
        return end + 1
    if found:
        word.pieces.append(_Piece(found[1] or found[3], True, quoted))
        return found.end()
    if text[at + 1 : at + 2] in ("(", "{"):
        closing = ")" if text[at + 1] == "(" else "}"
        end = _end_of_substitution(text, at + 2, closing, word.line)
        word.pieces.append(_Piece("(" + text[at : end + 1], is_variable=True, is_quoted=quoted))
        return end + 1
    if text[at + 1 : at + 2] in ("@", "*", "#", "?", "$", "!", "-"):
        word.pieces.append(_Piece("(" + text[at : at + 2], is_variable=True, is_quoted=quoted))
        return at + 2
    word.add("$", quoted=quoted)
    return at + 1


def _default(text: str, line: int, *, quoted: bool) -> list[_Piece]:
    """Pieces of what stands after the `:-` of a variable."""
    word, at = _RawWord(line), 0
    while at < len(text):
        if text[at] in '"$`' or (text[at] == "'" and not quoted):
            at = _piece(text, at, word)
        elif text[at] == "\\":
            at = _inside_quotes(text, at, word)
        else:
            word.add(text[at], quoted=quoted)
            at += 1
    return word.pieces


def _end_of_substitution(text: str, at: int, closing: str, line: int) -> int:
    """Where the ) or } stands that ends what opened before `at`: others may be inside, and quotes with anything in them."""
    waiting = [closing]
    while at < len(text):
        character = text[at]
        if character == waiting[-1]:
            waiting.pop()
            if not waiting:
                return at
        elif character == "\\":
            at += 1
        elif waiting[-1] == '"':
            if text.startswith(("$(", "${"), at):
                at += 1
                waiting.append(_CLOSING[text[at]])
        elif character == "'":
            at = _end(text, at + 1, "'", line)
        elif character in _CLOSING:
            waiting.append(_CLOSING[character])
        at += 1
    return _end(text, at, waiting[-1], line)


def _end(text: str, at: int, closing: str, line: int) -> int:
    end = text.find(closing, at)
    if end < 0:
        raise UserError(f"line {line}: a {closing} that opens or closes something is missing.")
    return end
