"""Phase 1: the loss against a naive one, retrieval scores, and what the configuration refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from accel_train.config.multimodal_alignment import MultimodalAlignmentConfig
from accel_train.config.rules import check_rules
from accel_train.data.spoken_split import open_spoken_split
from accel_train.errors import UserError
from accel_train.optim.param_groups import plan_groups
from accel_train.tasks.multimodal_alignment import DIRECTIONS, MultimodalAlignmentTask
from tests.activations import activation_bytes
from tests.multimodal import BERT, SENSES, alignment_config
from tests.spoken import write_dataset

KINDS = ("image", "audio", "text")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_dataset(tmp_path_factory.mktemp("spoken") / "data", train=20, valid=8))


@pytest.fixture
def task(path: str) -> MultimodalAlignmentTask:
    torch.manual_seed(0)
    return MultimodalAlignmentTask(alignment_config(path, "unused"))


def batch_of(task: MultimodalAlignmentTask, rows: int) -> dict[str, torch.Tensor]:
    dataset = task.build_dataset("train")
    samples = [dataset.read(row, 0) for row in range(rows)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def test_the_model_gives_unit_features_of_what_is_there(task: MultimodalAlignmentTask) -> None:
    model, batch = task.build_model().eval(), batch_of(task, 5)
    outputs = model(batch)
    assert set(outputs) == {"image_features", "audio_features", "text_features", "logit_scale"}
    for kind in KINDS:
        torch.testing.assert_close(outputs[f"{kind}_features"].norm(dim=1), torch.ones(5))
        alone = model({name: batch[name] for name in task.output_inputs[f"{kind}_features"] if name in batch})
        torch.testing.assert_close(alone[f"{kind}_features"], outputs[f"{kind}_features"])


def test_silence_after_a_recording_is_not_heard_in_the_mean(task: MultimodalAlignmentTask) -> None:
    """The tokens beyond a recording's end don't count."""
    model, batch = task.build_model().eval(), batch_of(task, 2)
    tokens, real = model.audio_tokens(batch["waveform"], batch["num_audio_samples"])
    wanted = torch.stack([tokens[row, real[row]].mean(0) for row in range(2)])
    torch.testing.assert_close(model(batch)["audio_features"], F.normalize(model.aligner["audio"](wanted), dim=1))


@pytest.mark.parametrize("positives", ["shared", "own"])
def test_the_loss_is_the_mean_of_three_pairs(path: str, positives: str) -> None:
    task = MultimodalAlignmentTask(alignment_config(path, "unused", loss={"positives": positives}))
    batch = batch_of(task, 14)
    assert len(set(batch["text_key"].tolist())) < 14
    outputs = {f"{kind}_features": F.normalize(torch.randn(14, 6), dim=1) for kind in KINDS}
    outputs["logit_scale"] = torch.tensor([7.0])
    total = torch.zeros(())
    for first, second in (("image", "text"), ("image", "audio"), ("audio", "text")):
        for query, target in ((first, second), (second, first)):
            logits = 7 * outputs[f"{query}_features"] @ outputs[f"{target}_features"].T
            for row in range(14):
                same = [
                    column
                    for column in range(14)
                    if column == row
                    or (
                        positives == "shared"
                        and any(batch[f"{kind}_key"][row] == batch[f"{kind}_key"][column] for kind in (first, second))
                    )
                ]
                total -= logits[row].log_softmax(0)[same].mean() / (6 * 14)
    losses = task.losses(outputs, batch)
    assert set(losses) == {"image_text", "image_audio", "audio_text"}
    torch.testing.assert_close(sum(losses.values()), total)
    halves = [task.losses(outputs, batch | {"anchors": torch.tensor(rows)}) for rows in ([0, 5], [5, 14])]
    for name, value in losses.items():
        torch.testing.assert_close(halves[0][name] + halves[1][name], value)


def test_the_log_says_on_cuda_how_info_nce_runs(task: MultimodalAlignmentTask) -> None:
    (line,) = task.prepare_training(torch.device("cuda"))
    assert line.startswith("InfoNCE runs by chunks of 256 rows: ")
    assert task.prepare_training(torch.device("cpu")) == []


def test_scores(path: str, task: MultimodalAlignmentTask) -> None:
    """Features that are the same for what belongs together retrieve it all; images turned around find the wrong ones."""
    split = open_spoken_split(path, "valid")
    features = torch.eye(8)
    text_rows = torch.tensor(split.samples.column("text_row"))
    texts = torch.stack([features[text_rows == row].sum(0) for row in range(len(split.texts))])
    order = torch.randperm(8)
    predictions = {
        "image_features": features[order],
        "image_row": order,
        "audio_features": features,
        "audio_row": torch.arange(8),
        "text_features": texts,
        "text_row": torch.arange(len(texts)),
    }
    scores = task.scores(predictions, "valid")
    assert set(scores) == set(task.score_names) and next(iter(scores)) == task.score_names[0]
    assert scores["mean_recall"] == 1
    predictions["image_features"] = -predictions["image_features"]
    scores = task.scores(predictions, "valid")
    for query, target in DIRECTIONS:
        assert (scores[f"{query}_to_{target}_recall@1"] < 0.5) == ("image" in (query, target))
    assert scores["mean_recall"] == pytest.approx(
        sum(scores[f"{q}_to_{t}_recall@{k}"] for q, t in DIRECTIONS for k in (1, 5)) / 12
    )


def test_an_export_is_read_back(task: MultimodalAlignmentTask, tmp_path: Path) -> None:
    model = task.build_model()
    task.export(model, str(tmp_path / "export"))
    config = task.config_of_export(task.config, str(tmp_path / "export"))
    again = MultimodalAlignmentTask(config)
    torch.manual_seed(5)
    other = again.build_model()
    again.load_pretrained(other, str(tmp_path / "export"))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    with pytest.raises(UserError, match="can't be read"):
        again.load_pretrained(other, str(tmp_path))


def test_example_batch_has_the_shapes_of_a_real_one(task: MultimodalAlignmentTask) -> None:
    real, made = batch_of(task, 3), task.example_batch(3)
    for name, column in made.items():
        assert (column.shape, column.dtype) == (real[name].shape, real[name].dtype), name


def test_without_values(task: MultimodalAlignmentTask) -> None:
    """As `plan` builds it."""
    with torch.device("meta"):
        model = task.build_model()
    groups = plan_groups(model, task.config.optimizer)
    assert activation_bytes(model, groups, task.config, task.example_batch(2)) > 10_000


def problems(config: MultimodalAlignmentConfig) -> str:
    return "\n".join(check_rules(config))


def test_contradictions() -> None:
    text = {"architecture": "bert", "config": BERT}
    both = {"architecture": "vit", "pretrained": "folder"}
    found = problems(alignment_config("x", "x", model=SENSES | {"image": both, "text": text}))
    assert "model.image.pretrained: pretrained is 'folder' and architecture is 'vit'" in found
    ignored = {"pretrained": "folder", "config": {"depths": [1]}}
    found = problems(alignment_config("x", "x", model=SENSES | {"image": ignored, "text": text}))
    assert "model.image.config: {'depths': [1]} would be ignored" in found
    found = problems(alignment_config("x", "x", model=SENSES | {"text": text, "temperature": 0.001}))
    assert "model.temperature: 0.001 starts logit_scale at 1000" in found
    with pytest.raises(ValidationError, match=r"model\.audio\.log_mel_conv\.pretrained"):
        alignment_config("x", "x", model=SENSES | {"text": text, "audio": SENSES["audio"] | {"pretrained": "x"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": BERT | {"vocab_size": 5}}, "but model.text embeds 5"),
        ({"config": BERT | {"max_position_embeddings": 6}}, "model.text reads 6 tokens at most"),
    ],
)
def test_a_text_encoder_that_does_not_fit(path: str, change: dict[str, Any], message: str) -> None:
    model = SENSES | {"text": {"architecture": "bert"} | change}
    with pytest.raises(UserError, match=message):
        MultimodalAlignmentTask(alignment_config(path, "unused", model=model)).build_model()
