import json
from pathlib import Path
from typing import Any

import pytest

from accel_train.cli import main
from accel_train.config.contrastive import ClipModelSection, ContrastiveConfig
from accel_train.config.load import load_config
from accel_train.errors import UserError
from accel_train.models.sizes import SIZES
from accel_train.optim.schedule import lr_scale
from accel_train.tools.migrate.command import migrate
from accel_train.tools.migrate.options import OPTIONS, TEXT_MODELS, VISION_MODELS, read_options

SCRIPT = """#!/usr/bin/env bash
# GPUs of each worker
GPUS_PER_NODE=4
WORKER_CNT=2
export RANK=0
export MASTER_ADDR=XX.XX.XX.XX
export PYTHONPATH=${PYTHONPATH}:`pwd`/cn_clip/

DATAPATH=${1}
train_data=${DATAPATH}/datasets/MUGE/lmdb/train
val_data=${DATAPATH}/datasets/MUGE/lmdb/valid # without it: no validation
resume=${DATAPATH}/pretrained_weights/clip_cn_vit-b-16.pt
reset_optimizer="--reset-optimizer"
# reset_optimizer=""
name="muge finetune"
lr=5e-5  # or 3e-6

python3 -m torch.distributed.launch --use_env --nproc_per_node=${GPUS_PER_NODE} --nnodes=${WORKER_CNT} \\
    --node_rank=${RANK} --master_addr=${MASTER_ADDR} cn_clip/training/main.py \\
    --train-data=${train_data} \\
    --val-data ${val_data} \\
    --resume=${resume} \\
    --reset-data-offset \\
    ${reset_optimizer} \\
    --logs=${DATAPATH}/experiments/ \\
    --name="${name}" \\
    --save-step-frequency=999999 \\
    --batch-size=128 --accum-freq=2 \\
    --valid-step-interval=150 \\
    --lr=${lr} --wd=0.001 --warmup=100 --max-epochs=3 \\
    --use-augment --grad-checkpointing 2>&1 | tee log.txt
"""
DATA = "--train-data=data/lmdb/train"


def migrated(tmp_path: Path, *options: str, ranks: int | None = 1, script: str | None = None) -> ContrastiveConfig:
    source = None
    if script is not None:
        source = tmp_path / "run.sh"
        source.write_text(script)
    output = tmp_path / "config.yaml"
    migrate(
        str(source) if source else None,
        str(output),
        arguments=["/data"] if source else [],
        variables={},
        options=list(options),
        ranks=ranks,
        as_json=False,
    )
    config = load_config(output)
    assert isinstance(config, ContrastiveConfig)
    return config


def test_a_script_becomes_a_configuration(tmp_path: Path) -> None:
    config = migrated(tmp_path, script=SCRIPT, ranks=None)
    assert config.run_dir == "/data/experiments/muge finetune"
    assert (config.num_epochs, config.max_steps, config.seed, config.precision) == (3, None, 123, "fp16")
    assert isinstance(config.model, ClipModelSection)
    assert config.model.pretrained == "/data/pretrained_weights/clip_cn_vit-b-16.pt"
    assert config.model.max_logit_scale == pytest.approx(100.00298)
    data = config.data
    assert (data.path, data.train_split, data.valid_split) == ("datasets/MUGE", "train", "valid")
    assert (data.micro_batch_size, data.global_batch_size) == (128, 128 * 4 * 2 * 2)
    assert (data.tokenizer, data.text_cleaning, data.decoding) == ("cn_clip/clip/vocab.txt", "chinese_clip", "exact")
    assert (data.augmentation.crop_scale, data.augmentation.horizontal_flip) == ([0.9, 1.0], 0.5)
    assert data.augmentation.auto_augment
    assert config.loss.positives == "own"
    optimizer = config.optimizer
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ([0.9, 0.98], 1e-6, 0.001)
    assert optimizer.no_decay == "chinese_clip"
    assert {tower.lr for tower in optimizer.towers} == {5e-5}
    assert (config.evaluation.evaluate_every, config.checkpoint.save_every) == ("150 steps", "1 epoch")
    assert config.compute.activation_checkpointing
    assert config.initialize_from is None


