import pytest
import torch

from accel_train.losses.contrastive import info_nce
from accel_train.tools.bench.loss_costs import (
    LiveBytes,
    bytes_held,
    features,
    fused_figure,
    gradients,
    memory_figure,
    plain_info_nce,
    time_figure,
)


def test_a_batch_of_65536_holds_less_than_a_hundredth_of_the_plain_form() -> None:
    """Both are counted without arithmetic; the next test compares such a count with a real run."""
    figure = memory_figure()
    assert figure.value < 0.01
    assert bytes_held(plain_info_nce, 65_536) > 3 * 4 * 65_536**2


@pytest.mark.parametrize("loss", [info_nce, plain_info_nce])
def test_the_count_is_that_of_a_real_run(loss) -> None:  # type: ignore[no-untyped-def]
    inputs = features(512)
    with LiveBytes() as live:
        found = gradients(loss, inputs)
    assert live.most - sum(value.nbytes for value in inputs) == pytest.approx(bytes_held(loss, 512), rel=0.01)
    assert live.now >= sum(gradient.nbytes for gradient in found)
    del found
    assert live.now == 0


def test_live_bytes_forgets_what_was_freed() -> None:
    with LiveBytes() as live:
        for _ in range(3):
            torch.ones(1000)
        torch.ones(10).view(5, 2)
    assert (live.now, live.most) == (0, 4000)


def test_a_figure_of_time_is_a_ratio() -> None:
    figure = time_figure(64, rounds=2)
    assert figure.value > 0 and figure.goal == 1.1


def test_a_figure_of_the_kernels_names_rows_and_ranks() -> None:
    figure = fused_figure(64, 4, rounds=2, device="cpu")
    assert figure.value > 0 and figure.goal == 1.0
    assert figure.name == "loss/fused_to_chunks_64_on_4"
