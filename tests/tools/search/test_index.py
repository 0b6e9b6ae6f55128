"""An index holds what was embedded, embeds nothing twice, and survives a kill at any moment."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from accel_train.errors import UserError
from accel_train.tools.search import index as module
from accel_train.tools.search import segments
from accel_train.tools.search.collection import FolderImages
from accel_train.tools.search.encoder import Encoder
from accel_train.tools.search.index import Indexed, held, update
from tests.tools.conftest import BATCH_SIZE, encoded_image
from tests.tools.plain import image_features

Update = Callable[[], Indexed]

# Kills itself when the third segment is on disk but not yet under its name.
KILLED = """
import os, signal, sys
from accel_train import cli
from accel_train.tools.search import segments
def sync(path, real=segments.sync):
    real(path)
    if path.name == "image_00000003.partial":
        os.kill(os.getpid(), signal.SIGKILL)
segments.sync = sync
cli.main(sys.argv[1:])
"""

HOLDS_LOCK = """
import sys
from pathlib import Path
from accel_train.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]), what="index", say=print)
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each batch that went through the model had."""
    counts: list[int] = []
    real = module.features_of

    def counting(engine: object, kind: str, columns: dict[str, torch.Tensor], batch_size: int) -> torch.Tensor:
        counts.append(len(columns["sample_id"]))
        return real(engine, kind, columns, batch_size)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "features_of", counting)
    return counts


@pytest.fixture
def run(encoder: Encoder, photos: Path, tmp_path: Path) -> Update:
    """Brings the index of the photos up to date."""

    def run() -> Indexed:
        collection = FolderImages(str(photos), encoder.config.data)
        with held(tmp_path / "index", collection.location):
            return update(tmp_path / "index", collection, encoder, show_progress=False)

    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_features_are_those_of_transformers(run: Update, exported: str, images: dict[str, bytes]) -> None:
    found = run()
    wanted = image_features(exported, list(images.values()))
    torch.testing.assert_close(found.features, wanted, atol=2e-6, rtol=0)
    assert found.rows == list(range(8))
    assert (found.num_embedded, found.num_kept, found.num_removed, found.unreadable) == (8, 0, 0, ())


def test_only_new_and_changed_images_are_embedded(
    run: Update, photos: Path, tmp_path: Path, images: dict[str, bytes], exported: str, computed: list[int]
) -> None:
    first = run()
    assert sum(computed) == 8
    computed.clear()
    again = run()
    assert computed == []
    assert torch.equal(again.features, first.features)
    assert (again.num_embedded, again.num_kept, again.token) == (0, 8, first.token)

    (photos / "02.png").unlink()
    (photos / "03.png").write_bytes(encoded_image(5))
    (photos / "new").mkdir()
    (photos / "new" / "01.png").write_bytes(encoded_image(6))
    changed = run()
    assert sum(computed) == 2
    assert (changed.num_embedded, changed.num_kept, changed.num_removed) == (2, 6, 1)
    assert changed.token != first.token
    left = images | {"03.png": encoded_image(5), "new/01.png": encoded_image(6)}
    del left["02.png"]
    wanted = image_features(exported, [left[name] for name in sorted(left)])
    torch.testing.assert_close(changed.features, wanted, atol=2e-6, rtol=0)
    assert len(names(tmp_path / "index")) == 2, "index.json and one segment"


def test_images_that_cannot_be_read_are_named_and_not_tried_again(
    run: Update, photos: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "01.png").write_bytes(b"no image")
    (photos / "05.png").write_bytes(encoded_image(5)[:300])
    found = run()
    assert found.rows == [0, 2, 3, 4, 6, 7]
    assert [line.partition(": ")[0] for line in found.unreadable] == [
        str(photos / name) for name in ("01.png", "05.png")
    ]
    assert "not an image of a known format" in found.unreadable[0]
    with monkeypatch.context() as patched:
        patched.setattr(module, "replies_for", None)
        assert run().unreadable == found.unreadable
    computed.clear()
    (photos / "01.png").write_bytes(encoded_image(1))
    mended = run()
    assert computed == [1]
    assert len(mended.rows) == 7
    assert len(mended.unreadable) == 1


def test_nothing_that_can_be_read_is_an_error(run: Update, photos: Path) -> None:
    for path in photos.iterdir():
        path.write_bytes(b"bad")
    with pytest.raises(UserError, match=r"none of the 8 can be read, the first: .*00\.png: not an image"):
        run()


def test_other_weights_build_it_anew(run: Update, encoder: Encoder, tmp_path: Path, computed: list[int]) -> None:
    first = run()
    parameter = next(value for name, value in encoder.model.named_parameters() if "visual_projection" in name)
    before = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter[0].mul_(3)
        other = run()
    finally:
        with torch.no_grad():
            parameter.copy_(before)
    assert (sum(computed), other.num_embedded) == (16, 8)
    assert not torch.allclose(first.features, other.features)
    assert len(names(tmp_path / "index")) == 2, "the old model's features are gone"


@pytest.mark.parametrize("moment", range(1, 9))
def test_interrupted_anywhere_it_goes_on(
    run: Update, tmp_path: Path, moment: int, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files reach the disk in eight moments: three segments and the joined one, each with its name."""
    moments = iter(range(1, 100))

    def interrupting(path: Path, real: Callable[[Path], None] = segments.sync) -> None:
        if next(moments) == moment:
            raise KeyboardInterrupt
        real(path)

    with monkeypatch.context() as patched:
        patched.setattr(segments, "sync", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run()
    found = run()
    assert sum(computed) <= 8 + BATCH_SIZE, "more than one segment was embedded twice"
    assert found.rows == list(range(8))
    assert found.num_embedded + found.num_kept == 8
    assert len(names(tmp_path / "index")) == 2
    with monkeypatch.context() as patched:
        patched.setattr(module, "replies_for", None)
        assert torch.equal(run().features, found.features)


@pytest.mark.slow
def test_a_kill_loses_one_segment(
    exported: str, photos: Path, tmp_path: Path, run: Update, computed: list[int]
) -> None:
    argv = ["search", exported, "--images", str(photos), "--index", str(tmp_path / "index")]
    done = subprocess.run([sys.executable, "-c", KILLED, *argv], capture_output=True, text=True, timeout=500)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = names(tmp_path / "index")
    assert [name for name in found if name.startswith("image")] == [
        "image_00000001.safetensors",
        "image_00000002.safetensors",
        "image_00000003.partial",
    ]
    indexed = run()
    assert sum(computed) == 8 - 2 * BATCH_SIZE
    assert (indexed.num_embedded, indexed.num_kept) == (2, 6)
    assert len(names(tmp_path / "index")) == 2


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_damaged_segment_is_named_and_computed_again(
    run: Update, tmp_path: Path, keep: int, computed: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = run()
    features = first.features.clone()
    path = tmp_path / "index" / names(tmp_path / "index")[0]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:keep])
    computed.clear()
    assert torch.equal(run().features, features)
    assert sum(computed) == 8
    assert f"{path}: damaged" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(run: Update, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"is no index; it holds 'thesis\.tex'"):
        run()
    assert names(tmp_path / "index") == ["thesis.tex"]