def test_each_option_of_the_original_is_known() -> None:
    assert len(OPTIONS) == 46
    assert len({option.name for option in OPTIONS}) == 46


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["--freeze-vision"], "optimizer.towers.image.lr", 0.0),
        (["--freeze-vision"], "optimizer.towers.text.lr", 5e-4),
        (["--vision-model=ViT-L-14"], "optimizer.towers.text.lr", 4e-4),
        (["--vision-model=RN50"], "optimizer.betas", [0.9, 0.999]),
        (["--vision-model=RN50"], "model.batch_norm", "local"),
        (["--vision-model=RN50", "--use-bn-sync"], "model.batch_norm", "sync"),
        (["--vision-model=RN50", "--use-bn-sync", "--freeze-vision"], "model.batch_norm", "frozen"),
        (["--vision-model=ViT-L-14-336"], "data.image_size", 336),
        (["--mask-ratio", "0.5"], "model.mask_ratio", 0.5),
        (["--mask-ratio", "0.5", "--vision-model", "RN50"], "model.mask_ratio", 0.0),
        (["--use-flash-attention"], "model.attention", "flash_attention_2"),
        (["--precision=fp32"], "precision", "fp32"),
        (["--precision=fp16"], "precision", "fp16"),
        (["--max-steps=700", "--max-epochs=3"], "max_steps", 700),
        (["--max-steps=700", "--max-epochs=3"], "num_epochs", None),
        (["--accum-freq=3"], "data.global_batch_size", 192),
        (["--accum-freq=3"], "data.last_batch", "drop"),
        (["--accum-freq=1"], "data.last_batch", "keep"),
        (["--skip-scheduler"], "schedule.name", "constant"),
        (["--clip-weight-path=a.pt"], "model.vision_pretrained", "a.pt"),
        (["--bert-weight-path", "b.bin"], "model.text_pretrained", "b.bin"),
        (["--resume=a.pt"], "initialize_from", "a.pt"),
        (["--resume=a.pt"], "initialize_optimizer", True),
        (["--resume=a.pt", "--reset-optimizer"], "initialize_from", None),
        (["--lr=1", "--lr=2e-5"], "optimizer.towers.image.lr", 2e-5),
        (["--log-int=7"], "log.log_every", "7 steps"),
        (["--save-step-frequency=20"], "checkpoint.save_every", "20 steps"),
        (["--save-epoch-frequency=2"], "checkpoint.save_every", "2 epochs"),
        (["--val-data=data/lmdb/dev", "--valid-step-interval=999999"], "evaluation.evaluate_every", "1 epoch"),
        (["--val-data=data/lmdb/dev", "--valid-batch-size=9"], "evaluation.batch_size", 9),
        (["--val-data=data/lmdb/dev"], "data.valid_split", "dev"),
        (
            ["--distillation", "--teacher-model-name=damo/multi-modal_clip-vit-huge-patch14_zh"],
            "distillation.weight",
            0.5,
        ),
        (
            ["--distillation", "--teacher-model-name=damo/multi-modal_rleg-vit-large-patch14"],
            "distillation.teacher",
            None,
        ),
        (["--logs=None", "--name=x"], "run_dir", "runs/x"),
    ],
)
def test_one_option(tmp_path: Path, options: list[str], key: str, value: Any) -> None:
    found: Any = migrated(tmp_path, DATA, *options).model_dump()
    for part in key.split("."):
        found = next(item for item in found if item["name"] == part) if isinstance(found, list) else found[part]
    assert found == value


@pytest.mark.parametrize("text", TEXT_MODELS)
@pytest.mark.parametrize("vision", VISION_MODELS)
def test_every_pair_of_towers_has_a_size(tmp_path: Path, vision: str, text: str) -> None:
    model = migrated(tmp_path, DATA, f"--vision-model={vision}", f"--text-model={text}").model
    assert isinstance(model, ClipModelSection)
    assert model.size in SIZES["chinese_clip"]
    size = SIZES["chinese_clip"][model.size]
    layers = size["text_config"] | model.config.get("text_config", {})
    wanted = {"large": (24, 1024, 16), "base": (12, 768, 12), "RBT3-chinese": (3, 768, 12)}
    shape = layers.get("num_hidden_layers", 12), layers.get("hidden_size", 768), layers.get("num_attention_heads", 12)
    assert shape == next(figures for name, figures in wanted.items() if name in text)
    if vision != "RN50":
        image = size["vision_config"] | model.config.get("vision_config", {})
        assert image["patch_size"] == int(vision.split("-")[2])


@pytest.mark.parametrize(("vision", "maps"), [("ViT-B-16", True), ("ViT-H-14", False), ("RN50", False)])
def test_a_teacher_of_another_width_has_a_tower_for_its_map(tmp_path: Path, vision: str, maps: bool) -> None:
    teacher = "damo/multi-modal_clip-vit-huge-patch14_zh"
    config = migrated(tmp_path, DATA, "--distillation", f"--teacher-model-name={teacher}", f"--vision-model={vision}")
    assert ("teacher" in [tower.name for tower in config.optimizer.towers]) == maps


