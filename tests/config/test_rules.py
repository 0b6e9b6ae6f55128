from collections.abc import Callable

import pytest

from accel_train.config.rules import check_kept_graphs, check_last_batch, check_rules, num_micro_batches
from accel_train.config.schema import RunConfig
from accel_train.errors import UserError

Load = Callable[..., RunConfig]
Errors = Callable[..., list[str]]
DUAL = "model={type: dual_encoder, image: {architecture: convnext}, text: {pretrained: models/bert}}"

CONTRADICTIONS = [
    (["num_epochs=3"], ["max_steps: max_steps is 100 and num_epochs is 3", "exactly one", "set the other to null"]),
    (["max_steps=null"], ["max_steps: neither max_steps nor num_epochs is given; give exactly one of them."]),
    (["run_dir=' '"], ["run_dir: found ' '; it must name a folder."]),
    (
        ["task=constrastive"],
        ["task: found 'constrastive'; it must be one of contrastive", "Nearest: contrastive."],
    ),
    (["model.pretrained=x"], ["model.pretrained: pretrained is 'x' and size is 'tiny'; give exactly one of them"]),
    (["model.size=null"], ["model.pretrained: neither pretrained nor size is given"]),
    (["model={type: siglip, pretrained: x, config: {a: 1}}"], ["model.config: {'a': 1} would be ignored", "use size"]),
    ([DUAL, "model.image.pretrained=x"], ["model.image.pretrained: pretrained is 'x' and architecture is 'convnext'"]),
    ([DUAL, "model.text.pretrained=null"], ["model.text.pretrained: neither pretrained nor architecture is given"]),
    ([DUAL, "model.text.config.a=1"], ["model.text.config: {'a': 1} would be ignored beside model.text.pretrained"]),
    (["model.temperature=0.001"], ["model.temperature: 0.001 starts logit_scale at 1000", "max_logit_scale (100)"]),
    (["data.micro_batch_size=64"], ["data.micro_batch_size: 64 is more than data.global_batch_size (32)"]),
    (["data.path=''"], ["data.path: found ''; it must not be empty."]),
    (
        ["data.augmentation.crop_scale=[1, 0.5]"],
        ["data.augmentation.crop_scale: found [1.0, 0.5]", "smallest, largest"],
    ),
    (["data.augmentation.crop_scale=[0, 0.5]"], ["data.augmentation.crop_scale: found [0.0, 0.5]", "0 < smallest"]),
    (
        ["data.augmentation={crop_scale: [0.5, 1], crop_aspect: [2, 1]}"],
        ["data.augmentation.crop_aspect: found [2.0, 1.0]"],
    ),
    (["data.augmentation.crop_aspect=[1, 1]"], ["crop_aspect: [1.0, 1.0] would be ignored", "crop_scale is null"]),
    (["optimizer.momentum=0.9"], ["optimizer.momentum: 0.9 would be ignored, since optimizer.name is adamw."]),
    (["optimizer={name: lion, eps: 1e-8, towers: [{name: a, layers: x, lr: 1}]}"], ["optimizer.eps: 1e-08 would be"]),
    (["optimizer.name=sgd", "optimizer.betas=[0.8, 0.9]"], ["optimizer.betas: [0.8, 0.9] would be ignored"]),
    (["optimizer.towers.1.name=text"], ["optimizer.towers: 2 towers are named 'text'; names must differ."]),
    (["optimizer.towers.0.lr=0", "optimizer.towers.1.lr=0"], ["optimizer.towers: every tower has lr 0"]),
    (
        ["optimizer.towers.text={name: text, layers: [a], lr: 0, train_last: 2}"],
        ["optimizer.towers.text.train_last: 2 contradicts lr 0"],
    ),
    (["optimizer.towers.0.layers=[]"], ["optimizer.towers.text.layers: found []"]),
    (["optimizer.towers.0.layers=['a(']"], ["optimizer.towers.text.layers: found 'a('", "regular expression"]),
    (["optimizer.no_decay_layers=['*']"], ["optimizer.no_decay_layers: found '*'", "nothing to repeat"]),
    (
        ["schedule={warmup_steps: 1, warmup_ratio: 0.1}"],
        ["schedule.warmup_steps: ", "warmup_ratio is 0.1", "at most one"],
    ),
    (["schedule.warmup_steps=101"], ["schedule.warmup_steps: 101 is more than max_steps (100)"]),
    (["schedule={name: constant, min_lr_ratio: 0.1}"], ["schedule.min_lr_ratio: 0.1 would be ignored"]),
    (["schedule={name: step, step_every: 1 epoch}"], ["schedule.step_factor: missing, but schedule.name is step"]),
    (["schedule={name: step, step_factor: 0.5}"], ["schedule.step_every: missing, but schedule.name is step"]),
    (
        ["schedule.step_every=3 steps"],
        ["schedule.step_every: '3 steps' would be ignored, since schedule.name is cosine"],
    ),
    (["schedule.step_factor=0.1"], ["schedule.step_factor: 0.1 would be ignored, since schedule.name is cosine"]),
    (["schedule.name=cyclic"], ["schedule.cycle_length: missing, but schedule.name is cyclic, which needs it."]),
    (["schedule.cycle_length=3 steps"], ["schedule.cycle_length: '3 steps' would be ignored", "not cyclic"]),
    (
        ["data.valid_split=null", "evaluation.early_stopping.patience=3"],
        ["evaluation.early_stopping: ", "ignored, since data.valid_split is null"],
    ),
    (["data.valid_split=null", "evaluation.best_score=x"], ["evaluation.best_score: 'x' would be ignored"]),
    (
        ["evaluation={evaluate_every: null, early_stopping: {patience: 2}}"],
        ["evaluation.early_stopping: it counts evaluations, but evaluation.evaluate_every is null"],
    ),
    (
        ["checkpoint={in_background: true, save_every: null}", "data.valid_split=null"],
        ["checkpoint.in_background: true would be ignored", "nothing is saved while the run trains"],
    ),
    (["nonfinite.lr_factor=0.1"], ["nonfinite.lr_factor: 0.1 would be ignored, since nonfinite.then is stop"]),
    (["nonfinite.lr_window=9 steps"], ["nonfinite.lr_window: '9 steps' would be ignored"]),
    (["nonfinite.max_rollbacks=1"], ["nonfinite.max_rollbacks: 1 would be ignored"]),
    (["nonfinite.then=rollback", "checkpoint.save_every=null"], ["nonfinite.then: rollback", "save_every is null"]),
    (["zero.offload_optimizer=true", "engine=ddp"], ["zero.offload_optimizer: true would be ignored by engine ddp"]),
    (
        ["zero.offload_optimizer=true", "engine=fsdp2"],
        ["zero.offload_optimizer: true would be ignored by engine fsdp2"],
    ),
]


