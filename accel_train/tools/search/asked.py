"""What a search was asked to go through."""

from dataclasses import dataclass
from pathlib import Path

from accel_train.errors import UserError


@dataclass(frozen=True, slots=True)
class Asked:
    """What to search. Exactly one of `images`, `split` and `texts`, or none with `features`."""

    images: str | None = None
    """A folder."""
    split: str | None = None
    data: str | None = None
    """Dataset of the split. None: the one that the configuration names."""
    texts: str | None = None
    """A file with a text a line."""
    features: str | None = None
    """A file written by `embed`. What it was made from may be named beside it, to show it."""
    kinds: tuple[str, ...] | None = None
    """image, text or both, as far as there are both. None: images if there are any."""

    def __post_init__(self) -> None:
        named = [name for name in (self.images, self.split, self.texts) if name is not None]
        if len(named) > 1:
            raise UserError("--images, --split and --texts each name what is searched. Give one of them.")
        if not named and self.features is None:
            raise UserError("nothing to search. Name it with --images, --split, --texts or --features.")
        if self.data is not None and self.split is None:
            raise UserError("--data names the dataset of --split; without --split it would be ignored.")
        if self.features is not None and self.texts is not None:
            raise UserError("--features holds the texts themselves; --texts beside it would be ignored. Take it out.")
        if self.images is not None and not Path(self.images).is_dir():
            raise UserError(f"--images: {self.images} is not a folder.")
        for option, file in (("--texts", self.texts), ("--features", self.features)):
            if file is not None and not Path(file).is_file():
                raise UserError(f"{option}: there is no file {file}.")
