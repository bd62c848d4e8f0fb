"""Peers in one run: arms do the same work, samples go in turn, and a busy machine is refused."""

import dataclasses
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tyro

from recipes import records
from recipes.bench import peers
from recipes.bench.peers import Found, main, results
from recipes.bench.peers_alike import NotAlike, check_alike, check_models, check_views
from recipes.bench.peers_loss import LOSSES, LossWork
from recipes.bench.peers_parts import Arguments, Part, check_installed, metric_learning_bytes, parts_of
from recipes.bench.peers_process import Arm, Measured, Process, Sample, in_turn, take
from recipes.bench.peers_speech import SpeechWork
from recipes.bench.peers_step import StepWork
from recipes.bench.peers_views import PIPELINES, Pipeline, describe, images_of, law_of
from recipes.bench.quiet import Busy, Quiet, Reading, reading
from recipes.results.table import speed
from stec.vision.views import Augmentation

LIBRARIES = {"lightly": "lightly", "kornia": "kornia", "pytorch-metric-learning": "pytorch_metric_learning"}


def need(arm: str) -> None:
    """Skips where an arm's library is not installed."""
    if arm in LIBRARIES and importlib.util.find_spec(LIBRARIES[arm]) is None:
        pytest.skip(f'{LIBRARIES[arm]} is not installed: pip install -e ".[peers]"')


class Machine:
    """Counters in which others use so many cores in each stretch of time, one after the other; then none."""

    def __init__(self, *others: float) -> None:
        self.others, self.wall, self.busy, self.mine = list(others), 0.0, 50.0, 7.0

    def read(self) -> Reading:
        return Reading(self.wall, self.busy, self.mine, {(9, "make"): self.busy - self.mine, (1, "init"): 3.0})

    def spend(self, seconds: float, cores: float = 0.0) -> None:
        taken = self.others.pop(0) if self.others else 0.0
        self.wall, self.mine = self.wall + seconds, self.mine + cores * seconds
        self.busy += (cores + taken) * seconds

    def guard(self, patience: float = 100.0) -> Quiet:
        return Quiet(most=0.15, patience=patience, read=self.read, sleep=self.spend)

    def sample(self, log: list[str]) -> Callable[[], int]:
        def run() -> int:
            log.append("sample")
            self.spend(2.0, cores=2.0)
            return len(log)

        return run


def test_a_sample_in_quiet_counts_at_once() -> None:
    machine, log = Machine(0.1), []  # type: ignore[var-annotated]
    guard = machine.guard()
    assert guard.watch(machine.sample(log)) == 1
    assert guard.kept == [pytest.approx(0.1)]
    assert (guard.thrown_away, guard.lost) == (0, 0.0)


def test_a_disturbed_sample_is_thrown_away_and_taken_again_in_a_quiet_moment() -> None:
    machine, log = Machine(0.2, 0.3, 0.0, 0.05), []  # type: ignore[var-annotated]
    guard = machine.guard()
    assert guard.watch(machine.sample(log)) == 2  # the second one's value
    assert guard.kept == [pytest.approx(0.05)]
    assert guard.thrown_away == 1
    assert guard.lost == pytest.approx(2.0 + 1.0)  # the sample, and a second that was not quiet either
    assert machine.others == []


def test_a_machine_that_stays_busy_is_refused_by_name() -> None:
    machine, log = Machine(*[0.5] * 50), []  # type: ignore[var-annotated]
    with pytest.raises(Busy, match=r"others used 0\.50 of a core \(make 0\.50\), more than the 0\.15"):
        machine.guard(patience=10.0).wait()
    assert machine.wall == pytest.approx(10.0)
    machine = Machine(*[0.5] * 50)
    with pytest.raises(Busy, match=r"1 samples were thrown away, and 10 s .* Nothing is reported"):
        machine.guard(patience=10.0).watch(machine.sample(log))
    assert log == ["sample"]


def test_a_sample_waits_until_our_own_processes_rest() -> None:
    machine = Machine()
    guard, work = machine.guard(), [2.0, 1.0, 0.0]
    guard.sleep = lambda seconds: machine.spend(seconds, cores=work.pop(0))
    guard.settle()
    assert work == []
    guard.sleep = lambda seconds: machine.spend(seconds, cores=1.0)
    with pytest.raises(RuntimeError, match="do not come to rest"):
        guard.settle()


