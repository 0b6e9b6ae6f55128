import pytest

from accel_train.tools.init.choices import (
    contrastive_batch,
    epochs,
    image_size,
    largest_power_of_two,
    length,
    micro_batch,
    text_limit,
)


@pytest.mark.parametrize(("pairs", "batch"), [(100, 32), (5_816, 128), (250_314, 1024), (10**7, 1024)])
def test_a_contrastive_batch_leaves_forty_steps_to_an_epoch(pairs: int, batch: int) -> None:
    assert contrastive_batch(pairs) == batch


def test_a_batch_is_never_larger_than_the_data() -> None:
    for num_samples in range(1, 200):
        planned = length(num_samples, 80, 3)
        assert planned.global_batch_size <= num_samples
        assert planned.steps_per_epoch == num_samples // planned.global_batch_size
        assert planned.total_steps == 3 * planned.steps_per_epoch


@pytest.mark.parametrize(("batch", "most", "micro"), [(128, 64, 64), (80, 64, 40), (7, 4, 1), (4, 64, 4)])
def test_a_micro_batch_divides_the_batch(batch: int, most: int, micro: int) -> None:
    assert micro_batch(batch, most) == micro


def test_powers_of_two() -> None:
    assert [largest_power_of_two(size) for size in (0, 1, 2, 3, 4, 1023, 1024)] == [1, 1, 2, 2, 4, 512, 1024]


def test_few_samples_are_seen_often() -> None:
    assert [epochs(num, few=20, usual=10) for num in (999, 1_000, 299_999, 300_000)] == [20, 10, 10, 5]


@pytest.mark.parametrize(
    ("samples", "num_epochs", "every"), [(128, 5, "1 epoch"), (128, 25, "3 epochs"), (128 * 2_001, 3, "1000 steps")]
)
def test_about_ten_evaluations(samples: int, num_epochs: int, every: str) -> None:
    assert length(samples, 128, num_epochs).evaluate_every() == every


def test_text_limit_spares_nearly_all() -> None:
    lengths = [*range(1, 1_000), 5_000]
    limit, share = text_limit(lengths, 512)
    assert (limit, share) == (512, pytest.approx(0.488))
    limit, share = text_limit(lengths, 100_000)
    assert limit == 996  # 995 rounded up to a multiple of four
    assert share == pytest.approx(4 / 1_000)
    assert text_limit([3, 3, 3], 512) == (8, 0.0)


def test_images_are_not_blown_up() -> None:
    assert [image_size(side, 224) for side in (20, 96, 100, 500)] == [32, 96, 96, 224]
    assert image_size(500, 64) == 64
