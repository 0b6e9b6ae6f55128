"""Each wrong value gives one line: path, value, rule, and what was probably meant."""

from collections.abc import Callable

import pytest

from accel_train.config.explain import show
from accel_train.config.schema import RunConfig
from accel_train.errors import UserError

Errors = Callable[..., list[str]]
SECTION = "a section of `key: value` lines"

# override, and what its line must hold: path, value, rule, nearest
WRONG = [
    # unknown keys
    ("epochs=3", ["epochs: no such key", "found 3", "Nearest: num_epochs."]),
    ("max_step=3", ["max_step: no such key", "found 3", "Nearest: max_steps."]),
    ("batch_size=8", ["batch_size: no such key", "Nearest: data.global_batch_size."]),
    ("output_dir=x", ["output_dir: no such key", "found 'x'", "Nearest: run_dir."]),
    ("data.batchsize=8", ["data.batchsize: no such key", "Nearest: data.global_batch_size."]),
    ("data.augmentation.flip=0.5", ["data.augmentation.flip: no such key", "horizontal_flip"]),
    ("optimizer.towers.0.learning_rate=1", ["optimizer.towers.text.learning_rate", "optimizer.towers.text.lr"]),
    ("optimizer.towers.rest.wd=0.1", ["optimizer.towers.rest.wd: no", "Nearest: optimizer.towers.rest.weight_decay."]),
    ("optimizer.lr=1e-3", ["optimizer.lr: no such key", "found 0.001", "Nearest: optimizer.towers.*.lr."]),
    ("optimizer.grad_clip=1", ["optimizer.grad_clip: no such key", "Nearest: optimizer.max_grad_norm."]),
    ("schedule.warmup=10", ["schedule.warmup: no such key", "Nearest: schedule.warmup_steps."]),
    ("model.image={}", ["model.image: no such key with type clip", "Keys of this section: attention,"]),
    ("model.qqq=1", ["model.qqq: no such key with type clip", "found 1", "Keys of this section: attention,"]),
    ("evaluation.early_stopping={patience: 1, xx: 2}", ["evaluation.early_stopping.xx: no such key", "min_delta"]),
    # wrong types
    ("data.image_size=224px", ["data.image_size: found '224px'; it must be a whole number."]),
    ("data.image_size=true", ["data.image_size: found true; it must be a whole number."]),
    ("data.image_size=null", ["data.image_size: found null; it must be a whole number."]),
    ("max_steps=1e3", ["max_steps: found 1000.0; it must be a whole number."]),
    ("max_steps='3'", ["max_steps: found '3'; it must be a whole number."]),
    ("data.shuffle=yes", ["data.shuffle: found 'yes'; it must be true or false."]),
    ("data.path=3", ["data.path: found 3; it must be text."]),
    ("optimizer.weight_decay=a", ["optimizer.weight_decay: found 'a'; it must be a number."]),
    ("optimizer.weight_decay=.inf", ["optimizer.weight_decay: found inf; it must be a finite number."]),
    ("data.image_mean=[0, 0, .nan]", ["data.image_mean.2: found nan; it must be a finite number."]),
    ("optimizer.towers=3", ["optimizer.towers: found 3; it must be a list."]),
    ("optimizer.towers.0=x", [f"optimizer.towers.0: found 'x'; it must be {SECTION}."]),
    ("optimizer.towers.0.layers=3", ["optimizer.towers.text.layers: found 3; it must be text or a list."]),
    ("optimizer.towers.0.layers=[a, 3]", ["optimizer.towers.text.layers.1: found 3; it must be text."]),
    ("checkpoint=3", [f"checkpoint: found 3; it must be {SECTION}."]),
    ("model=clip", [f"model: found 'clip'; it must be {SECTION}."]),
    ("model=null", [f"model: found null; it must be {SECTION}."]),
    ("model.config=3", [f"model.config: found 3; it must be {SECTION}."]),
    # out of range
    ("data.micro_batch_size=0", ["data.micro_batch_size: found 0; it must be at least 1."]),
    ("seed=-1", ["seed: found -1; it must be at least 0."]),
    ("seed=4294967296", ["seed: found 4294967296; it must be less than 4294967296."]),
    ("loss.label_smoothing=1.0", ["loss.label_smoothing: found 1.0; it must be less than 1."]),
    ("optimizer.towers.0.layer_decay=1.5", ["optimizer.towers.text.layer_decay: found 1.5; it must be at most 1."]),
    ("optimizer.eps=0", ["optimizer.eps: found 0; it must be greater than 0."]),
    ("optimizer.betas=[0.9, 1]", ["optimizer.betas.1: found 1; it must be less than 1."]),
    ("optimizer.betas=[0.9]", ["optimizer.betas: found [0.9]; it must be a list of 2 values."]),
    ("data.image_std=[1, 1, 1, 1]", ["data.image_std: found [1, 1, 1, 1]; it must be a list of 3 values."]),
    ("optimizer.towers=[]", ["optimizer.towers: found []; it must be a list with at least one item."]),
    # choices and forms
    ("precision=bfloat16", ["precision: found 'bfloat16'; it must be one of fp32, bf16, fp16. Nearest: bf16."]),
    ("engine=zero-2", ["engine: found 'zero-2'; it must be one of ddp, zero1, zero2, zero3, fsdp2. Nearest: zero2."]),
    ("optimizer.name=AdamW", ["optimizer.name: found 'AdamW'; it must be one of", "Nearest: adamw."]),
    ("model.type=chineseclip", ["model.type: found 'chineseclip'; it must be one of", "Nearest: chinese_clip."]),
    ("model.type=3", ["model.type: found 3; it must be one of chinese_clip, clip, siglip, dual_encoder."]),
    ("log.log_every=10", ["log.log_every: found 10; it must be like '500 steps' or '1 epoch'."]),
    ("evaluation.evaluate_every=1", ["evaluation.evaluate_every: found 1; it must be like '500 steps' or '1 epoch'."]),
    ("log.log_every=10 iters", ["log.log_every: found '10 iters'; it must be like '500 steps' or '1 epoch'."]),
    ("checkpoint.save_every=0 steps", ["checkpoint.save_every: found '0 steps'; it must be like '500 steps'"]),
    ("optimizer.towers.0.name=Text", ["optimizer.towers.Text.name: found 'Text'; it must be lower-case letters"]),
    # missing
    ("model={size: tiny}", ["model.type: missing, and it has no default. One of chinese_clip, clip, siglip, dual"]),
    ("data={path: p, tokenizer: t, micro_batch_size: 1}", ["data.global_batch_size: missing, and it has no default."]),
    ("evaluation.early_stopping={}", ["evaluation.early_stopping.patience: missing", "Evaluations without a better"]),
    ("optimizer.towers=[{name: a, layers: x}]", ["optimizer.towers.a.lr: missing, and it has no default."]),
    # a key under another name is one mistake, though the right key is missing
    ("optimizer.towers=[{name: a, layers: x, learning_rate: 1}]", ["towers.a.learning_rate", "optimizer.towers.a.lr."]),
    ("data={path: p, tokenizer: t, micro_batch_size: 1, batch_size: 3}", ["data.batch_size: no such key"]),
]


