"""Each rule speaks where it should and is silent beside it; together they are said once, and not at all when off."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accel_train import advice
from accel_train.checkpoint.state import TrainState
from accel_train.config.load import load_config
from accel_train.config.schema import OptimizerSection, RunConfig
from accel_train.optim.param_groups import FrozenPart, GroupPlan, ParamGroup
from accel_train.run_log import RunLog
from accel_train.watch import say_once, watch_scores, watch_step

ROOT = Path(__file__).parents[1]
RULES = [
    name
    for name, function in inspect.getmembers(advice, inspect.isfunction)
    if function.__module__ == advice.__name__ and inspect.signature(function).return_annotation == str | None
]
FALLS_AND_RISES = [[1.0, 0.50], [0.8, 0.52], [0.9, 0.55], [0.7, 0.56]]


def test_every_rule_is_in_the_page_and_has_its_cases_here() -> None:
    assert len(RULES) == 7
    page = (ROOT / "docs" / "advice.md").read_text(encoding="utf-8")
    assert [rule for rule in RULES if f"| `{rule}` |" not in page] == []
    assert {case[0] for case in SPEAKS} == {case[0] for case in SILENT} == set(RULES)


SPEAKS: list[tuple[str, tuple[Any, ...], str]] = [
    (
        "rate_does_not_fit_freezing",
        ("text", "whole", 5e-5),
        "text.lr comes to 5e-05; with no layer frozen.*1e-05 to 3e-05",
    ),
    ("rate_does_not_fit_freezing", ("text", "part", 1e-5), "learns next to nothing. Raise it"),
    ("rate_does_not_fit_freezing", ("text", "part", 1e-3), "Lower it, or freeze more"),
    ("rate_does_not_fit_freezing", ("heads", "head", 5e-4), "everything else frozen.*0.001 to 0.005"),
    ("rate_does_not_fit_freezing", ("text", "whole", 4e-4, 10.0), "more than 10 times off"),
    ("residual_scale_does_not_fit", ("scale_quality", 0.2, 499), "0.2 for 499 samples.*noise.*Use 0.1"),
    ("residual_scale_does_not_fit", ("scale_quality", 0.2, 20_000), "more can be learnt.*Use 0.4 to 0.5"),
    ("unusual_layer_decay", ("text", 0.5), "text.layer_decay is 0.5; 0.8 to 0.95.*train_last"),
    ("unusual_layer_decay", ("text", 0.98), "barely differs"),
    ("ladder_too_steep", ("image", 0.0024), "learns at 0.0024"),
    ("large_gradient", (101.0, None), "norm is 101.*Clip it: optimizer.max_grad_norm"),
    ("large_gradient", (5e3, 1.0), "clipped to 1.*Lower the learning rate"),
    ("overfitting", (FALLS_AND_RISES,), "risen for 3 evaluations, from 0.5 to 0.56.*fell from 1 to 0.7"),
    ("below_start", ("recall", 0.3, 0.4), "recall is 0.3000, below the 0.4000 before the first step.*warm up longer"),
]
SILENT: list[tuple[str, tuple[Any, ...]]] = [
    ("rate_does_not_fit_freezing", ("text", "whole", 3e-5)),
    ("rate_does_not_fit_freezing", ("text", "part", 3e-5)),
    ("rate_does_not_fit_freezing", ("heads", "head", 1e-3)),
    ("rate_does_not_fit_freezing", ("text", "whole", 3e-6, 10.0)),
    ("residual_scale_does_not_fit", ("scale_quality", 0.2, 500)),
    ("residual_scale_does_not_fit", ("scale_quality", 0.45, 10_000)),
    ("unusual_layer_decay", ("text", 0.8)),
    ("unusual_layer_decay", ("text", 0.95)),
    ("ladder_too_steep", ("image", 0.01)),
    ("large_gradient", (100.0, None)),
    ("overfitting", (FALLS_AND_RISES[1:],)),
    ("overfitting", ([*FALLS_AND_RISES[:3], [0.7, 0.54]],)),
    ("overfitting", ([*FALLS_AND_RISES[:3], [1.1, 0.56]],)),
    ("below_start", ("recall", 0.4, 0.4)),
]


@pytest.mark.parametrize(("rule", "figures", "message"), SPEAKS)
def test_a_rule_speaks(rule: str, figures: tuple[Any, ...], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(vars(advice)[rule](*figures))


@pytest.mark.parametrize(("rule", "figures"), SILENT)
def test_a_rule_is_silent(rule: str, figures: tuple[Any, ...]) -> None:
    assert vars(advice)[rule](*figures) is None


def group(tower: str, *, layer: int = 11, lr: float = 2e-5, num_parameters: int = 1000) -> ParamGroup:
    return ParamGroup(tower, tower, layer, layer + 1, (f"{tower}.weight",), num_parameters, lr, 0.0, None)


def frozen(tower: str, num_parameters: int = 100_000) -> FrozenPart:
    return FrozenPart(tower, (f"{tower}.frozen",), num_parameters)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (GroupPlan([group("image"), group("heads", layer=0)], []), {"image": "whole"}),
        (GroupPlan([group("image"), group("text")], [frozen("text")]), {"image": "whole", "text": "part"}),
        (
            GroupPlan([group("heads", layer=0), group("temperature", layer=0, num_parameters=1)], [frozen("image")]),
            {"heads": "head"},
        ),
        (GroupPlan([group("heads", layer=0)], [frozen("image", 10)]), {}),
        (GroupPlan([group("heads", layer=0), group("image", layer=3)], [frozen("image")]), {}),
        (GroupPlan([group("small", layer=3)], []), {}),
    ],
)
def test_which_towers_are_judged(plan: GroupPlan, expected: dict[str, str]) -> None:
    assert advice.judged_towers(plan) == expected


def config_of(tmp_path: Path, *changes: str) -> RunConfig:
    """A scorer on pretrained weights, with a rate and scales that fit nothing."""
    image = "{name: image, lr: 1e-3, layer_decay: 0.5, layers: chinese_clip_image}"
    (tmp_path / "scorer.yaml").write_text(
        "task: scorer\nrun_dir: run\nmax_steps: 3\n"
        "model: {clip: {type: chinese_clip, pretrained: somewhere}, residual: {scale_quality: 0.5}}\n"
        "data: {path: data, tokenizer: words, global_batch_size: 4, micro_batch_size: 4}\n"
        f"optimizer: {{towers: [{image}, {{name: rest, lr: 1e-3, layers: ['.*']}}]}}\n",
        encoding="utf-8",
    )
    return load_config(tmp_path / "scorer.yaml", list(changes))


def said_before(config: RunConfig) -> list[str]:
    plan = GroupPlan([group("image", layer=0, lr=1e-6), group("image", lr=1e-3), group("rest", layer=0)], [])
    return advice.before_training(config, config.optimizer, plan, 400)


def test_what_a_configuration_is_told(tmp_path: Path) -> None:
    rate, decay, steep, scale, other_scale = said_before(config_of(tmp_path))
    assert rate.startswith("optimizer.towers.image.lr comes to 0.001")
    assert "layer_decay is 0.5" in decay and "learns at 0.001" in steep
    assert "scale_quality is 0.5 for 400" in scale and "scale_consistency is 0.2 for 400" in other_scale


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        (["advice=off"], 0),
        (["optimizer.name=sgd", "optimizer.momentum=0.9"], 4),
        (["model.clip.pretrained=null", "model.clip.size=tiny"], 4),
        (["model.clip.pretrained=null", "model.clip.size=tiny", "initialize_from=run"], 5),
        (["model.residual=null"], 3),
    ],
)
def test_where_a_rule_does_not_apply(changes: list[str], count: int, tmp_path: Path) -> None:
    assert len(said_before(config_of(tmp_path, *changes))) == count


def run_of(tmp_path: Path, state: TrainState, *, switch: str = "on") -> Any:
    section = OptimizerSection.model_validate({"towers": [{"name": "all", "lr": 1, "layers": ["."]}]})
    log = RunLog(tmp_path, is_main=True, rank=0)
    config = SimpleNamespace(advice=switch, optimizer=section)
    return SimpleNamespace(config=config, state=state, log=log, task=SimpleNamespace(best_score="accuracy"))


def told(run: Any, tmp_path: Path) -> list[str]:
    run.log.close()
    return [line for line in (tmp_path / "run.log").read_text(encoding="utf-8").splitlines() if "advice:" in line]


def test_a_piece_is_said_once_in_a_run(tmp_path: Path) -> None:
    state = TrainState(first_scores={"accuracy": 0.5})
    run = run_of(tmp_path, state)
    for step, (train_loss, valid_loss) in enumerate([*FALLS_AND_RISES, [0.6, 0.57]], start=1):
        state.step = step
        watch_step(run, train_loss - 0.1, 500.0)
        watch_step(run, train_loss + 0.1, 500.0)
        watch_scores(run, {"accuracy": 0.4, "loss": valid_loss})
    lines = told(run, tmp_path)
    assert [sum(word in line for line in lines) for word in ("gradient norm", "below the 0.5", "from 0.5 to 0.56")] == [
        1,
        1,
        1,
    ]
    assert "fell from 1 to 0.7" in lines[-1]
    resumed = run_of(tmp_path / "resumed", TrainState(advised=state.advised))
    watch_step(resumed, 1.0, 500.0)
    assert told(resumed, tmp_path / "resumed") == []


def test_the_first_evaluation_is_the_start(tmp_path: Path) -> None:
    run = run_of(tmp_path, TrainState(first_scores={"accuracy": 0.5}))
    watch_scores(run, {"accuracy": 0.4, "loss": 1.0})
    assert (told(run, tmp_path), run.state.losses) == ([], [])


def test_off_is_silent(tmp_path: Path) -> None:
    run = run_of(tmp_path, TrainState(), switch="off")
    say_once(run, "rule", "something")
    assert (told(run, tmp_path), run.state.advised) == ([], [])
