import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from accel_train.losses import both_ways
from accel_train.losses.contrastive import info_nce, sigmoid_loss, sigmoid_loss_of_block

B, D = 12, 8
IMAGE_KEY = torch.tensor([0, 1, 2, 0, 4, 5, 6, 7, 8, 8, 10, 11])
TEXT_KEY = torch.tensor([0, 1, 1, 3, 4, 5, 6, 0, 8, 9, 10, 11])
KEYS = {"image_key": IMAGE_KEY, "text_key": TEXT_KEY}


def features(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """image_features, text_features, logit_scale, logit_bias, all asking for a gradient."""
    generator = torch.Generator().manual_seed(seed)
    pair = [F.normalize(torch.randn(B, D, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)]
    tensors = [*pair, torch.tensor([7.3], dtype=torch.float64), torch.tensor([-2.1], dtype=torch.float64)]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def shared_positives() -> Tensor:
    return (IMAGE_KEY[:, None] == IMAGE_KEY) | (TEXT_KEY[:, None] == TEXT_KEY)


def naive_info_nce(image: Tensor, text: Tensor, scale: Tensor, positive: Tensor, smoothing: float) -> Tensor:
    logits = scale * image @ text.T
    target = positive.double() / positive.double().sum(1, keepdim=True)
    target = (1 - smoothing) * target + smoothing / len(target)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def naive_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positive: Tensor, e: float) -> Tensor:
    logits = scale * image @ text.T + bias
    z = 2.0 * positive - 1
    likelihood = (1 - e / 2) * F.logsigmoid(z * logits) + e / 2 * F.logsigmoid(-z * logits)
    return -likelihood.sum() / B


def with_gradients(loss: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, tensors)]


