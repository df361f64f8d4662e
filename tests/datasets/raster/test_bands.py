# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

import math

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_clay.datasets import SceneError, scan_scene
from torchgeo_clay.datasets.raster.detection import FileBand, file_bands
from torchgeo_clay.datasets.raster.detection import match_bands as match
from torchgeo_clay.sensors import SENSORS, get_sensor

S2, NAIP, LINZ = get_sensor('sentinel-2-l2a'), get_sensor('naip'), get_sensor('linz')
LANDSAT = get_sensor('landsat-c2l2-sr')
S2_FILE = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12')

RGB = ('red', 'green', 'blue')


def match_bands(sensor, names, bands=None, colors=None, wavelengths=None, path=''):
    colors, wavelengths = colors or ['undefined'] * len(names), wavelengths or [math.nan] * len(names)
    file = [FileBand(n or '', w, color=c) for n, w, c in zip(names, wavelengths, colors, strict=True)]
    found = match(sensor, file, bands, path)
    return found.indexes, found.source


def test_descriptions_decide():
    assert match_bands(S2, S2_FILE) == ((2, 3, 4, 5, 6, 7, 8, 9, 11, 12), 'names')
    assert match_bands(S2, S2_FILE, ['B8A', 'red']) == ((9, 4), 'names')
    assert match_bands(NAIP, ('N', None, 'b', 'G', 'r')) == ((5, 4, 3, 1), 'names')


@given(st.sampled_from(sorted(SENSORS)), st.data())
def test_any_order_and_alias_is_found(name, data):
    sensor = SENSORS[name]
    order = data.draw(st.permutations(range(len(sensor))))
    descriptions = [data.draw(st.sampled_from(sensor.bands[i].names)).swapcase() for i in order]
    asked = data.draw(st.lists(st.sampled_from(sensor.band_names), min_size=1, unique=True))
    indexes, source = match_bands(sensor, descriptions, asked)
    assert source == 'names'
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
    assert match_bands(NAIP, [generic] * 4) == ((1, 2, 3, 4), 'order')
    assert match_bands(NAIP, [generic] * 4, ['nir', 'red']) == ((4, 1), 'order')


def test_without_names_the_order_is_what_was_given():
    assert match_bands(S2, [None] * 3, ['red', 'green', 'blue']) == ((1, 2, 3), 'bands')
    assert match_bands(NAIP, [None] * 4, ['nir', 'red', 'green', 'blue']) == ((1, 2, 3, 4), 'bands')


@pytest.mark.parametrize(('count', 'word'), [(3, 'few'), (5, 'many')])
def test_without_names_too_few_or_too_many_are_refused(count, word):
    with pytest.raises(
        SceneError, match=rf'too {word} bands: the file has {count} without names, naip has 4 \(red, green'
    ):
        match_bands(NAIP, [None] * count)


def test_alpha_is_no_band():
    rgba = (*RGB, 'alpha')
    assert match_bands(LINZ, [None] * 4, colors=rgba) == ((1, 2, 3), 'colors')
    assert match_bands(LINZ, ['R', 'G', 'B', 'alpha']) == ((1, 2, 3), 'names')
    assert match_bands(LINZ, [None] * 4, colors=('alpha', *RGB)) == ((2, 3, 4), 'colors')
    with pytest.raises(SceneError, match=r'too few bands: the file has 3 without names and alpha, which is a mask'):
        match_bands(NAIP, [None] * 4, colors=rgba)
    five = (*RGB, 'undefined', 'alpha')
    assert match_bands(NAIP, [None] * 5, colors=five) == ((1, 2, 3, 4), 'order')
    # infrared that calls itself alpha, by name or as stated
    assert match_bands(NAIP, list('RGBN'), colors=rgba)[0] == (1, 2, 3, 4)
    assert match_bands(NAIP, [None] * 4, ['red', 'green', 'blue', 'nir'], colors=rgba) == ((1, 2, 3, 4), 'bands')


