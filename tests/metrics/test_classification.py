"""Accuracies against scikit-learn's and against counting one by one."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from accel_train.metrics.classification import accuracy_at, mean_per_class_accuracy

NUM_CLASSES = 7


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(200, NUM_CLASSES, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    """Unequal classes: class 0 comes most often."""
    return torch.randint(0, NUM_CLASSES, (200, 2), generator=torch.Generator().manual_seed(1)).amin(1)


def test_accuracy_is_that_of_scikit_learn(scores: torch.Tensor, labels: torch.Tensor) -> None:
    found = accuracy_at(scores, labels, ks=(1, 3, 5))
    for k, value in found.items():
        assert value == pytest.approx(top_k_accuracy_score(labels, scores, k=k, labels=range(NUM_CLASSES)))
    assert len(set(found.values())) == 3


def test_mean_per_class_accuracy_is_that_of_scikit_learn(scores: torch.Tensor, labels: torch.Tensor) -> None:
    wanted = balanced_accuracy_score(labels, scores.argmax(1))
    assert mean_per_class_accuracy(scores, labels) == pytest.approx(wanted)
    assert wanted != pytest.approx(accuracy_at(scores, labels)[1])


def test_classes_without_rows_are_left_out() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    assert mean_per_class_accuracy(scores, torch.tensor([0, 0, 1])) == pytest.approx(0.5)


def test_equal_scores_are_not_right() -> None:
    scores, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
    assert accuracy_at(scores, labels, ks=(1, 2, 3)) == {1: 0.0, 2: 0.0, 3: 1.0}
    assert mean_per_class_accuracy(scores, labels) == 0.0


def test_a_k_above_the_number_of_classes_says_nothing(scores: torch.Tensor, labels: torch.Tensor) -> None:
    assert list(accuracy_at(scores, labels, ks=(1, 5, 10))) == [1, 5]


def test_what_can_not_be_scored_is_refused(scores: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="NaN"):
        accuracy_at(scores.log(), labels)
    with pytest.raises(ValueError, match="no rows"):
        mean_per_class_accuracy(scores[:0], labels[:0])
