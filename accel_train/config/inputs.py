"""Keys of images and texts that the data sections of several tasks share."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from accel_train.config.schema import Section, Share, changed_keys


class ImageInput(Section):
    """How an image becomes pixels."""

    image_size: Annotated[int, Field(ge=8)] = 224
    """Height and width in pixels."""
    resize: Literal["squash", "crop"] = "squash"
    """`squash` scales both sides to image_size; `crop` scales the short side and takes the centre."""
    decoding: Literal["exact", "fast"] = "exact"
    """`exact` gives the pixels of Pillow's bicubic filter over the whole image, as torchvision and the original Chinese-CLIP
    do. `fast` takes half the time or less: torch's filter, and JPEGs much larger than needed decoded at a smaller scale."""
    image_mean: list[float] = Field([0.48145466, 0.4578275, 0.40821073], min_length=3, max_length=3)
    image_std: list[Annotated[float, Field(gt=0)]] = Field(
        [0.26862954, 0.26130258, 0.27577711], min_length=3, max_length=3
    )


class TextInput(Section):
    """How a caption becomes tokens."""

    tokenizer: str
    """A folder with a tokenizer, or a WordPiece vocabulary file. `dataset:tokenizer` is the one `import` built."""
    max_text_length: Annotated[int, Field(ge=4)] = 52
    """Tokens a text is cut to, special tokens included."""
    text_cleaning: Literal["none", "chinese_clip"] = "none"
    """`chinese_clip` lower-cases captions and straightens curly double quotes before tokenising, as the original trainer
    did for the published weights."""


class PaddedText(Section):
    """How texts of different lengths become one batch."""

    pad_to_multiple_of: Annotated[int, Field(ge=1)] = 1
    """A micro-batch is padded to its longest text, rounded up to a multiple of this."""


class CropAndFlip(Section):
    """Training-time augmentation of where an image's pixels are; each draw is a function of (seed, epoch, sample)."""

    crop_scale: list[Share] | None = Field(None, min_length=2, max_length=2)
    """RandomResizedCrop: smallest and largest share of the image's area, for example [0.9, 1.0]. null: no crop."""
    crop_aspect: list[Annotated[float, Field(gt=0)]] = Field([0.75, 4 / 3], min_length=2, max_length=2)
    """Smallest and largest aspect ratio of a crop."""
    horizontal_flip: Share = 0.0
    """Probability of a left-right flip."""


def crop_rules(augmentation: CropAndFlip) -> Iterator[str]:
    """Contradictions within `data.augmentation`."""
    where = "data.augmentation."
    scale, aspect = augmentation.crop_scale, augmentation.crop_aspect
    if scale is not None and not 0 < scale[0] <= scale[1]:
        yield f"{where}crop_scale: found {scale}; it must be [smallest, largest] with 0 < smallest <= largest <= 1."
    if aspect[0] > aspect[1]:
        yield f"{where}crop_aspect: found {aspect}; it must be [smallest, largest]."
    if scale is None and changed_keys(augmentation, "crop_aspect"):
        yield f"{where}crop_aspect: {aspect} would be ignored, since {where}crop_scale is null and nothing is cropped."
