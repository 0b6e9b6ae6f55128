"""Images of a run's dataset, small and inside the page."""

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from markupsafe import Markup
from PIL import Image

from accel_train.data.arrow_split import Rows
from accel_train.data.transforms import UnreadableImage, open_image
from accel_train.errors import UserError
from accel_train.tools.report.record import Record

SIDE = 112
QUALITY = 75
PAPER = (255, 255, 255)


@dataclass(slots=True)
class Pictures:
    """Thumbnails by image id."""

    addresses: dict[str, str] = field(default_factory=dict)
    missing: str = ""
    """Why there are none, or not all."""

    def image(self, name: str, alt: str) -> Markup:
        """An `img`, or a box with the id where the image can't be shown."""
        if address := self.addresses.get(name):
            return Markup('<img src="{}" alt="{}" width="{}" height="{}" loading="lazy">').format(
                address, alt, SIDE, SIDE
            )
        return Markup('<span class="no-image">{}</span>').format(name)

    @property
    def note(self) -> Markup:
        return Markup('<p class="note">{}</p>').format(self.missing) if self.missing else Markup("")


def pictures_of(record: Record, split: str, wanted: Iterable[str], images: Callable[[str, str], Rows]) -> Pictures:
    """From the dataset that the run's configuration names, if it is still there; `images` opens it (path, split)."""
    config = record.settings.config
    if config is None:
        return no_pictures("of the run", "its configuration is of another version")
    try:
        return read_pictures(images(config.data.path, split), wanted)
    except (UserError, OSError) as error:
        return no_pictures(config.data.path, error)


def read_pictures(images: Rows, wanted: Iterable[str]) -> Pictures:
    """Thumbnails of the images with these ids; those that are not there or can't be decoded are counted."""
    names = set(wanted)
    found = Pictures()
    for row in range(len(images)):
        if len(found.addresses) == len(names):
            break
        if (name := str(images.value("image_id", row))) in names:
            try:
                found.addresses[name] = thumbnail(images.value("image", row))
            except UnreadableImage:
                continue
    if lost := len(names) - len(found.addresses):
        found.missing = f"{lost} of {len(names)} images are not in the dataset any more, or can't be decoded."
    return found


def no_pictures(path: str, reason: object) -> Pictures:
    return Pictures(missing=f"Images are not shown, since the dataset {path} can't be opened any more: {reason}")


def thumbnail(encoded: bytes) -> str:
    """The whole image on a white square, as a data URI. Raises UnreadableImage."""
    try:
        picture = open_image(encoded)
        picture.draft("RGB", (2 * SIDE, 2 * SIDE))  # JPEG decodes large photographs at a fraction of their size
        picture = picture.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(str(error)) from error
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2), picture)
    stream = io.BytesIO()
    square.save(stream, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
