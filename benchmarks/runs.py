"""A study's results: one CSV file a task, one row a training run, to which a restarted study adds what is missing."""
import sys
from importlib.metadata import version

import pandas as pd
from fastprogress.fastprogress import progress_bar

PACKAGES = 'torch', 'fastai', 'onecycle_callback', 'scikit-learn'

def results(path):
    "Read what has been run, one row per training run."
    return pd.read_csv(path, comment='#', float_precision='round_trip')

def _start(path, command, columns):
    "Write the head of the file at `path` if there is none; refuse to mix versions."
    versions = ' '.join(f'{p} {version(p)}' for p in PACKAGES)
    head = [f'# {command}', f'# {versions}, python {sys.version.split()[0]}']
    if not path.exists(): path.write_text('\n'.join([*head, ','.join(columns), '']))
    made = path.read_text().splitlines()[1]
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
