"""Random numbers: a seed, its stream, and the draws of a step that is recorded."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import backend, draws
from minitransformer.kernels.recorded import new_recorder


def test_one_seed_gives_one_stream_and_a_tuple_names_its_own():
    def draw(seed):
        mt.manual_seed(seed)
        return draws.generator().random(4)

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw((3, 1)) != draw((3, 2))).all()


@pytest.mark.parametrize("seed", [-1, 1.5, True, "3", (), (1, -2)])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match="a seed is a whole number from 0 up"):
        mt.manual_seed(seed)


def test_draws_count_up_and_know_their_rows():
    mt.manual_seed(5)
    first, second = draws.next_draw(4), draws.next_draw(4)
    assert (first.call, second.call) == (0, 1) and first.key == second.key and first.now() is first
    with draws.drawing_for_rows(6, 4):
        assert draws.next_draw(4).first_row == 6
        assert draws.next_draw(9).first_row == 0  # no array of the batch


def test_drawing_from_an_earlier_state_leaves_no_trace():
    mt.manual_seed(5)
    state = draws.draw_state()
    first = draws.next_draw(2)
    draws.next_draw(2)
    with draws.drawing_from(state):
        assert draws.next_draw(2) == first
    assert draws.next_draw(2).call == 2


def test_a_draw_of_a_recorded_step_is_looked_up_each_time():
    recorder = new_recorder()
    mt.manual_seed(5)
    draws.next_draw(4)
    with recorder.recording(), draws.drawing_ahead():
        draws.next_draw(4)
        live = draws.next_draw(4)
        assert live.now() == draws.Draw(draws.random_state()[0], 2, 0)
        for ask in (lambda: live.key, lambda: live.first_row, draws.generator):
            with pytest.raises(backend.NotRecordable, match="recorded step"):
                ask()
    assert draws.random_state()[1] == 3
    mt.manual_seed(9)
    with draws.drawing_for_rows(2, 4), draws.drawing_ahead(2):
        assert live.now() == draws.Draw(draws.random_state()[0], 1, 2)
    assert draws.random_state()[1] == 2
    assert isinstance(draws.next_draw(4), draws.Draw) and draws.generator() is not None
