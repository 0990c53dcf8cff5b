import pytest

from mbrl_jax.runs.training import chunk_of


@pytest.mark.parametrize("rounds", [1, 7, 40, 50, 60])
@pytest.mark.parametrize("most", [0, 1, 4, 6])
def test_a_run_that_goes_on_has_the_chunks_that_it_began_with(rounds, most):
    chunk = chunk_of(rounds, most, 0)
    assert chunk == 1 or (chunk <= most and rounds % chunk == 0)
    assert {chunk_of(rounds, most, done) for done in range(0, rounds, chunk)} == {chunk}


def test_where_it_began_with_others_they_divide_what_is_left():
    assert chunk_of(50, 4, 0) == 2
    assert chunk_of(50, 4, 2) == 2  # though 4 would divide the 48 that are left
    for done in range(60):
        assert (60 - done) % chunk_of(60, 6, done) == 0
