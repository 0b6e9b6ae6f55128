"""Opens a split of images with captions wherever it lies: in a dataset folder, or in place in files of Chinese-CLIP."""

from accel_train.data.arrow_split import Split, open_arrow_split
from accel_train.data.in_place import find_in_place, open_in_place


def open_split(path: str, split: str) -> Split:
    """One split of what `data.path` names, after checking that its files are whole and belong together. Raises UserError."""
    source = find_in_place(path)
    return open_arrow_split(path, split) if source is None else open_in_place(source, split)