@pytest.mark.parametrize(("override", "parts"), WRONG, ids=[override for override, _ in WRONG])
def test_one_mistake_gives_one_line(override: str, parts: list[str], errors: Errors) -> None:
    (line,) = errors(override)
    for part in parts:
        assert part in line


def test_all_mistakes_come_at_once(errors: Errors) -> None:
    lines = errors(
        "epochs=3", "data.image_size=x", "optimizer.towers.0.lr=-1", "engine=zero", "data.shuffle.x=1", "nonsense"
    )
    assert [line.split(":")[0] for line in lines] == [
        "override 'nonsense'",
        "epochs",
        "engine",
        "data.image_size",
        "data.shuffle",
        "optimizer.towers.text.lr",
    ]


def test_a_dual_encoder_is_checked_as_one(load_text: Callable[[str], RunConfig]) -> None:
    text = """
run_dir: r
max_steps: 1
model: {type: dual_encoder, size: tiny, image: {pretrained: a, poling: cls}, text: {architecture: bert}}
data: {path: p, tokenizer: t, global_batch_size: 2, micro_batch_size: 2}
optimizer: {towers: [{name: a, layers: x, lr: 1}]}
"""
    with pytest.raises(UserError) as caught:
        load_text(text)
    message = str(caught.value)
    assert "model.size: no such key with type dual_encoder (found 'tiny')" in message
    assert "model.image.poling: no such key (found 'cls')" in message
    assert "2 errors" in message


def test_long_values_are_cut() -> None:
    assert show("x" * 200) == "'" + "x" * 58 + "…"
    assert show([None]) == "[None]"
    assert show(None) == "null"
