"""Ranks in words, short enough for a line however many they are."""

from collections.abc import Iterable


def name_ranks(ranks: Iterable[int]) -> str:
    """`rank 3`, or `ranks 0-2, 5`."""
    ordered = sorted(ranks)
    pieces: list[list[int]] = []
    for rank in ordered:
        if pieces and pieces[-1][-1] == rank - 1:
            pieces[-1][1:] = [rank]
        else:
            pieces.append([rank])
    listed = ", ".join("-".join(map(str, piece)) for piece in pieces)
    return f"{'rank' if len(ordered) == 1 else 'ranks'} {listed}"
