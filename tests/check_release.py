"""Check what was built, in an environment into which the wheel and nothing else was installed.

`python check_release.py CHECKOUT [TAG]`, which `nox -s release` runs, raises an error that says what is wrong."""
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import onecycle_callback

PACKAGE = 'onecycle_callback'

def in_sdist(path):
    "Return the names of the files in an sdist, without its top folder."
    with tarfile.open(path) as tar: return {m.name.partition('/')[2] for m in tar.getmembers() if m.isfile()}

def in_wheel(path):
    with zipfile.ZipFile(path) as wheel: return set(wheel.namelist())

def same(what, found, expected):
    "Raise unless two sets are equal."
    missing, extra = sorted(expected - found), sorted(found - expected)
    assert found == expected, f'{what}: missing {missing}, not expected {extra}'
    print(f'{what}: ok, {len(found)} as expected')

def check_files(checkout, version):
    "Check that the sdist holds what git tracks, and the wheel the package and nothing else."
    ls = subprocess.run(['git', 'ls-files'], cwd=checkout, capture_output=True, text=True, check=True)
    built = checkout / f'dist/{PACKAGE}-{version}'
    sdist, wheel = in_sdist(f'{built}.tar.gz'), in_wheel(f'{built}-py3-none-any.whl')
    written = {f for f in sdist if f == 'PKG-INFO' or f.startswith(f'{PACKAGE}.egg-info/')}   # by setuptools
    same('files in the sdist', sdist - written, set(ls.stdout.splitlines()))
    about = {f for f in wheel if f.startswith(f'{PACKAGE}-{version}.dist-info/')}
    same('files in the wheel', wheel - about, {f for f in sdist if f.startswith(f'{PACKAGE}/')})
    assert f'{PACKAGE}/py.typed' in wheel, 'py.typed is not in the wheel: its types are invisible'

def parts(requirement):
    "Return the name and the bounds of a requirement, whatever their order and spaces."
    return frozenset(re.findall(r'^[\w.-]+|[<>=!~]=?[\w.*]+', requirement.replace(' ', '')))

def check_metadata(checkout):
    "Check that the installed metadata agree with pyproject.toml, and that the long description is README.md."
    project = tomllib.loads((checkout / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    dist = distribution(PACKAGE)
    meta = dist.metadata
    scripts, plugins = project['scripts'].items(), project['entry-points']['nbdev'].items()
    for name, found, expected in [
        ('Summary', meta['Summary'], project['description']),
        ('Requires-Python', meta['Requires-Python'], project['requires-python']),
        ('Requires-Dist', {parts(r) for r in meta.get_all('Requires-Dist') if 'extra ==' not in r},
         set(map(parts, project['dependencies']))),
        ('Provides-Extra', set(meta.get_all('Provides-Extra')), set(project['optional-dependencies'])),
        ('License-Expression', meta['License-Expression'], project['license']),
        ('License-File', meta.get_all('License-File'), project['license-files']),
        ('Project-URL', set(meta.get_all('Project-URL')), {', '.join(url) for url in project['urls'].items()}),
        ('Description', meta['Description'].strip(),
         (checkout / project['readme']).read_text(encoding='utf-8').strip()),
        ('entry points', {(e.group, e.name, e.value) for e in dist.entry_points},
         {('console_scripts', *s) for s in scripts} | {('nbdev', *p) for p in plugins}),
    ]:
        assert found == expected, f'{name}: got {found!r}, expected {expected!r}'
    print(f'metadata: ok, {project["requires-python"]}, {", ".join(project["dependencies"])}')

def check_tag(checkout, tag, version):
    "Check that the tag names the version, and so does the newest heading of CHANGELOG.md."
    heading = re.search('^## (.*)$', (checkout / 'CHANGELOG.md').read_text(encoding='utf-8'), re.M)[1]
    assert tag == f'v{version}', f'tag {tag} must be v{version}, the version of the package'
    assert heading == version, f'the newest heading of CHANGELOG.md must be {version}, got {heading}'
    print(f'tag: ok, {tag}')

def check_demo():
    "Check that the console script trains and reports that what it used equals the plan."
    run = subprocess.run([Path(sys.executable).with_name('onecycle-demo')], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert 'recorded values equal the plan: yes' in run.stdout
    assert Path('onecycle.png').exists()
    print('demo: ok,', *run.stdout.splitlines()[-3:], sep='\n  ')

def main(checkout, tag=None):
    checkout, version = Path(checkout), onecycle_callback.__version__
    assert sys.prefix != sys.base_prefix, f'{sys.executable} is not in a virtual environment'
    assert Path(onecycle_callback.__file__).is_relative_to(sys.prefix), f'imported from {onecycle_callback.__file__}'
    assert distribution(PACKAGE).version == version
    check_files(checkout, version)
    check_metadata(checkout)
    if tag is not None: check_tag(checkout, tag, version)
    check_demo()

if __name__ == '__main__': main(*sys.argv[1:])
