"""The image of a dataset row as pixels: augmented as a sample of an epoch, or as it is."""

from torch import Tensor

from accel_train.config.inputs import CropAndFlip, ImageInput
from accel_train.data.arrow_split import Rows
from accel_train.data.dataset import UnreadableSample
from accel_train.data.transforms import UnreadableImage, evaluation_image, sample_generator, training_image


def image_of_row(
    images: Rows,
    row: int,
    data: ImageInput,
    augmentation: CropAndFlip,
    *,
    split: str,
    seed: int,
    epoch: int | None,
    sample: int,
    auto_augment: bool = False,
) -> Tensor:
    """uint8 (3, image_size, image_size). Every draw is a function of (seed, epoch, sample); without an epoch there is none.

    Raises UnreadableSample that names the split and the image's id.
    """
    try:
        encoded = images.value("image", row)
        if epoch is None:
            return evaluation_image(encoded, data.image_size, data.resize, data.decoding)
        return training_image(
            encoded,
            data.image_size,
            data.resize,
            crop_scale=augmentation.crop_scale,
            crop_aspect=augmentation.crop_aspect,
            horizontal_flip=augmentation.horizontal_flip,
            auto_augment=auto_augment,
            generator=sample_generator("image", seed, epoch, sample),
            decoding=data.decoding,
        )
    except UnreadableImage as error:
        raise UnreadableSample(f"{split}: image {images.value('image_id', row)!r}: {error}") from error
