# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Sensors: the released numbers, names, selections, and descriptions of one's own."""

import math
import random
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_clay.sensors import SENSORS, Band, Sensor, check_wavelengths, get_sensor, sensor_table

# An independent copy of the released metadata: name wavelength-µm mean std, in the order of the training data.
RELEASED = {
    ('sentinel-2-l2a', 10): """
        blue .493 1105 1809 · green .56 1355 1757 · red .665 1552 1888 · rededge1 .704 1887 1870 ·
        rededge2 .74 2422 1732 · rededge3 .783 2630 1697 · nir .842 2743 1742 · nir08 .865 2785 1648 ·
        swir16 1.61 2388 1470 · swir22 2.19 1835 1379""",
    ('planetscope-sr', 5): """
        coastal_blue .443 1720 747 · blue .49 1715 698 · green_i .531 1913 739 · green .565 2088 768 ·
        yellow .61 2274 849 · red .665 2290 868 · rededge .705 2613 849 · nir .865 3970 914""",
    ('landsat-c2l1', 30): """
        red .65 10678 6025 · green .56 10563 5411 · blue .48 11083 5468 · nir08 .86 14792 6746 ·
        swir16 1.6 12276 5897 · swir22 2.2 10114 4850""",
    ('landsat-c2l2-sr', 30): """
        red .65 13705 9578 · green .56 13310 9408 · blue .48 12474 10144 · nir08 .86 17801 8277 ·
        swir16 1.6 14615 5300 · swir22 2.2 12701 4522""",
    ('naip', 1.0): 'red .65 110.16 47.23 · green .56 115.41 39.82 · blue .48 98.15 35.43 · nir .842 139.04 49.86',
    ('linz', 0.5): 'red .635 89.96 41.83 · green .555 99.46 36.96 · blue .465 89.51 31.45',
    ('sentinel-1-rtc', 10): 'vv 3.5 -12.113 8.314 · vh 4.0 -18.673 8.017',
    ('modis', 500): """
        sur_refl_b01 .645 1072 1643 · sur_refl_b02 .858 1624 1878 · sur_refl_b03 .469 931 1449 ·
        sur_refl_b04 .555 1023 1538 · sur_refl_b05 1.24 1599 1763 · sur_refl_b06 1.64 1404 1618 ·
        sur_refl_b07 2.13 1051 1396""",
    ('satellogic-MSI-L1D', 1.0): """
        red .64 1451.54 995.48 · green .545 1456.54 771.29 · blue .48 1543.22 708.86 · nir .825 2132.68 1236.71""",
}
ROWS = [(name, gsd, [row.split() for row in rows.split('·')]) for (name, gsd), rows in RELEASED.items()]


@pytest.mark.parametrize(('name', 'gsd', 'rows'), ROWS, ids=[row[0] for row in ROWS])
def test_numbers_are_the_released_ones(name: str, gsd: float, rows: list[list[str]]) -> None:
    sensor = SENSORS[name]
    assert sensor.name == name
    assert sensor.gsd == gsd
    assert [(b.name, b.wavelength, b.mean, b.std) for b in sensor.bands] == [
        (band, float(wavelength), float(mean), float(std)) for band, wavelength, mean, std in rows
    ]
    assert (sensor.band_names, sensor.wavelengths, sensor.mean, sensor.std) == tuple(
        zip(*((b.name, b.wavelength, b.mean, b.std) for b in sensor.bands), strict=True)
    )
    assert len(sensor) == len(rows)


def test_nine_sensors_and_what_sets_some_apart() -> None:
    assert list(SENSORS) == [name for name, _, _ in ROWS]
    assert {name: s.scale for name, s in SENSORS.items() if s.scale != 'linear'} == {'sentinel-1-rtc': 'db'}
    assert {name: s.loss_scale for name, s in SENSORS.items() if s.loss_scale != 1} == {'modis': 0.1}
    assert SENSORS['modis'].rgb == ('sur_refl_b01', 'sur_refl_b04', 'sur_refl_b03')
    assert SENSORS['sentinel-1-rtc'].rgb == ()
    assert all(s.rgb == ('red', 'green', 'blue') for n, s in SENSORS.items() if n not in ('modis', 'sentinel-1-rtc'))
    assert SENSORS['sentinel-2-l2a'].rgb_indices == (2, 1, 0)
    with pytest.raises(TypeError):
        SENSORS['mine'] = SENSORS['naip']  # type: ignore[index]


