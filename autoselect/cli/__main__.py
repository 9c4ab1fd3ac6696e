"""`python -m autoselect.cli` is the `autoselect` command."""

import sys

from autoselect.cli.main import main

sys.exit(main())
