"""Drawing tokens: filters, the inverse of the cumulative distribution, and log-probabilities."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from trd_cli.engines.sampling import draw
from trd_cli.records import Sampling

JUST_BELOW_ONE = 1 - 2**-53


def sampling(temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Sampling:
    return Sampling(temperature, top_p, top_k, max_tokens=1)


def tokens(logits: torch.Tensor, how: Sampling, uniforms: list[float]) -> list[int]:
    return draw(logits, how, uniforms)[0].tolist()


def naive_probabilities(logits: list[float], how: Sampling) -> dict[int, float]:
    """Return the filtered distribution by token id, in plain Python floats: top-k, then top-p of the rest."""
    scaled = [x / how.temperature for x in logits]
    weights = {i: math.exp(x - max(scaled)) for i, x in enumerate(scaled)}
    ranked = sorted(weights, key=lambda i: -weights[i])[: how.top_k or None]
    total = sum(weights[i] for i in ranked)
    kept, mass = [], 0.0
    for i in ranked:
        if mass >= how.top_p:
            break
        kept.append(i)
        mass += weights[i] / total
    return {i: weights[i] / sum(weights[j] for j in kept) for i in sorted(kept)}


def naive_draw(probabilities: dict[int, float], uniform: float) -> int:
    cumulative = 0.0
    for token, probability in probabilities.items():
        cumulative += probability
        if cumulative > uniform:
            return token
    return token


FILTERS = [
    sampling(),
    sampling(temperature=0.6),
    sampling(temperature=1.7),
    sampling(top_k=1),
    sampling(top_k=5),
    sampling(top_k=500),
    sampling(top_p=0.9),
    sampling(top_p=0.5, temperature=0.8),
    sampling(top_p=0.02),
    sampling(temperature=0.6, top_p=0.95, top_k=20),
    sampling(temperature=1.3, top_p=0.7, top_k=6),
]


def test_greedy_takes_the_largest_logit_whatever_the_uniform_number() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.9], [5.0, -1.0, 4.0]])
    for uniforms in ([0.0, 0.0], [0.999, 0.5]):
        assert tokens(logits, sampling(temperature=0.0, top_p=0.5, top_k=2), uniforms) == [1, 0]


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 0), (0.0999, 0), (0.1001, 1), (0.2999, 1), (0.3001, 2), (0.5999, 2), (0.6001, 3), (JUST_BELOW_ONE, 3)],
)
def test_a_draw_inverts_the_cumulative_distribution_in_the_order_of_ids(uniform: float, token: int) -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    assert tokens(logits, sampling(), [uniform]) == [token]


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.3333, 1), (0.3334, 3), (0.9999, 3), (JUST_BELOW_ONE, 3)])
def test_what_a_filter_leaves_is_drawn_in_the_order_of_ids_too(uniform: float, token: int) -> None:
    # 0 and 2 are filtered out; of the two others, 3 is likelier but comes after 1.
    logits = torch.tensor([[0.1, 0.25, 0.15, 0.5]]).log()
    for how in (sampling(top_k=2), sampling(top_p=0.7), sampling(top_k=3, top_p=0.8)):
        assert tokens(logits, how, [uniform]) == [token]


@pytest.mark.parametrize("how", FILTERS)
def test_every_draw_is_that_of_a_naive_float64_sampler(how: Sampling) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, 50, generator=generator)
    chance = random.Random(1)
    uniforms = [chance.random() for _ in range(len(logits))]
    expected = [
        naive_draw(naive_probabilities(row, how), u) for row, u in zip(logits.double().tolist(), uniforms, strict=True)
    ]
    assert tokens(logits, how, uniforms) == expected


@pytest.mark.parametrize("how", FILTERS)
def test_tokens_occur_as_often_as_the_filtered_distribution_says(how: Sampling) -> None:
    draws = 20_000
    logits = 1.5 * torch.randn(1, 24, generator=torch.Generator().manual_seed(2))
    chance = random.Random(3)
    seen = Counter(tokens(logits.expand(draws, -1), how, [chance.random() for _ in range(draws)]))
    expected = {i: draws * p for i, p in naive_probabilities(logits[0].double().tolist(), how).items()}
    assert set(seen) <= set(expected), "a filtered token was drawn"
    assert {i for i, count in expected.items() if count > 20} <= set(seen)
    chi_square = sum((seen[i] - count) ** 2 / count for i, count in expected.items())
    # The 99.9 % point of chi-square, by Wilson and Hilferty's approximation.
    freedom = max(1, len(expected) - 1)
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi_square < limit


def test_the_smallest_set_that_reaches_top_p_is_kept() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]]).log().expand(2000, -1)
    uniforms = [i / 2000 for i in range(2000)]
    for top_p, kept in ((0.4, {0}), (0.51, {0, 1}), (0.74, {0, 1}), (0.76, {0, 1, 2}), (0.99, {0, 1, 2, 3, 4})):
        assert set(tokens(logits, sampling(top_p=top_p), uniforms)) == kept


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    # Of the two that top-k leaves, 0 has 0.4 / 0.7 of the mass: enough for 0.5, though 0.4 of the whole is not.
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(50, -1)
    uniforms = [i / 50 for i in range(50)]
    assert set(tokens(logits, sampling(top_k=2, top_p=0.5), uniforms)) == {0}
    assert set(tokens(logits, sampling(top_p=0.5), uniforms)) == {0, 1}


@pytest.mark.parametrize("how", FILTERS)
def test_extreme_uniform_numbers_never_draw_a_filtered_token(how: Sampling) -> None:
    logits = 2 * torch.randn(200, 40, generator=torch.Generator().manual_seed(4))
    logits[:, -1] = -50.0
    allowed = [set(naive_probabilities(row, how)) for row in logits.double().tolist()]
    for uniform in (0.0, 2**-53, JUST_BELOW_ONE):
        drawn = tokens(logits, how, [uniform] * len(logits))
        assert all(token in some for token, some in zip(drawn, allowed, strict=True))


def test_a_token_of_no_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for how in (sampling(), sampling(top_k=4), sampling(top_p=0.99)):
        assert [tokens(logits, how, [u])[0] for u in (0.0, 0.4, 0.6, JUST_BELOW_ONE)] == [1, 1, 3, 3]


@pytest.mark.parametrize("how", [sampling(temperature=0.0), *FILTERS])
def test_logprobs_are_under_the_unfiltered_distribution_at_temperature_one(how: Sampling) -> None:
    logits = 2 * torch.randn(30, 60, generator=torch.Generator().manual_seed(5))
    drawn, logprobs = draw(logits, how, [(i + 0.5) / 30 for i in range(30)])
    expected = logits.double().log_softmax(-1).gather(1, drawn[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=0)
    assert logprobs.dtype == torch.float32
    assert drawn.dtype == torch.int64


@pytest.mark.parametrize("how", FILTERS)
def test_a_row_does_not_depend_on_its_neighbours(how: Sampling) -> None:
    logits = 2 * torch.randn(16, 100, generator=torch.Generator().manual_seed(6))
    uniforms = [random.Random(i).random() for i in range(16)]
    together, together_logprobs = draw(logits, how, uniforms)
    for i in range(16):
        alone, alone_logprobs = draw(logits[i : i + 1], how, uniforms[i : i + 1])
        assert (alone[0], alone_logprobs[0]) == (together[i], together_logprobs[i])
    backwards = draw(logits.flip(0), how, uniforms[::-1])[0]
    assert backwards.flip(0).equal(together)


def test_a_top_k_of_the_vocabulary_or_more_filters_nothing() -> None:
    logits = torch.randn(300, 20, generator=torch.Generator().manual_seed(7))
    uniforms = [i / 300 for i in range(300)]
    plain = tokens(logits, sampling(), uniforms)
    for top_k in (20, 21, 10**9):
        assert tokens(logits, sampling(top_k=top_k), uniforms) == plain


def test_half_precision_logits_are_drawn_from_as_float32() -> None:
    logits = torch.randn(100, 30, generator=torch.Generator().manual_seed(8)).bfloat16()
    uniforms = [i / 100 for i in range(100)]
    for how in FILTERS:
        assert tokens(logits, how, uniforms) == tokens(logits.float(), how, uniforms)


def test_the_logits_handed_in_are_left_as_they_are() -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(9))
    before = logits.clone()
    for how in (sampling(temperature=0.0), *FILTERS):
        draw(logits, how, [0.1, 0.4, 0.6, 0.9])
    assert logits.equal(before)
