import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from accel_train.losses.distillation import feature_loss, similarity_loss

ROWS, WIDTH, TEACHER_WIDTH = 7, 5, 9
PARTS = [(0, 3), (3, 4), (4, 7)]


def unit(width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(ROWS, width, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()


def student() -> list[Tensor]:
    return [unit(WIDTH, 0), unit(WIDTH, 1), torch.tensor([12.0], dtype=torch.float64, requires_grad=True)]


def teacher() -> list[Tensor]:
    return [unit(TEACHER_WIDTH, 2), unit(TEACHER_WIDTH, 3), torch.tensor([20.0], dtype=torch.float64)]


def naive_similarity(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    ours, theirs = (image @ text.T * scale for image, text, scale in (student, teacher))
    ways = [
        F.kl_div(one.log_softmax(1), other.log_softmax(1), reduction="batchmean", log_target=True)
        for one, other in ((ours, theirs), (ours.T, theirs.T))
    ]
    return (ways[0] + ways[1]) / 2


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_similarity_equals_torchs_divergence_with_its_gradients(chunk_size: int) -> None:
    ours, theirs = student(), teacher()
    found = similarity_loss(*ours, *theirs, chunk_size=chunk_size)
    wanted = naive_similarity(ours, theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    pairs = zip(torch.autograd.grad(found, ours), torch.autograd.grad(wanted, ours), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_similarity_is_the_cross_entropy_less_the_teachers_entropy() -> None:
    ours, theirs = student(), teacher()
    logits = [ours[0] @ ours[1].T * ours[2], ours[1] @ ours[0].T * ours[2]]
    targets = [theirs[0] @ theirs[1].T * theirs[2], theirs[1] @ theirs[0].T * theirs[2]]
    crosses = [-(t.softmax(1) * one.log_softmax(1)).sum(1).mean() for one, t in zip(logits, targets, strict=True)]
    entropies = [-(t.softmax(1) * t.log_softmax(1)).sum(1).mean() for t in targets]
    torch.testing.assert_close(similarity_loss(*ours, *theirs), (sum(crosses) - sum(entropies)) / 2)


def test_features_equal_the_originals_loss() -> None:
    ours, theirs = unit(WIDTH, 0), unit(WIDTH, 1)
    found, wanted = feature_loss(ours, theirs), 1 - F.cosine_similarity(ours, theirs).mean()
    torch.testing.assert_close(found, wanted)
    for one, other in zip(torch.autograd.grad(found, [ours]), torch.autograd.grad(wanted, [ours]), strict=True):
        radial = (other * ours).sum(
            1, keepdim=True
        ) * ours  # cosine_similarity normalises again: it takes this part out
        torch.testing.assert_close(one - (one * ours).sum(1, keepdim=True) * ours, other - radial)


def test_a_student_that_is_the_teacher_has_no_loss() -> None:
    features = [value.detach().float() for value in student()]
    assert float(similarity_loss(*features, *features)) == 0
    assert abs(float(feature_loss(features[0], features[0]))) < 1e-6


def test_shares_of_the_rows_add_up() -> None:
    ours, theirs = student(), teacher()
    whole = similarity_loss(*ours, *theirs)
    parts = [similarity_loss(*ours, *theirs, anchors=part, chunk_size=2) for part in PARTS]
    torch.testing.assert_close(sum(parts), whole)
    for one, other in zip(torch.autograd.grad(sum(parts), ours), torch.autograd.grad(whole, ours), strict=True):
        torch.testing.assert_close(one, other)
    by_feature = [feature_loss(ours[0], unit(WIDTH, 5), anchors=part) for part in PARTS]
    torch.testing.assert_close(sum(by_feature), feature_loss(ours[0], unit(WIDTH, 5)))


def test_the_teacher_gets_no_gradient_and_bf16_is_read_in_fp32() -> None:
    ours, theirs = student(), teacher()
    similarity_loss(*ours, *theirs).backward()
    assert theirs[0].grad is None and theirs[1].grad is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarity_loss(*(value.detach().float() for value in (*ours, *theirs)))
    torch.testing.assert_close(found.double(), naive_similarity(ours, theirs), rtol=1e-5, atol=1e-6)


def test_features_of_other_widths_are_an_error() -> None:
    with pytest.raises(ValueError, match="features differ in shape"):
        feature_loss(unit(WIDTH, 0), unit(TEACHER_WIDTH, 1))