def test_without_counters_every_sample_counts() -> None:
    guard = Quiet(most=0.0, patience=0.0, read=None)
    guard.wait()
    assert guard.watch(lambda: 5) == 5


def stat_line(pid: int, name: str, parent: int, own: int, waited: int) -> str:
    return f"{pid} ({name}) S {parent} " + " ".join(["0"] * 9) + f" {own} 1 {waited} 2 20 0 1 0 0"


def test_the_counters_tell_what_is_ours_from_what_is_not(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    (tmp_path / "stat").write_text("cpu  100 20 30 9000 500 4 5 6 7 8\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    for pid, name, parent, own, waited in (
        (1, "init", 0, 3, 900),  # what it waited for was never ours
        (10, "us", 1, 5, 40),
        (11, "a child) of (ours", 10, 60, 0),
        (12, "its worker", 11, 7, 100),
        (20, "another", 1, 40, 0),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(stat_line(pid, name, parent, own, waited))
    (tmp_path / "30").mkdir()  # ended just now
    found = reading(tmp_path, 10)
    assert found.busy == pytest.approx((100 + 20 + 30 + 4 + 5 + 6) / tick)  # neither idle nor waiting for a disk
    assert found.mine == pytest.approx((5 + 40 + 60 + 7 + 100 + 3 * 3) / tick)  # and 1 + 2 of the system's for each
    assert found.others == {(1, "init"): pytest.approx(4 / tick), (20, "another"): pytest.approx(41 / tick)}


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="no /proc")
def test_a_busy_process_of_another_parent_is_refused_and_one_of_ours_is_not_counted() -> None:
    spin = "import time\nend = time.time() + 60\nwhile time.time() < end: pass"
    asleep = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    busy = subprocess.Popen([sys.executable, "-c", spin])
    try:

        def seen_by(root: int) -> Callable[[], Reading]:
            return lambda: reading(Path("/proc"), root)

        def spent(readings: list[Reading]) -> float:
            first, last = (sum(s for key, s in r.others.items() if key[0] == busy.pid) for r in readings)
            return last - first

        theirs, ours = [seen_by(asleep.pid)()], [seen_by(os.getpid())()]
        with pytest.raises(Busy, match="Nothing is reported"):
            Quiet(most=0.05, patience=1.0, read=seen_by(asleep.pid)).wait()
        theirs.append(seen_by(asleep.pid)())
        ours.append(seen_by(os.getpid())())
        assert spent(theirs) > 0.1
        assert spent(ours) == 0.0
        assert ours[1].mine - ours[0].mine >= spent(theirs) - 0.02
    finally:
        for process in (busy, asleep):
            process.kill()
            process.wait()


ARMS = """
import os
class Logged:
    units, lead = 4, 0
    facts = {"device": "cpu", "nt_xent": 2.5}
    def __init__(self, arm, log, end="run"):
        print("a library says hello")
        if end == "build":
            raise ValueError("no such model")
        self.arm, self.log, self.end = arm, log, end
    def run(self):
        if self.end == "die":
            os.write(2, b"out of memory\\n")
            os._exit(9)
        with open(self.log, "a") as log:
            log.write(self.arm)
"""


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Arm]:
    """Makes arms that write their names into the file `log`."""
    (tmp_path / "fake_arms.py").write_text(ARMS)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)

    def make(name: str, **settings: str) -> Arm:
        return Arm(name, "fake_arms:Logged", {"arm": name, "log": str(tmp_path / "log"), **settings}, 1)

    return make


def test_samples_go_in_turn_and_a_disturbed_one_is_taken_again(logged: Callable[..., Arm], tmp_path: Path) -> None:
    log = tmp_path / "log"
    last = [0.0, 0.0, 0.0]  # pieces, seconds of the clock, seconds of others

    def counters() -> Reading:  # others are busy while the fourth piece runs, the second that counts
        pieces = len(log.read_text())
        last[2] += 5.0 * (last[0] < 4 <= pieces)
        last[0], last[1] = pieces, last[1] + 1.0
        return Reading(last[1], last[2], 0.0)

    guard = Quiet(most=0.15, patience=50.0, read=counters, sleep=lambda seconds: None)
    seen: list[list[str]] = []
    found = in_turn(
        [logged("a"), logged("b")],
        rounds=2,
        least_seconds=0.0,
        guard=guard,
        check=lambda facts: seen.append(list(facts)),
    )
    assert seen == [["a", "b"]]
    assert log.read_text() == "ab" + "abb" + "ab"  # the first round warms up
    assert guard.thrown_away == 1
    assert [len(measured.samples) for measured in found.values()] == [2, 2]
    assert found["a"].facts == {"device": "cpu", "nt_xent": 2.5, "units": 4}


