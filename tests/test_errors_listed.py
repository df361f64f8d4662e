# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Every message for a user is in the documentation, and says something. Read off the source, without importing it."""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

#: What a message says that helps: what was expected or found, or what to do about it.
_HELPS = re.compile(
    r'\b(expected|got|give|use|choose|write|read|copy|put|known|released|install|must|needs?|missing|contradict|'
    r'could not|there (is|are)|holds?|readable|more than once|no scene|look|resume|call|passed over|describe|'
    r'name|say|wrap|keep|fetch|start|expects|unexpected|convert|once is right|not found|zero bytes|is for|taken as|'
    r'damaged|not with|takes?|please|has|its|since|using)\b',
    re.IGNORECASE,
)

#: What reports a message that another function makes.
_REPORTS = {
    'ClayPretrainDataModule._look',
    'UnitsCheck.__call__',
    '_read_raw',
    'find_scenes',
    'log_assumptions',
    'open_raster',
    'scan_scenes',
}


@pytest.fixture(scope='module')
def script(repo_root: Path) -> ModuleType:
    """The script that lists them."""
    spec = importlib.util.spec_from_file_location('list_errors', repo_root / 'docs/scripts/list_errors.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def raised(folder: Path) -> list[tuple[str, int, str]]:
    """File, line and name of each exception that is raised by a call, found by another way than the script's."""
    found = []
    for path in sorted(folder.rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                module = '.'.join(path.relative_to(folder.parent).with_suffix('').parts).removesuffix('.__init__')
                found.append((module, node.lineno, ast.unparse(node.exc.func)))
    return found


def test_each_is_listed(script: ModuleType, repo_root: Path) -> None:
    """What is not for users is named here, so that a new kind of exception is a decision."""
    listed = {(e.module, e.line, e.kind) for e in script.list_errors()}
    missing = [r for r in raised(repo_root / 'torchgeo_clay') if r not in listed]
    assert {kind for _, _, kind in missing} <= {
        'AttributeError',  # what __getattr__ has to raise
        'SIGTERMException',  # ends a run as it was asked to
        'SystemExit',
    }, missing
    assert len(listed) > 250


def test_each_says_something(script: ModuleType) -> None:
    bare = []
    for e in script.list_errors():
        own = re.sub(r'‹[^‹›]*›', '', e.message)
        if e.handed_on:
            ok = '‹error›' in e.message or e.function in _REPORTS
        else:
            ok = e.function in _REPORTS or (len(own) >= 15 and _HELPS.search(own))
        if not ok:
            bare.append(e)
    assert bare == []


def test_what_is_said_fits_the_list(script: ModuleType, repo_root: Path) -> None:
    """A message as it comes out has the form that is listed."""
    spec = importlib.util.spec_from_file_location('band', repo_root / 'torchgeo_clay/sensors/sensor.py')
    band = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = band
    spec.loader.exec_module(band)
    forms = {
        ''.join('.+' if i % 2 else re.escape(part) for i, part in enumerate(re.split(r'(‹[^‹›]*›)', e.message))): e
        for e in script.list_errors()
        if e.module == 'torchgeo_clay.sensors.sensor'
    }
    wavelengths = [form for form, e in forms.items() if e.function == 'check_wavelengths']
    for wrong in ([665.0], [-1.0]):
        with pytest.raises(ValueError, match='wavelengths') as caught:
            band.check_wavelengths(wrong)
        assert sum(bool(re.fullmatch(form, str(caught.value))) for form in wavelengths) == 1
    with pytest.raises(ValueError, match='std') as caught:
        band.Band('red', 0.665, 1.0, 0.0)
    assert any(re.fullmatch(form, str(caught.value)) for form in forms)


def test_templates(script: ModuleType, tmp_path: Path) -> None:
    """Texts in pieces, of one of two kinds, made elsewhere, or handed on."""
    package = tmp_path / 'package'
    (package / 'part').mkdir(parents=True)
    (package / 'part/a.py').write_text(
        'class OwnError(ValueError): ...\n'
        'class Below(OwnError): ...\n'
        'def made(x):\n'
        "    return f'nothing of {x.name}' if x else 'none at all'\n"
        'def f(x, few):\n'
        "    hint = ' Swapped?' if few else ''\n"
        '    raise Below(f\'too {"few" if few else "many"}: {len(x)} of {x.shape}.\' + f\'{hint}\')\n'
        'class C:\n'
        '    def g(self, error):\n'
        "        raise OSError(5, f'{error}')\n"
        '    def h(self):\n'
        '        raise KeyError("ours")\n'
        'def k(x):\n'
        '    raise ValueError(made(x))\n'
    )
    listed = script.list_errors(package)
    assert [(e.kind, e.function, e.message) for e in listed] == [
        ('Below', 'f', 'too ‹few / many›: ‹x› of ‹x›.‹Swapped? / nothing›'),
        ('OSError', 'C.g', '‹error›'),
        ('ValueError', 'k', '‹nothing of ‹name› / none at all›'),
    ]
    assert {e.part for e in listed} == {'part'}


def test_shown_as_it_is(script: ModuleType) -> None:
    """Markdown's own signs are escaped, so that a table keeps its columns."""
    error = script.Listed('torchgeo_clay.sensors.plausibility', 1, 'ValueError', 'f', 'a|b [c] {d} *e* $f$ `g` <h>')
    row = list(script.markdown([error]))[4]
    assert row == r'| a\|b \[c\] \{d\} \*e\* \$f\$ \`g\` \<h\> | ValueError | `sensors.plausibility.f` |'
