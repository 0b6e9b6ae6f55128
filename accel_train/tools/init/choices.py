"""What a configuration begins with, by the size of the data: plain functions, so that their figures can be read here.

They are starting points. `accel-train find-lr` and `accel-train sweep` find better ones for one's own data.
"""

import math
from dataclasses import dataclass

FEW, SOME, MANY = 1_000, 10_000, 100_000
"""Samples below which a pretrained model is frozen but for its heads, in part, or trained as a whole with layer decay."""
SMALL_MODEL = 50_000
"""Samples below which a model from random weights is a small one."""
EVALUATIONS = 10
STEPS_WORTH_AN_EVALUATION = 2_000
LENGTH_SHARE = 0.995
"""Share of the texts that are not cut."""


@dataclass(frozen=True)
class Length:
    """How long a run is, and how it is divided."""

    global_batch_size: int
    num_epochs: int
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return self.num_epochs * self.steps_per_epoch

    def evaluate_every(self) -> str:
        """About ten evaluations; epochs that are very long have several."""
        if self.steps_per_epoch > STEPS_WORTH_AN_EVALUATION:
            return "1000 steps"
        epochs = math.ceil(self.num_epochs / EVALUATIONS)
        return "1 epoch" if epochs == 1 else f"{epochs} epochs"

    def log_every(self) -> str:
        steps = max(1, min(20, self.steps_per_epoch // 10))
        return "1 step" if steps == 1 else f"{steps} steps"


def length(num_samples: int, global_batch_size: int, num_epochs: int) -> Length:
    batch = global_batch_size if num_samples >= global_batch_size else largest_power_of_two(num_samples)
    return Length(batch, num_epochs, max(1, num_samples // batch))


def largest_power_of_two(at_most: float) -> int:
    return 1 << (max(1, int(at_most)).bit_length() - 1)


def contrastive_batch(num_pairs: int) -> int:
    """Negatives come from the batch: as large as leaves forty steps to an epoch, from 32 to 1024."""
    return min(max(largest_power_of_two(num_pairs / 40), 32), 1024)


def micro_batch(global_batch_size: int, most: int) -> int:
    """At most `most`, and a divisor of the global batch."""
    return max(size for size in range(1, min(most, global_batch_size) + 1) if global_batch_size % size == 0)


def epochs(num_samples: int, *, few: int, usual: int) -> int:
    """`few` samples are seen often, hundreds of thousands seldom."""
    if num_samples < FEW:
        return few
    return usual if num_samples < 3 * MANY else max(1, usual // 2)


def text_limit(lengths: list[int], most: int) -> tuple[int, float]:
    """max_text_length that spares all but LENGTH_SHARE of the texts, and the share that is longer.

    Rounded up to a multiple of 4, at least 8, at most `most`.
    """
    ordered = sorted(lengths)
    wanted = ordered[min(len(ordered) - 1, math.ceil(LENGTH_SHARE * len(ordered)) - 1)]
    limit = min(most, max(8, math.ceil(wanted / 4) * 4))
    return limit, sum(length > limit for length in lengths) / len(lengths)


def image_size(side: int, most: int) -> int:
    """What images with a shorter side of `side` pixels are scaled to: not above what is there, nor above `most`."""
    return max((size for size in (32, 48, 64, 96, 128, 160, 192, 224) if size <= min(side, most)), default=32)