@pytest.mark.parametrize(("end", "said"), [("build", "ValueError: no such model"), ("die", "out of memory")])
def test_an_arm_that_dies_is_named_with_its_last_words(logged: Callable[..., Arm], end: str, said: str) -> None:
    def use(process: Process) -> None:
        process.ready()
        process.sample(0.0)

    with (
        Process(logged("worn out", end=end)) as process,
        pytest.raises(RuntimeError, match=f"the arm 'worn out' died with .*: {said}"),
    ):
        use(process)


class Sleeper:
    """A piece of work that waits."""

    units, lead = 1, 3
    facts = {"device": "cpu"}  # noqa: RUF012

    def __init__(self) -> None:
        self.pieces = 0

    def run(self) -> None:
        self.pieces += 1
        time.sleep(0.02)


def test_a_sample_lasts_the_least_seconds_and_is_told_by_the_piece() -> None:
    work = Sleeper()
    sample = take(work, 0.1, 5.0)
    timed = work.pieces - work.lead  # the first ones run before the clock
    assert 1 <= timed <= 5
    assert sample.seconds * timed >= 0.1
    assert sample.seconds >= 0.02
    assert sample.cpu_seconds < sample.seconds
    assert sample.before == 5.0
    assert sample.peak > 50 or not Path("/proc/self/status").is_file()


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("arm", [name for name in PIPELINES if name != "stec-compiled"])
def test_every_pipeline_follows_the_law(arm: str, size: int) -> None:
    need(arm)
    images, law = images_of(None, 64, size), law_of(size)
    facts = {name: {"views": describe(PIPELINES[name], law, images)} for name in ("stec", arm)}
    assert check_views(facts, law, size, 64) == []
    assert facts[arm]["views"]["size"] == size


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("p_flip", 0.1, "flipped"),
        ("p_grayscale", 0.6, "grey"),
        ("p_jitter", 0.2, "jittered"),
        ("p_blur", 0.0, "blurred"),
        ("p_solarise", 0.8, "solarised"),
        ("scale", (0.6, 1.0), "crop width"),
        ("strength", 0.1, "brightness spread"),
    ],
)
def test_another_law_is_seen(field: str, value: object, word: str) -> None:
    n, law = 64, law_of(96)
    images, wrong = images_of(None, n, 96), {field: value}

    def other(law: Augmentation, size: int) -> Pipeline:
        on = getattr(law, field) == getattr(law_of(96), field) or field == "strength"  # the probe leaves it on
        return PIPELINES["stec"](dataclasses.replace(law, **wrong) if on else law, size)

    facts = {
        name: {"views": describe(make, law, images)} for name, make in (("stec", PIPELINES["stec"]), ("other", other))
    }
    found = check_views(facts, law, 96, n)
    assert any(word in line and "other" in line for line in found), found
    assert not any(" in stec where" in line for line in found)
    with pytest.raises(NotAlike, match=f"do not do the same work: .*{word}.* Nothing was measured"):
        check_alike("views", facts, law, 96, n)


def test_other_models_and_losses_are_seen() -> None:
    ours = {"parameters of the encoder": 1000, "parameters of the projector": 1000, "nt_xent": 2.0}
    assert check_models({"stec": ours, "twin": {**ours, "parameters of the projector": 1004, "nt_xent": 2.00005}}) == []
    for key, value in (
        ("parameters of the encoder", 1001),
        ("parameters of the projector", 1006),
        ("nt_xent", 2.0002),
    ):
        (line,) = check_models({"stec": ours, "other": {**ours, key: value}})
        assert "other" in line


