"""Predicted against given ratings: the cloud, the residuals, and the samples that are farthest off."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from accel_train.data.rated_images import open_rated_split
from accel_train.tools.page.axis import short
from accel_train.tools.page.marks import histogram, scatter
from accel_train.tools.page.page import table
from accel_train.tools.report.pictures import pictures_of
from accel_train.tools.report.record import Record
from accel_train.tools.report.tables import Row

RATINGS = ("quality", "consistency")
COLUMNS = ("image_id", "prompt", *(f"{name}_{kind}" for name in RATINGS for kind in ("rated", "predicted")))
NUM_FAR = 4
"""Samples shown that are rated too high, and as many too low."""


def draw(record: Record, split: str, rows: list[Row]) -> Markup:
    """Rows are those of the scorer's `prediction_rows`."""
    charts = Markup("")
    readings, far = [], {}
    for name in RATINGS:
        rated = np.array([row[f"{name}_rated"] for row in rows])
        predicted = np.array([row[f"{name}_predicted"] for row in rows])
        residuals = predicted - rated
        readings.append([name, *(f"{value:.3f}" for value in _readings(rated, predicted))])
        order = residuals.argsort()
        far[name] = [*order[::-1][:NUM_FAR].tolist(), *order[:NUM_FAR].tolist()]
        words = f"{name}: {len(rows)} samples, predicted against rated"
        charts += scatter(
            f"{name.capitalize()}: predicted against rated",
            "rated",
            "predicted",
            rated.tolist(),
            predicted.tolist(),
            words=words,
        )
        words = (
            f"Residuals of {name}, predicted minus rated: mean {short(float(residuals.mean()))}, from "
            f"{short(float(residuals.min()))} to {short(float(residuals.max()))}"
        )
        charts += histogram(
            f"{name.capitalize()}: residuals", residuals.tolist(), x_label="predicted - rated", words=words
        )
    header = ["rating", "mean error", "mean absolute error", "root mean square", "deviation of ratings"]
    found = Markup('<div class="grid-of-charts">{}</div>').format(charts)
    found += table(header, readings, caption=f"Errors on {len(rows):,} samples, on the scale of the ratings")
    return found + _farthest(record, split, rows, far)


def _readings(rated: np.ndarray, predicted: np.ndarray) -> Sequence[float]:
    residuals = predicted - rated
    return [residuals.mean(), np.abs(residuals).mean(), np.sqrt(np.square(residuals).mean()), rated.std()]


def _farthest(record: Record, split: str, rows: list[Row], far: dict[str, list[int]]) -> Markup:
    pictures = pictures_of(
        record,
        split,
        {rows[index]["image_id"] for chosen in far.values() for index in chosen},
        lambda path, split: open_rated_split(path, split).images,
    )
    found = pictures.note
    for name, chosen in far.items():
        items = Markup("")
        for index in dict.fromkeys(chosen):
            row = rows[index]
            residual = row[f"{name}_predicted"] - row[f"{name}_rated"]
            items += Markup(
                "<li>{}<p>{}</p><p>predicted {} · rated {} · <span class='wrong'>{}</span></p></li>"
            ).format(
                pictures.image(row["image_id"], f"image {row['image_id']}, prompt: {row['prompt']}"),
                row["prompt"],
                f"{row[f'{name}_predicted']:.2f}",
                f"{row[f'{name}_rated']:.2f}",
                f"{residual:+.2f}",
            )
        found += Markup('<h3>Farthest off in {}: too high first, then too low</h3><ul class="gallery">{}</ul>').format(
            name, items
        )
    return found
