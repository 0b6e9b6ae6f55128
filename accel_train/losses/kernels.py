"""Triton kernels of InfoNCE: tiles of the similarity matrix in registers, and what becomes of them.

Products run on tensor cores. Features come in two parts, `coarse` in TF32 and the `rest` of fp32, and three products of
those parts come to the accuracy of fp32; what the product of the rests would add is less than fp32's rounding. No program
adds to what another one writes, so results repeat to the bit. Imported where a kernel is about to run: Triton comes with
torch's CUDA builds alone.
"""

import triton
import triton.language as tl


@triton.jit
def _logits(x, x_rest, y, y_rest, scale, rows, columns, end_row, end_column, width, depth: tl.constexpr):  # type: ignore[no-untyped-def]
    """scale x (rows of x) (columns of y)^T, one tile in fp32; 0 beyond either end."""
    summed = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    of_x, of_y = rows[:, None].to(tl.int64) * width, columns[None, :].to(tl.int64) * width
    for start in range(0, width, depth):
        inner = start + tl.arange(0, depth)
        x_mask = (rows[:, None] < end_row) & (inner[None, :] < width)
        y_mask = (columns[None, :] < end_column) & (inner[:, None] < width)
        x_coarse = tl.load(x + of_x + inner[None, :], mask=x_mask, other=0.0)
        y_coarse = tl.load(y + of_y + inner[:, None], mask=y_mask, other=0.0)
        x_fine = tl.load(x_rest + of_x + inner[None, :], mask=x_mask, other=0.0)
        y_fine = tl.load(y_rest + of_y + inner[:, None], mask=y_mask, other=0.0)
        summed = tl.dot(x_fine, y_coarse, summed, input_precision="tf32")
        summed = tl.dot(x_coarse, y_fine, summed, input_precision="tf32")
        summed = tl.dot(x_coarse, y_coarse, summed, input_precision="tf32")
    return summed * tl.load(scale)


@triton.jit
def _together(image_key, text_key, rows, columns, end_row, end_column, shared: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which pairs of a tile are positives: a row with itself and, if `shared`, with every row that has an equal key."""
    found = rows[:, None] == columns[None, :]
    if shared:
        row_mask, column_mask = rows < end_row, columns < end_column
        own, other = tl.load(image_key + rows, mask=row_mask), tl.load(image_key + columns, mask=column_mask)
        found = found | (own[:, None] == other[None, :])
        own, other = tl.load(text_key + rows, mask=row_mask), tl.load(text_key + columns, mask=column_mask)
        found = found | (own[:, None] == other[None, :])
    return found & (columns[None, :] < end_column)


@triton.jit
def row_sums(  # type: ignore[no-untyped-def]
    x, x_rest, y, y_rest, scale, image_key, text_key, sums,
    first_row, end_row, num_columns, width, columns_of_split,
    shared: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    """What the logits of each row sum up to, over one run of columns.

    `sums` is (splits, 4, rows): the largest logit, the sum of the exponentials beneath it, the sum of the positives' logits
    and their number.
    """
    split, num_rows = tl.program_id(1), end_row - first_row
    places = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    rows = first_row + places
    first_column = split * columns_of_split
    end_column = tl.minimum(first_column + columns_of_split, num_columns)
    top = tl.full((tile_rows,), float("-inf"), tl.float32)
    total = tl.zeros((tile_rows,), tl.float32)
    wanted = tl.zeros((tile_rows,), tl.float32)
    count = tl.zeros((tile_rows,), tl.float32)
    for start in range(first_column, end_column, tile_columns):
        columns = start + tl.arange(0, tile_columns)
        logits = _logits(x, x_rest, y, y_rest, scale, rows, columns, end_row, end_column, width, depth)
        together = _together(image_key, text_key, rows, columns, end_row, end_column, shared)
        wanted += tl.sum(tl.where(together, logits, 0.0), 1)
        count += tl.sum(together.to(tl.float32), 1)
        logits = tl.where(columns[None, :] < end_column, logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        top = higher
    into = sums + split * 4 * num_rows + places
    mask = rows < end_row
    tl.store(into, top, mask=mask)
    tl.store(into + num_rows, total, mask=mask)
    tl.store(into + 2 * num_rows, wanted, mask=mask)
    tl.store(into + 3 * num_rows, count, mask=mask)


@triton.jit
def logit_gradients(  # type: ignore[no-untyped-def]
    x, x_rest, y, y_rest, scale, image_key, text_key, row_total, column_total, share, even, coarse, rest,
    first_row, end_row, first_column, end_column, width,
    both: tl.constexpr, shared: tl.constexpr,
    tile_rows: tl.constexpr, tile_columns: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    """Gradient of the summed loss for the logits of a block, as `coarse` and `rest`, (rows, columns) each.

    The softmax of the row, less what is wanted of it: `share` of the row for each positive, and `even` for any pair. If
    `both`, the same of the column is added. row_total, column_total: logarithm of the summed exponentials of all rows and
    all columns.
    """
    places = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    rows = first_row + places
    column_places = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    columns = first_column + column_places
    row_mask, column_mask = rows < end_row, columns < end_column
    logits = _logits(x, x_rest, y, y_rest, scale, rows, columns, end_row, end_column, width, depth)
    together = _together(image_key, text_key, rows, columns, end_row, end_column, shared)
    less = tl.load(share + rows, mask=row_mask)[:, None]
    gradient = tl.exp(logits - tl.load(row_total + rows, mask=row_mask)[:, None]) - even
    if both:
        less = less + tl.load(share + columns, mask=column_mask)[None, :]
        gradient += tl.exp(logits - tl.load(column_total + columns, mask=column_mask)[None, :]) - even
    gradient -= tl.where(together, less, 0.0)
    nearest = ((gradient.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    at = places[:, None].to(tl.int64) * (end_column - first_column) + column_places[None, :]
    mask = row_mask[:, None] & column_mask[None, :]
    tl.store(coarse + at, nearest, mask=mask)
    tl.store(rest + at, gradient - nearest, mask=mask)
