"""The command line: parses, calls the stages, prints what came. It decides nothing.

app.py is what all commands share, stages.py has one command for each stage, tuning.py the one that reinforces a policy,
runs.py those for whole runs.

    stepmark --help
    stepmark demo

Exit status: 0 all went well; 1 something failed; 2 a setting is wrong; 3 everything usable was used, but some rows
were set aside or some items failed (they are listed); 4 a budget is spent; 130 interrupted. What is done is kept in
every case, and the same command goes on. Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import os
from typing import NoReturn

from stepmark.cli import runs, stages, tuning
from stepmark.cli.app import app

__all__ = ["app", "main", "runs", "stages", "tuning"]


def main() -> NoReturn:
    """The entry point."""
    # Loading a model draws a bar of its own for each worker process, over ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()
    raise SystemExit(0)
