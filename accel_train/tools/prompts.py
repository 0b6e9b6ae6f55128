"""What zero-shot classification asks the text tower: names of classes, put into templates."""

from dataclasses import dataclass
from pathlib import Path

from accel_train.data.loose_files import read_lines
from accel_train.errors import UserError
from accel_train.json_text import read_json

PLACE = "{}"
CHINESE = (
    "{}",
    "一张{}的照片",
    "一张{}的图片",
    "一幅{}的画",
    "这是{}",
    "图中是{}",
    "照片里有{}",
    "一张清晰的{}照片",
    "一张模糊的{}照片",
    "{}的特写",
    "{}的插图",
    "好看的{}",
)
ENGLISH = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "a drawing of {}",
    "this is {}",
    "there is {} in the image",
    "a close-up of {}",
    "a sharp photo of {}",
    "a blurry photo of {}",
    "an illustration of {}",
    "a small image of {}",
    "a nice {}",
)
BUILT_IN = {"builtin:zh": CHINESE, "builtin:en": ENGLISH}


@dataclass(frozen=True, slots=True)
class ImageClass:
    """A subfolder and the names, one or more, of what its images show."""

    folder: str
    names: tuple[str, ...]


def read_templates(source: str | None, classes: list[ImageClass]) -> tuple[str, tuple[str, ...]]:
    """Where the templates come from, and the templates. None: Chinese ones if any class has a Chinese name, else English.

    Raises UserError for a line without exactly one {}.
    """
    if source is None:
        is_chinese = any("\u4e00" <= letter <= "\u9fff" for one in classes for name in one.names for letter in name)
        source = "builtin:zh" if is_chinese else "builtin:en"
    if source in BUILT_IN:
        return source, BUILT_IN[source]
    if source.startswith("builtin:"):
        raise UserError(f"--templates: {source!r} is not built in; there are {', '.join(BUILT_IN)}. A file works too.")
    templates = read_lines(source)
    for number, template in enumerate(templates, start=1):
        if template.count(PLACE) != 1:
            raise UserError(
                f"{source}:{number}: found {template!r}; a template holds {PLACE} exactly once, where the name goes."
            )
    return source, tuple(templates)


def name_classes(folders: list[str], file: str | None) -> list[ImageClass]:
    """Names for the subfolders: their own, or those in a file. Raises UserError for a folder or a name that lacks a partner.

    The file is TSV, a folder and its names (separated by commas) on each line, or JSON, an object from folder to a name or
    a list of names.
    """
    named = {folder: (folder,) for folder in folders} if file is None else _read_names(file)
    where = file or "the class names"
    if lacking := [folder for folder in folders if folder not in named]:
        raise UserError(f"{where}: no name for the folder {lacking[0]!r} ({len(lacking)} of {len(folders)} lack one).")
    if unused := [folder for folder in named if folder not in folders]:
        raise UserError(
            f"{where}: names {unused[0]!r}, which is no folder with images ({len(unused)} are not). Take it out."
        )
    owners: dict[str, str] = {}
    for folder in folders:
        for name in named[folder]:
            if owners.setdefault(name, folder) != folder:
                raise UserError(
                    f"{where}: {owners[name]!r} and {folder!r} are both called {name!r}; no text can tell them apart."
                )
    return [ImageClass(folder, named[folder]) for folder in folders]


def _read_names(file: str) -> dict[str, tuple[str, ...]]:
    if file.endswith(".json"):
        return _from_json(file)
    named: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_lines(file), start=1):
        folder, tab, names = line.partition("\t")
        found = tuple(name.strip() for name in names.replace("，", ",").split(","))
        if not tab or not all(found):
            raise UserError(
                f"{file}:{number}: found {line!r}; a line is a folder, a tab, and names with commas between."
            )
        if folder in named:
            raise UserError(f"{file}:{number}: the folder {folder!r} comes a second time.")
        named[folder] = tuple(dict.fromkeys(found))
    return named


def _from_json(file: str) -> dict[str, tuple[str, ...]]:
    try:
        content = read_json(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: can't be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}; it must be an object from folder to names.")
    named = {}
    for folder, value in content.items():
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise UserError(f"{file}: {folder!r} is {value!r}; it must be a name or a list of names.")
        named[folder] = tuple(dict.fromkeys(names))
    return named
