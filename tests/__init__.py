"""Tests, in the folder of the package that they test."""

import os

# As in `make test`: the models are tiny, and threads that wait for one another cost more than they
# gain. The variable must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