def test_the_rate_of_the_original(tmp_path: Path) -> None:
    """(s + 1) / w, then half a cosine over what is left."""
    schedule = migrated(tmp_path, DATA, "--warmup=4", "--max-steps=12").schedule
    scales = [lr_scale(step, schedule, total_steps=12, steps_per_epoch=5) for step in range(12)]
    assert scales[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert scales[8] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr=1e-5"], "--train-data is missing"),
        ([DATA, "--leraning-rate=1"], "--leraning-rate is not one of the 46 options"),
        ([DATA, "--warm-up=1"], "Nearest: --warmup"),
        ([DATA, "--lr=fast"], "argument --lr: invalid float value: 'fast'"),
        ([DATA, "--precision=bf16"], "invalid choice: 'bf16'"),
        ([DATA, "more"], "'more' stands among the trainer's options"),
        ([DATA, "--val-data=other/lmdb/valid"], "has all its splits in one folder"),
        ([DATA, "--use-flash-attention", "--precision=fp32"], "needs fp16"),
        ([DATA, "--distillation"], "needs --teacher-model-name"),
        ([DATA, "--max-steps=10"], "schedule.warmup_steps: 500 is more than max_steps"),
        ([DATA, "--log-interval=0"], "--log-interval is 0 steps; it must be at least 1"),
    ],
)
def test_refused(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        migrated(tmp_path, *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (SCRIPT.replace("${1}", "${2}"), "--train-data= can't be told: line 9 takes argument 2"),
        (SCRIPT.replace("lr=5e-5", "lr=`cat lr`"), "--lr= can't be told: line 16 needs a shell"),
        (SCRIPT.replace("GPUS_PER_NODE=4", "GPUS_PER_NODE=`nvidia-smi -L | wc -l`"), r"Give --ranks N"),
        (SCRIPT.replace("training/main.py", "training/others.py"), "0 commands start the original trainer"),
        (SCRIPT + SCRIPT, r"2 commands start the original trainer .*: lines 18, 49"),
    ],
)
def test_a_script_that_does_not_say_it_all(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        migrated(tmp_path, script=script, ranks=None)


def test_options_after_the_script_count_last(tmp_path: Path) -> None:
    config = migrated(tmp_path, "--lr=1e-6", "--max-steps=900", script=SCRIPT, ranks=None)
    assert {tower.lr for tower in config.optimizer.towers} == {1e-6}
    assert config.max_steps == 900


def test_a_whole_command_after_the_dashes(tmp_path: Path) -> None:
    command = f"torchrun --nproc-per-node 3 src/cn_clip/training/main.py {DATA} --batch-size 5".split()
    config = migrated(tmp_path, *command, ranks=None)
    assert config.data.global_batch_size == 15
    assert config.data.tokenizer == "src/cn_clip/clip/vocab.txt"


def test_ranks_of_the_user_go_before_the_scripts(tmp_path: Path) -> None:
    assert migrated(tmp_path, script=SCRIPT, ranks=1).data.global_batch_size == 256


def test_the_command_says_what_became_of_each_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "config.yaml"
    arguments = [
        "migrate",
        "-o",
        str(output),
        "--ranks",
        "2",
        "--json",
        "--",
        DATA,
        "--skip-scheduler",
        "--skip-aggregate",
    ]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["options"]) == 46
    rows = {row["option"]: row for row in report["options"]}
    assert rows["--train-data"]["given"] and not rows["--lr"]["given"]
    assert rows["--skip-scheduler"]["attention"] and "never uses it" in rows["--skip-scheduler"]["note"]
    assert "compared 64 pairs on each GPU alone; here all 128 are" in rows["--skip-aggregate"]["note"]
    assert report["commands"][0] == "accel-train import data/lmdb datasets/data"
    text = output.read_text()
    assert "# --skip-scheduler: the rate is constant now" in text
    assert "global_batch_size: 128" in text and "# 64 × 2 ranks × 1 (--accum-freq)" in text


def test_what_was_given_is_listed_and_nothing_is_broken_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    migrated(tmp_path, script=SCRIPT, ranks=None)
    shown = capsys.readouterr().out
    for option in ("--train-data", "--accum-freq", "--use-augment"):
        assert f"\n{option} " in f"\n{shown}"
    assert "\n--seed" not in shown and "seed" in shown.partition("not given")[2]
    assert "\n--valid-step-interval 150 → evaluation.evaluate_every\n" in shown
    assert all(len(line) <= 60 for line in shown.splitlines() if line.startswith("    "))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    migrated(tmp_path, DATA)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match="exists already"):
        migrated(tmp_path, DATA, "--lr=1")
    assert (tmp_path / "config.yaml").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_beginnings_of_options_must_be_of_one_option() -> None:
    with pytest.raises(UserError, match="ambiguous option"):
        read_options([DATA, "--valid=1"])


def test_without_a_script_or_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "-o", "config.yaml"]) == 2
    assert "neither a script nor options" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["LR", "$LR=1", "=1", "--lr=1"])
def test_a_variable_needs_a_name_and_a_value(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "run.sh", "-o", "config.yaml", f"--set={wrong}"]) == 2
    assert f"--set: found {wrong!r}; it must be NAME=VALUE" in capsys.readouterr().err
