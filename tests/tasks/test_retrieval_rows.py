"""What is found for each text, against a naive ranking of the shipped sample."""

import torch

from accel_train.data.splits import open_split
from accel_train.tasks.retrieval_rows import NUM_FOUND, retrieval_rows

SAMPLE = "sample:emoji-zh"


def test_rows_name_the_nearest_images_and_the_rank_of_the_right_one() -> None:
    opened = open_split(SAMPLE, "valid")
    draw = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(opened.num_images, 8, generator=draw), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(opened.num_texts, 8, generator=draw), dim=1)
    rows = list(retrieval_rows(images, texts, SAMPLE, "valid"))
    assert len(rows) == opened.num_texts
    matches = {(text, image) for image, text in opened.matches().tolist()}
    for text, row in enumerate(rows[:50]):
        similarity = (images @ texts[text]).tolist()
        nearest = sorted(range(len(images)), key=lambda image: -similarity[image])[:NUM_FOUND]
        assert [row[f"image_{place}"] for place in range(1, NUM_FOUND + 1)] == [
            opened.images.value("image_id", image) for image in nearest
        ]
        best = max(similarity[image] for image in range(len(images)) if (text, image) in matches)
        ahead = sum(s >= best for image, s in enumerate(similarity) if (text, image) not in matches)
        assert row["rank"] == ahead + 1
        assert row["text"] == opened.texts.value("text", text)
        assert abs(row["similarity_1"] - max(similarity)) < 1e-5
