"""A command that fails before it has written anything leaves no folder behind that it made."""

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_what_stays_empty_goes_and_what_was_there_or_holds_something_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    program = """
import sys
from pathlib import Path
from recipes.run_folder import check_writable
for name in ("new/a/b", "there", "there/new", "held/a", "held/b"):
    check_writable(Path(name))
assert Path("new/a/b").is_dir()
Path("held/a/file").write_text("x")
raise ValueError("a mistake")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert "ValueError: a mistake" in done.stderr
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["held", "held/a", "held/a/file", "there"]


def test_pretraining_on_missing_data_leaves_nothing(tmp_path: Path) -> None:
    words = ["folder", "--root", str(tmp_path / "nowhere"), "--out", str(tmp_path / "runs" / "first")]
    done = subprocess.run(
        [sys.executable, "-m", "recipes.vision.pretrain", *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert list(tmp_path.iterdir()) == []
