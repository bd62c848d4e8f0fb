"""Speech in shards: a prepared corpus as WAV files in tar files, of which windows are read by their place."""

import bisect
import io
import json
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from stec.audio.corpus import Corpus
from stec.audio.decoding import RATE
from stec.core.shards import ShardIndex, check_names, is_sharded
from stec.core.shards import checks as shard_checks
from stec.core.shards.files import ShardFiles
from stec.core.shards.writing import Sample, Sources

KIND = "speech"
HEADER = 44  # bytes of a WAV file before its samples, as the wave module writes it


def speech_sources(corpus: Corpus) -> Sources:
    """Utterances as `write_shards` takes them: `000000042.wav` (16 bits, mono) and `.json` with names.

    Reading one raises ValueError where its samples are not what the corpus's checksum says: never here, since
    `Corpus.open(..., verify=True)` compares them all; open it so.
    """

    def read(i: int) -> Sample:
        start, length = int(corpus.starts[i]), int(corpus.lengths[i])
        file = io.BytesIO()
        with wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(corpus.rate)
            sound.writeframes(corpus.samples[start : start + length].tobytes())
        speaker, chapter = int(corpus.speaker[i]), int(corpus.chapter[i])
        names = {
            "utterance": corpus.utterances[i],
            "speaker": corpus.speakers[speaker],
            "chapter": corpus.chapters[chapter],
        }
        return Sample({"wav": file.getvalue(), "json": json.dumps(names).encode()}, (i, speaker, chapter), skip=HEADER)

    spoken = zip(corpus.starts.tolist(), corpus.lengths.tolist(), corpus.speaker.tolist(), corpus.chapter.tolist())
    return Sources(
        kind=KIND,
        names=corpus.utterances,
        # The file of samples is named after their checksums.
        identity=[f"{Path(str(corpus.samples.filename)).name} {place}" for place in spoken],
        sizes=(2 * corpus.lengths + HEADER + 1024).tolist(),
        read=read,
        details={
            "rate": corpus.rate,
            "utterances": list(corpus.utterances),
            "speakers": list(corpus.speakers),
            "chapters": list(corpus.chapters),
        },
    )


class ShardSamples:
    """The int16 samples of all shards as if they lay one after the other, headers of tar and WAV between them.

    A slice is read when it is asked for; it may not cross from one shard to the next.
    """

    def __init__(self, source: ShardFiles) -> None:
        self.source = source
        sizes = [shard.bytes // 2 for shard in source.index.shards]
        self.begins = np.cumsum([0, *sizes]).tolist()  # of each shard, and the end

    def __len__(self) -> int:
        """Number of samples, what lies between the utterances included."""
        return int(self.begins[-1])

    def __getitem__(self, place: slice) -> np.ndarray:
        shard = bisect.bisect_right(self.begins, place.start) - 1
        data = self.source.read(shard, 2 * (place.start - self.begins[shard]), 2 * (place.stop - place.start))
        return np.frombuffer(data, dtype="<i2")


class SpeechShards(Corpus):
    """A corpus in shards, for all that takes a `Corpus`; `shard` (u,) int64 says where each utterance lies.

    `starts` are places in `samples`, a `ShardSamples`.
    """

    samples: ShardSamples  # type: ignore[assignment]  # sliced as the memory map is, by windows and waveforms

    def __init__(self, source: ShardFiles, rows: Int[Tensor, " u"]) -> None:
        index = source.index
        details = index.details
        offset, size, utterance, speaker, chapter = torch.from_numpy(np.array(index.rows))[rows].unbind(dim=1)
        self.source = source
        self.rows = rows
        self.shard = index.shard_of[rows]
        self.path = index.folder
        self.samples = ShardSamples(source)
        self.rate = int(details["rate"])
        self.starts = torch.tensor(self.samples.begins)[self.shard] + offset // 2
        self.lengths = size // 2
        self.speaker = speaker.contiguous()
        self.chapter = chapter.contiguous()
        self.utterances = tuple(details["utterances"][i] for i in utterance.tolist())
        self.speakers = tuple(details["speakers"])
        self.chapters = tuple(details["chapters"])
        self._place = {name: i for i, name in enumerate(self.utterances)}

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> "SpeechShards":
        """The corpus in a folder of shards, in the order that it was prepared in; with `verify`, all is compared.

        Raises ValueError for what `ShardIndex.open` and `verify` refuse, and for names that do not fit the table.
        """
        index = ShardIndex.open(path, kind=KIND)
        kinds = ("utterances", "speakers", "chapters")
        check_names(index, *kinds)
        if index.details.get("rate") != RATE:
            raise ValueError(f"{index.folder} does not hold audio at {RATE} Hz; prepare the corpus and write it again")
        if index.rows.shape[1] != 5:
            raise ValueError(f"{index.folder} has rows of {index.rows.shape[1]} numbers, not 5; write the shards again")
        names = [len(index.details[kind]) for kind in kinds]
        if (index.rows[:, 2:] >= names).any() or (index.rows[:, 2:] < 0).any():
            raise ValueError(f"{index.folder} has rows without a name; write the shards again")
        if len(np.unique(index.rows[:, 2])) < len(index) or len(set(index.details["utterances"])) < names[0]:
            raise ValueError(f"{index.folder} has an utterance twice; write the shards again")
        if (index.rows[:, :2] % 2).any():  # tar puts contents at multiples of 512, a WAV header has 44 bytes
            raise ValueError(f"{index.folder} has samples at an odd byte; write the shards again")
        if verify:
            shard_checks.verify(index)
        return cls(ShardFiles(index), torch.from_numpy(np.argsort(index.rows[:, 2], kind="stable")))

    def subset(self, chosen: Sequence[str] | Sequence[int] | Int[Tensor, " m"]) -> "SpeechShards":
        """As `Corpus.subset`, on the same shards."""
        mapped = self.source.index.rows
        assert isinstance(mapped, np.memmap)
        numbered = Corpus(  # whose `starts` are our numbers: what may be chosen is checked in one place
            self.path,
            mapped,
            rate=self.rate,
            utterances=self.utterances,
            starts=torch.arange(len(self)),
            lengths=self.lengths,
            speaker=self.speaker,
            chapter=self.chapter,
            speakers=self.speakers,
            chapters=self.chapters,
        )
        return SpeechShards(self.source, self.rows[numbered.subset(chosen).starts])


def open_speech(path: str | Path, *, verify: bool = False) -> Corpus:
    """The corpus of a folder that holds either shards or what `prepare` wrote. ValueError as opening either."""
    folder = Path(path).expanduser()
    return (SpeechShards if is_sharded(folder) else Corpus).open(folder, verify=verify)
