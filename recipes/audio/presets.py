"""The settings of a run on speech, typed, and the presets.

Sources. Oord: Oord et al. 2018, section 3.1. GIM: the code of Greedy InfoMax (Löwe et al. 2019). CPC_audio: the code of
Riviere et al. 2020. S-TEC: Scherr et al. 2022, whose audio code is not public. Chosen: ours, where these are silent.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from recipes.presets import find
from stec.audio.encoders import Normalisation
from stec.audio.views import Object
from stec.core.sequence import Negatives, Others, Part

Precision = Literal["auto", "32-true", "bf16-mixed"]
Insensitive = Literal["none", "pooled", "frames", "switch"]
PATHS = ("corpus", "split", "labels")  # where things lie: kept in the run's folder, never in checkpoints and records


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a pretraining run depends on."""

    preset: str  # the preset these settings began as
    epochs: int  # passes over the utterances
    corpus: Path | None = None  # the cache that recipes.audio.prepare wrote
    split: Path | None = None  # train on these utterances alone, a name a line; all by default
    labels: Path | None = None  # phone labels, for the supervised baseline alone
    supervised: bool = False  # train on phone labels instead: an upper mark for the others
    channels: int = 512  # of every convolution (Oord)
    context_dim: int = 256  # units of the recurrence (Oord)
    paddings: Literal["cpc_audio", "gim", "none"] = "cpc_audio"  # of the convolutions, as these have them
    normalisation: Normalisation = "none"  # after each convolution; Oord mentions none
    recurrence: Literal["gru", "lstm"] = "gru"  # Oord
    input_mean: float = 0.0  # taken off the waveform in [-1, 1]
    input_std: float = 1.0  # what the waveform is then divided by

    lambda_time_sensitive: float = 1.0  # weight of the time-sensitive identity model, CPC
    steps: int = 12  # K, how many frames ahead are predicted (Oord)
    predictor: Literal["linear", "mlp", "transformer"] = "linear"  # Oord; CPC_audio has transformers
    score: Literal["dot", "mean"] = "dot"  # CPC_audio takes the mean over the latents' dimensions
    negatives: Negatives = "batch group"  # where candidates come from; "same group" is the same speaker
    batch_group: int = 8  # windows of a group (Oord: the minibatch of one GPU)
    own_sequence: bool = True  # candidates from the anchor's own window; without, phones lose 7 points (Oord, Table 2)
    samples: int | None = None  # this many candidates drawn at random; all by default

    time_insensitive: Insensitive = "none"  # the second identity model: a reading of S-TEC's Eq. 4
    lambda_time_insensitive: float = 0.1  # its weight; chosen
    positives: Literal["halves", "windows"] = "halves"  # of one window; or two of one utterance, at twice the cost
    object: Object = "utterance"  # what stays the same; chapter and speaker use labels
    others: Others = "all"  # its negatives: of any speaker, of other ones, of the same
    part: Part = "context"  # what form "pooled" pools
    pooling: Literal["mean", "last"] = "mean"  # how
    temperature: float = 0.2  # tau of form "pooled"; chosen
    projection_hidden: int = 256  # of the projection head; chosen
    projection_out: int = 128  # chosen

    window: int = 20_480  # samples (Oord)
    sampling: Literal["random", "all"] = "random"  # one window an utterance an epoch (GIM), or all
    together: Literal["uniform", "speaker", "utterance"] = "uniform"  # what the windows of a group share
    batch_size: int = 64  # windows, over all processes (Oord: 8 GPUs with 8 each)
    micro_batch: int | None = None  # windows whose activations are kept at a time; all by default
    statistics: Literal["micro", "frozen"] = "micro"  # of BatchNorm where there are micro-batches
    optimizer: Literal["adam", "adamw"] = "adam"  # Oord
    lr: float = 2e-4  # Oord
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate, after the warm-up; Oord mentions none
    warmup_epochs: int = 0
    weight_decay: float = 0.0
    precision: Precision = "auto"  # auto: bf16 where the processor computes in it
    compiled: bool = True  # torch.compile for the encoder: some 20 s before the first step
    resident: bool = False  # hold the corpus on the GPU: 2 bytes a sample
    devices: int = 1
    check_every: int = 10  # steps between two reads of the losses: reading waits for the device
    checkpoint_every: int = 1  # epochs
    seed: int = 0


def _small(name: str, form: Insensitive = "none", *, supervised: bool = False) -> Config:
    """Narrow, normalised and at a higher rate, so that two cores see a difference within minutes; by trial."""
    return Config(
        preset=name,
        epochs=8,
        supervised=supervised,
        channels=96,
        context_dim=96,
        normalisation="batch",
        input_std=0.1,
        negatives="sequence",  # in a trial more phones than with "batch group", at half the cost
        time_insensitive=form,
        sampling="all",
        batch_size=16,
        projection_hidden=96,
        projection_out=64,
        optimizer="adamw",
        lr=4e-3,
        schedule="cosine",
        warmup_epochs=1,
        weight_decay=1e-4,
        compiled=False,
        checkpoint_every=4,
    )


def _presets() -> dict[str, Config]:
    # 300,000 updates (Oord) at 445 an epoch of train-clean-100's 28,539 utterances, of which 56 are shorter than a
    # window; of the phone task's training split alone it takes 843 epochs.
    cpc = Config(preset="cpc", epochs=675)
    gim = dataclasses.replace(
        cpc,
        preset="gim",
        epochs=1000,
        paddings="gim",
        input_mean=-6.78e-4,  # its constants for 32-bit integers, over 2^31
        input_std=0.0630,
        batch_size=8,
        samples=10,
    )
    cpc_audio = dataclasses.replace(
        cpc,
        preset="cpc-audio",
        epochs=200,
        channels=256,
        normalisation="channel",
        recurrence="lstm",
        predictor="transformer",
        score="mean",
        samples=128,
        sampling="all",
        together="speaker",
        batch_size=8,
    )
    presets = [
        cpc,
        dataclasses.replace(cpc, preset="cpc-time-insensitive", time_insensitive="pooled"),
        gim,
        cpc_audio,
        dataclasses.replace(cpc, preset="supervised", supervised=True, epochs=50),  # chosen
        _small("small-cpc"),
        _small("small-pooled", "pooled"),
        _small("small-frames", "frames"),
        _small("small-switch", "switch"),
        _small("small-supervised", supervised=True),
    ]
    return {config.preset: config for config in presets}


PRESETS = _presets()


def preset(name: str) -> Config:
    """The preset of this name. ValueError names the nearest ones where there is none."""
    return find(name, PRESETS)


def method(config: Config) -> str:
    """What the tables call a configuration."""
    if config.supervised:
        return "supervised"
    return "CPC" if config.time_insensitive == "none" else f"CPC + time-insensitive ({config.time_insensitive})"
