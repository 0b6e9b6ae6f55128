"""F1 scores of classification."""

import torch
from torch import Tensor


def macro_f1(predicted: Tensor, labels: Tensor, num_classes: int) -> float:
    """Mean over classes of their F1 score, 0 to 1; predicted and labels are (n,) int64.

    F1 = 2 TP / (2 TP + FP + FN). A class that is neither predicted nor a label anywhere has no score and is left out, as
    scikit-learn does by default. Raises ValueError for no rows.
    """
    if len(labels) == 0:
        raise ValueError("there are no rows to score")
    right = torch.bincount(labels[predicted == labels], minlength=num_classes).double()
    total = torch.bincount(labels, minlength=num_classes) + torch.bincount(predicted, minlength=num_classes)
    present = total > 0
    return (2 * right[present] / total[present]).mean().item()
