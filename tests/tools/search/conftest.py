"""One open model for all tests here: opening it takes longer than searching."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from accel_train.tools.search.asked import Asked
from accel_train.tools.search.encoder import Encoder, open_encoder
from accel_train.tools.search.search import Search, open_search
from tests.tools.conftest import encoded_image
from tests.tools.plain import write_images


@pytest.fixture(scope="session")
def encoder(exported: str) -> Iterator[Encoder]:
    with open_encoder(exported) as opened:
        yield opened


@pytest.fixture(scope="session")
def whole_split(exported: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    """Images and captions of the split, searchable."""
    index = str(tmp_path_factory.mktemp("index"))
    with open_search(
        exported, Asked(split="valid", kinds=("image", "text")), index=index, show_progress=False
    ) as search:
        yield search


@pytest.fixture
def images() -> dict[str, bytes]:
    return {f"{number:02d}.png": encoded_image(100 + number) for number in range(8)}


@pytest.fixture
def photos(tmp_path: Path, images: dict[str, bytes]) -> Path:
    """Eight images in a folder."""
    write_images(tmp_path / "photos", images)
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