@pytest.mark.parametrize(
    ('sensor', 'alias', 'band'),
    [
        *(('sentinel-2-l2a', alias, 'blue') for alias in ('B02', 'B2', 'blue', 'b02', 'Blue', ' BLUE ')),
        *(('sentinel-2-l2a', alias, 'nir08') for alias in ('B8A', 'B08A', 'nir08')),
        ('sentinel-2-l2a', 'B08', 'nir'),
        ('sentinel-2-l2a', 'B12', 'swir22'),
        ('sentinel-2-l2a', 'red edge 1', 'rededge1'),
        ('sentinel-2-l2a', 'Red-Edge-1', 'rededge1'),
        ('landsat-c2l2-sr', 'SR_B4', 'red'),
        ('landsat-c2l2-sr', 'SR_B7', 'swir22'),
        ('landsat-c2l1', 'B5', 'nir08'),
        *(('naip', alias, band) for alias, band in zip('RGBN', ('red', 'green', 'blue', 'nir'), strict=True)),
        ('naip', 'NIR', 'nir'),
        *(('linz', alias, band) for alias, band in zip('RGB', ('red', 'green', 'blue'), strict=True)),
        ('sentinel-1-rtc', 'VV', 'vv'),
        ('sentinel-1-rtc', 'Vh', 'vh'),
        *(('modis', alias, 'sur_refl_b01') for alias in ('sur_refl_b01', 'b01', 'B1', 'red', 'b01_620-670')),
        ('modis', 'sur_refl_b07', 'sur_refl_b07'),
        ('satellogic-MSI-L1D', 'NIR', 'nir'),
        ('planetscope-sr', 'coastal blue', 'coastal_blue'),
    ],
)
def test_bands_are_found_by_any_of_their_names(sensor: str, alias: str, band: str) -> None:
    assert SENSORS[sensor].select([alias]).band_names == (band,)
    assert SENSORS[sensor].bands[SENSORS[sensor].index(alias)].name == band


@given(st.sampled_from(list(SENSORS)), st.data())
def test_selection_keeps_the_numbers_and_takes_the_order(name: str, data: st.DataObject) -> None:
    sensor = SENSORS[name]
    order = data.draw(st.lists(st.sampled_from(range(len(sensor))), min_size=1, unique=True))
    called = [random.Random(i).choice(sensor.bands[i].names) for i in order]
    chosen = sensor.select(called)
    assert chosen.bands == tuple(sensor.bands[i] for i in order)
    assert (chosen.name, chosen.gsd, chosen.scale, chosen.loss_scale) == (
        sensor.name,
        sensor.gsd,
        sensor.scale,
        sensor.loss_scale,
    )
    whole = set(sensor.rgb) <= set(chosen.band_names)
    assert chosen.rgb == (sensor.rgb if whole else ())
    assert [chosen.band_names[i] for i in chosen.rgb_indices] == list(chosen.rgb)


def test_select_none_is_every_band() -> None:
    assert SENSORS['naip'].select(None) is SENSORS['naip']


