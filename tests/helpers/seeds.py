"""The seed of the tests whose verdict depends on a training or on sampling (the mark `robust`).

`make test-robust` runs them with other seeds, and under settings that round otherwise:

    STEPMARK_TEST_SEED=7 python -m pytest -m robust tests/rl
"""

import os

SEED = int(os.environ.get("STEPMARK_TEST_SEED", "0"))  # 0: as in `make test`
