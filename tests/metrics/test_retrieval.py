import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from accel_train.metrics.retrieval import in_batch_accuracy, match_ranks, recall_at, recall_both_ways


def naive_recall(queries: Tensor, targets: Tensor, matches: list[tuple[int, int]], k: int) -> float:
    """Sorts all targets of a query, matches last among equals, and looks at the first k."""
    hits = 0
    for query in range(len(queries)):
        good = {target for q, target in matches if q == query}
        scores = (queries[query] @ targets.T).tolist()
        ordered = sorted(range(len(targets)), key=lambda target: (-scores[target], target in good))
        hits += any(target in good for target in ordered[:k])
    return hits / len(queries)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Integer features, so that ties are common and arithmetic is exact; every query has a match."""
    num_queries, num_targets = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    features = [torch.randint(-2, 3, (n, 3), generator=generator).float() for n in (num_queries, num_targets)]
    target = st.integers(0, num_targets - 1)
    matches = [(query, draw(target)) for query in range(num_queries)]
    matches += draw(st.lists(st.tuples(st.integers(0, num_queries - 1), target), max_size=12))
    return features[0], features[1], draw(st.permutations(matches))


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(1, 9))
def test_equals_the_naive_form(problem: tuple[Tensor, Tensor, list[tuple[int, int]]], chunk_size: int) -> None:
    queries, targets, matches = problem
    found = recall_at(queries, targets, torch.tensor(matches), ks=(1, 2, 5), chunk_size=chunk_size)
    assert found == {k: naive_recall(queries, targets, matches, k) for k in (1, 2, 5)}


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(1, 9))
def test_both_ways_equal_each_way(problem: tuple[Tensor, Tensor, list[tuple[int, int]]], chunk_size: int) -> None:
    first, second, matches = problem
    second = second[sorted({target for _, target in matches})]
    places = {target: place for place, target in enumerate(sorted({target for _, target in matches}))}
    pairs = [(query, places[target]) for query, target in matches]
    found = recall_both_ways(first, second, torch.tensor(pairs), ks=(1, 2, 5), chunk_size=chunk_size)
    back = [(target, query) for query, target in pairs]
    assert found[0] == {k: naive_recall(first, second, pairs, k) for k in (1, 2, 5)}
    assert found[1] == {k: naive_recall(second, first, back, k) for k in (1, 2, 5)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_features_tie_wherever_their_tiles_lie(dtype: torch.dtype) -> None:
    """Every feature is there twice, far apart, and only one of the two matches: rounding must not tell them apart."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(300, 64, generator=generator), dim=1).to(dtype)
    queries = torch.nn.functional.normalize(torch.randn(300, 64, generator=generator), dim=1).to(dtype)
    matches = torch.arange(300)[:, None].expand(-1, 2)
    once = match_ranks(queries, features, matches, chunk_size=77)
    twice = match_ranks(queries, torch.cat([features, features]), matches, chunk_size=77)
    assert torch.equal(twice, 2 * once + 1)


@pytest.mark.parametrize("length", [1.0, 30.0, 1e18])
def test_rounding_makes_no_difference_between_equal_features(length: float) -> None:
    """One caption that stands there twice has features that differ in their last bits, by the batches it was encoded in."""
    generator = torch.Generator().manual_seed(0)
    queries, targets = (
        torch.nn.functional.normalize(torch.randn(40, 64, generator=generator), dim=1) for _ in range(2)
    )
    again = targets * (1 + 1e-7 * torch.randn(40, 64, generator=generator))
    matches = torch.arange(40)[:, None].expand(-1, 2)
    once = match_ranks(queries, targets * length, matches)
    assert torch.equal(match_ranks(queries, torch.cat([targets, again]) * length, matches), 2 * once + 1)
    both = torch.cat([targets, targets + 1e-4 * queries]) * length
    lower, higher = (match_ranks(queries, both, matches + torch.tensor([0, place])) for place in (0, 40))
    assert (higher < lower).all(), "what differs by more than rounding is told apart"


def test_a_written_out_case() -> None:
    targets = torch.eye(4)
    queries = torch.tensor([[0.9, 0.5, 0.1, 0.0], [0.1, 0.9, 0.5, 0.0]])
    matches = torch.tensor([[0, 1], [0, 3], [1, 1]])
    assert recall_at(queries, targets, matches, ks=(1, 2)) == {1: 0.5, 2: 1.0}


def test_a_model_that_gives_one_feature_for_all_scores_nothing() -> None:
    """Every target ties with the match. Argmax would report 100 % for the first and argsort something in between."""
    same = torch.ones(20, 4)
    matches = torch.arange(20)[:, None].expand(-1, 2)
    assert recall_at(same, same, matches, ks=(1, 10)) == {1: 0.0, 10: 0.0}


def test_random_features_score_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, targets = torch.randn(4000, 8, generator=generator), torch.randn(100, 8, generator=generator)
    matches = torch.stack([torch.arange(4000), torch.randint(100, (4000,), generator=generator)], 1)
    found = recall_at(queries, targets, matches)
    assert found[1] == pytest.approx(0.01, abs=0.006)
    assert found[10] == pytest.approx(0.10, abs=0.02)


def test_queries_without_a_match_are_named() -> None:
    with pytest.raises(ValueError, match="2 of 3 queries have no match, the first is query 1"):
        recall_at(torch.ones(3, 2), torch.ones(3, 2), torch.tensor([[0, 0]]))


def test_rows_without_a_match_are_targets_and_no_queries() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.randn(num, 8, generator=generator) for num in (30, 40))
    matches = torch.stack([torch.randint(num, (35,), generator=generator) for num in (20, 25)], 1)
    for side, queries, targets, found in zip(
        (0, 1), (first, second), (second, first), recall_both_ways(first, second, matches, chunk_size=7), strict=True
    ):
        asked = matches[:, side].unique()
        renumbered = torch.searchsorted(asked, matches[:, side].contiguous())
        assert found == recall_at(queries[asked], targets, torch.stack([renumbered, matches[:, 1 - side]], 1))
    with pytest.raises(ValueError, match="there are no matches"):
        recall_both_ways(first, second, matches[:0])


def test_nan_features_are_refused() -> None:
    """A comparison with NaN is False, which would count as nothing ahead of the match."""
    broken = torch.full((2, 2), float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        recall_at(broken, torch.ones(2, 2), torch.tensor([[0, 0], [1, 1]]))


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_in_batch_accuracy_equals_recall_at_one_of_the_batch(chunk_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(50, 4, generator=generator)
    targets = queries + torch.randn(50, 4, generator=generator)
    own = torch.arange(50)[:, None].expand(-1, 2)
    found = in_batch_accuracy(queries, targets, chunk_size=chunk_size)
    assert found == recall_at(queries, targets, own, ks=(1,))[1]
    assert 0 < found < 1


def test_in_batch_accuracy_counts_ties_and_nan_as_wrong() -> None:
    assert in_batch_accuracy(torch.ones(3, 2), torch.ones(3, 2)) == 0
    assert in_batch_accuracy(torch.full((3, 2), float("nan")), torch.ones(3, 2)) == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_similarities() -> None:
    """3,000 x 30,000 similarities are 360 MB. In a process of its own, so that the peak is this call's alone."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_peak_growth) < 1.6e8, "a copy of the targets (61 MB), two tiles, and what the library takes"


def _peak_growth() -> float:
    import resource

    queries, targets = torch.randn(3000, 512), torch.randn(30_000, 512)
    matches = torch.stack([torch.arange(30_000) % 3000, torch.arange(30_000)], 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recall_both_ways(queries, targets, matches)
    return 1024 * float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
