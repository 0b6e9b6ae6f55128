"""Blocks that go around three ranks, and the sigmoid loss over them: that of the whole batch in its plain form."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.distributed.ranks import run_ranks
from tests.distributed.ring_worker import COUNTS, FORMS, LOSSES, WIDTH, samples

RANKS = range(len(COUNTS))
FLOAT64 = 8


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = Path(tmp_path_factory.mktemp("ring"))
    ranks = run_ranks(len(COUNTS), "-m", "tests.distributed.ring_worker", str(out))
    assert [rank.exit_code for rank in ranks] == [0] * len(COUNTS)
    return [torch.load(out / f"{rank}.pt") for rank in RANKS]


def test_each_rank_visits_every_block_once_and_its_own_first(found: list[dict[str, Any]]) -> None:
    for rank in RANKS:
        seen = [event for event in found[rank]["visits"]["events"] if event != "post"]
        owners = [(rank - hop) % len(COUNTS) for hop in RANKS]
        assert seen == [(owner, [100 * owner + row for row in range(COUNTS[owner])]) for owner in owners]


def test_the_next_block_is_on_its_way_before_the_present_one_is_looked_at(found: list[dict[str, Any]]) -> None:
    for rank in RANKS:
        kinds = ["post" if event == "post" else "visit" for event in found[rank]["visits"]["events"]]
        assert kinds == [*["post", "visit"] * len(COUNTS), "post"]


def test_what_all_ranks_add_comes_home(found: list[dict[str, Any]]) -> None:
    for rank, count in enumerate(COUNTS):
        assert torch.equal(found[rank]["visits"]["home"]["sum"], torch.full((count, 2), 111.0, dtype=torch.float64))


def plain_gradients(positives: str, smoothing: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the whole batch, from the mask of all pairs."""
    parts = [samples(rank) for rank in RANKS]
    outputs = {
        name: torch.cat([part[0][name] for part in parts]).detach() for name in ("image_features", "text_features")
    }
    outputs |= {name: parts[0][0][name].detach() for name in ("logit_scale", "logit_bias")}
    leaves = {name: value.requires_grad_() for name, value in outputs.items()}
    positive = torch.eye(sum(COUNTS)).bool()
    for key in ("image_key", "text_key") if positives == "shared" else ():
        column = torch.cat([part[1][key] for part in parts])
        positive |= column[:, None] == column
    logits = leaves["logit_scale"] * leaves["image_features"] @ leaves["text_features"].T + leaves["logit_bias"]
    target = (1 - smoothing) * positive.double() + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)
    return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("positives", "smoothing"), LOSSES)
def test_loss_and_gradients_are_those_of_the_whole_batch(
    form: str, positives: str, smoothing: float, found: list[dict[str, Any]]
) -> None:
    loss, gradients = plain_gradients(positives, smoothing)
    for rank in RANKS:
        reading = found[rank][f"{form} {positives} {smoothing}"]
        torch.testing.assert_close(reading["losses"]["sigmoid"], loss, rtol=1e-12, atol=1e-12)
        rows = slice(sum(COUNTS[:rank]), sum(COUNTS[: rank + 1]))
        for name, whole in gradients.items():
            wanted = whole[rows] if name.endswith("features") else whole
            torch.testing.assert_close(reading["gradients"][name], wanted, rtol=1e-12, atol=1e-12)


def test_outputs_of_the_whole_batch_are_there_when_asked_for(found: list[dict[str, Any]]) -> None:
    for name in ("image_features", "text_features", "logit_scale", "logit_bias"):
        wanted = found[0]["gathered own 0.0"]["outputs"][name]
        assert len(wanted) == (sum(COUNTS) if name.endswith("features") else 1)
        for rank in RANKS:
            assert torch.equal(found[rank]["ring own 0.0"]["outputs"][name], wanted)


def test_features_go_around_once_and_their_gradient_too(found: list[dict[str, Any]]) -> None:
    """All ranks together: W - 1 hops of every row, and W of its gradient. Gathering and reducing takes three times that."""
    sent = {form: sum(found[rank][f"{form} own 0.0"]["sent"]["features"] for rank in RANKS) for form in FORMS}
    assert sent["ring"] == (2 * len(COUNTS) - 1) * sum(COUNTS) * WIDTH * FLOAT64
    assert sent["gathered"] > 2 * sent["ring"]
