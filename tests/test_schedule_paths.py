"""Groups of dimensions that fall in turn, and paths from a function."""

import pytest
import torch

from vdiff.schedule import Cosine, Custom, InTurn, Linear, Path, PerDimension

T = torch.linspace(0, 1, 241, dtype=torch.float64)
HIGH, LOW = 7.0, -6.0


def test_a_group_falls_in_its_turn_and_rests_before_and_after():
    inner = Cosine(HIGH, LOW)
    schedule = InTurn(inner, 3)
    t = T[(T * 3) % 1 != 0]
    logsnr, rate = schedule.at(t, ndim=2)[:2]
    for turn in range(3):
        own = (t > turn / 3) & (t < (turn + 1) / 3)
        time = 3 * t[own] - turn
        torch.testing.assert_close(logsnr[own, turn], inner(time), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(rate[own, turn], 3 * inner.rate(time), rtol=1e-9, atol=0)
        assert (logsnr[t < turn / 3, turn] == inner(T[:1])).all()
        assert (logsnr[t > (turn + 1) / 3, turn] == inner(T[-1:])).all()
        assert not rate[~own, turn].any()


def test_at_each_time_one_group_falls_also_at_the_ends_of_its_turn():
    for groups in (1, 2, 3, 7, 49):
        t = torch.arange(groups + 1, dtype=torch.float64) / groups
        rate = InTurn(Linear(HIGH, LOW), groups).at(t, ndim=2).rate
        assert ((rate > 0).sum(1) == 1).all()
        assert rate.sum(1).tolist() == pytest.approx([groups * (HIGH - LOW)] * (groups + 1))


def test_a_chain_of_as_many_steps_as_groups_takes_one_group_at_a_time():
    t = torch.arange(1, 8, dtype=torch.float64) / 7
    delta = InTurn(Linear(HIGH, LOW), 7).at(t, 7, ndim=2).delta
    expected = (HIGH - LOW) * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-12)


def test_turns_lie_along_dimensions_of_x():
    inner, t = Linear(HIGH, LOW), T[1:-1:17]
    order = torch.tensor([[2, 0, 5], [1, 4, 3]])
    pixels = InTurn(inner, order, dim=2).at(t, ndim=4).logsnr  # (batch, channels, 2, 3)
    assert pixels.shape == (len(t), 1, 2, 3)
    one_by_one = InTurn(inner, 6).at(t, ndim=2).logsnr
    assert torch.equal(pixels.flatten(1), one_by_one[:, order.flatten()])
    whole = InTurn(inner, order[None], dim=1).at(t, ndim=4).logsnr
    assert torch.equal(whole, pixels)
    last = InTurn(inner, order, dim=-2).at(t, ndim=4).logsnr
    assert torch.equal(last, pixels)
    rows = InTurn(inner, 2, dim=2).at(t, ndim=4).logsnr
    assert rows.shape == (len(t), 1, 2, 1)
    assert torch.equal(InTurn(inner, [0, 1], dim=2).at(t, ndim=4).logsnr, rows)
    assert torch.equal(rows.flatten(1).flip(1), InTurn(inner, [1, 0]).at(t, ndim=2).logsnr)


def test_one_group_is_the_schedule_itself():
    inner = Cosine(HIGH, LOW)
    want, got = inner.at(T), InTurn(inner, 1).at(T, ndim=3)
    for scalar, field in zip(want[:2], got[:2], strict=True):
        torch.testing.assert_close(field.flatten(), scalar, rtol=1e-14, atol=0)


def powers(t):
    return HIGH - (HIGH - LOW) * t ** torch.tensor([1.0, 2.0], dtype=t.dtype)


def test_the_rates_of_a_path_are_those_of_its_dimensions():
    """Also where a dimension is made of another one, so that λ is no function of t alone by
    broadcasting."""
    parts = [Custom(lambda t, i=i: powers(t[..., None])[..., i]) for i in (0, 1)]
    want = PerDimension(parts).at(T, ndim=2)
    for function in (powers, lambda t: torch.cat([powers(t)[:, :1], powers(t)[:, 1:]], 1)):
        got = Path(function, [2]).at(T, ndim=2)
        torch.testing.assert_close(got.logsnr, want.logsnr, rtol=1e-14, atol=0)
        torch.testing.assert_close(got.rate, want.rate.clamp(min=0), rtol=1e-12, atol=2e-5)


def test_a_rate_that_is_given_is_used_and_checked():
    power = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def rate(t):
        return (HIGH - LOW) * power * t ** (power - 1)

    given, own = Path(powers, [2], rate).at(T, ndim=2), Path(powers, [2]).at(T, ndim=2)
    torch.testing.assert_close(given.rate, own.rate, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="must have rate_at equal to the derivative"):
        Path(powers, [2], lambda t: 1.1 * rate(t))


def test_the_ends_of_a_path_are_those_of_its_dimensions():
    path = Path(lambda t: torch.tensor([5.0, 3.0]).double() - 4 * t, [2])
    high, low = path.ends_of(2)
    assert high.tolist() == [[5.0, 3.0]]
    assert low.tolist() == [[1.0, -1.0]]
    assert path.ends() == (5.0, -1.0)


def test_a_fall_below_rounding_is_a_fall():
    """t⁶ near t = 0; a rest of as many digits is none."""
    path = Path(lambda t: 9 - 16 * t**6, [1])
    assert path.ends() == (9.0, -7.0)
    with pytest.raises(ValueError, match="always fall in at least one dimension"):
        Path(lambda t: 9 - 16 * (t - 0.01).clamp(min=0) / 0.99, [1])


def test_a_state_of_other_turns_is_refused():
    one, other = InTurn(Linear(HIGH, LOW), [0, 1, 2]), InTurn(Linear(HIGH, LOW), [2, 1, 0])
    before = other.turns.clone()
    with pytest.raises(RuntimeError, match="must have the turns of this module"):
        other.load_state_dict(one.state_dict())
    assert torch.equal(other.turns, before)
    InTurn(Linear(HIGH, LOW), 3).load_state_dict(one.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        InTurn(Linear(HIGH, LOW), 4).load_state_dict(one.state_dict())
    moved = InTurn(Linear(HIGH, LOW), 3).to("meta").to_empty(device="cpu")
    moved.turns.fill_(7)  # memory that nothing was written to
    moved.load_state_dict(one.state_dict())
    assert torch.equal(moved.turns, one.turns)