def test_color_interpretation_is_followed():
    bgr = ('blue', 'green', 'red')
    assert match_bands(LINZ, [None] * 3, colors=bgr) == ((3, 2, 1), 'colors')
    assert match_bands(NAIP, [None] * 4, colors=(*bgr, 'nir')) == ((3, 2, 1, 4), 'colors')
    assert match_bands(NAIP, [None] * 4, ['nir', 'red'], colors=('undefined', *bgr)) == ((1, 4), 'order')
    assert match_bands(LINZ, ['B', 'G', 'R'], colors=RGB) == ((3, 2, 1), 'names')  # RGB is what writers put


@pytest.mark.parametrize('colors', [('cyan', 'magenta', 'yellow', 'black'), ('palette',)])
def test_pictures_are_refused(colors):
    bands = None if len(colors) == 4 else ['red']
    with pytest.raises(SceneError, match=f'got the color interpretation {colors[0]}'):
        match_bands(NAIP, [None] * len(colors), bands, colors=colors)


def test_a_stated_order_that_color_interpretation_contradicts_is_refused():
    with pytest.raises(
        SceneError, match=r'bands= states the order blue, green, red, but .* band 1 is red, band 3 is b'
    ):
        match_bands(LINZ, [None] * 3, ['blue', 'green', 'red'], colors=RGB)
    # color-infrared is shown as red, green and blue
    assert match_bands(NAIP, [None] * 3, ['nir', 'red', 'green'], colors=RGB) == ((1, 2, 3), 'bands')


@pytest.mark.parametrize('name', ['landsat-c2l1', 'landsat-c2l2-sr', 'satellogic-MSI-L1D'])
def test_orders_that_are_usually_others_have_to_be_stated(name):
    sensor = SENSORS[name]
    with pytest.raises(
        SceneError, match=r'order of its bands cannot be determined.*usually has blue first.*give bands='
    ):
        match_bands(sensor, [None] * len(sensor))
    order = ['blue', 'green', 'red', *(b for b in sensor.band_names if b not in RGB)]
    assert match_bands(sensor, [None] * len(sensor), order) == (tuple(range(1, len(sensor) + 1)), 'bands')


@pytest.mark.parametrize('name', ['top_potsdam_2_10_IRRG.tif', 'ortho_cir_2020.tif', 'n-FALSE_COLOR.tif'])
def test_color_infrared_by_name_has_to_be_stated(name):
    with pytest.raises(SceneError, match='its name says color-infrared'):
        match_bands(LINZ, [None] * 3, colors=RGB, path=name)
    assert match_bands(NAIP, [None] * 3, ['nir', 'red', 'green'], colors=RGB, path=name)[1] == 'bands'
    assert match_bands(LINZ, [None] * 3, colors=RGB, path='circle_energy.tif')[1] == 'colors'


def test_wavelengths_decide_without_names():
    blue_first = [0.482, 0.561, 0.655, 0.865, 1.609, 2.201]
    assert match_bands(LANDSAT, [None] * 6, wavelengths=blue_first) == ((3, 2, 1, 4, 5, 6), 'wavelengths')
    assert match_bands(S2, ['x', 'y'], ['nir08', 'red'], wavelengths=[0.66, 0.864]) == ((2, 1), 'wavelengths')
    with pytest.raises(SceneError, match=r'bands swir22 of .* are missing; the file has 0.482 µm'):
        match_bands(LANDSAT, [None] * 5, wavelengths=blue_first[:5])
    spectrum = list(np.arange(0.4, 2.4, 0.01))
    indexes, _ = match_bands(S2, [f'Band {i}' for i in range(200)], wavelengths=spectrum)
    assert [spectrum[i - 1] for i in indexes] == pytest.approx(S2.wavelengths, abs=0.006)