def test_an_index_is_of_one_source(run: Update, tmp_path: Path, photos: Path) -> None:
    run()
    with (
        pytest.raises(UserError, match=f"is an index of {photos}, not of /elsewhere"),
        held(tmp_path / "index", "/elsewhere"),
    ):
        pass
    (tmp_path / "index" / "index.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        run()


def test_two_commands_do_not_write_one_index(run: Update, tmp_path: Path) -> None:
    run()
    command = [sys.executable, "-c", HOLDS_LOCK, str(tmp_path / "index" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"another command is using this index \(process {other.pid} on "):
            run()
        other.communicate("")
    assert run().num_kept == 8


def test_a_folder_that_cannot_be_made(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wanted = r"the index can't be kept there .* Choose a folder with --index"
    with pytest.raises(UserError, match=wanted), held(tmp_path / "file" / "index", "x"):
        pass


def test_nan_is_an_error(run: Update, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "features_of", lambda *_: torch.full((BATCH_SIZE, 4), torch.nan))
    with pytest.raises(UserError, match="gives NaN or infinite features"):
        run()
    assert names(tmp_path / "index") == ["index.json"]


def test_names_that_are_no_utf8(run: Update, photos: Path) -> None:
    odd = os.fsencode(photos) + b"/\xff.png"
    try:
        Path(os.fsdecode(odd)).write_bytes(encoded_image(3))
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    assert run().num_embedded == 9
    assert run().num_kept == 9
