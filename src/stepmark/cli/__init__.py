"""The command line: parses arguments, calls the stages, prints the results.

app.py has the application that all commands share, stages.py one command for each stage, convert.py the command that
converts files, filter.py the one that filters a file by scores, reinforce.py the one that reinforces a policy, runs.py
the commands for whole runs.

    stepmark --help
    stepmark demo

Exit status: 0 success; 1 an error; 2 a wrong setting; 3 finished, but some rows were set aside or some items failed
(they are listed); 4 a budget is spent; 130 interrupted. Finished work is kept in every case, and the same command goes
on. Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import os
from typing import NoReturn

from stepmark.cli import convert, filter, reinforce, runs, stages
from stepmark.cli.app import app

__all__ = ["app", "convert", "filter", "main", "reinforce", "runs", "stages"]


def main() -> NoReturn:
    """The entry point."""
    # Loading a model would draw a progress bar for each worker process, over ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()
    raise SystemExit(0)
