"""Searches a folder by texts and images with a trained model, and draws what is found.

    python search_photos.py work/photos --query 红色的花 --query-image work/photos/10.png --sheet work/found.png

The command for the same, and for a page in the browser (--serve), is `accel-train search`.
"""

import argparse
from pathlib import Path

from accel_train.tools.search.asked import Asked
from accel_train.tools.search.picture import sheet_of
from accel_train.tools.search.search import Query, open_search


def search_photos(model: str, photos: str, queries: list[Query], sheet: str | None, index: str | None) -> None:
    """Prints the nearest images of each query. Images that were searched before are not embedded again."""
    with open_search(model, Asked(images=photos), index=index) as search:
        found = search.find(queries, top=5)
        for query, hits in zip(queries, found, strict=True):
            print(query.text or query.name)
            for hit in hits:
                print(f"  {hit.score:.3f}  {hit.id}{'  (the same file)' if hit.is_duplicate else ''}")
        if sheet is not None:
            sheet_of(search, queries, found).save(sheet)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--model", default="work/run", help="run or export")
    parser.add_argument("--query", action="append", default=[])
    parser.add_argument("--query-image", action="append", default=[])
    parser.add_argument("--sheet", help="PNG to draw")
    parser.add_argument("--index", help="folder of the index (default: in ~/.cache/accel_train)")
    arguments = parser.parse_args()
    queries = [Query(text=text) for text in arguments.query]
    queries += [Query(image=Path(path).read_bytes(), name=path) for path in arguments.query_image]
    search_photos(arguments.model, arguments.photos, queries, arguments.sheet, arguments.index)
