"""Help texts come at once: no command imports torch before it runs."""

import subprocess
import sys

import pytest

from autoselect.cli.main import COMMANDS


@pytest.mark.parametrize("words", [*COMMANDS, "reference shards", "bench prefill", "bench public"])
def test_help_comes_without_the_import_of_torch(words):
    code = (
        "import sys\nfrom autoselect.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split(), "--help"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: autoselect" in done.stdout