def test_a_name_that_its_wavelength_contradicts_is_refused():
    with pytest.raises(SceneError, match=r"band 1 contradicts itself: its name 'B4' is red .*, its wavelength 0.83 µm"):
        match_bands(LANDSAT, ['B4'], ['red'], wavelengths=[0.83])
    assert match_bands(LANDSAT, ['B4'], ['red'], wavelengths=[0.66])[1] == 'names'


def test_a_panchromatic_band_is_no_color():
    file = [FileBand('', 0.56, 0.4), FileBand('', 0.56, 0.06)]
    assert match(NAIP, file, ['green']).indexes == (2,)


def opened(path):
    with rasterio.open(path) as file:
        return file_bands(file, path)


def test_reads_the_wavelengths_of_geotiff_and_envi(write_raster, tmp_path):
    path = write_raster(descriptions=None)
    with rasterio.open(path, 'r+') as file:
        for i, wavelength in enumerate((480, 560, 0.655, 842), start=1):
            file.update_tags(i, wavelength=wavelength, wavelength_units='Nanometers')
    assert [b.wavelength for b in opened(path)] == [0.48, 0.56, 0.655, 0.842]
    path = write_raster('b.tif', descriptions=None, tags={'wavelength': '{480.0, 560.0, 655.0, 842.0}'})
    assert [b.wavelength for b in opened(path)] == [0.48, 0.56, 0.655, 0.842]
    envi = {'crs': 'EPSG:32630', 'transform': rasterio.Affine(10, 0, 5e5, 0, -10, 46e5)}
    with rasterio.open(tmp_path / 'e.img', 'w', 'ENVI', 8, 8, 3, dtype='uint8', **envi) as file:
        file.write(np.ones((3, 8, 8), np.uint8))
    with (tmp_path / 'e.hdr').open('a') as header:
        header.write('\nwavelength units = Nanometers\nwavelength = {480, 560, 655}\nfwhm = {60, 60, 300}\n')
    found = opened(tmp_path / 'e.img')
    assert [(b.wavelength, b.width) for b in found] == [(0.48, 0.06), (0.56, 0.06), (0.655, 0.3)]
    assert match(NAIP, found, ['green', 'blue']).indexes == (2, 1)


def test_aliases_of_products():
    modis = [f'Nadir_Reflectance_Band{i}' for i in range(1, 8)]
    assert match_bands(get_sensor('modis'), modis) == ((1, 2, 3, 4, 5, 6, 7), 'names')


def test_numbers_of_tm_and_mss(write_raster):
    numbers = tuple(f'B{i}' for i in range(1, 8))
    pixels = np.ones((7, 8, 8), np.uint8)
    found = opened(write_raster('LT05_L1TP_1_19990805.tif', pixels, numbers))
    assert match(LANDSAT, found).indexes == (3, 2, 1, 4, 5, 7)
    found = opened(write_raster('LM05_L1TP_1_19990805.tif', pixels, numbers))
    with pytest.raises(SceneError, match='no band matches: the file has MSS B1'):
        match(LANDSAT, found)


@pytest.mark.real_data
def test_etm_has_its_own_numbers(cases):
    (path,) = (cases / '4-landsat-tm').rglob('*.tif')
    assert match(get_sensor('landsat-c2l1'), opened(path)).indexes == (3, 2, 1, 4, 5, 7)


@pytest.mark.real_data
def test_rgba_is_refused_as_naip_and_read_as_rgb(cases):
    (path,) = (cases / '8-colorinterp').rglob('*.tif')
    with pytest.raises(SceneError, match='3 without names and alpha'):
        match(NAIP, opened(path))
    assert match(LINZ, opened(path)).indexes == match(NAIP, opened(path), ['red', 'green', 'blue']).indexes == (1, 2, 3)
    assert 'alpha, a mask, of band 4 as nir' in scan_scene(path, NAIP, NAIP.band_names).remarks[0]


def test_an_unknown_band_is_the_users_mistake():
    with pytest.raises(ValueError, match='no band') as caught:
        match_bands(NAIP, ('red',), ['ultraviolet'])
    assert not isinstance(caught.value, SceneError)
