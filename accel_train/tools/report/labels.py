"""What a classifier takes for what: the confusion matrix, each class, and the mistakes it is surest of."""

from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from accel_train.tools.page.axis import percent
from accel_train.tools.page.page import table
from accel_train.tools.report.record import Record
from accel_train.tools.report.tables import Row

COLUMNS = ("text", "label", "predicted", "probability")
MOST_CLASSES = 16
"""In the matrix; of more, those with the most mistakes."""
NUM_MISTAKES = 12
NUM_PAIRS = 8
LONGEST = 240
"""Characters shown of a text."""


def draw(record: Record, split: str, rows: list[Row]) -> Markup:
    """Rows are those of the classifier's `prediction_rows`."""
    counts = Counter((row["label"], row["predicted"]) for row in rows)
    sizes = Counter(row["label"] for row in rows)
    names = [name for name, _ in sizes.most_common()]
    names += sorted({row["predicted"] for row in rows} - set(names))
    abreast = Markup('<div class="abreast">{}{}</div>')
    counted = abreast.format(_matrix(counts, sizes, names), _classes(counts, sizes, names))
    return counted + abreast.format(_pairs(counts, sizes, rows), _surest(rows))


def _matrix(counts: Counter[tuple[str, str]], sizes: Counter[str], names: Sequence[str]) -> Markup:
    """Rows are true classes; the tint is the share of the row, so that rare classes show as well as common ones."""
    caption = "Confusion matrix: rows are the true classes, columns the predicted ones"
    if len(names) > MOST_CLASSES:
        mistakes = Counter(
            {name: sum(n for pair, n in counts.items() if name in pair and pair[0] != pair[1]) for name in names}
        )
        chosen = {name for name, _ in mistakes.most_common(MOST_CLASSES)}
        caption += f"; of {len(names)} classes, the {MOST_CLASSES} with the most mistakes"
        names = [name for name in names if name in chosen]
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in names)
    lines = Markup("")
    for label in names:
        cells = Markup("")
        for predicted in names:
            count, share = counts[label, predicted], counts[label, predicted] / (sizes[label] or 1)
            kind = "hit" if label == predicted else "miss"
            cells += Markup('<td class="{}" style="--share:{:.3f}">{}</td>').format(kind, share, count or "")
        lines += Markup('<tr><th scope="row">{}</th>{}</tr>').format(label, cells)
    return Markup(
        '<div class="wide" tabindex="0" role="region" aria-label="{0}"><table class="matrix numbers">'
        "<caption><span>{0}</span></caption>"
        '<thead><tr><th scope="col">true class</th>{1}</tr></thead><tbody>{2}</tbody></table></div>'
    ).format(caption, head, lines)


def _classes(counts: Counter[tuple[str, str]], sizes: Counter[str], names: Sequence[str]) -> Markup:
    taken = Counter[str]()
    for (_, predicted), count in counts.items():
        taken[predicted] += count
    rows = [
        [
            name,
            f"{sizes[name]:,}",
            percent(counts[name, name] / sizes[name]) if sizes[name] else "–",
            percent(counts[name, name] / taken[name]) if taken[name] else "–",
        ]
        for name in names
    ]
    return table(["class", "texts", "recall", "precision"], rows, caption="Each class")


def _pairs(counts: Counter[tuple[str, str]], sizes: Counter[str], rows: Sequence[Row]) -> Markup:
    wrong = Counter({pair: count for pair, count in counts.items() if pair[0] != pair[1]})
    lines = []
    for (label, predicted), count in wrong.most_common(NUM_PAIRS):
        example = next(row for row in rows if (row["label"], row["predicted"]) == (label, predicted))
        lines.append([label, predicted, f"{count}", percent(count / sizes[label]), example["text"][:LONGEST]])
    header = ["true class", "predicted", "times", "of the class", "an example"]
    return table(header, lines, caption="What is confused most often", numbers=False) if lines else Markup("")


def _surest(rows: Sequence[Row]) -> Markup:
    wrong = sorted((row for row in rows if row["label"] != row["predicted"]), key=lambda row: -row["probability"])
    lines = [
        [row["text"][:LONGEST], row["label"], row["predicted"], percent(row["probability"])]
        for row in wrong[:NUM_MISTAKES]
    ]
    header = ["text", "true class", "predicted", "probability"]
    return table(header, lines, caption="Mistakes it is surest of", numbers=False) if lines else Markup("")
