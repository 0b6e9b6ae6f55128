"""What `embed` writes is what transformers computes, and no kill changes a byte of it."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from accel_train import cli
from accel_train.data.feature_file import read_features
from accel_train.data.splits import open_split
from accel_train.errors import UserError
from accel_train.tools import embed as module
from accel_train.tools.embed import Asked, embed
from tests.tools.conftest import BATCH_SIZE, NUM_IMAGES, NUM_TEXTS, encoded_image
from tests.tools.plain import image_features, text_features, write_images

NUM_BLOCKS = -(-NUM_IMAGES // BATCH_SIZE) + -(-NUM_TEXTS // BATCH_SIZE)
OF_SPLIT = Asked(None, "valid", None, None)
Run = Callable[..., dict[str, Any]]

# Kills itself while the third block is written: its file is there, but not yet under its name.
KILLED = """
import os, signal, sys
from accel_train import cli
from accel_train.tools import feature_blocks
syncs = 0
def sync(path):
    global syncs
    syncs += str(path).endswith(".partial")
    if syncs == 3:
        os.kill(os.getpid(), signal.SIGKILL)
feature_blocks.sync = sync
cli.main(sys.argv[1:])
"""


@pytest.fixture
def run(exported: str, tmp_path: Path) -> Run:
    """run(name, asked, override, ..., source=...) embeds into a file of that name."""

    def run(name: str, asked: Asked = OF_SPLIT, *overrides: str, source: str = exported) -> dict[str, Any]:
        return embed(source, str(tmp_path / name), asked, overrides=list(overrides), checkpoint=None, as_json=True)

    return run


@pytest.mark.parametrize("ending", ["safetensors", "parquet"])
def test_features_of_a_split_are_those_of_transformers(
    run: Run, exported: str, pairs_folder: str, tmp_path: Path, ending: str
) -> None:
    summary = run(f"features.{ending}")
    found = read_features(tmp_path / f"features.{ending}")
    opened = open_split(pairs_folder, "valid")
    images = [opened.images.value("image", row) for row in range(NUM_IMAGES)]
    texts = [opened.texts.value("text", row) for row in range(NUM_TEXTS)]
    torch.testing.assert_close(found.image_features, image_features(exported, images), atol=2e-6, rtol=0)
    torch.testing.assert_close(found.text_features, text_features(exported, texts), atol=2e-6, rtol=0)
    assert found.image_ids == [f"img{row}" for row in range(NUM_IMAGES)]
    assert found.text_ids == [f"txt{row}" for row in range(NUM_TEXTS)]
    assert found.fingerprint == opened.fingerprint
    assert found.source == f"export {exported}"
    assert found.image_features is not None
    assert (found.image_features @ found.image_features.T - torch.eye(NUM_IMAGES)).max() < 0.999, (
        "all images look alike"
    )
    assert (summary["num_images"], summary["num_texts"]) == (NUM_IMAGES, NUM_TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == [f"features.{ending}"]


def test_a_folder_of_images_and_a_file_of_texts(run: Run, exported: str, tmp_path: Path) -> None:
    images = {"b.png": encoded_image(1), "a/2.png": encoded_image(2), "a/1.png": encoded_image(3)}
    write_images(tmp_path / "images", images)
    run("images.safetensors", Asked(None, None, str(tmp_path / "images"), None))
    found = read_features(tmp_path / "images.safetensors")
    assert found.image_ids == sorted(images)
    assert (found.text_features, found.fingerprint) == (None, None)
    wanted = image_features(exported, [images[name] for name in sorted(images)])
    torch.testing.assert_close(found.image_features, wanted, atol=2e-6, rtol=0)

    (tmp_path / "texts.txt").write_text("一只猫\n大树\n", encoding="utf-8")
    run("texts.parquet", Asked(None, None, None, str(tmp_path / "texts.txt")))
    found = read_features(tmp_path / "texts.parquet")
    assert found.text_ids == ["一只猫", "大树"]
    torch.testing.assert_close(found.text_features, text_features(exported, ["一只猫", "大树"]), atol=2e-6, rtol=0)


def test_bad_images_are_named_and_counted(run: Run, tmp_path: Path) -> None:
    """Within the budget they are left out, also when they were met before an interruption."""
    images = {f"{number}.png": encoded_image(number) for number in range(8)} | {"3.png": b"bad", "7.png": b"bad"}
    write_images(tmp_path / "images", images)
    asked = [Asked(None, None, str(tmp_path / "images"), None, max_unreadable=budget) for budget in range(3)]
    with pytest.raises(UserError, match=r"1 image can't be read .* --max-unreadable is 0(.|\n)*3\.png: not an image"):
        run("features.safetensors", asked[0])
    with pytest.raises(UserError, match=r"2 images can't be read(.|\n)*3\.png(.|\n)*7\.png"):
        run("features.safetensors", asked[1])
    summary = run("features.safetensors", asked[2])
    assert summary["left_out"] == ["3.png", "7.png"]
    found = read_features(tmp_path / "features.safetensors")
    assert found.image_ids == ["0.png", "1.png", "2.png", "4.png", "5.png", "6.png"]

    write_images(tmp_path / "bad", {"x.png": b"bad"})
    with pytest.raises(UserError, match="none of the image inputs can be read"):
        run("bad.safetensors", Asked(None, None, str(tmp_path / "bad"), None, max_unreadable=9))


def test_an_interrupted_command_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("whole.safetensors")
    compute, computed = module._compute, []

    def interrupted_after(limit: int) -> None:
        def compute_or_stop(engine: Any, block: Any, *others: Any) -> Any:
            if len(computed) == limit:
                raise KeyboardInterrupt
            computed.append(block)
            return compute(engine, block, *others)

        monkeypatch.setattr(module, "_compute", compute_or_stop)

    for limit in (2, 2, NUM_BLOCKS - 1):
        interrupted_after(limit)
        with pytest.raises(KeyboardInterrupt):
            run("cut.safetensors")
        assert not (tmp_path / "cut.safetensors").exists()
    interrupted_after(-1)
    run("cut.safetensors")
    assert len(computed) == len(set(computed)) == NUM_BLOCKS, "a block was computed twice or never"
    assert (tmp_path / "cut.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_kill_after_the_file_has_its_name(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(folder: Path) -> None:
        next(folder.glob("text_*")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            run("features.safetensors")
    before = (tmp_path / "features.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds unfinished features of other work; different: precision"):
        run("features.safetensors", OF_SPLIT, "precision=bf16")
    run("features.safetensors")
    assert (tmp_path / "features.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["features.safetensors"]


@pytest.mark.slow
def test_a_killed_process(run: Run, exported: str, tmp_path: Path) -> None:
    run("whole.safetensors")
    output = tmp_path / "killed.safetensors"
    argv = [sys.executable, "-c", KILLED, "embed", exported, str(output), "--split", "valid"]
    killed = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    parts = sorted(path.suffix for path in (tmp_path / "killed.safetensors.parts").iterdir())
    assert parts == ["", ".json", ".partial", ".safetensors", ".safetensors"], "the lock among them, which nobody holds"
    run("killed.safetensors")
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not output.with_name("killed.safetensors.parts").exists()


def test_two_commands_do_not_write_one_file(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "features.safetensors.parts"
    folder.mkdir()
    holder = f"""
