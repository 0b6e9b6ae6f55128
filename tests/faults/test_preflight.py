"""Ranks that were not started alike are told apart before anything is built: one message on all of them, exit code 2."""

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

HOST = socket.gethostname()


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (
            "configuration",
            f"Configuration: seed is 7 on rank 2 ({HOST}), 0 elsewhere; optimizer.towers.text.lr is 0.002 on "
            f"rank 2 ({HOST}), 0.001 elsewhere; --inject is nan:rank=1@3 on rank 2 ({HOST}), not there elsewhere.",
        ),
        ("package", f"Packages: transformers is 5.0.1 on rank 2 ({HOST}), "),
        ("code", "Code: step.py is version "),
        ("clock", f"Clocks: that of rank 2 ({HOST}) is 90 s behind."),
        ("folder", f"does not appear on rank 2 ({HOST}) in "),
        ("sum", "rank 2 2 times instead of once"),
    ],
)
def test_an_odd_rank_is_named_on_all(experiment: Callable[..., Any], odd: str, words: str) -> None:
    run = experiment("engine=ddp", "data.global_batch_size=6")
    output = run.fail(code=2, ranks=3, odd=odd)
    assert output.count("so nothing was started") == 3
    assert output.count(words) == 3, output
    assert (
        sum(f"{kind}:" in output for kind in ("Configuration", "Packages", "Code", "Clocks", "run_dir", "All-reduce"))
        == 1
    )
    assert not list(run.folder.rglob(".seen_by_all*"))
    assert not run.checkpoints.exists()


def test_ranks_that_are_alike_begin_at_once(experiment: Callable[..., Any]) -> None:
    run = experiment("engine=zero2", "num_epochs=1", "evaluation.evaluate_every=null")
    output = run.finish(ranks=2)
    (seconds,) = [float(line.split()[-2]) for line in output.splitlines() if "preflight" in line]
    assert seconds < 5
    assert json.loads((run.checkpoints / "latest" / "state.json").read_text())["step"] == 4