@pytest.mark.parametrize(
    ('bands', 'message'),
    [
        (['B02', 'blu'], r"no band 'blu'\. Did you mean 'blue'\?"),
        (['B1'], 'sentinel-2-l2a has no band'),
        (['B02', 'B03', 'blue'], r"'blue' is selected 2 times, as \['B02', 'blue'\]"),
        ('B02', r"got the string 'B02'; write \['B02'\]"),
        ([], 'at least one band'),
    ],
)
def test_selections_that_are_refused(bands: list[str] | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SENSORS['sentinel-2-l2a'].select(bands)


@pytest.mark.parametrize('value', [665.0, 55500.0, 100.01])
def test_nanometers_are_refused_with_the_remedy(value: float) -> None:
    with pytest.raises(ValueError, match=r'nanometers\? Then divide by 1000'):
        Band('red', value, 1, 1)


@pytest.mark.parametrize('value', [0.0, -0.665, math.nan, math.inf])
def test_wavelengths_that_are_no_wavelengths(value: float) -> None:
    with pytest.raises(ValueError, match='positive, finite wavelengths'):
        check_wavelengths([0.5, value])


@pytest.mark.parametrize('value', [0.0, -1.0, math.nan, math.inf])
def test_bad_statistics(value: float) -> None:
    with pytest.raises(ValueError, match='positive, finite std'):
        Band('red', 0.6, 1, value)
    if not math.isfinite(value):
        with pytest.raises(ValueError, match='finite mean'):
            Band('red', 0.6, value, 1)


RED, NIR = Band('red', 0.6, 1, 1, ('R',)), Band('nir', 0.8, 1, 1)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'gsd': 0}, 'positive gsd'),
        ({'gsd': math.nan}, 'positive gsd'),
        ({'loss_scale': 0}, 'positive loss_scale'),
        ({'scale': 'log'}, "'linear' or 'db', got 'log'"),
        ({'bands': ()}, 'at least one band'),
        ({'bands': (RED, Band('r', 0.7, 1, 1))}, "the name 'r' stands for both 'red' and 'r'"),
        ({'bands': (RED, RED)}, 'must be unique'),
        ({'rgb': ('red',)}, 'three rgb bands or none'),
        ({'rgb': ('red', 'nir', 'green')}, "no band 'green'"),
    ],
)
def test_sensors_that_are_refused(arguments: dict[str, object], message: str) -> None:
    good: dict[str, object] = {'name': 'mine', 'gsd': 1, 'bands': (RED, NIR)}
    Sensor(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Sensor(**good | arguments)  # type: ignore[arg-type]


def test_a_band_needs_a_name() -> None:
    with pytest.raises(ValueError, match='band name'):
        Band('', 0.6, 1, 1)


VIIRS = {
    'name': 'viirs',
    'gsd': 375,
    'rgb': ['I1', 'nir', 'I3'],
    'bands': {
        'I1': {'wavelength': 0.64, 'mean': 2100, 'std': 1900, 'aliases': ['red']},
        'I2': {'wavelength': 0.865, 'mean': 2900, 'std': 1800, 'aliases': ['nir']},
        'I3': {'wavelength': 1.61, 'mean': 2400, 'std': 1500},
    },
}


def test_own_sensor_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / 'viirs.yaml'
    path.write_text(yaml.safe_dump(VIIRS, sort_keys=False))
    sensor = Sensor.from_yaml(path)
    assert sensor == Sensor(
        'viirs',
        375,
        rgb=('I1', 'nir', 'I3'),
        bands=(
            Band('I1', 0.64, 2100, 1900, ('red',)),
            Band('I2', 0.865, 2900, 1800, ('nir',)),
            Band('I3', 1.61, 2400, 1500),
        ),
    )
    assert get_sensor(path) == get_sensor(str(path)) == get_sensor(sensor) == sensor
    assert sensor.rgb_indices == (0, 1, 2)


RED_ROW = {'wavelength': 0.64, 'mean': 2100, 'std': 1900}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('name: [', 'not readable as YAML'),
        ('- 1', 'expected name:, gsd: and bands:, got list'),
        ('', 'got NoneType'),
        ({'name': 'x', 'gsd': 1}, r"missing \['bands'\]"),
        ({**VIIRS, 'gds': 1}, "unknown key 'gds'. Did you mean 'gsd'"),
        ({**VIIRS, 'gsd': '375 m'}, "gsd: expected a number, got '375 m'"),
        ({**VIIRS, 'gsd': True}, 'gsd: expected a number, got True'),
        ({**VIIRS, 'gsd': -1}, 'positive gsd'),
        ({**VIIRS, 'bands': ['I1', 'I2']}, 'bands as a mapping'),
        ({**VIIRS, 'rgb': [], 'bands': {'I1': 0.64}}, "band 'I1': expected {wavelength"),
        ({**VIIRS, 'rgb': [], 'bands': {'I1': {'wavelength': 0.64, 'mean': 1}}}, r"missing \['std'\]"),
        ({**VIIRS, 'rgb': [], 'bands': {'I1': {**RED_ROW, 'wavelength': 640}}}, 'nanometers'),
        ({**VIIRS, 'rgb': [], 'bands': {'I1': {**RED_ROW, 'wave': 1}}}, "unknown key 'wave'"),
        ({**VIIRS, 'rgb': [], 'bands': {'I1': {**RED_ROW, 'mean': 'high'}}}, "mean: expected a number, got 'high'"),
        ({**VIIRS, 'rgb': 'I1', 'bands': {'I1': RED_ROW}}, 'rgb: expected a list of names'),
        ({**VIIRS, 'rgb': [], 'bands': {'I1': {**RED_ROW, 'aliases': 'red'}}}, 'aliases: expected a list of names'),
        ({**VIIRS, 'scale': 'dB'}, "'linear' or 'db', got 'dB'"),
    ],
)
def test_yaml_mistakes_are_named_with_the_file(tmp_path: Path, text: str | dict[str, object], message: str) -> None:
    path = tmp_path / 'mine.yaml'
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    with pytest.raises(ValueError, match=message) as error:
        Sensor.from_yaml(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize('shape', [(4, 6, 5), (2, 4, 6, 5), (2, 3, 4, 6, 5)])
def test_normalize_is_torchvisions(shape: tuple[int, ...]) -> None:
    sensor = get_sensor('naip')
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    expected = torchvision.transforms.v2.functional.normalize(image.float(), list(sensor.mean), list(sensor.std))
    torch.testing.assert_close(sensor.normalize(image), expected)
    valid = torch.rand(*shape[:-3], 1, *shape[-2:]) < 0.5
    masked = sensor.normalize(image.float().where(valid, torch.nan), valid)
    torch.testing.assert_close(masked, expected.where(valid, 0))


def test_normalize_refuses_other_bands() -> None:
    with pytest.raises(ValueError, match=r'naip: expected an image \(…, 4, H, W\) .*got \(1, 3, 8, 8\)'):
        get_sensor('naip').normalize(torch.zeros(1, 3, 8, 8))


def test_unknown_sensor_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"Unknown sensor 'sentinel2-l2a'\. Did you mean 'sentinel-2-l2a'\?"):
        get_sensor('sentinel2-l2a')
    assert get_sensor('modis') is SENSORS['modis']


def test_table_has_a_row_per_band() -> None:
    lines = sensor_table().splitlines()
    assert len(lines) == 2 + sum(len(rows) for _, _, rows in ROWS)
    assert all(line.count('|') == 8 for line in lines)
    assert '| naip | 1 | red | 0.65 | 110.16 | 47.23 | R |' in lines
    assert len(sensor_table([SENSORS['linz']]).splitlines()) == 5
