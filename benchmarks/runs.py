"""Results in CSV files under the versions they were made with; a restarted study adds the runs that its file lacks."""
import sys
from importlib.metadata import PackageNotFoundError, version

import pandas as pd
from fastprogress.fastprogress import progress_bar

PACKAGES = 'torch', 'fastai', 'onecycle_callback', 'scikit-learn'

def results(path):
    "Read the rows of the file at `path`."
    return pd.read_csv(path, comment='#', float_precision='round_trip')

def versions(*packages):
    "Return a comment that names the versions of `packages` and of Python."
    def known(name):
        try: return f'{name} {version(name)}'
        except PackageNotFoundError: return f'{name} missing'
    return f'# {" ".join(map(known, packages))}, python {sys.version.split()[0]}'

def _start(path, command, columns):
    "Write the head of the file at `path` if there is none; refuse to mix versions."
    head = [f'# {command}', versions(*PACKAGES)]
    if not path.exists(): path.write_text('\n'.join([*head, ','.join(columns), '']), encoding='utf-8')
    made = path.read_text(encoding='utf-8').splitlines()[1]
    if made != head[1]: raise SystemExit(f'{path} was made with other versions, move it away: {made}')

def run_missing(
    path, # The CSV file
    command, # What the user types to get it
    key, # The columns that name a run
    values, # The columns that a run gives
    jobs, # One tuple for each run that there should be, in the order of `key`
    run # Takes a job, returns `values`
):
    "Run the jobs that the file at `path` lacks, adding a line for each."
    _start(path, command, [*key, *values])
    done = set(results(path)[key].itertuples(index=False, name=None))
    for job in progress_bar([job for job in jobs if job not in done]):
        row = pd.DataFrame([[*job, *(round(v, 6) for v in run(*job))]])
        row.to_csv(path, mode='a', header=False, index=False)
