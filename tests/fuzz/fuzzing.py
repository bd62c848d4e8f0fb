"""Every parser on many broken inputs: python tests/fuzz/fuzzing.py [--inputs 100000] [--seed 0] [WORDS OF NAMES ...].

Input i of a target is a function of (seed, target, i). A child process reads them, with at most --memory MiB beyond
what it has when it begins and --seconds for each, so that a crash of a decoder, a bomb and an endless loop are findings
like an exception that nobody documented. Each is written with its input to --findings. With --guided the inputs are
chosen by atheris (pip install atheris), which sees the branches of our own Python.
"""

import argparse
import hashlib
import importlib
import mmap
import multiprocessing
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

from mutations import Target, address_space

HERE = Path(__file__).parent


class TooSlow(BaseException):
    """One input took longer than it may; no `except Exception` catches it."""


def targets() -> list[Target]:
    """Those of all test modules of this folder."""
    sys.path[1:1] = [str(HERE.parent), str(HERE.parents[1])]  # what tests share
    modules = [importlib.import_module(path.stem) for path in sorted(HERE.glob("test_fuzz_*.py"))]
    return [target for module in modules for target in module.TARGETS]


def input_of(target: Target, seed: int, i: int) -> bytes:
    """Input `i`."""
    return target.make(Random(f"{seed} {target.name} {i}"))


def _too_slow(number: int, frame: Any) -> None:
    raise TooSlow


def _read(target: Target, data: bytes, folder: Path, seconds: float) -> str | None:
    """What is wrong with how a target reads an input: None, or where it raised."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        target.read(data, folder)
    except (Exception, TooSlow) as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
        ours = [f for f in frames if any(part in f.filename for part in ("stec/", "recipes/", "hubconf"))]
        at = (ours or frames)[-1]
        return f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _work(target: Target, arguments: argparse.Namespace, state: mmap.mmap) -> None:
    """The child: inputs from where `state` says, which it moves on before each."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_slow)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders in C talk about each file
    scratch = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=scratch) as folder, address_space(arguments.memory << 20):
        start = struct.unpack_from("<q", state)[0]
        for i in range(start, arguments.inputs):
            struct.pack_into("<q", state, 0, i)
            data = input_of(target, arguments.seed, i)
            if wrong := _read(target, data, Path(folder), arguments.seconds):
                _keep(target, data, f"input {i}: {wrong}", arguments.findings)
        struct.pack_into("<q", state, 0, arguments.inputs)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        struct.pack_into("<q", state, 8, peak)


def _keep(target: Target, data: bytes, what: str, findings: Path) -> None:
    folder = findings / target.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "findings.txt").open("a") as file:
        file.write(what.replace("\n", " ") + "\n")
    if len(list(folder.iterdir())) < 200:
        (folder / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)


def run(target: Target, arguments: argparse.Namespace) -> int:
    """All inputs of one target; how many were findings. A child that dies is a finding, and another one goes on."""
    state = mmap.mmap(-1, 16)
    before = time.monotonic()
    fork = multiprocessing.get_context("fork")
    crashes = 0
    while struct.unpack_from("<q", state)[0] < arguments.inputs:
        child = fork.Process(target=_work, args=(target, arguments, state))
        child.start()
        child.join()
        if child.exitcode:
            at = struct.unpack_from("<q", state)[0]
            data = input_of(target, arguments.seed, at)
            _keep(target, data, f"input {at}: the process died ({child.exitcode})", arguments.findings)
            struct.pack_into("<q", state, 0, at + 1)
            crashes += 1
    path = arguments.findings / target.name.replace(" ", "-") / "findings.txt"
    found = len(path.read_text().splitlines()) if path.is_file() else 0
    peak = struct.unpack_from("<q", state, 8)[0] >> 10
    print(
        f"{target.name}: {arguments.inputs:,} inputs, {found} findings ({crashes} crashes), "
        f"{time.monotonic() - before:.0f} s, peak {peak} MiB",
        flush=True,
    )
    return found


def guided(target: Target, arguments: argparse.Namespace) -> bool:
    """Inputs that reach new branches, in a child, which libFuzzer ends itself at a finding: whether there was one."""
    import atheris

    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        corpus = Path(scratch) / "corpus"
        corpus.mkdir()
        for i in range(200):
            (corpus / str(i)).write_bytes(input_of(target, arguments.seed, i))
        child = os.fork()
        if child == 0:
            flags = [f"-runs={arguments.inputs}", "-max_len=4096", f"-seed={arguments.seed + 1}", "-verbosity=1"]
            flags += [f"-artifact_prefix={arguments.findings}/", f"-timeout={int(arguments.seconds)}", str(corpus)]
            read: Any = lambda data: target.read(data, Path(scratch))  # noqa: E731
            atheris.Setup([sys.argv[0], *flags], read)
            atheris.Fuzz()
        _, status = os.waitpid(child, 0)
        print(f"{target.name}, guided: {arguments.inputs:,} inputs, {'a finding' if status else 'none'}", flush=True)
        return bool(status)


def main() -> int:
    """The command line; the exit status says whether there were findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="targets whose name holds one of these words; all without")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, default=1024, help="MiB beyond what the process has when it begins")
    parser.add_argument("--seconds", type=float, default=20.0, help="for one input")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="a new folder")
    parser.add_argument("--guided", action="store_true", help="by atheris, of the parsers in our own Python")
    arguments = parser.parse_args()
    arguments.findings.mkdir(parents=True, exist_ok=True)
    if arguments.guided:
        import atheris

        with atheris.instrument_imports(include=["stec", "recipes"]):  # our branches; torch's would be too many
            known = targets()
    else:
        known = targets()
    words = arguments.names
    chosen = [target for target in known if not words or any(word in target.name for word in words)]
    if arguments.guided:
        return int(sum([guided(target, arguments) for target in chosen if target.guided]) > 0)
    return int(sum(run(target, arguments) for target in chosen) > 0)


if __name__ == "__main__":
    sys.exit(main())