@pytest.mark.parametrize("arm", [name for name in LOSSES if name != "stec"])
def test_all_forms_of_nt_xent_agree_in_value_and_gradient(arm: str) -> None:
    need(arm)
    ours, theirs = LossWork("stec", 8, 16), LossWork(arm, 8, 16)
    assert theirs.facts["nt_xent"] == pytest.approx(ours.facts["nt_xent"], abs=1e-5)
    both = [torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    for work, z in zip((ours, theirs), both):
        work.loss(*z.unbind()).backward()
    torch.testing.assert_close(both[0].grad, both[1].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arm", ["stec", "stec-actions", "torchvision", "lightly", "kornia"])
def test_every_step_trains_the_same_encoder(arm: str) -> None:
    need(arm)
    work = StepWork(arm, "bfloat16" if arm == "stec" else "float32", 2, None, 0, 2, keep=False)
    assert (
        work.facts["parameters of the encoder"] == 11_168_832
    )  # torchvision's ResNet-18 with a 3x3 stem, no classifier
    assert work.facts["parameters of the projector"] == pytest.approx(329_472, rel=0.005)
    assert work.facts["memory format"] == ("channels last" if arm.startswith("stec") else "channels first")
    before = [parameter.clone() for parameter in work.network.parameters()]
    work.run()
    after = list(work.network.parameters())
    assert all(torch.isfinite(value).all() for value in after)
    moved = sum(not torch.equal(old, new) for old, new in zip(before, after))
    assert moved > 0.9 * len(before)


def test_greedy_infomax_trains_the_same_network_as_ours() -> None:
    works = [SpeechWork(arm, 2, 3200, 32, False, keep=False) for arm in ("stec", "greedy-infomax", "stec-default")]
    assert check_models({str(i): work.facts for i, work in enumerate(works)}) == []
    assert [work.facts["precision"] for work in works[:2]] == ["32-true", "32-true"]
    for work in works:
        work.run()


def test_a_missing_extra_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(peers, "counters", lambda: None)
    monkeypatch.setattr(peers, "in_turn", None)  # nothing is begun
    with pytest.raises(ValueError, match=r'lightly, kornia, pytorch_metric_learning; pip install -e "\.\[peers\]"'):
        main(["--out", str(tmp_path / "speed.json")])
    assert not (tmp_path / "speed.json").exists()
    check_installed([arm for part in parts_of(Arguments(arms=("torchvision", "torch"))) for arm in part.arms])


def test_arms_begin_with_ours_and_are_chosen_by_name() -> None:
    parts = {part.name: [arm.name for arm in part.arms] for part in parts_of(Arguments())}
    assert parts == {
        "views 32 px": ["stec", "released", "torchvision", "lightly", "kornia"],
        "views 96 px, blur and solarise": ["stec", "released", "torchvision", "lightly", "kornia"],
        "step float32": ["stec", "stec-actions", "torchvision", "lightly", "kornia"],
        "step bfloat16": ["stec", "stec-actions", "torchvision", "lightly", "kornia"],
        "NT-Xent of 128 pairs": ["stec", "torch", "lightly", "pytorch-metric-learning"],
        "NT-Xent of 4,096 pairs": ["stec", "torch", "lightly"],
        "speech step": ["stec", "stec-default", "greedy-infomax"],
    }
    (left_out,) = next(part.left_out for part in parts_of(Arguments()) if part.left_out)
    assert "2,198 GB" in left_out
    assert metric_learning_bytes(2) == 4 * 4 * 8  # 4 positives, each beside its 8 ordered pairs of negatives
    few = parts_of(Arguments(arms=("kornia",)))
    assert {arm.name for part in few for arm in part.arms} == {"stec", "kornia"}
    assert [part.arms[0].threads for part in few][:2] == [1, 1]
    with pytest.raises(ValueError, match="no arm is called solo-learn; there are stec, released"):
        parts_of(Arguments(arms=("solo-learn",)))
    with pytest.raises(ValueError, match="rounds is 0; need at least 1"):
        parts_of(Arguments(rounds=0))


def found_of(ours: list[float], theirs: list[float], *, memory: float = 100.0) -> Found:
    """A part in which samples took these seconds."""
    part = Part("step", [Arm("stec", "", {}, 2), Arm("lightly", "", {}, 2)], "pairs")
    facts = {"units": 10, "device": "cpu", "memory format": "channels last"}
    arms = {
        "stec": Measured(facts, [Sample(s, 2 * s, 300.0, 300.0 - memory) for s in ours]),
        "lightly": Measured(facts, [Sample(s, 2 * s, 500.0, 300.0) for s in theirs]),
    }
    return Found(part, arms)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.2, 1.9], "stec, 2.00x"),
        ([2.0, 2.2, 1.9], [1.0, 1.1, 0.9], "lightly, 2.00x"),
        ([1.0, 1.0, 1.0], [1.05, 1.05, 1.05], "level, 1.05"),
        ([1.0, 1.0, 1.6], [1.5, 1.5, 1.5], "level, 1.50"),  # samples overlap
    ],
)
def test_the_faster_side_is_said(ours: list[float], theirs: list[float], said: str) -> None:
    assert found_of(ours, theirs).verdict("lightly") == said


