"""Captions that a model wrote beside the true ones, from the likeliest to the least likely."""

from markupsafe import Markup

from accel_train.data.spoken_split import open_spoken_split
from accel_train.tools.page.axis import percent, short
from accel_train.tools.page.marks import histogram
from accel_train.tools.report.pictures import Pictures, pictures_of
from accel_train.tools.report.record import Record
from accel_train.tools.report.tables import Row, evenly

COLUMNS = ("image_id", "caption", "written", "loss")
NUM_SAMPLES = 12


def draw(record: Record, split: str, rows: list[Row]) -> Markup:
    """Rows are those of the task's `prediction_rows`; `loss` is of the true caption, in nats a token."""
    exact = sum(row["written"] == row["caption"] for row in rows)
    losses = [row["loss"] for row in rows]
    words = f"Loss of {len(rows)} true captions: from {short(min(losses))} to {short(max(losses))} nats a token"
    found = histogram("Loss of the true captions", losses, x_label="nats a token", words=words)
    found += Markup("<p>{} of {:,} captions are written without a fault ({}).</p>").format(
        exact, len(rows), percent(exact / len(rows))
    )
    chosen = evenly(sorted(rows, key=lambda row: float(row["loss"])), NUM_SAMPLES)
    pictures = pictures_of(
        record, split, {row["image_id"] for row in chosen}, lambda path, split: open_spoken_split(path, split).images
    )
    items = Markup("").join(_sample(row, pictures) for row in chosen)
    heading = "Samples: from the likeliest true caption to the least likely"
    return found + pictures.note + Markup('<h3>{}</h3><ul class="gallery">{}</ul>').format(heading, items)


def _sample(row: Row, pictures: Pictures) -> Markup:
    is_right = row["written"] == row["caption"]
    return Markup(
        '<li>{}<dl class="pairs"><dt>true</dt><dd>{}</dd><dt>written</dt><dd class="{}">{}{}</dd>'
        "<dt>loss</dt><dd>{}</dd></dl></li>"
    ).format(
        pictures.image(row["image_id"], f"image of: {row['caption']}"),
        row["caption"],
        "right" if is_right else "wrong",
        "✓ " if is_right else "",
        row["written"] or "(nothing)",
        short(row["loss"]),
    )