import sys
from pathlib import Path
from accel_train.run_lock import RunLock
lock = RunLock(Path({str(folder / module.LOCK)!r}), what="", say=print)
print("holds it", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"holds it\n"
        with pytest.raises(
            UserError, match=rf"features\.safetensors: another command is writing it \(process {other.pid} "
        ):
            run("features.safetensors")
        assert [path.name for path in folder.iterdir()] == [module.LOCK]
        other.kill()
    run("features.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["features.safetensors"]


def test_left_over_parts_of_other_work_are_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_compute", stop)
        with pytest.raises(KeyboardInterrupt):
            run("features.safetensors")
    (tmp_path / "texts.txt").write_text("一只猫\n", encoding="utf-8")
    for asked, overrides, different in (
        (OF_SPLIT, ["data.micro_batch_size=1", "data.resize=crop"], "images, batch size"),
        (Asked(None, None, None, str(tmp_path / "texts.txt")), [], "input"),
        (OF_SPLIT, ["model.max_logit_scale=50"], "model"),
    ):
        with pytest.raises(UserError, match=rf"\.parts holds .* different: {different}\. Repeat the command"):
            run("features.safetensors", asked, *overrides)
    (tmp_path / "features.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match="can't be read as a file of features"):
        run("features.safetensors")
    assert (tmp_path / "features.safetensors").read_bytes() == b"mine"


def test_a_configuration_with_pretrained_weights_is_a_model_too(run: Run, exported: str, tmp_path: Path) -> None:
    """A teacher that was never trained here: model.pretrained or initialize_from, but never random weights."""
    run("export.safetensors")
    wanted = read_features(tmp_path / "export.safetensors")
    values = yaml.safe_load((Path(exported) / "accel_train.yaml").read_text(encoding="utf-8"))
    values["data"]["tokenizer"] = exported

    def written(**changes: Any) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values | changes, allow_unicode=True), encoding="utf-8")
        return str(path)

    with pytest.raises(UserError, match="the model it describes has random weights"):
        run("random.safetensors", source=written())
    pretrained = values["model"] | {"pretrained": exported, "size": None, "config": {}}
    for name, source in (
        ("pretrained", written(model=pretrained)),
        ("initialized", written(initialize_from=exported)),
    ):
        run(f"{name}.safetensors", source=source)
        found = read_features(tmp_path / f"{name}.safetensors")
        assert found.image_features is not None and wanted.image_features is not None
        assert torch.equal(found.image_features, wanted.image_features)
        assert found.source == f"{source} (weights of {exported})"


@pytest.mark.parametrize(
    ("asked", "name", "message"),
    [
        (OF_SPLIT, "features.npy", "ends in .safetensors or .parquet"),
        (OF_SPLIT, "absent/features.parquet", "there is no folder"),
        (OF_SPLIT, "there.parquet", "exists already, and nothing is overwritten"),
        (Asked(None, "train", None, None), "f.parquet", "no split 'train'; it has valid"),
        (Asked("data", None, "images", None), "f.parquet", "--data names the dataset of --split"),
        (Asked(None, "valid", None, None, max_unreadable=1), "f.parquet", "--max-unreadable is for --images"),
    ],
)
def test_what_can_not_work_is_refused_at_once(run: Run, tmp_path: Path, asked: Asked, name: str, message: str) -> None:
    (tmp_path / "there.parquet").write_bytes(b"mine")
    with pytest.raises(UserError, match=message):
        run(name, asked)
    assert [path.name for path in tmp_path.iterdir()] == ["there.parquet"]


def test_the_command(exported: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("一只猫\n", encoding="utf-8")
    output, texts = str(tmp_path / "features.parquet"), str(tmp_path / "texts.txt")
    argv = ["embed", exported, output, "--texts", texts]
    assert cli.main([*argv, "--checkpoint", "latest"]) == 2
    assert "is no run; it has no checkpoints to choose from" in capsys.readouterr().err
    assert cli.main([*argv, "--images", str(tmp_path)]) == 2
    assert "not allowed with argument --texts" in capsys.readouterr().err
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"export {exported}", f"texts of {texts}: 1 text, features of length 16", f"→ {output}"]
    assert cli.main([*argv[:2], str(tmp_path / "f.safetensors"), *argv[3:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_texts"] == 1
