"""Keys of images and texts that the data sections of several tasks share."""

from typing import Annotated, Literal

from pydantic import Field

from accel_train.config.schema import Section


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
    """Tokens a caption is cut or padded to, special tokens included."""
    text_cleaning: Literal["none", "chinese_clip"] = "none"
    """`chinese_clip` lower-cases captions and straightens curly double quotes before tokenising, as the original trainer
    did for the published weights."""