@pytest.mark.parametrize(("overrides", "parts"), CONTRADICTIONS, ids=[" ".join(given) for given, _ in CONTRADICTIONS])
def test_a_contradiction_gives_one_line(overrides: list[str], parts: list[str], errors: Errors) -> None:
    (line,) = errors(*overrides)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [DUAL],
        [DUAL, "model.image.config.depths=[1, 1]"],
        ["max_steps=null", "num_epochs=3", "schedule.warmup_steps=1000"],
        ["optimizer.name=sgd", "optimizer.momentum=0.9"],
        ["optimizer.name=lion", "optimizer.betas=[0.9, 0.99]"],
        ["optimizer.momentum=0.0"],  # the default may be said aloud
        ["optimizer.towers.text.lr=0"],
        ["loss={name: sigmoid, label_smoothing: 0.1}"],
        ["schedule={name: constant, warmup_steps: 100}"],
        ["schedule={name: step, step_every: 1 epoch, step_factor: 0.5}"],
        ["schedule={name: cyclic, cycle_length: 10 steps, min_lr_ratio: 0.1}"],
        ["zero.offload_optimizer=true"],  # the launcher may say zero2
        ["zero.offload_optimizer=true", "engine=zero1"],
        ["data.valid_split=null"],
        ["nonfinite={max_in_a_row: 0, lr_factor: 0.5}"],  # the default may be said aloud here too
        ["nonfinite={then: rollback, lr_factor: 1, lr_window: 2 epochs, max_rollbacks: 9}"],
        ["model.temperature=0.01"],  # exactly at the clamp
    ],
    ids=" ".join,
)
def test_what_fits_together(overrides: list[str], load: Load) -> None:
    assert check_rules(load(*overrides)) == []


@pytest.mark.parametrize(
    ("whole", "micro", "ranks", "expected"), [(32, 8, 1, 4), (32, 8, 2, 2), (32, 8, 4, 1), (32, 32, 1, 1), (7, 1, 7, 1)]
)
def test_num_micro_batches(whole: int, micro: int, ranks: int, expected: int, load: Load) -> None:
    config = load(f"data.global_batch_size={whole}", f"data.micro_batch_size={micro}")
    assert num_micro_batches(config, ranks) == expected


