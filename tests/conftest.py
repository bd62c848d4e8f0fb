"""What all tests share: few threads, fixed seeds, and the real data where they exist."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import config, install_import_hook

# The shapes in signatures are checked here, and here alone. Before anything imports stec.
install_import_hook("stec", "shapes.check")

# No deadline: other processes on a small machine make one call slow. Derandomised: a test passes always or never.
settings.register_profile("stec", deadline=None, derandomize=True)
settings.load_profile("stec")


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """At most two threads, whatever machine the tests run on."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """What a test draws from torch's global generator does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def types_and_shapes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Types and shapes are checked but where a test passes wrong ones, to see what stec itself says, or compiles."""
    unchecked = request.node.get_closest_marker("unchecked") is not None
    config.update("jaxtyping_disable", unchecked)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared_data() -> Iterator[Callable[[str], Path]]:
    """Gives the folder of a named real data set, or skips the test with what is missing.

    The sets lie unpacked in the folder that STEC_DATA names; without it, in the repository's sibling `shared/data`,
    from where the named set alone is unpacked into a folder that lives as long as the session.
    """
    sibling = Path(__file__).resolve().parents[2] / "shared" / "data"
    with tempfile.TemporaryDirectory(prefix="stec-data-") as temporary:

        def folder_of(name: str) -> Path:
            if given := os.environ.get("STEC_DATA"):
                if not (Path(given) / name).is_dir():
                    pytest.skip(f"STEC_DATA has no folder {name}")
                return Path(given) / name
            if not any((sibling / entry).exists() for entry in (name, f"{name}.tar.xz")):
                pytest.skip(f"no real data: STEC_DATA is not set and ../shared/data has no {name}")
            subprocess.run([sibling / "unpack", temporary, name], check=True, stdin=subprocess.DEVNULL)
            return Path(temporary) / name

        yield folder_of
