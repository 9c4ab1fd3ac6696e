"""What a benchmark measured is written wherever it was asked for."""

import importlib
import json
import sys
from types import SimpleNamespace

NAMES = ("PATCH", "SIDE", "Engine", "Level", "Turn", "ask", "picture", "start", "take_turns")


def test_the_serving_benchmark_makes_the_folder_of_its_result(tmp_path, monkeypatch):
    """The load needs vLLM, whose place a stand-in takes."""
    stand_in = SimpleNamespace(**dict.fromkeys(NAMES, 1))
    monkeypatch.setitem(sys.modules, "serving_load", stand_in)
    monkeypatch.delitem(sys.modules, "bench_serving", raising=False)
    bench = importlib.import_module("bench_serving")
    monkeypatch.delitem(sys.modules, "bench_serving")

    async def run(arguments, folder):
        return {"rows": []}

    path = tmp_path / "new" / "serving.json"
    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(sys, "argv", ["bench_serving.py", "--json", str(path)])
    bench.main()
    assert json.loads(path.read_text()) == {"rows": []}
