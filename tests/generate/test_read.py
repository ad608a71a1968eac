"""Readers: rows padded at their left, scores of the last column, rows chosen and repeated."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.generate.read import Texts, Translations, columns
from minitransformer.models import GPT2, GPT2Config, Transformer, TransformerConfig


def test_rows_are_padded_at_their_left():
    ids, padding = columns([[1, 2, 3], [4], [5, 6]])
    np.testing.assert_array_equal(ids, [[1, 2, 3], [0, 0, 4], [0, 5, 6]])
    np.testing.assert_array_equal(padding, [0, 2, 1])


def text_reader(cached):
    mt.manual_seed(1)
    model = GPT2(GPT2Config(11, 16, 12, 3, 2, 20, 0.0, positions="rotary")).eval()
    return Texts(model, [[1, 2, 3], [4]], cached), lambda row: model(np.array([row]))


def translation_reader(cached):
    mt.manual_seed(1)
    model = Transformer(TransformerConfig(11, 11, 12, 3, 1, 20, 0.0, 20)).eval()
    sources = {5: [1, 2, 3], 6: [4]}
    reader = Translations(model, list(sources.values()), 5, cached)
    reader.rows[1][0] = 6  # so that a row says which source it belongs to
    return reader, lambda row: model(np.array([sources[row[0]]]), np.array([row]))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("make", [text_reader, translation_reader])
def test_rows_can_be_chosen_repeated_and_dropped(make, cached):
    with mt.no_grad():
        reader, alone = make(cached)

        def agree():
            for row, scores in zip(reader.rows, reader.scores(), strict=True):
                np.testing.assert_allclose(scores, np.asarray(alone(row))[0, -1], atol=2e-5)

        agree()
        reader.append([7, 8])
        agree()
        reader.select([1, 0, 1])
        reader.append([1, 2, 3])
        assert [reader.written(i)[-2:] for i in range(3)] == [[8, 1], [7, 2], [8, 3]]
        agree()
        reader.select([2])
        reader.append([9])
        agree()
        reader.select([])
        assert reader.rows == []