@pytest.mark.parametrize(
    ("whole", "micro", "ranks", "remedy"),
    [
        (100, 8, 4, "8 × 4 = 32 does not divide it. Use 96 or 128, or set micro_batch_size=5."),
        (100, 8, 3, "8 × 3 = 24 does not divide it. Use 96 or 120."),
        (16, 8, 4, "8 × 4 = 32 does not divide it. Use 32, or set micro_batch_size=4."),
    ],
)
def test_a_batch_that_cannot_be_cut(whole: int, micro: int, ranks: int, remedy: str, load: Load) -> None:
    config = load(f"data.global_batch_size={whole}", f"data.micro_batch_size={micro}")
    with pytest.raises(UserError) as caught:
        num_micro_batches(config, ranks)
    assert str(caught.value) == f"data.global_batch_size is {whole}, but micro_batch_size × ranks = {remedy}"


def test_every_size_that_an_error_offers_works(load: Load) -> None:
    for micro in range(1, 9):
        for ranks in range(1, 6):
            try:
                num_micro_batches(load(f"data.micro_batch_size={micro}"), ranks)
            except UserError as error:
                rule, _, offered = str(error).partition("Use ")
                assert "32" in rule
                sizes, _, smaller = offered.rstrip(".").partition(", or set micro_batch_size=")
                for size in sizes.split(" or "):
                    num_micro_batches(load(f"data.global_batch_size={size}", f"data.micro_batch_size={micro}"), ranks)
                if smaller:
                    num_micro_batches(load(f"data.micro_batch_size={smaller}"), ranks)
            else:
                assert 32 % (micro * ranks) == 0


@pytest.mark.parametrize(
    ("last_batch", "samples", "ranks", "problem"),
    [
        ("drop", 32, 4, None),
        ("drop", 33, 4, None),
        ("drop", 31, 1, "has 31 samples: with last_batch drop, an epoch has no step"),
        ("keep", 64, 4, None),
        ("keep", 68, 4, None),
        ("keep", 67, 4, "leaves 3 for the last batch after 2 of 32, fewer than the 4 ranks"),
        ("keep", 3, 4, "leaves 3 for the last batch after 0 of 32"),
        ("keep", 1, 1, None),
    ],
)
def test_the_last_batch(last_batch: str, samples: int, ranks: int, problem: str | None, load: Load) -> None:
    config = load(f"data.last_batch={last_batch}")
    if problem is None:
        check_last_batch(config, samples, ranks)
    else:
        with pytest.raises(UserError, match=problem):
            check_last_batch(config, samples, ranks)


PHASE = "phases=[{name: more, start: 5 steps, towers: [%s], schedule: %s}]"


@pytest.mark.parametrize(
    ("towers", "schedule", "part"),
    [
        ("", "null", "phases.more: it changes neither towers nor schedule"),
        ("{name: texte, lr: 0.1}", "null", "phases.more.towers: no tower is named 'texte'; optimizer.towers has"),
        ("{name: text}", "null", "phases.more.towers.text: nothing is changed"),
        ("{name: text, lr: 0.1}, {name: text, lr: 0.2}", "null", "text stands there 2 times"),
        ("{name: text, lr: 0, train_last: 2}", "null", "phases.more.towers.text.train_last: 2 contradicts lr 0"),
        ("", "{name: step}", "phases.more.schedule.step_every: missing"),
    ],
)
def test_a_phase_that_contradicts_itself(towers: str, schedule: str, part: str, errors: Errors) -> None:
    found = errors(PHASE % (towers, schedule))
    assert any(part in line for line in found), found


def test_a_phase_that_fits(load: Load) -> None:
    config = load(PHASE % ("{name: text, lr: 0.1, train_last: all}", "{name: constant}"))
    assert check_rules(config) == []
    assert config.phases[0].towers[0].train_last == "all"


@pytest.mark.parametrize(
    ("overrides", "engine", "compares_whole_batch", "found"),
    [
        ([], "ddp", False, "would be ignored: the loss adds up over micro-batches"),
        ([], "zero3", True, "can't be followed: zero3 allows no other forward pass"),
        ([], "fsdp2", True, "can't be followed: fsdp2 allows no other forward pass"),
        (["compute.activation_checkpointing=true"], "ddp", True, "contradicts compute.activation_checkpointing"),
    ],
)
def test_graphs_that_cannot_be_kept(
    overrides: list[str], engine: str, compares_whole_batch: bool, found: str, load: Load
) -> None:
    config = load("compute.kept_graphs=3", *overrides)
    with pytest.raises(UserError, match=f"compute.kept_graphs: 3 {found}"):
        check_kept_graphs(config, engine=engine, compares_whole_batch=compares_whole_batch)
    check_kept_graphs(load(*overrides), engine=engine, compares_whole_batch=compares_whole_batch)
    check_kept_graphs(load("compute.kept_graphs=3"), engine="zero2", compares_whole_batch=True)
