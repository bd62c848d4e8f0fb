"""Folders of shards of others: an index and a table that fit each other and lie, tar files with odd members."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from mutations import BINARY, TEXT, WORDS, Target, check, mutated, refusing
from PIL import Image
from test_fuzz_records import broken

from stec.audio.shards import SpeechShards
from stec.core.shards import INDEX, TABLE, ShardIndex
from stec.core.shards.checks import locate, members, verify
from stec.vision.shards import ShardedImages

NAMES = ("a.jpg", "a/b.cls", "../a", "/a", "x" * 300, "a\x1b[2J", "é.png")


def _picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (10, 200, 30)).save(file, "PNG")
    return file.getvalue()


PICTURE = _picture()
SPEECH = bytes(range(200))


def _tar(contents: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _npy(rows: list[list[int]]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(rows, dtype=np.int64))
    return file.getvalue()


def _folder(kind: str) -> tuple[bytes, list[list[int]], dict[str, Any]]:
    """A shard of two samples, its rows, and what the index says of them all."""
    content = PICTURE if kind == "images" else SPEECH
    end = "png" if kind == "images" else "wav"
    shard = _tar({f"00000000{i}.{end}": content for i in range(2)})
    places = [512, 512 + 512 * (1 + -(-len(content) // 512))]
    if kind == "images":
        return shard, [[at, len(content), i] for i, at in enumerate(places)], {"classes": ["cat", "dog"]}
    details = {"rate": 16_000, "utterances": ["1-1-0", "1-1-1"], "speakers": ["1"], "chapters": ["1"]}
    return shard, [[at + 44, 100, i, 0, 0] for i, at in enumerate(places)], details


def folder_of_shards(random: Random) -> bytes:
    """Index, table and shard in one input, each behind its length; the checksums are mostly those of what is there."""
    kind = random.choice(("images", "speech"))
    shard, rows, details = _folder(kind)
    for _ in range(random.choice((0, 0, 1, 2))):
        row = random.choice(rows)
        value = random.choice((-1, 1, 3, 99, 511, 1 << 33, (1 << 63) - 1, -(1 << 63)))
        row[random.randrange(len(row))] = value
    table = _npy(rows)
    if random.random() < 0.3:
        table = mutated(table, random, BINARY)
    if random.random() < 0.3:
        shard = mutated(shard, random, BINARY)
    index = {
        "format": 1, "kind": kind, "samples": 2, "table": hashlib.sha256(table).hexdigest(), "digest": "0",
        "shards": [
            {"name": "shard-000000.tar", "samples": 2, "bytes": len(shard), "sha256": hashlib.sha256(shard).hexdigest()}
        ],
        "details": details, "left_out": [], "location": None,
    }  # fmt: skip
    if random.random() < 0.2:
        index["location"] = {"url": random.choice(("file:/x", "pipe:touch ran", "ran")), "cache_bytes": 10**6}
    parts = (broken(index, random) if random.random() < 0.6 else json.dumps(index).encode(), table, shard)
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def read_shards(data: bytes, folder: Path) -> None:
    shards = folder / "shards"
    shutil.rmtree(shards, ignore_errors=True)
    shards.mkdir()
    for name in (INDEX, TABLE, "shard-000000.tar"):
        size, data = int.from_bytes(data[:4], "big"), data[4:]
        (shards / name).write_bytes(data[:size])
        data = data[size:]
    with refusing(shards):
        index = ShardIndex.open(shards)
        assert len(index.shard_of) == len(index) > 0
        if index.location is None:
            verify(index)
    with refusing(shards):
        images = ShardedImages.open(shards)
        if images.source.index.location is None:
            for i in range(len(images)):
                assert images.decode(i).shape[0] == 3
                assert -1 <= int(images.labels[i]) < max(1, len(images.classes))
    with refusing(shards):
        speech = SpeechShards.open(shards)
        if speech.source.index.location is None:
            for i, name in enumerate(speech.utterances):
                assert speech.index(name) == i
                assert len(speech.waveform(i)) == int(speech.lengths[i]) > 0
                assert speech.speaker[i] < len(speech.speakers)
    with refusing(shards):
        locate(shards, "file:/elsewhere", cache_bytes=10**6)
    assert {path.name for path in shards.iterdir()} == {INDEX, TABLE, "shard-000000.tar"}


def tar_file(random: Random) -> bytes:
    """Members with odd names, of odd types, and headers that lie."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as tar:
        for i in range(random.randrange(4)):
            member = tarfile.TarInfo(random.choice((*NAMES, f"{i}.jpg", f"{i}.jpg")))
            member.type = random.choice((tarfile.REGTYPE,) * 4 + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE))
            member.linkname = "../../etc/passwd" if not member.isreg() else ""
            member.size = 100 if member.isreg() else 0
            if random.random() < 0.2:
                member.pax_headers = {"size": str(random.choice(WORDS)), "path": random.choice(NAMES)}
            tar.addfile(member, io.BytesIO(bytes(100)))
    data = bytearray(mutated(file.getvalue(), random, BINARY if random.random() < 0.7 else TEXT))
    for start in range(0, len(data) - 511, 512):  # a header whose sum is wrong is not read further
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


def read_tar(data: bytes, folder: Path) -> None:
    path = folder / "a.tar"
    path.write_bytes(data)
    with refusing(path):
        for name, offset, size in members(path):
            assert ".." not in name.split("/")
            assert not name.startswith("/")
            assert offset >= 0 <= size


TARGETS = [
    Target("shards", folder_of_shards, read_shards),
    Target("tar", tar_file, read_tar),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_broken_shards_are_read_or_refused_with_their_name(target: Target, tmp_path: Path) -> None:
    check(target, tmp_path, examples=100)


def test_the_folders_that_are_broken_are_whole_before(tmp_path: Path) -> None:
    class Unbroken(Random):
        def random(self) -> float:
            return 0.99

    seen = set()
    for seed in range(20):
        random = Unbroken(seed)
        random.choice = lambda values, seed=seed: values[seed % 2] if values == ("images", "speech") else values[0]  # type: ignore[method-assign]
        read_shards(folder_of_shards(random), tmp_path)
        index = ShardIndex.open(tmp_path / "shards")
        seen.add(index.kind)
        assert len(index) == 2
    assert seen == {"images", "speech"}


def test_nested_long_names_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type = tarfile.GNUTYPE_LONGNAME
    header.size = 5
    one = header.tobuf(tarfile.GNU_FORMAT) + b"a.jpg".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(one * 5000)
    with pytest.raises(ValueError, match=r"a\.tar is no whole tar file"):
        list(members(tmp_path / "a.tar"))
