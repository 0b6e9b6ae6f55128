"""The task from data to scores, to an export and back."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from accel_train.config.sequence_classification import SequenceClassificationConfig
from accel_train.data.padding import join
from accel_train.errors import UserError
from accel_train.models.pretrained import quiet_transformers
from accel_train.models.sequence_classifier import SequenceClassifier
from accel_train.tasks.build import build_task
from accel_train.tasks.sequence_classification import SequenceClassificationTask
from accel_train.tools.plan.run_plan import make_plan
from accel_train.tools.plan.tables import as_dict
from tests.labelled import TOPICS, small_config, write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet_transformers()
    return write_dataset(tmp_path_factory.mktemp("labelled") / "data")


def task_of(folder: Path, **changes: Any) -> SequenceClassificationTask:
    config = SequenceClassificationConfig.model_validate(small_config(folder, "unused", **changes))
    task = build_task(config)
    assert isinstance(task, SequenceClassificationTask)
    return task


def batch_of(task: SequenceClassificationTask, split: str, rows: range) -> dict[str, torch.Tensor]:
    dataset = task.build_dataset(split)
    samples = [{name: value[None] for name, value in dataset.read(row, None).items()} for row in rows]
    return join(samples, dataset.padding)  # type: ignore[attr-defined]


def predicted(task: SequenceClassificationTask, split: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = task.build_model().eval()
    batch = batch_of(task, split, range(30))
    with torch.no_grad():
        return task.predictions(model(batch), batch)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_written_out(folder: Path, smoothing: float) -> None:
    task = task_of(folder, loss={"label_smoothing": smoothing})
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 1, 0])
    target = (1 - smoothing) * F.one_hot(labels, 3) + smoothing / 3
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    losses = task.losses({"logits": logits}, {"label": labels, "sample_id": torch.arange(5)})
    assert losses.keys() == {"cross_entropy"}
    torch.testing.assert_close(losses["cross_entropy"], expected)
    assert task.num_targets({"sample_id": torch.arange(5)}) == 5


def test_scores_agree_with_scikit_learn(folder: Path) -> None:
    task = task_of(folder)
    predictions = predicted(task, "valid")
    scores = task.scores(predictions, "valid")
    labels, found = predictions["label"].numpy(), predictions["logits"].argmax(1).numpy()
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, found))
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, found, average="macro"))
    assert scores["loss"] == pytest.approx(F.cross_entropy(predictions["logits"], predictions["label"]).item())
    assert task.best_score == "accuracy"


def test_the_loss_can_judge_no_run(folder: Path) -> None:
    with pytest.raises(
        UserError, match="'loss' is not a score of the task sequence_classification, which gives accuracy"
    ):
        task_of(folder, evaluation={"best_score": "loss"})


def test_prediction_rows_come_in_the_order_of_the_split(folder: Path) -> None:
    task = task_of(folder)
    predictions = predicted(task, "valid")
    turned = {name: column.flip(0) for name, column in predictions.items()}
    rows = list(task.prediction_rows(turned, "valid"))
    assert rows == list(task.prediction_rows(predictions, "valid"))
    assert [row["text_id"] for row in rows] == [str(number) for number in range(30)]
    probabilities = predictions["logits"].softmax(1)
    for number, row in enumerate(rows):
        assert row["label"] == list(TOPICS)[number % 3]
        best = int(probabilities[number].argmax())
        assert row["predicted"] == list(TOPICS)[best]
        assert row["probability"] == pytest.approx(float(probabilities[number, best]), abs=1e-6)
    assert rows[0].keys() == {"text_id", "text", "label", "predicted", "probability"}


def test_an_export_is_a_classifier_of_transformers(folder: Path, tmp_path: Path) -> None:
    """Text in, class out, with nothing but transformers; and the same logits."""
    task = task_of(folder)
    torch.manual_seed(0)
    model = task.build_model().eval()
    task.export(model, str(tmp_path / "export"))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    rows = list(task.prediction_rows(predicted(task, "valid"), "valid"))
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    assert inputs["input_ids"].tolist() == batch_of(task, "valid", range(30))["input_ids"].tolist()
    with torch.no_grad():
        logits = plain(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        assert torch.equal(logits, model(batch_of(task, "valid", range(30)))["logits"])
    assert [plain.config.id2label[int(place)] for place in logits.argmax(1)] == [row["predicted"] for row in rows]

    reopened = build_task(task.config_of_export(task.config, str(tmp_path / "export")))
    again = reopened.build_model()
    reopened.load_pretrained(again, str(tmp_path / "export"))
    assert isinstance(again, SequenceClassifier)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_plan_counts_samples_and_reads_no_weights(folder: Path) -> None:
    plan = as_dict(make_plan(task_of(folder).config, world_size=1))
    assert plan["steps_per_epoch"] == 7
    assert [group["name"] for group in plan["groups"]] == ["decoder"]
    assert any(part["name"] == "activations" and part["num_bytes"] > 0 for part in plan["memory"])
    assert all("head" not in hazard for hazard in plan["hazards"])


def test_the_plan_says_that_a_head_is_drawn_anew(folder: Path, tmp_path: Path) -> None:
    task = task_of(folder)
    model = task.build_model()
    task.export(model, str(tmp_path / "export"))
    same = task_of(folder, model={"pretrained": str(tmp_path / "export")})
    assert same.hazards() == []
    model.plain.config.id2label = {0: "yes", 1: "no", 2: "maybe"}
    task.export(model, str(tmp_path / "other"))
    other = task_of(folder, model={"pretrained": str(tmp_path / "other")})
    (hazard,) = other.hazards()
    assert "has no head for these labels" in hazard
    assert other.notes(other.build_model()) == (hazard,)


def test_predictions_can_be_written_as_csv(folder: Path, tmp_path: Path) -> None:
    task = task_of(folder)
    rows = list(task.prediction_rows(predicted(task, "valid"), "valid"))
    with (tmp_path / "valid.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with (tmp_path / "valid.csv").open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == [row["text"] for row in rows]