def assert_all_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("chunk_size", [1, 3, B, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("positives", ["shared", "own"])
@pytest.mark.parametrize("kept", [0, 2 * 3 * B, 2**26])
def test_info_nce_equals_the_naive_form(
    kept: int, chunk_size: int, smoothing: float, positives: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kept` logits wait for the second pass: those of one chunk, of some, or all."""
    monkeypatch.setattr(both_ways, "KEPT_ELEMENTS", kept)
    tensors = features()[:3]
    positive = shared_positives() if positives == "shared" else torch.eye(B, dtype=torch.bool)
    expected = with_gradients(naive_info_nce(*tensors, positive, smoothing), tensors)
    loss = info_nce(*tensors, **KEYS, positives=positives, label_smoothing=smoothing, chunk_size=chunk_size)
    assert loss.shape == ()
    assert_all_close(with_gradients(loss, tensors), expected)


@pytest.mark.parametrize("chunk_size", [1, 3, B])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("positives", ["shared", "own"])
def test_sigmoid_loss_equals_the_naive_form(chunk_size: int, smoothing: float, positives: str) -> None:
    tensors = features()
    positive = shared_positives() if positives == "shared" else torch.eye(B, dtype=torch.bool)
    expected = with_gradients(naive_sigmoid(*tensors, positive, smoothing), tensors)
    loss = sigmoid_loss(*tensors, **KEYS, positives=positives, label_smoothing=smoothing, chunk_size=chunk_size)
    assert_all_close(with_gradients(loss, tensors), expected)


def test_own_positives_are_plain_clip_and_plain_siglip() -> None:
    """Without keys and smoothing: torch's cross-entropy on the diagonal, and the sum of log-sigmoids of SigLIP."""
    image, text, scale, bias = features()
    logits, own = scale * image @ text.T, torch.arange(B)
    clip = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    siglip = -F.logsigmoid((2 * torch.eye(B) - 1) * (logits + bias)).sum(-1).mean()
    assert_all_close([info_nce(image, text, scale), sigmoid_loss(image, text, scale, bias)], [clip, siglip])


@pytest.mark.parametrize("anchors", [None, (2, 9)])
def test_gradcheck(anchors: tuple[int, int] | None) -> None:
    tensors = features(1)
    options = {**KEYS, "positives": "shared", "label_smoothing": 0.1, "chunk_size": 5, "anchors": anchors}
    assert torch.autograd.gradcheck(lambda *inputs: info_nce(*inputs, **options), tensors[:3])
    assert torch.autograd.gradcheck(lambda *inputs: sigmoid_loss(*inputs, **options), tensors)


@pytest.mark.parametrize("cuts", [[0, 6, 12], [0, 1, 5, 12], [0, 4, 4, 12], list(range(B + 1))])
def test_calls_over_a_partition_of_rows_add_up(cuts: list[int]) -> None:
    tensors = features(2)
    for loss, inputs in ((info_nce, tensors[:3]), (sigmoid_loss, tensors)):
        options = {**KEYS, "positives": "shared", "label_smoothing": 0.1, "chunk_size": 2}
        whole = with_gradients(loss(*inputs, **options), inputs)
        parts = [with_gradients(loss(*inputs, **options, anchors=part), inputs) for part in itertools.pairwise(cuts)]
        assert_all_close([torch.stack(part).sum(0) for part in zip(*parts, strict=True)], whole)


@pytest.mark.parametrize("positives", ["shared", "own"])
@pytest.mark.parametrize("cuts", [[0, 12], [0, 6, 12], [0, 1, 5, 5, 12]])
def test_sigmoid_losses_of_blocks_add_up(cuts: list[int], positives: str) -> None:
    """Each block with the keys of its own images and texts alone, as a rank has them."""
    image, text, scale, bias = tensors = features(2)
    options = {"positives": positives, "label_smoothing": 0.1, "chunk_size": 2}
    whole = with_gradients(sigmoid_loss(*tensors, **KEYS, **options), tensors)
    parts = []
    for (start, stop), (first, last) in itertools.product(itertools.pairwise(cuts), repeat=2):
        rows = torch.arange(start, stop)
        among = rows if start == first else torch.cat([rows, torch.arange(first, last)])
        loss = sigmoid_loss_of_block(
            image[start:stop],
            text[first:last],
            scale,
            bias,
            image_rows=(0, len(rows)),
            text_rows=(len(among) - (last - first), len(among)),
            num_rows=B,
            **{name: key[among] for name, key in KEYS.items()},
            **options,
        )
        parts.append(with_gradients(loss, tensors))
    assert_all_close([torch.stack(part).sum(0) for part in zip(*parts, strict=True)], whole)


def test_the_gradient_is_scaled_by_what_comes_back() -> None:
    tensors = features()[:3]
    whole = torch.autograd.grad(info_nce(*tensors), tensors)
    scaled = torch.autograd.grad(3.5 * info_nce(*tensors), tensors)
    assert_all_close(list(scaled), [3.5 * gradient for gradient in whole])


def test_low_precision_features_are_compared_in_fp32() -> None:
    tensors = features(dtype=torch.bfloat16)[:3]
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(*tensors)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), info_nce(*wide), rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(loss, tensors)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 3
    assert_all_close([g.float() for g in gradients], list(torch.autograd.grad(info_nce(*wide), wide)), 1e-2)


@pytest.mark.parametrize("rows", [8, 128, 512])
def test_a_small_loss_is_as_exact_as_a_large_one(rows: int) -> None:
    image = F.normalize(torch.randn(rows, 64), dim=-1)
    text = F.normalize(image + 0.08 * torch.randn(rows, 64), dim=-1)
    scale = torch.tensor([14.3])
    exact = info_nce(image.double(), text.double(), scale.double()).item()
    assert exact < 0.1
    assert info_nce(image, text, scale).item() == pytest.approx(exact, abs=2e-7)


def test_rows_whose_largest_logits_lie_far_apart_keep_their_loss() -> None:
    """One shift for all rows would lose those of the smallest: their exponentials are less than fp32's smallest number."""
    generator = torch.Generator().manual_seed(3)
    image, text = (torch.randn(24, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    image, text = image * torch.logspace(-1, 1.5, 24)[:, None], text * torch.logspace(1.5, -1, 24)[:, None]
    scale = torch.tensor([8.0], dtype=torch.float64)
    exact = naive_info_nce(image, text, scale, torch.eye(24, dtype=torch.bool), 0.0)
    found = info_nce(image.float(), text.float(), scale.float(), chunk_size=5)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_large_scales_do_not_overflow() -> None:
    image, text, _, bias = features(dtype=torch.float32)
    scale = torch.tensor([1e4], requires_grad=True)
    for loss in (info_nce(image, text, scale), sigmoid_loss(image, text, scale, bias)):
        assert math.isfinite(loss.item())
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [image, text, scale]))


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("loss", [info_nce, sigmoid_loss])
def test_no_tensor_is_larger_than_one_chunk(loss) -> None:  # type: ignore[no-untyped-def]
    rows, chunk_size = 64, 16
    image, text = (F.normalize(torch.randn(rows, 4), dim=-1).requires_grad_() for _ in range(2))
    key = torch.arange(rows) // 2
    shared = [torch.tensor([5.0], requires_grad=True), torch.tensor([-1.0])][: 2 if loss is sigmoid_loss else 1]
    with LargestTensor() as seen:
        loss(image, text, *shared, image_key=key, text_key=key, positives="shared", chunk_size=chunk_size).backward()
    assert seen.largest == chunk_size * rows


def test_shared_positives_need_keys() -> None:
    with pytest.raises(ValueError, match="image_key"):
        info_nce(*features()[:3], positives="shared")


def test_features_of_different_shape_are_refused() -> None:
    image, text, scale, _ = features()
    with pytest.raises(ValueError, match="shape"):
        info_nce(image, text[:5], scale)
