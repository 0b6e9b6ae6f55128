import pytest
import torch
from sklearn.metrics import f1_score

from accel_train.metrics.f1 import macro_f1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_agrees_with_scikit_learn(num_classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels, predicted = torch.randint(num_classes, (2, 40), generator=generator)
    expected = f1_score(labels.numpy(), predicted.numpy(), average="macro")
    assert macro_f1(predicted, labels, num_classes) == pytest.approx(expected, abs=1e-12)


def test_classes_that_do_not_occur_count_only_if_they_are_predicted() -> None:
    labels, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 3])
    expected = f1_score(labels.numpy(), predicted.numpy(), average="macro")  # classes 0, 1 and 3
    assert macro_f1(predicted, labels, 5) == pytest.approx(expected)
    assert macro_f1(predicted, labels, 5) == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_always_the_largest_class() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    assert macro_f1(torch.zeros(10, dtype=torch.int64), labels, 3) == pytest.approx(0.75 / 3)


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="no rows"):
        macro_f1(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 3)
