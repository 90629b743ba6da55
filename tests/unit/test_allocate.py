"""Ranks from spectra: exact against brute force, within the budget, and never a low rank that costs more than all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tolbuild.compress.allocate import ByteBudget, Costs, EnergyShare, parse_rank, rank_bounds, ranks_of
from tolbuild.compress.knapsack import least_loss


def spectra(seed: int, layers: int, width: int, kind: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    draw = np.random.default_rng(seed)
    energies = {
        "falling": lambda: draw.random((layers, width)) ** draw.integers(1, 8),
        "steep": lambda: np.exp(-np.arange(width) * draw.random((layers, 1))) * 10.0 ** draw.integers(-3, 3),
        "equal": lambda: np.ones((layers, width)),
        "integers": lambda: draw.integers(0, 4, (layers, width)).astype(float),
        "zero": lambda: np.zeros((layers, width)),
    }[kind]()
    return -np.sort(-energies, axis=1)


def size(costs: Costs, ranks: tuple[int, ...], width: int) -> int:
    return costs.fixed + sum(costs.of_layer(rank, whole=rank == width) for rank in ranks)


@settings(max_examples=300, deadline=None)
@example(seed=74869, layers=2, width=16, kind="steep", vocab=131, share=0.0, weighted=False)
@given(
    seed=st.integers(0, 10**6),
    layers=st.integers(1, 4),
    width=st.sampled_from([5, 8, 16, 24, 30, 40, 48]),
    kind=st.sampled_from(["falling", "steep", "equal", "integers", "zero"]),
    vocab=st.integers(1, 400),
    share=st.floats(0, 1.05),
    weighted=st.booleans(),
)
def test_a_budget_is_used_as_well_as_brute_force_does(
    seed: int, layers: int, width: int, kind: str, vocab: int, share: float, weighted: bool
) -> None:
    """Every combination of candidate ranks, all multiples of 8 and full rank, is tried."""
    energies_LD = spectra(seed, layers, width, kind)
    weights = tuple(np.random.default_rng(seed).random(layers).tolist()) if weighted else ()
    costs = Costs(fixed=1000, component=vocab + 4 * width, whole_layer=vocab * width)
    every = [*range(8, width, 8), width]
    least = layers * min(costs.of_layer(rank, whole=rank == width) for rank in every)
    budget = 1000 + least + int(share * (layers * costs.whole_layer - least))

    def loss(ranks: tuple[int, ...]) -> float:
        beyond = [energies_LD[layer, rank:].sum() for layer, rank in enumerate(ranks)]
        return float(np.dot(weights or np.ones(layers), beyond))

    fitting = [ranks for ranks in itertools.product(every, repeat=layers) if size(costs, ranks, width) <= budget]
    found = ranks_of(ByteBudget(num_bytes=budget), energies_LD, costs, weights)
    assert size(costs, found, width) <= budget
    assert loss(found) == pytest.approx(min(map(loss, fitting)), rel=1e-9, abs=1e-12)
    assert all(rank == width or costs.component * rank < costs.whole_layer for rank in found)
    low, high = rank_bounds(ByteBudget(num_bytes=budget), costs, layers, width)
    assert all(low <= rank <= high for rank in found)


def greedy(energies_LD: np.ndarray[tuple[int, int], np.dtype[np.float64]], count: int) -> list[int]:
    """Eight components a layer, then the block of eight with the most energy in any layer, `count` times in all."""
    blocks = energies_LD.reshape(len(energies_LD), -1, 8).sum(axis=2)
    ranks = [8] * len(energies_LD)
    for _ in range(count - len(ranks)):
        ranks[max(range(len(ranks)), key=lambda layer: blocks[layer, ranks[layer] // 8])] += 8
    return ranks


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), layers=st.integers(1, 24), count=st.integers(0, 60))
def test_far_from_full_rank_it_is_the_greedy_choice(seed: int, layers: int, count: int) -> None:
    energies_LD = spectra(seed, layers, 512, "falling")
    costs = Costs(fixed=0, component=10_000, whole_layer=10**9)
    blocks = layers + count
    found = ranks_of(ByteBudget(num_bytes=blocks * 80_000 + 79_999), energies_LD, costs)
    assert list(found) == greedy(energies_LD, blocks)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    width=st.sampled_from([5, 16, 30, 64]),
    kind=st.sampled_from(["falling", "steep", "equal", "zero"]),
    share=st.floats(0.01, 1.0),
    vocab=st.integers(1, 2000),
)
def test_an_energy_share_takes_the_fewest_components(
    seed: int, width: int, kind: str, share: float, vocab: int
) -> None:
    energies_LD = spectra(seed, 3, width, kind)
    costs = Costs(fixed=0, component=vocab + 4 * width, whole_layer=vocab * width)
    for energies_D, rank in zip(energies_LD, ranks_of(EnergyShare(share=share), energies_LD, costs), strict=True):
        total = energies_D.sum()
        assert rank == width or (rank % 8 == 0 and rank * costs.component < costs.whole_layer)
        assert rank == width or energies_D[:rank].sum() >= share * total * (1 - 1e-12)
        smaller = [other for other in costs.candidates(width) if other < rank]
        assert all(energies_D[:other].sum() < share * total * (1 + 1e-12) for other in smaller)


def test_the_papers_size_takes_a_moment() -> None:
    """24 layers of 2048 components, spectra as random rows have them: little tells their components apart."""
    draw = np.random.default_rng(0)
    energies_LD = -np.sort(-(1 + 0.3 * draw.random((24, 2048))), axis=1)
    costs = Costs(fixed=0, component=128_256 + 8192, whole_layer=128_256 * 2048)
    budget = 24 * costs.whole_layer * 3 // 4
    ranks = ranks_of(ByteBudget(num_bytes=budget), energies_LD, costs)
    used = size(costs, ranks, 2048)
    assert budget - 8 * costs.component < used <= budget
    assert 0 < ranks.count(2048) < 24


def test_a_knapsack_that_greedy_choices_get_wrong() -> None:
    costs, losses = np.array([1, 3, 4]), np.array([[10.0, 6.0, 0.0], [9.0, 2.0, 0.0]])
    assert least_loss(costs, losses, 5) == (2, 0)
    assert least_loss(costs, losses, 8) == (2, 2)
    assert least_loss(costs, losses, 2) == (0, 0)
    assert least_loss(costs, losses, 7) == (2, 1)


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("full", "full"),
        (96, 96),
        ("energy:0.999", EnergyShare(share=0.999)),
        ("energy:1", EnergyShare(share=1.0)),
        ("bytes:2GiB", ByteBudget(num_bytes=2 << 30)),
        ("bytes:1.5 MB", ByteBudget(num_bytes=1_500_000)),
        ("bytes:123456", ByteBudget(num_bytes=123_456)),
        ("bytes:7kB", ByteBudget(num_bytes=7000)),
    ],
)
def test_what_rank_says(option: int | str, rule: object) -> None:
    assert parse_rank(option) == rule
    if not isinstance(rule, str | int):
        assert parse_rank(str(rule)) == rule


@pytest.mark.parametrize(
    "option",
    [
        0,
        -8,
        "half",
        "",
        "8.5",
        "energy:",
        "energy:0",
        "energy:1.1",
        "energy:nan",
        "energy:-1",
        "energy:0.9:1",
        "bytes:",
        "bytes:0",
        "bytes:2 gibi",
        "bytes:iB",
        "bytes:5iB",
        "bytes:2 0",
        "bytes:-3MB",
    ],
)
def test_what_rank_cannot_say(option: int | str) -> None:
    with pytest.raises(ValueError, match=r"rank is|energy:|bytes:"):
        parse_rank(option)


def test_a_budget_that_holds_no_table_says_what_the_least_is() -> None:
    costs = Costs(fixed=500, component=100, whole_layer=100_000)
    with pytest.raises(ValueError, match=r"at least 2,900 bytes .*8 components"):
        rank_bounds(ByteBudget(num_bytes=2899), costs, 3, 64)
    assert rank_bounds(ByteBudget(num_bytes=2900), costs, 3, 64) == (8, 8)
    assert rank_bounds(ByteBudget(num_bytes=4500), costs, 3, 64) == (8, 24)
    assert rank_bounds(EnergyShare(share=0.5), costs, 3, 64) == (8, 64)
