"""Names and templates: what a user may write, and how mistakes are named."""

import json
from pathlib import Path

import pytest

from accel_train.errors import UserError
from accel_train.tools.prompts import BUILT_IN, PLACE, ImageClass, name_classes, read_templates

CAT = ImageClass("n01", ("cat",))
CHINESE_CAT = ImageClass("n02", ("cat", "猫"))


def test_built_in_templates_have_one_place_each_and_differ() -> None:
    for templates in BUILT_IN.values():
        assert 8 <= len(templates) == len(set(templates)) <= 16
        assert all(template.count(PLACE) == 1 for template in templates)


def test_the_names_decide_which_templates_are_taken() -> None:
    assert read_templates(None, [CAT])[0] == "builtin:en"
    assert read_templates(None, [CAT, CHINESE_CAT]) == ("builtin:zh", BUILT_IN["builtin:zh"])
    assert read_templates("builtin:en", [CHINESE_CAT])[0] == "builtin:en"


def test_templates_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("一张{}\n{} here\n", encoding="utf-8")
    assert read_templates(str(path), [CAT]) == (str(path), ("一张{}", "{} here"))
    for bad in ("no place", "{} and {}", "{name}"):
        path.write_text(f"a {{}}\n{bad}\n", encoding="utf-8")
        with pytest.raises(UserError, match=r"templates\.txt:2: found .* exactly once"):
            read_templates(str(path), [CAT])
    with pytest.raises(UserError, match="'builtin:fr' is not built in; there are builtin:zh, builtin:en"):
        read_templates("builtin:fr", [CAT])


def test_folders_are_names_unless_a_file_says_otherwise(tmp_path: Path) -> None:
    assert name_classes(["cat", "dog"], None) == [ImageClass("cat", ("cat",)), ImageClass("dog", ("dog",))]
    wanted = [ImageClass("a", ("猫", "小猫")), ImageClass("b", ("big dog",))]
    (tmp_path / "names.tsv").write_text("b\tbig dog\na\t猫，小猫, 猫\n", encoding="utf-8")
    assert name_classes(["a", "b"], str(tmp_path / "names.tsv")) == wanted
    (tmp_path / "names.json").write_text(json.dumps({"b": "big dog", "a": ["猫", "小猫"]}), encoding="utf-8")
    assert name_classes(["a", "b"], str(tmp_path / "names.json")) == wanted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.tsv", "a\tcat\n", r"no name for the folder 'b' \(1 of 2 lack one\)"),
        ("n.tsv", "a\tcat\nb\tdog\nc\tcow\n", "names 'c', which is no folder with images"),
        ("n.tsv", "a\tcat,pet\nb\tdog,pet\n", "'a' and 'b' are both called 'pet'"),
        ("n.tsv", "a\tcat\nb dog\n", r"n\.tsv:2: found 'b dog'; a line is a folder, a tab"),
        ("n.tsv", "a\tcat\nb\tdog,,\n", r"n\.tsv:2: found"),
        ("n.tsv", "a\tcat\na\tdog\n", r"n\.tsv:2: the folder 'a' comes a second time"),
        ("n.json", "[]", r"n\.json: holds a list"),
        ("n.json", "{", r"n\.json: can't be read as JSON"),
        ("n.json", '{"a": "cat", "b": []}', r"n\.json: 'b' is \[\]; it must be a name or a list of names"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        name_classes(["a", "b"], str(tmp_path / name))
