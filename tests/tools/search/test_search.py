"""Whatever asks and whatever is searched: the results are the nearest features, as transformers computes them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from accel_train.data.feature_file import read_features, write_features
from accel_train.data.splits import open_split
from accel_train.errors import UserError
from accel_train.tools.embed import Asked as AskedToEmbed
from accel_train.tools.embed import embed
from accel_train.tools.search.asked import Asked
from accel_train.tools.search.search import Hit, Query, Search, open_search
from tests.tools.conftest import CAPTIONS, NUM_IMAGES, NUM_TEXTS, encoded_image
from tests.tools.plain import image_features, text_features, write_images


@pytest.fixture(scope="module")
def wanted(exported: str, pairs_folder: str) -> dict[str, torch.Tensor]:
    """Features of the split by transformers."""
    opened = open_split(pairs_folder, "valid")
    texts = [opened.texts.value("text", row) for row in range(NUM_TEXTS)]
    images = [opened.images.value("image", row) for row in range(NUM_IMAGES)]
    return {"image": image_features(exported, images), "text": text_features(exported, texts)}


@pytest.fixture(scope="module")
def features_file(exported: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "valid.safetensors"
    asked = AskedToEmbed(None, "valid", None, None)
    embed(exported, str(path), asked, overrides=[], checkpoint=None, as_json=True)
    return path


def check(hits: list[Hit], query: torch.Tensor, targets: torch.Tensor, num: int) -> None:
    scores = targets @ query
    torch.testing.assert_close(torch.tensor([hit.score for hit in hits]), scores.topk(num).values, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.tensor([hit.score for hit in hits]), scores[[h.row for h in hits]], atol=1e-5, rtol=0
    )


def test_texts_find_images_and_texts(whole_split: Search, exported: str, wanted: dict[str, torch.Tensor]) -> None:
    texts = ["红色的花", "cat"]
    encoded = text_features(exported, texts)
    for kind in ("image", "text"):
        found = whole_split.find([Query(text=text) for text in texts], kind=kind, top=6)
        for hits, query in zip(found, encoded, strict=True):
            check(hits, query, wanted[kind], 6)
            assert {hit.kind for hit in hits} == {kind}
    assert found[0][0].text in {caption + "一" * extra for caption in CAPTIONS for extra in range(3)}


def test_images_find_images_and_texts(whole_split: Search, exported: str, wanted: dict[str, torch.Tensor]) -> None:
    image = encoded_image(77)
    (query,) = image_features(exported, [image])
    for kind in ("image", "text"):
        (hits,) = whole_split.find([Query(image=image)], kind=kind, top=5)
        check(hits, query, wanted[kind], 5)


def test_an_item_finds_others(whole_split: Search, wanted: dict[str, torch.Tensor]) -> None:
    (hits,) = whole_split.find([Query(item=("image", 4))], top=NUM_IMAGES)
    assert len(hits) == NUM_IMAGES - 1
    assert 4 not in {hit.row for hit in hits}
    (texts,) = whole_split.find([Query(item=("image", 4))], kind="text", top=3)
    check(texts, wanted["image"][4], wanted["text"], 3)


def test_several_kinds_of_queries_keep_their_order(whole_split: Search) -> None:
    queries = [Query(image=encoded_image(1)), Query(text="月亮"), Query(item=("image", 2)), Query(text="汽车")]
    together = whole_split.find(queries, top=3)
    for query, hits in zip(queries, together, strict=True):
        (alone,) = whole_split.find([query], top=3)
        assert [hit.row for hit in hits] == [hit.row for hit in alone]


def test_files_that_are_the_query_are_flagged(exported: str, tmp_path: Path) -> None:
    images = {"a.png": encoded_image(1), "b.png": encoded_image(2), "copies/c.png": encoded_image(1)}
    write_images(tmp_path / "photos", images)
    with open_search(exported, Asked(images=str(tmp_path / "photos")), show_progress=False) as search:
        (hits,) = search.find([Query(image=images["a.png"])])
        assert [(hit.id, hit.is_duplicate) for hit in hits] == [
            ("a.png", True),
            ("copies/c.png", True),
            ("b.png", False),
        ]
        (others,) = search.find([Query(item=("image", 0))])
        assert [(hit.id, hit.is_duplicate) for hit in others] == [("copies/c.png", True), ("b.png", False)]
        (tmp_path / "photos" / "a.png").unlink()  # while the search is open
        (hits,) = search.find([Query(image=images["a.png"])])
        assert [hit.is_duplicate for hit in hits] == [False, True, False]


def test_templates_are_averaged(exported: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("{}\n一张{}的照片\n", encoding="utf-8")
    asked = Asked(images=str(photos))
    with open_search(exported, asked, templates=str(tmp_path / "templates.txt"), show_progress=False) as search:
        found = search.features([Query(text="猫"), Query(text="花")])
    parts = text_features(exported, ["猫", "一张猫的照片", "花", "一张花的照片"])
    torch.testing.assert_close(found, normalize(parts.view(2, 2, -1).mean(1), dim=1), atol=2e-6, rtol=0)


def test_texts_of_a_file(exported: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("一只猫\n大树\n一只猫\n", encoding="utf-8")
    with open_search(exported, Asked(texts=str(tmp_path / "names.txt")), show_progress=False) as search:
        (hits,) = search.find([Query(text="大树")])
    assert [hit.text for hit in hits] == ["大树", "一只猫"]
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_a_feature_file_gives_the_same_results(exported: str, whole_split: Search, features_file: Path) -> None:
    queries = [Query(text="红色的花"), Query(image=encoded_image(3))]
    for kind in ("image", "text"):
        asked = Asked(features=str(features_file), split="valid", kinds=(kind,))
        with open_search(exported, asked, show_progress=False) as search:
            assert search.folder is None
            found = search.find(queries, top=4)
        for hits, others in zip(found, whole_split.find(queries, kind=kind, top=4), strict=True):
            assert [(h.row, h.id, h.text, h.is_duplicate) for h in hits] == [
                (h.row, h.id, h.text, h.is_duplicate) for h in others
            ]
    assert found[0][0].text is not None


def test_a_feature_file_alone_knows_ids(exported: str, features_file: Path) -> None:
    with open_search(exported, Asked(features=str(features_file)), show_progress=False) as search:
        (hits,) = search.find([Query(image=encoded_image(3))], top=2)
        assert hits[0].id == "img3"
        assert not hits[0].is_duplicate
        assert search.searched["image"].content(0) is None


def test_features_of_other_weights_are_refused(exported: str, features_file: Path, tmp_path: Path) -> None:
    content = read_features(features_file)
    content.weights = "0" * 64
    write_features(tmp_path / "other.safetensors", content)
    asked = Asked(features=str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="features by other weights"), open_search(exported, asked, show_progress=False):
        pass


def test_what_stands_beside_a_feature_file_must_be_its_source(exported: str, features_file: Path, photos: Path) -> None:
    asked = Asked(features=str(features_file), images=str(photos))
    with pytest.raises(UserError, match="holds none of the images"), open_search(exported, asked, show_progress=False):
        pass


def test_ids_of_a_feature_file_are_never_paths(
    exported: str, features_file: Path, photos: Path, tmp_path: Path
) -> None:
    """A file from others may call its rows anything."""
    (tmp_path / "secret.png").write_bytes(encoded_image(9))
    content = read_features(features_file)
    content.image_ids = ["../secret.png", str(tmp_path / "secret.png"), "00.png", *content.image_ids[3:]]
    write_features(tmp_path / "odd.safetensors", content)
    asked = Asked(features=str(tmp_path / "odd.safetensors"), images=str(photos))
    with open_search(exported, asked, show_progress=False) as search:
        contents = [search.searched["image"].content(row) for row in range(3)]
    assert contents == [None, None, (photos / "00.png").read_bytes()]


def test_approximate_search_says_how_much_it_finds(exported: str, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    for number in range(8, 60):
        (photos / f"{number}.png").write_bytes(encoded_image(100 + number))
    asked, queries = Asked(images=str(photos)), [Query(text="红色的花"), Query(image=encoded_image(3))]
    with open_search(exported, asked, show_progress=False) as search:
        exact = search.find(queries, top=5)
    for _ in range(2):  # built, then read
        with open_search(exported, asked, approximate=True, show_progress=False) as search:
            found = search.find(queries, top=5)
            recall = search.recall_of_approximate("image", 5)
            assert search.folder is not None
            (clusters,) = search.folder.glob("*.faiss")
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in exact]
    assert recall == 1

    (photos / "0.png").write_bytes(encoded_image(3))
    with open_search(exported, asked, approximate=True, show_progress=False) as search:
        ((first, *_),) = search.find([Query(image=encoded_image(3))])
        assert (first.id, first.is_duplicate) == ("0.png", True)
        assert search.folder is not None
        assert clusters not in search.folder.glob("*.faiss"), "the file of the old items is still there"


@pytest.mark.parametrize("keep", [0, 50, 2000, -100])
def test_a_damaged_file_of_clusters_is_named(tmp_path: Path, keep: int) -> None:
    pytest.importorskip("faiss")
    from accel_train.tools.search.approximate import open_approximate

    features = torch.nn.functional.normalize(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    open_approximate(tmp_path, "image", features, "token", show_progress=False)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:keep])
    with pytest.raises(UserError, match=r"damaged .* Remove it; it is built again"):
        open_approximate(tmp_path, "image", features, "token", show_progress=False)


@pytest.mark.parametrize("num_rows", [1, 3, 2000])
def test_clusters_find_what_an_exact_search_finds(tmp_path: Path, num_rows: int) -> None:
    pytest.importorskip("faiss")
    from accel_train.tools.search.approximate import open_approximate
    from accel_train.tools.search.nearest import nearest

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 16, generator=generator)
    rows = centres[torch.arange(num_rows) % 40] + 0.1 * torch.randn(num_rows, 16, generator=generator)
    features = torch.nn.functional.normalize(rows, dim=1)
    clusters = open_approximate(tmp_path, "image", features, "token", show_progress=False)
    scores, found = clusters.nearest(features[:20], 5)
    exact_scores, exact = nearest(features[:20], features, 5)
    torch.testing.assert_close(scores, exact_scores, atol=1e-5, rtol=0)
    assert torch.equal(found, exact)


def test_recall_is_counted_row_by_row() -> None:
    from accel_train.tools.search.approximate import recall_of

    class HalfBlind:
        def nearest(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(queries), k), torch.tensor([[3, 9], [1, -1]])

    features = torch.eye(4)
    queries = torch.tensor([[0, 0, 0.5, 1.0], [1.0, 0.5, 0, 0]])  # rows 3, 2 and rows 0, 1
    assert recall_of(HalfBlind(), queries, features, 2) == 0.5  # type: ignore[arg-type]


def test_without_faiss_it_says_what_to_install(exported: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    wanted = r"--approximate needs faiss: pip install 'accel_train\[ann\]'"
    with pytest.raises(UserError, match=wanted), open_search(exported, Asked(images=str(photos)), approximate=True):
        pass


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "nothing to search"),
        ({"images": ".", "split": "valid"}, "Give one of them"),
        ({"images": ".", "data": "x"}, "--data names the dataset of --split"),
        ({"images": "/absent"}, "--images: /absent is not a folder"),
        ({"texts": "/absent"}, "--texts: there is no file /absent"),
        ({"features": "/absent", "texts": "/absent"}, "Take it out"),
    ],
)
def test_what_is_asked_must_make_sense(asked: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Asked(**asked)  # type: ignore[arg-type]


def test_other_tasks_have_nothing_to_search_by(photos: Path) -> None:
    source = str(Path(__file__).parents[3] / "configs" / "sequence_classification.yaml")
    with (
        pytest.raises(UserError, match="no features of images and texts"),
        open_search(source, Asked(images=str(photos))),
    ):
        pass


def test_kinds_that_are_not_there(exported: str, photos: Path) -> None:
    asked = Asked(images=str(photos), kinds=("text",))
    with (
        pytest.raises(UserError, match="--find texts: what is searched holds images alone"),
        open_search(exported, asked),
    ):
        pass


def test_captions_of_a_split_are_not_embedded_twice(exported: str, tmp_path: Path) -> None:
    asked = Asked(split="valid", kinds=("text",))
    counts = []
    for _ in range(2):
        with open_search(exported, asked, index=str(tmp_path / "index"), show_progress=False) as search:
            counts.append(search.searched["text"].index.num_embedded)
    assert counts == [NUM_TEXTS, 0]
    assert json.loads((tmp_path / "index" / "index.json").read_text())["searched"].endswith("pairs, split valid")
