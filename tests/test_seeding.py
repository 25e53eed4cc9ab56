"""Streams by name, and common random numbers: what copies are dealt, and what it costs a generator."""

import pytest
import torch

from metarl_cli.seeding import CommonRandomNumbers, Streams, numpy_rng, torch_rng, without_draws

ROWS = 3
DRAWS = {  # what it draws for the rows of one or many copies
    "rand": lambda rows, rng: torch.rand((rows, 5), generator=rng),
    "rand of sizes": lambda rows, rng: torch.rand(rows, 5, 2, generator=rng),
    "rand flattened": lambda rows, rng: torch.rand(rows * 7, generator=rng),
    "randn": lambda rows, rng: torch.randn((rows, 40), generator=rng, dtype=torch.float64),
    "randint": lambda rows, rng: torch.randint(1000, (rows, 5), generator=rng),
    "randint between": lambda rows, rng: torch.randint(-5, 1000, (rows,), generator=rng),
    "bernoulli": lambda rows, rng: torch.bernoulli(torch.full((rows, 50), 0.3), generator=rng),
    "multinomial": lambda rows, rng: torch.multinomial(torch.ones(rows, 90), 1, generator=rng),
    "exponential_": lambda rows, rng: torch.empty(rows, 5).exponential_(generator=rng),
    "uniform_": lambda rows, rng: torch.empty(rows, 5).uniform_(-2, 3, generator=rng),
}


def test_streams_are_named():
    assert torch_rng(0, "a").initial_seed() == torch_rng(0, "a").initial_seed()
    seeds = {
        torch_rng(seed, *names).initial_seed() for seed in (0, 1) for names in ((), ("a",), ("b",), ("a", "b"), ("b", "a"))
    }
    assert len(seeds) == 10
    assert numpy_rng(0, "a").random() == numpy_rng(0, "a").random() != numpy_rng(0, "b").random()


def test_streams_go_on_where_they_were():
    one, other = Streams(0, "a", "b"), Streams(1, "a", "b")
    torch.rand(3, generator=one["a"])
    other.load_state_dict(one.state_dict())
    for name in one:
        assert torch.equal(torch.rand(3, generator=one[name]), torch.rand(3, generator=other[name]))


@pytest.mark.parametrize("copies", [1, 2, 4])
@pytest.mark.parametrize("name", DRAWS)
def test_copies_are_dealt_the_numbers_of_one(name, copies):
    alone, common = torch_rng(0, "draws"), torch_rng(0, "draws")
    for _ in range(2):
        expected = DRAWS[name](ROWS, alone)
        with CommonRandomNumbers(copies):
            drawn = DRAWS[name](copies * ROWS, common)
        assert len(expected.unique()) > 1
        for part in drawn.chunk(copies):
            assert part.dtype == expected.dtype
            assert torch.equal(part, expected)
        assert torch.equal(alone.get_state(), common.get_state()), "their number does not move the stream"


def test_copies_have_chances_of_their_own():
    """The same numbers: what is likelier for a copy happens to it whenever it happens to the other."""
    chance = torch.tensor([0.2, 0.7]).repeat_interleave(4000)
    with CommonRandomNumbers(2):
        less, more = torch.bernoulli(chance, generator=torch_rng(0)).chunk(2)
    assert float(less.mean()) == pytest.approx(0.2, abs=0.03)
    assert float(more.mean()) == pytest.approx(0.7, abs=0.03)
    assert (less <= more).all()
    weights = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]]).repeat_interleave(4000, 0)
    with CommonRandomNumbers(2):
        one, other = torch.multinomial(weights, 1, generator=torch_rng(0)).chunk(2)
    assert (torch.bincount(one[:, 0], minlength=3) / 4000).tolist() == pytest.approx([0, 0.25, 0.75], abs=0.03)
    assert not other.any()


def test_what_is_no_chance_of_the_copies_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(8), torch.randperm(8)
    torch.manual_seed(0)
    with CommonRandomNumbers(4):
        assert torch.equal(torch.rand(8), expected[0])
        assert torch.equal(torch.randperm(8), expected[1])
        assert torch.equal(torch.arange(8).reshape(4, 2).sum(1), torch.tensor([1, 5, 9, 13]))


def test_draws_that_cannot_be_common_are_refused():
    rng = torch_rng(0)
    with CommonRandomNumbers(4):
        for draw in (lambda: torch.rand(6, generator=rng), lambda: torch.rand((), generator=rng)):
            with pytest.raises(ValueError, match="not a multiple of the 4 copies"):
                draw()
        for draw in (
            lambda: torch.randperm(8, generator=rng),
            lambda: torch.empty(8).normal_(generator=rng),
            lambda: torch.multinomial(torch.ones(8, 3), 2, generator=rng),
        ):
            with pytest.raises(NotImplementedError, match="cannot be common"):
                draw()
    with CommonRandomNumbers(1):
        assert torch.rand(6, generator=rng).shape == (6,)


def test_where_nothing_is_drawn_nothing_is_looked_at():
    class Watch(CommonRandomNumbers):
        def __torch_function__(self, func, *args):
            seen.append(func)
            return super().__torch_function__(func, *args)

    seen, rng, x = [], torch_rng(0), torch.ones(4)
    with Watch(2):
        with without_draws(rng, "drawn"):
            y = x * 2 + x
        assert not seen
        assert torch.equal(y * 2, x * 6)
        assert seen


def test_a_draw_where_there_should_be_none_is_an_error():
    rng = torch_rng(0)
    with CommonRandomNumbers(2), pytest.raises(RuntimeError, match="say so"), without_draws(rng, "say so"):
        torch.rand(4, generator=rng)
    with without_draws(rng, "say so"):  # outside CommonRandomNumbers a draw is no error
        torch.rand(4, generator=rng)