def test_ratios_are_theirs_over_ours() -> None:
    time_of, memory = results(found_of([1.0, 1.1, 0.9], [2.0, 2.2, 1.9]))
    assert (time_of.metric, time_of.value, time_of.protocol) == ("step: lightly over stec, time", 2.0, "cpu")
    assert time_of.details["stec, pairs/s"] == 10.0
    assert time_of.details["lightly, s"] == "2 (1.9-2.2)"
    assert time_of.details["lightly, as"] == "channels last"
    assert time_of.details["threads"] == 2
    assert (memory.metric, memory.value) == ("step: lightly over stec, peak memory", 2.0)  # 500 - 300 over 300 - 200
    assert len(results(found_of([1.0], [1.0], memory=1.0))) == 1  # an allocator's habits are no result
    one_core = found_of([1.0], [3.0])
    one_core = dataclasses.replace(one_core, part=one_core.part._replace(one_core=True, memory=False))
    assert [r.details["stec, pairs/s"] for r in results(one_core)] == [5.0]  # of the processor's seconds


def test_a_run_ends_in_one_record_that_the_table_shows(
    logged: Callable[..., Arm], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Part("NT-Xent of 16 pairs", [logged("stec"), logged("torch")], "pairs", left_out=("nobody else",))
    monkeypatch.setattr(peers, "parts_of", lambda arguments: [part])
    main(["--quick", "--others", "inf", "--out", str(tmp_path / "speed.json")])
    (record,) = records.read(tmp_path / "speed.json")
    assert record.stage == "bench"
    (result,) = record.results
    assert result.metric == "NT-Xent of 16 pairs: torch over stec, time"
    assert result.value > 0
    assert record.settings["quick"] is True
    assert record.settings["thrown away"] == 0
    assert record.settings["left out"] == "nobody else"
    assert record.settings["torchvision"]
    assert "NT-Xent of 16 pairs: torch over stec, time" in speed([record])
    said = capsys.readouterr().out
    assert "alike: NT-Xent of given projections" in said
    assert re.search(r"torch +[\d,]+ ", said)
    assert "nobody else" in said


@pytest.mark.parametrize("part", parts_of(Arguments()), ids=lambda part: part.name)
def test_every_arm_can_be_built_with_its_settings(part: Part) -> None:
    for arm in part.arms:
        module, _, name = arm.build.partition(":")
        inspect.signature(getattr(importlib.import_module(module), name)).bind(**arm.settings)
        assert json.loads(json.dumps(arm.settings)) == arm.settings  # as its process reads them


def test_a_busy_machine_gives_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(*[1.0] * 50)

    def read() -> Reading:
        machine.spend(1.0)
        return machine.read()

    monkeypatch.setattr(peers, "counters", lambda: read)
    with pytest.raises(Busy, match=r"others used 1\.00 of a core \(make 1\.00\)"):
        main(["--parts", "loss", "--arms", "torch", "--patience", "2", "--out", str(tmp_path / "speed.json")])
    assert not (tmp_path / "speed.json").exists()
    assert "pairs/s" not in capsys.readouterr().out


def test_the_commands_of_the_document_are_understood() -> None:
    text = (Path(__file__).parents[2] / "docs" / "speed.md").read_text()
    lines = re.findall(r"^python -m recipes\.bench\.peers(.*)$", text, re.MULTILINE)
    assert lines
    for line in lines:
        tyro.cli(Arguments, args=shlex.split(line, comments=True))
