"""When the compiled program returns to the host."""

import hypothesis.strategies as st
from hypothesis import given

from paysage_jax._train.driver import faster, next_stop

positive = st.integers(1, 500)


@given(st.integers(0, 500), positive, positive, st.lists(positive, max_size=3))
def test_the_program_returns_as_late_as_it_may(done, more, pace, multiples):
    """At most at the last epoch, after the pace, or at the next multiple; and not earlier than the first of these."""
    epochs = done + more
    stop = next_stop(done, epochs, pace, multiples)
    assert done < stop <= min(epochs, done + pace)
    assert not any(epoch % m == 0 for epoch in range(done + 1, stop) for m in multiples)
    assert stop in (epochs, done + pace) or any(stop % m == 0 for m in multiples)


def test_short_calls_grow_and_long_ones_do_not():
    assert [faster(seconds) for seconds in (0, 0.02, 0.05, 0.2, 10)] == [4, 4, 2, 1, 1]
