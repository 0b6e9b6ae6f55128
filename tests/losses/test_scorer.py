"""Against the formulas written out, row by row."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from accel_train.losses.scorer import explanation_loss, rating_loss

PREDICTED = torch.tensor([0.1, 0.5, 0.95, 0.3])
RATED = torch.tensor([0.0, 0.75, 1.0, 0.25])


def test_mean_squared_error() -> None:
    naive = sum((p - r) ** 2 for p, r in zip(PREDICTED.tolist(), RATED.tolist(), strict=True)) / 4
    assert float(rating_loss(PREDICTED, RATED)) == pytest.approx(naive, rel=1e-6)


def test_smooth_l1() -> None:
    def one(difference: float, beta: float = 0.1) -> float:
        return difference**2 / (2 * beta) if difference < beta else difference - beta / 2

    naive = sum(one(abs(p - r)) for p, r in zip(PREDICTED.tolist(), RATED.tolist(), strict=True)) / 4
    assert float(rating_loss(PREDICTED, RATED, name="smooth_l1", beta=0.1)) == pytest.approx(naive, rel=1e-6)


def test_label_smoothing_pulls_to_the_mean_rating() -> None:
    target = 0.8 * RATED + 0.2 * 0.4
    found = rating_loss(PREDICTED, RATED, label_smoothing=0.2, mean_rating=0.4)
    assert float(found) == pytest.approx(float((PREDICTED - target).square().mean()), rel=1e-6)


def features(seed: int, rows: int = 6) -> Tensor:
    return normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def naive_explanation_loss(pair: Tensor, explanation: Tensor, scale: Tensor, key: Tensor, has: Tensor) -> Tensor:
    """Cross-entropy both ways over the rows that have an explanation, equal explanations sharing the target."""
    pair, explanation, key = pair[has], explanation[has], key[has]
    logits = scale * pair @ explanation.T
    same = (key[:, None] == key[None, :]).to(logits.dtype)
    target = same / same.sum(1, keepdim=True)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def test_explanations_and_their_gradients() -> None:
    has = torch.tensor([True, False, True, True, True, False])
    key = torch.tensor([4, 9, 4, 7, 8, 9])
    gradients = []
    for loss in (explanation_loss, None):
        pair, explanation = features(0).requires_grad_(), features(1).requires_grad_()
        scale = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
        if loss is None:
            value = naive_explanation_loss(pair, explanation, scale, key, has)
        else:
            value = loss(pair, explanation, scale, explanation_key=key, has_explanation=has)
        gradients.append([value.detach(), *torch.autograd.grad(value, [pair, explanation, scale])])
    for own, naive in zip(*gradients, strict=True):
        torch.testing.assert_close(own, naive, rtol=1e-9, atol=1e-12)
    assert not gradients[0][1][~has].any()


def test_a_batch_without_explanations_costs_nothing() -> None:
    pair, explanation = features(0).requires_grad_(), features(1).requires_grad_()
    scale = torch.tensor([5.0], requires_grad=True)
    none = torch.zeros(6, dtype=torch.bool)
    loss = explanation_loss(pair, explanation, scale, explanation_key=torch.zeros(6).long(), has_explanation=none)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, [pair, explanation, scale]))


def test_a_single_explanation_has_nothing_to_be_told_from() -> None:
    one = torch.tensor([False, True, False, False, False, False])
    scale = torch.tensor([5.0])
    loss = explanation_loss(features(0), features(1), scale, explanation_key=torch.arange(6), has_explanation=one)
    assert float(loss) == pytest.approx(0, abs=1e-7)
