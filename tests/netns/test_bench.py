"""scripts/bench, short: that all of it works. What it measures here says nothing."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_and_writes_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.run", "--short", "--output", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "benchmarks.json").read_text())["machine"]["kernel"]
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| hold music, over bare bpf_redirect |" in page
    for name in ("forwarding", "peers", "latency", "programs"):
        assert (tmp_path / f"benchmarks/{name}.png").stat().st_size
        assert f"(benchmarks/{name}.png)" in page
