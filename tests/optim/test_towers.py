import pytest

from accel_train.config.schema import Tower
from accel_train.errors import UserError
from accel_train.optim.towers import assign

NAMES = ["stem.weight", "block.0.weight", "block.2.weight", "block.10.weight", "norm.weight", "head.weight", "scale"]


def tower(name: str, layers: str | list[str], lr: float = 1.0) -> Tower:
    return Tower(name=name, layers=layers, lr=lr)


def numbers(layers: list[str]) -> dict[str, int]:
    rest = tower("rest", ["."])
    return {
        name: place.layer for name, place in assign(NAMES, [tower("main", layers), rest]).items() if place.tower == 0
    }


def test_indices_are_layers_in_numeric_order() -> None:
    found = numbers([r"^stem", r"^block\.(\d+)\.", "^norm", "^head"])
    assert found == {
        "stem.weight": 0,
        "block.0.weight": 1,
        "block.2.weight": 2,
        "block.10.weight": 3,
        "norm.weight": 4,
        "head.weight": 5,
    }


def test_alternative_without_number_joins_the_last_layer() -> None:
    found = numbers([r"^stem", r"^(?:block\.(\d+)\.|norm)"])
    assert found["norm.weight"] == found["block.10.weight"] == 3


def test_joining_alternative_alone_is_a_layer() -> None:
    assert numbers([r"^stem", r"^(?:nothing\.(\d+)\.|norm)"]) == {"stem.weight": 0, "norm.weight": 1}


def test_missing_second_number_joins_the_first() -> None:
    names = ["s.0.b.0", "s.0.b.1", "s.1.down", "s.1.b.0", "s.1.b.1"]
    found = assign(names, [tower("main", [r"^s\.(\d+)\.(?:down|b\.(\d+))"])])
    assert [found[name].layer for name in names] == [0, 1, 2, 2, 3]


def test_first_tower_and_first_pattern_own() -> None:
    found = assign(NAMES, [tower("a", ["^head", "scale"]), tower("b", ["weight$"])])
    assert [found[name].tower for name in NAMES] == [1, 1, 1, 1, 1, 0, 0]
    assert found["scale"].layer == 1


def test_unmatched_parameter_names_itself_and_the_nearest_pattern() -> None:
    with pytest.raises(UserError) as error:
        assign(["visual_projection.weight"], [tower("heads", ["projecton"])])
    first, second = str(error.value).split("\n")
    assert first.startswith("optimizer.towers: 'visual_projection.weight' matches no tower. Add a pattern")
    assert first.endswith("Nearest: heads ['projecton'].")
    assert second.startswith("optimizer.towers.heads.layers: 'projecton' matches no parameter.")


def test_many_unmatched_are_counted() -> None:
    with pytest.raises(UserError, match="22 more parameters match no tower"):
        assign([f"p{index}" for index in range(30)], [tower("heads", ["projection"])])


def test_optional_parameter_needs_no_tower() -> None:
    assert "scale" not in assign(NAMES, [tower("a", ["weight"])], optional=["scale"])


def test_pattern_hidden_by_an_earlier_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"'\^head' matches only what an earlier pattern owns, .* in tower 'all'"):
        assign(NAMES, [tower("all", ["."]), tower("heads", ["^head"])])


def test_named_list_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.towers\.image\.layers: 'vit' matches no parameter"):
        assign(NAMES, [tower("all", ["."]), tower("image", "vit")])


def test_named_list_beside_patterns() -> None:
    names = ["embeddings.a", "layers.0.a", "layers.1.a", "layernorm.weight", "head.weight"]
    found = assign(names, [tower("image", ["vit", "^head"])])
    assert [found[name].layer for name in names] == [0, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("convnxt", "'convnxt' is not a named layer list; .* Did you mean 'convnext'"),
        (["(stem"], r"'\(stem' is not a regular expression: missing \)"),
        (["^(stem|block)"], "captures 'stem' in 'stem.weight'; .* Write"),
    ],
)
def test_unreadable_patterns(layers: str | list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        assign(NAMES, [tower("main", layers)])
