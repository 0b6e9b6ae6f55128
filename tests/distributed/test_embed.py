"""Two ranks embed and classify as one does: the same file to the byte, the same scores and predictions."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accel_train.config.load import dump_config
from accel_train.tasks.build import build_task
from accel_train.tools.trained import EXPORT_CONFIG
from tests.distributed.ranks import run_ranks
from tests.distributed.scenarios import config_of


@pytest.fixture(scope="module")
def exported(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = config_of("info_nce", dataset=dataset, run_dir="unused", engine="ddp", micro_batch_size=4)
    folder = tmp_path_factory.mktemp("exported") / "model"
    task = build_task(config)
    task.export(task.build_model(), str(folder))
    (folder / EXPORT_CONFIG).write_text(dump_config(config), encoding="utf-8")
    return str(folder)


def test_two_ranks_embed_the_same_bytes(exported: str, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{ranks}.safetensors" for ranks in (1, 2)]
    for ranks, output in enumerate(outputs, start=1):
        finished = run_ranks(ranks, "-m", "accel_train", "embed", exported, str(output), "--split", "train")
        assert [rank.exit_code for rank in finished] == [0] * ranks
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert "40 images and 53 texts" in finished[0].output
    assert "40 images" not in finished[1].output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.safetensors", "2.safetensors"]


def test_an_image_that_one_rank_can_not_read_stops_both(exported: str, tmp_path: Path) -> None:
    output = str(tmp_path / "features.safetensors")
    finished = run_ranks(2, "-m", "accel_train", "embed", exported, output, "--split", "damaged")
    assert [rank.exit_code for rank in finished] == [2, 2]
    for rank in finished:
        assert "image 'img4'" in rank.output
        assert "Traceback" not in rank.output


def test_two_ranks_classify_the_same(exported: str, tmp_path: Path) -> None:
    """Seven images and three prompts: neither number divides by two, so rank 1 has fewer."""
    for number in range(7):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        path = tmp_path / "images" / ("猫", "花", "船")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
    (tmp_path / "templates.txt").write_text("{}\n", encoding="utf-8")
    found = []
    for ranks in (1, 2):
        predictions = tmp_path / f"{ranks}.csv"
        arguments = ["--zero-shot", str(tmp_path / "images"), "--templates", str(tmp_path / "templates.txt"), "--json"]
        finished = run_ranks(
            ranks, "-m", "accel_train", "evaluate", exported, *arguments, "--predictions", str(predictions)
        )
        assert [rank.exit_code for rank in finished] == [0] * ranks
        output = finished[0].output
        scores = json.loads(output[output.index("{") : output.rindex("}") + 1])["scores"]
        found.append((scores, predictions.read_text(encoding="utf-8")))
    assert found[0][0] == found[1][0]
    assert found[0][1].count("\n") == found[1][1].count("\n") == 8
    pairs = zip(found[0][1].splitlines(), found[1][1].splitlines(), strict=True)
    assert all(first.split(",")[:3] == second.split(",")[:3] for first, second in pairs)
