"""Shards by numbers: the order of an epoch, what is written and read back, and every way a folder can be broken."""

import errno
import hashlib
import io
import json
import os
import pickle
import resource
import tarfile
import threading
import time
from collections import OrderedDict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from webdataset import tariterators

from stec.core import distributed
from stec.core.shards import IN_USE, INDEX, JOURNAL, TABLE, ShardBatches, ShardIndex, in_lanes, shard_order
from stec.core.shards import files as shard_files
from stec.core.shards.checks import locate, verify
from stec.core.shards.files import CACHE, ShardFiles, local_path, webdataset_part
from stec.core.shards.writing import Sample, Sources, write_shards

COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=30)


def shard_of(counts: list[int]) -> torch.Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def batches_of(order: ShardBatches, rank: int = 0, world: int = 1) -> list[list[int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: rank)
        patch.setattr(distributed, "world_size", lambda: world)
        return [batch.tolist() for batch in order]


# --- the order


@given(COUNTS, st.integers(1, 5), st.integers(0, 99))
def test_an_order_takes_each_sample_once_and_block_by_block(counts: list[int], mixed: int, seed: int) -> None:
    shard = shard_of(counts)
    order = shard_order(shard, mixed=mixed, generator=torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(sum(counts)))
    seen: list[set[int]] = [set()]
    left = counts.copy()
    for s in shard[order].tolist():
        if all(left[other] == 0 for other in seen[-1]) and s not in seen[-1] and len(seen[-1]) >= mixed:
            seen.append(set())
        seen[-1].add(s)
        left[s] -= 1
    assert all(len(block) == mixed for block in seen[:-1])
    assert len(seen) == -(-len(counts) // mixed)


def test_every_sample_is_as_likely_first_as_any_other() -> None:
    shard = shard_of([3, 1, 4, 2])
    firsts = torch.zeros(10)
    for seed in range(4_000):
        order = shard_order(shard, mixed=4, generator=torch.Generator().manual_seed(seed))
        firsts[order[0]] += 1
    expected = 400.0
    assert float(((firsts - expected) ** 2 / expected).sum()) < 27.9  # chi-squared, 9 degrees of freedom, 0.1 %


@given(COUNTS, st.sampled_from([2, 4, 6, 8, 16]), st.integers(1, 4), st.integers(0, 9))
def test_processes_share_an_epoch_and_a_run_goes_on_anywhere(
    counts: list[int], size: int, mixed: int, seed: int
) -> None:
    shard = shard_of(counts)
    if len(shard) < size:
        return
    order = ShardBatches(shard, batch_size=size, seed=seed, mixed=mixed)
    order.steps_done = lambda: 3 * len(order)  # the fourth epoch
    whole = batches_of(order)
    taken = [i for batch in whole for i in batch]
    assert len(whole) == len(order) == len(shard) // size
    assert len(set(taken)) == len(taken) == len(whole) * size
    for world in (w for w in (2, 4) if size % w == 0):
        parts = [batches_of(order, rank, world) for rank in range(world)]
        assert [list(chain(*step)) for step in zip(*parts)] == whole
    for done in range(len(order)):
        order.steps_done = lambda done=done: 3 * len(order) + done
        assert batches_of(order) == whole[done:]


@given(st.lists(st.integers(20, 60), min_size=1, max_size=60), st.integers(1, 4), st.sampled_from([1, 2, 4, 8]))
def test_each_process_opens_few_files_and_few_again(counts: list[int], mixed: int, world: int) -> None:
    shard = shard_of(counts)
    order = ShardBatches(shard, batch_size=16, seed=0, mixed=mixed)
    total = 0
    for rank in range(world):
        kept: OrderedDict[int, None] = OrderedDict()
        for s in (s for batch in batches_of(order, rank, world) for s in shard[torch.tensor(batch)].tolist()):
            total += s not in kept
            kept[s] = None
            kept.move_to_end(s)
            if len(kept) > 4 * mixed * order.lanes // world:
                kept.popitem(last=False)
    # Each end of a lane but the last lies within one block, whose files a second process opens as well.
    assert total <= len(counts) + (order.lanes - 1) * mixed
    assert total >= len(set(shard[torch.tensor(list(chain(*batches_of(order))))].tolist()))


def test_lanes_are_far_apart_in_the_order() -> None:
    order = torch.randperm(103, generator=torch.Generator().manual_seed(0))
    batches = in_lanes(order, batch_size=10, lanes=5)
    for step in range(10):
        for lane in range(5):
            first = lane * 20 + 2 * step
            assert batches[10 * step + 2 * lane :][:2].tolist() == order[first : first + 2].tolist()
    assert batches[100:].tolist() == order[100:].tolist()


def test_a_checkpoint_of_other_shards_is_refused() -> None:
    state = ShardBatches(shard_of([3, 3]), batch_size=2, seed=0).state_dict()
    ShardBatches(shard_of([3, 3]), batch_size=2, seed=0).load_state_dict(state)
    for other in (
        ShardBatches(shard_of([2, 4]), batch_size=2, seed=0),
        ShardBatches(shard_of([3, 3]), batch_size=2, seed=0, mixed=1),
    ):
        with pytest.raises(ValueError, match="the checkpoint was made with other data"):
            other.load_state_dict(state)


def test_impossible_orders() -> None:
    with pytest.raises(ValueError, match="0 shards mixed"):
        ShardBatches(shard_of([4]), batch_size=2, seed=0, mixed=0)
    with pytest.raises(ValueError, match="does not divide among 3"):
        batches_of(ShardBatches(shard_of([4]), batch_size=2, seed=0), 0, 3)


# --- writing


def sources_of(n: int = 40, *, broken: tuple[int, ...] = (), kind: str = "bytes") -> Sources:
    """Samples of 100 to 1,000 bytes and a number each."""
    contents = [np.random.default_rng(i).bytes(100 + 23 * i % 900) for i in range(n)]

    def read(i: int) -> Sample:
        if i in broken:
            raise ValueError(f"source {i} is broken")
        return Sample({"bin": contents[i], "txt": str(i).encode()}, (i,), skip=4)

    names = [f"{i}.bin" for i in range(n)]
    return Sources(kind, names, names, [len(content) + 1024 for content in contents], read, {"what": "noise"})


def write(folder: Path, sources: Sources | None = None, **options: Any) -> ShardIndex:
    write_shards(sources or sources_of(), folder, shard_bytes=10_000, **options)
    return ShardIndex.open(folder)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_is_written_is_read_by_place_and_by_webdataset(tmp_path: Path) -> None:
    sources, index = sources_of(), write(tmp_path, workers=3)
    assert len(index) == 40
    assert len(index.shards) > 5
    assert sorted(index.rows[:, 2].tolist()) == list(range(40))
    files = ShardFiles(index)
    for shard, (offset, size, i) in zip(index.shard_of.tolist(), index.rows.tolist()):
        assert files.read(shard, offset, size) == sources.read(i).members["bin"][4:]
    assert files.opened == len(index.shards)
    theirs = []
    for shard in index.shards:
        with (tmp_path / shard.name).open("rb") as stream:
            opened = [{"url": shard.name, "stream": stream}]
            theirs += list(tariterators.group_by_keys(tariterators.tar_file_expander(opened)))
    assert [int(sample["txt"]) for sample in theirs] == index.rows[:, 2].tolist()
    assert [sample["bin"] for sample in theirs] == [sources.read(i).members["bin"] for i in index.rows[:, 2].tolist()]
    assert (tmp_path / "sources.txt").read_text().splitlines() == [f"{i}.bin" for i in index.rows[:, 2].tolist()]
    for shard in index.shards:
        content = (tmp_path / shard.name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (shard.sha256, shard.bytes)
        assert shard.bytes <= 20_480  # 10,000, 1,024 at the end, padded to a multiple of 10,240
    verify(index)


def test_the_files_are_a_function_of_sources_and_seed(tmp_path: Path) -> None:
    for name, options in (("a", {}), ("b", {"workers": 4}), ("c", {"seed": 1})):
        write(tmp_path / name, **options)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert bytes_of(tmp_path / "a") != bytes_of(tmp_path / "c")


@pytest.mark.parametrize("at", range(0, 30, 3))
def test_interrupted_anywhere_it_goes_on(tmp_path: Path, at: int) -> None:
    calls = 0

    def progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls > at:
            raise KeyboardInterrupt

    write(tmp_path / "whole")
    whole = bytes_of(tmp_path / "whole")
    folder = tmp_path / "torn"
    try:
        write(folder, progress=progress)
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match="unfinished"):
            ShardIndex.open(folder)
        with (folder / JOURNAL).open("ab") as file:
            file.write(b'{"name": "shard-0000')  # torn within a line
        kept = {line["name"] for line in map(json.loads, (folder / JOURNAL).read_text().split("\n")[1:-1:2])}
        before = {name: (folder / name).stat().st_ino for name in kept}
        done = write_shards(sources_of(), folder, shard_bytes=10_000)
        assert done.resumed == len(kept)
        assert {name: (folder / name).stat().st_ino for name in kept} == before
    assert bytes_of(folder) == whole


def test_a_second_run_does_nothing_and_another_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    before = (tmp_path / INDEX).stat().st_mtime_ns
    done = write_shards(sources_of(), tmp_path, shard_bytes=10_000)
    assert (done.resumed, (tmp_path / INDEX).stat().st_mtime_ns) == (done.shards, before)
    with pytest.raises(ValueError, match="other sources or settings"):
        write(tmp_path, sources_of(39))
    with pytest.raises(ValueError, match="other sources or settings"):
        write_shards(sources_of(), tmp_path, shard_bytes=9_000)


def test_broken_sources_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 of 40 cannot be read: source \d+ is broken; source \d+ is broken"):
        write(tmp_path, sources_of(broken=(3, 17)))
    with pytest.raises(ValueError, match="unfinished"):
        ShardIndex.open(tmp_path)
    index = write(tmp_path, sources_of(broken=(3, 17)), skip_broken=True)
    assert sorted(index.rows[:, 2].tolist()) == [i for i in range(40) if i not in (3, 17)]
    assert sorted(index.left_out) == ["source 17 is broken", "source 3 is broken"]
    with pytest.raises(ValueError, match="choose another folder"):  # they may be whole by now
        write(tmp_path, sources_of(broken=(3, 17)))
    with pytest.raises(ValueError, match="none of 2 sources"):
        write(tmp_path / "none", sources_of(2, broken=(0, 1)), skip_broken=True)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        with pytest.raises(ValueError, match="another run is writing"):
            write(tmp_path)

    write(tmp_path, progress=progress)


def test_what_lies_in_the_folder_is_spared(tmp_path: Path) -> None:
    """Other programs call their shards so as well."""
    (tmp_path / "shard-000099.tar").write_bytes(b"of another")
    with pytest.raises(ValueError, match=r"holds other files, such as shard-000099\.tar; choose an empty folder"):
        write(tmp_path)
    assert bytes_of(tmp_path) == {"shard-000099.tar": b"of another"}
    with pytest.raises(ValueError, match="workers is 0; need at least 1"):
        write(tmp_path / "new", workers=0)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first shard; in the third, whose bytes had been taken; in its line; and in the index."""
    count, plain = len(write(tmp_path / "whole").shards), os.fsync
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for full_at, kept in ((0, 0), (7, 2), (9, 2), (3 * count + 5, count)):
        folder, calls = tmp_path / f"full{full_at}", 0

        def fsync(descriptor: int, full_at: int = full_at) -> None:
            nonlocal calls
            calls += 1
            if calls == full_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            plain(descriptor)

        resource.setrlimit(resource.RLIMIT_FSIZE, (limits[0] if full_at else 10_000, limits[1]))
        monkeypatch.setattr(os, "fsync", fsync)
        try:
            with pytest.raises(ValueError, match=r"the disk is full .* goes on where it stopped"):
                write(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            monkeypatch.undo()
        assert not list(folder.glob("*.part"))
        with pytest.raises(ValueError, match="unfinished"):
            ShardIndex.open(folder)
        assert write_shards(sources_of(), folder, shard_bytes=10_000).resumed >= kept
        assert bytes_of(folder) == bytes_of(tmp_path / "whole")


# --- what can be wrong


def rewrite(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, **changes}))


def test_every_broken_folder_is_named(tmp_path: Path) -> None:
    index = write(tmp_path)
    shards = [shard._asdict() for shard in index.shards]
    second = tmp_path / index.shards[1].name
    content = second.read_bytes()

    def expect(words: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=words):
            verify(ShardIndex.open(tmp_path, **options))

    expect("holds shards of bytes, not of speech", kind="speech")
    second.unlink()
    expect(f"{second.name} is missing")
    second.write_bytes(content[:-512])
    expect(f"{second.name} is truncated")
    second.write_bytes(content + b" ")
    expect(f"{second.name} is too long")
    second.write_bytes(content[:700] + bytes([content[700] ^ 1]) + content[701:])
    ShardIndex.open(tmp_path)
    expect(f"{second.name} is damaged")
    second.write_bytes(content)
    rewrite(tmp_path, format=2)
    expect("is of format 2, this stec reads 1")
    rewrite(tmp_path, format=1, shards=[{**shards[0], "name": "../../etc/passwd"}, *shards[1:]])
    expect("no plain name in its folder")
    rewrite(tmp_path, shards=shards[:-1])
    expect(TABLE)
    rewrite(tmp_path, shards=shards, location={"url": "pipe:touch owned", "cache_bytes": 10**9})
    expect("no address to fetch from")
    rewrite(tmp_path, location=None)
    verify(ShardIndex.open(tmp_path))
    table = (tmp_path / TABLE).read_bytes()
    (tmp_path / TABLE).write_bytes(table[:-1] + b"\x07")
    expect(f"{TABLE} is damaged")
    (tmp_path / TABLE).unlink()
    expect(f"{TABLE} is missing")
    (tmp_path / INDEX).write_text("{")
    expect("torn or not of this package")
    (tmp_path / INDEX).write_text('{"format": 1}')
    expect("does not have details")
    (tmp_path / INDEX).unlink()
    expect("holds no shards")


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/outside.bin", "a/../../outside.bin"])
def test_members_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    expect_member(tmp_path, tarfile.TarInfo(name), "leaves its folder")


def test_links_are_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    expect_member(tmp_path, link, "is a link or no plain file")


def expect_member(folder: Path, member: tarfile.TarInfo, words: str) -> None:
    """Such a member in a shard whose checksum is that of the index."""
    index = write(folder)
    path = folder / index.shards[0].name
    with tarfile.open(path, "a") as tar:
        tar.addfile(member, io.BytesIO())
    shards = [shard._asdict() for shard in index.shards]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite(folder, shards=[{**shards[0], "bytes": path.stat().st_size, "sha256": digest}, *shards[1:]])
    with pytest.raises(ValueError, match=words):
        verify(ShardIndex.open(folder))


def test_a_row_beside_its_member_is_found(tmp_path: Path) -> None:
    index = write(tmp_path)
    rows = np.array(index.rows)
    rows[5, 1] += 600  # beyond its member, within its shard
    np.save(tmp_path / TABLE, rows)
    rewrite(tmp_path, table=hashlib.sha256((tmp_path / TABLE).read_bytes()).hexdigest())
    with pytest.raises(ValueError, match="has no member at byte"):
        verify(ShardIndex.open(tmp_path))
    rows[5, 1] += 10**9
    np.save(tmp_path / TABLE, rows)
    rewrite(tmp_path, table=hashlib.sha256((tmp_path / TABLE).read_bytes()).hexdigest())
    with pytest.raises(ValueError, match="sample 5 lies outside its shard"):
        ShardIndex.open(tmp_path)


# --- reading


def test_files_are_closed_opened_again_and_those_of_each_process(tmp_path: Path) -> None:
    index = write(tmp_path)
    files = ShardFiles(index, keep=2)
    first = files.read(0, 0, 512)
    for shard in (1, 0, 2, 0, 1, 0):  # 0 stays, 1 goes for 2 and comes back
        files.read(shard, 0, 512)
    assert files.opened == 4
    assert pickle.loads(pickle.dumps(files)).read(0, 0, 512) == first
    read, write_end = os.pipe()
    if not (child := os.fork()):
        os._exit(not (files.read(0, 0, 512) == first and files.opened == 5))
    assert os.waitpid(child, 0)[1] == 0
    os.close(read)
    os.close(write_end)
    assert files.read(0, 0, 512) == first
    assert files.opened == 4


def test_a_shard_cut_while_it_is_open_is_named(tmp_path: Path) -> None:
    index = write(tmp_path)
    files = ShardFiles(index)
    files.read(3, 0, 512)
    os.truncate(tmp_path / index.shards[3].name, 1000)
    with pytest.raises(ValueError, match=r"shard-000003.tar ends within a sample \(byte 1,000\)"):
        files.read(3, 512, 5000)
    (tmp_path / index.shards[4].name).unlink()
    with pytest.raises(ValueError, match=r"shard-000004.tar is missing"):
        files.read(4, 0, 512)


def test_shards_are_fetched_once_checked_and_make_room(tmp_path: Path) -> None:
    index = write(tmp_path / "here")
    away = tmp_path / "away"
    away.mkdir()
    for shard in index.shards:
        (tmp_path / "here" / shard.name).rename(away / shard.name)
    total = sum(shard.bytes for shard in index.shards)
    with pytest.raises(ValueError, match="is missing"):
        ShardIndex.open(tmp_path / "here")
    with pytest.raises(ValueError, match=r"cache of .* too small"):
        locate(tmp_path / "here", f"file:{away}", cache_bytes=total - 1)
    with pytest.raises(ValueError, match="no address to fetch from"):
        locate(tmp_path / "here", str(away), cache_bytes=total)
    locate(tmp_path / "here", f"file:{away}", cache_bytes=total)
    remote = ShardIndex.open(tmp_path / "here")
    verify(remote)
    cached = sorted((tmp_path / "here" / CACHE).iterdir())
    assert [path.name for path in cached] == [shard.name for shard in index.shards]
    before = [path.stat().st_ino for path in cached]
    verify(remote)
    assert [path.stat().st_ino for path in cached] == before

    rewrite(tmp_path / "here", location={"url": f"file:{away}", "cache_bytes": 3 * max(s.bytes for s in index.shards)})
    small = ShardIndex.open(tmp_path / "here")
    for path in cached:
        path.unlink()
    for number in range(len(index.shards)):
        assert local_path(small, number).is_file()
        assert sum(path.stat().st_size for path in (tmp_path / "here" / CACHE).iterdir()) <= small.location.cache_bytes  # type: ignore[union-attr]
    first = away / index.shards[0].name
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="another checksum"):
        local_path(small, 0)
    first.unlink()
    with pytest.raises(ValueError, match=r"shard-000000.tar cannot be fetched"):
        local_path(small, 0)
    locate(tmp_path / "here", None, cache_bytes=0)
    with pytest.raises(ValueError, match="is missing"):
        ShardIndex.open(tmp_path / "here")


def test_a_slow_store_is_spoken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index = write(tmp_path / "here")
    away = tmp_path / "away"
    away.mkdir()
    for shard in index.shards:
        (tmp_path / "here" / shard.name).rename(away / shard.name)
    locate(tmp_path / "here", f"file:{away}", cache_bytes=10**9)
    remote = ShardIndex.open(tmp_path / "here")
    local_path(remote, 0)
    assert not caplog.messages

    class Slow(io.FileIO):
        def read(self, size: int | None = -1) -> Any:
            time.sleep(0.3)
            return super().read(size)

    monkeypatch.setattr(shard_files, "PATIENCE", 0.1)

    def part(module: str, name: str) -> Any:
        return (lambda url, mode: Slow(url.removeprefix("file:"))) if name == "gopen" else webdataset_part(module, name)

    monkeypatch.setattr(shard_files, "webdataset_part", part)
    local_path(remote, 1)
    first = caplog.messages[0]
    assert first == f"file:{away}/{index.shards[1].name}: 0 of {index.shards[1].bytes / 1e6:.0f} MB after 0 s"
    assert threading.active_count() == 1


def test_what_is_in_use_fits_what_is_kept_open() -> None:
    order = ShardBatches(shard_of([50] * 200), batch_size=64, seed=0)
    batches = batches_of(order)
    live = [len(order.shard[torch.tensor(list(chain(*batches[i : i + 4])))].unique()) for i in range(0, 150, 10)]
    assert max(live) <= IN_USE
