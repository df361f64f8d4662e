# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_clay.datasets import SceneError
from torchgeo_clay.datasets.raster.bands import match_bands
from torchgeo_clay.sensors import SENSORS, get_sensor

S2, NAIP, LINZ = get_sensor('sentinel-2-l2a'), get_sensor('naip'), get_sensor('linz')
S2_FILE = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12')


def test_descriptions_decide():
    assert match_bands(S2, S2_FILE) == ((2, 3, 4, 5, 6, 7, 8, 9, 11, 12), True)
    assert match_bands(S2, S2_FILE, ['B8A', 'red']) == ((9, 4), True)
    assert match_bands(NAIP, ('N', None, 'b', 'G', 'r')) == ((5, 4, 3, 1), True)


@given(st.sampled_from(sorted(SENSORS)), st.data())
def test_any_order_and_alias_is_found(name, data):
    sensor = SENSORS[name]
    order = data.draw(st.permutations(range(len(sensor))))
    descriptions = [data.draw(st.sampled_from(sensor.bands[i].names)).swapcase() for i in order]
    asked = data.draw(st.lists(st.sampled_from(sensor.band_names), min_size=1, unique=True))
    indexes, described = match_bands(sensor, descriptions, asked)
    assert described
    assert [sensor.band_names[order[i - 1]] for i in indexes] == asked


def test_missing_bands_are_named_with_the_remedy():
    with pytest.raises(SceneError, match=r"nir08, swir22 of sentinel-2-l2a are missing.*B01, B02.*bands=\['blue'"):
        match_bands(S2, [d for d in S2_FILE if d not in ('B8A', 'B12')])
    assert match_bands(S2, ('B04', 'B03'), ['green', 'red'])[0] == (2, 1)
    with pytest.raises(SceneError, match='bands nir of'):
        match_bands(S2, ('B04', 'B03'), ['green', 'nir'])


def test_names_that_match_nothing_are_named():
    with pytest.raises(SceneError, match=r'the file has SCL; sentinel-2-l2a has blue/B02'):
        match_bands(S2, ('SCL',))
    with pytest.raises(SceneError, match='the file has VV, VH'):
        match_bands(NAIP, ('VV', 'VH'))


def test_a_band_named_twice_is_refused():
    with pytest.raises(SceneError, match=r'red is in the file 2 times, as bands 1 \(red\), 4 \(R\)'):
        match_bands(NAIP, ('red', 'green', 'blue', 'R', 'nir'))
    assert match_bands(NAIP, ('red', 'green', 'blue', 'R', 'nir'), ['nir'])[0] == (5,)


@pytest.mark.parametrize('generic', [None, 'Band 1', 'layer_2', '3', ''])
def test_without_names_the_order_is_the_sensors(generic):
    assert match_bands(NAIP, [generic] * 4) == ((1, 2, 3, 4), False)
    assert match_bands(NAIP, [generic] * 4, ['nir', 'red']) == ((4, 1), False)


def test_without_names_the_order_is_what_was_given():
    assert match_bands(S2, [None] * 3, ['red', 'green', 'blue']) == ((1, 2, 3), False)
    assert match_bands(NAIP, [None] * 4, ['nir', 'red', 'green', 'blue']) == ((1, 2, 3, 4), False)


@pytest.mark.parametrize(('count', 'word'), [(3, 'few'), (5, 'many')])
def test_without_names_too_few_or_too_many_are_refused(count, word):
    with pytest.raises(
        SceneError, match=rf'too {word} bands: the file has {count} without names, naip has 4 \(red, green'
    ):
        match_bands(NAIP, [None] * count)


def test_alpha_is_no_band_where_the_count_fits_without_it():
    assert match_bands(LINZ, [None] * 4, alpha=(4,))[0] == (1, 2, 3)
    assert match_bands(NAIP, [None] * 4, alpha=(4,))[0] == (1, 2, 3, 4)


def test_an_unknown_band_is_the_users_mistake():
    with pytest.raises(ValueError, match='no band') as caught:
        match_bands(NAIP, ('red',), ['ultraviolet'])
    assert not isinstance(caught.value, SceneError)
