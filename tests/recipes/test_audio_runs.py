"""Pretraining on speech as people run it: presets, runs, resumption, the supervised baseline's labels, and mistakes."""

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from tones import Speech, make_speech, newest, tiny, write_split

from recipes import progress, records
from recipes.audio import networks, phones, speakers
from recipes.audio.labelled import Labelled, LabelledPairs, LabelledWindows
from recipes.audio.presets import PRESETS, Config, method, preset
from recipes.audio.pretrain import how_to_probe, main
from recipes.audio.run import from_plain, load_learner, open_corpus, read_config, to_plain
from recipes.audio.run import pretrain as train
from recipes.run import Outcome
from recipes.vision.presets import preset as vision_preset
from recipes.vision.run import load_learner as load_images
from recipes.vision.run import pretrain as train_images
from stec.audio.alignment import Alignment
from stec.audio.corpus import Corpus
from stec.audio.encoders import PADDINGS, CPCEncoder
from stec.audio.preparing import prepare
from stec.audio.shards import speech_sources
from stec.audio.sources import audio_folder
from stec.audio.views import SpeechPairs
from stec.audio.windows import WindowBatches, WindowLoader, Windows
from stec.core.actions import ViewPair
from stec.core.checkpoints import load_checkpoint
from stec.core.learner import Learner, NonFiniteLoss
from stec.core.objective import Features, encode
from stec.core.sequence import TransformerPredictor
from stec.core.shards.writing import write_shards

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")

KINDS: dict[str, dict[str, Any]] = {
    "plain, drawn": {"samples": 3},
    "pooled": {"time_insensitive": "pooled"},
    "frames": {"time_insensitive": "frames", "positives": "halves"},
    "switch": {"time_insensitive": "switch", "together": "speaker", "object": "chapter"},
    "supervised": {"supervised": True, "optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.01},
}


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of the CSV log by column."""
    header, *lines = (folder / "logs" / "metrics.csv").read_text().splitlines()
    return [dict(zip(header.split(","), line.split(","))) for line in lines]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    return make_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def run(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of CPC."""
    folder = tmp_path_factory.mktemp("runs") / "cpc"
    train(tiny(speech), folder, quiet=True)
    return folder


def of_kind(speech: Speech, kind: str) -> Config:
    config = tiny(speech, **KINDS[kind])
    return dataclasses.replace(config, labels=speech.labels) if config.supervised else config


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_a_person_needs(run: Path, speech: Speech) -> None:
    assert read_config(run) == tiny(speech)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step=3.ckpt", "step=6.ckpt"}
    assert list((run / "logs").glob("events.out.tfevents*"))
    log = rows(run)
    assert [int(row["step"]) for row in log] == [1, 2, 3, 4, 5, 6]
    assert all(float(row["loss"]) == pytest.approx(float(row["time_sensitive"])) for row in log)
    # 4 windows of 32 frames are candidates; small weights at the start are as good as blank ones.
    assert float(log[0]["loss"]) == pytest.approx(math.log(4 * 32), abs=0.5)


def test_a_checkpoint_tells_what_it_has_seen_and_not_where_it_lay(run: Path, speech: Speech) -> None:
    learner, config, record = load_learner(newest(run))
    assert config == dataclasses.replace(tiny(speech), corpus=None)
    assert record["utterances"] == list(Corpus.open(speech.cache).utterances)
    assert isinstance(learner.encoder, CPCEncoder)
    assert str(speech.cache.parent) not in str(record)
    assert str(speech.cache.parent) in (run / "config.json").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_resumes_exactly(kind: str, speech: Speech, tmp_path: Path) -> None:
    """Killed at step 5 of 6, gone on from step 3: the same losses and weights as the unbroken run."""

    class Pulled(Exception):
        pass

    def pull(self: object, trainer: Any, *rest: object) -> None:
        if trainer.global_step == 5:
            raise Pulled

    config = of_kind(speech, kind)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    outcome = train(config, whole, quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.EpochProgress, "on_train_batch_end", pull)
        with pytest.raises(Pulled):
            train(config, broken, quiet=True)
    assert newest(broken).name == "step=3.ckpt"
    train(read_config(broken), broken, resume=True, quiet=True)
    assert rows(broken) == rows(whole)
    one, other = (load_checkpoint(newest(folder)).weights for folder in (whole, broken))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    # What is logged has the objective's names, and the sum is weighted as configured.
    terms = {"phones"} if kind == "supervised" else {"time_sensitive"}
    terms |= {"time_insensitive"} if config.time_insensitive != "none" else set()
    assert set(outcome.learner.last) == {*terms, "loss"}
    last = {name: float(value) for name, value in rows(whole)[-1].items()}
    assert last["loss"] == pytest.approx(
        last["phones"]
        if kind == "supervised"
        else last["time_sensitive"] + config.lambda_time_insensitive * last.get("time_insensitive", 0.0)
    )
    if config.samples:
        assert int(one["objective.models.time_sensitive.calls"]) == 6
        assert float(rows(whole)[0]["loss"]) == pytest.approx(math.log(1 + 3), abs=0.3)


def test_training_learns_the_phones(speech: Speech, tmp_path: Path) -> None:
    """The supervised baseline gets far below log 4 on tones: labels lie on the frames that they belong to."""
    config = of_kind(speech, "supervised")
    config = dataclasses.replace(config, channels=16, epochs=20, lr=2e-2, sampling="all", input_std=0.3)
    outcome = train(config, tmp_path / "run", quiet=True)
    assert outcome.learner.last["phones"] < 0.6 * math.log(4)


def test_other_settings_are_not_resumed(run: Path, speech: Speech) -> None:
    for changes, words in (
        ({"lr": 5e-3}, r"step=6.ckpt was made with other settings: lr 0.001 there, 0.005 here"),
        (
            {"batch_size": 4},
            "made with other data or batches: batch_size 8 there, 4 here; use the same",
        ),
        ({"split": speech.test, "batch_size": 3, "batch_group": 3}, "the checkpoint was made with .*use the same"),
    ):
        with pytest.raises(ValueError, match=words):
            train(tiny(speech, **changes), run, resume=True, quiet=True)


def test_a_finished_run_is_left_alone(run: Path, speech: Speech) -> None:
    before = newest(run).read_bytes()
    with pytest.raises(ValueError, match=r"holds a run already; go on with --resume"):
        train(tiny(speech), run, quiet=True)
    outcome = train(read_config(run), run, resume=True, quiet=True)
    assert not outcome.learner.last
    assert newest(run).read_bytes() == before


def test_a_split_restricts_what_is_seen(speech: Speech, tmp_path: Path) -> None:
    outcome = train(tiny(speech, split=speech.train), tmp_path / "run", quiet=True)
    assert outcome.steps_per_epoch == 2
    more = write_split(tmp_path / "more.txt", [*speech.train.read_text().split(), "84-1-0001"])
    _, note = open_corpus(tiny(speech, split=more), None)
    assert note.startswith("21 utterances; 1 without audio, such as 84-1-0001 of more.txt, ")
    assert "labels" not in note
    assert load_learner(outcome.checkpoint)[2]["utterances"] == speech.train.read_text().split()


def test_the_untrained_encoder_is_the_one_that_the_run_starts_from(speech: Speech, tmp_path: Path) -> None:
    config = tiny(speech, lr=0.0, epochs=1, time_insensitive="pooled", seed=5)
    outcome = train(config, tmp_path / "run", quiet=True)
    weights = load_checkpoint(outcome.checkpoint).part("encoder")
    start = networks.untrained(config).state_dict()
    assert weights.keys() == start.keys()
    assert all(torch.equal(weights[name], start[name]) for name in start)


def test_a_diverging_run_stops(speech: Speech, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match=r"became (nan|inf) at step \d+"):
        train(tiny(speech, lr=1e30, epochs=4), tmp_path / "run", quiet=True)


def test_images_and_speech_do_not_take_each_others_checkpoints(run: Path, tmp_path: Path) -> None:
    images = dataclasses.replace(
        vision_preset("quickstart"), width=2, limit=16, batch_size=8, epochs=1, warmup_epochs=0, precision="32-true"
    )
    outcome = train_images(images, tmp_path / "images", quiet=True)
    with pytest.raises(ValueError, match=r"step=2.ckpt is no checkpoint of speech; give one of recipes.audio.pretrain"):
        load_learner(outcome.checkpoint)
    with pytest.raises(ValueError, match="not of speech"):
        main(["--resume", str(tmp_path / "images")])
    with pytest.raises(ValueError, match="is no checkpoint of images"):
        load_images(newest(run))


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_list_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) is None
    lines = capsys.readouterr().out.splitlines()
    for name, config in PRESETS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert method(config) in line
        assert f"{config.channels} channels" in line


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no preset 'cpc-time-insensitiv'; the nearest are cpc-time-insensitive"):
        main(["cpc-time-insensitiv"])
    with pytest.raises(ValueError, match=r"the nearest are .*small-cpc"):
        main(["zzz"])


def test_the_command_overrides_writes_a_record_and_resumes(
    speech: Speech, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--channels 8 --context-dim 8 --window 5120 --batch-size 8 --batch-group 4 --epochs 1 --warmup-epochs 0"
    words += " --projection-hidden 8 --projection-out 4 --precision 32-true --check-every 1 --seed 3 --lr 0.003"
    out = tmp_path / "run"
    outcome = main(["small-pooled", *words.split(), "--corpus", str(speech.cache), "--out", str(out)])
    assert isinstance(outcome, Outcome)
    config = read_config(out)
    assert (config.preset, config.channels, config.lr, config.seed) == ("small-pooled", 8, 0.003, 3)
    assert (config.positives, config.time_insensitive) == ("halves", "pooled")
    (record,) = records.read(out / "results.json")
    assert (record.stage, record.seed, record.data) == ("pretrain", 3, "cache")
    assert record.method == "CPC + time-insensitive (pooled)"
    assert {r.metric for r in record.results} == {"time_sensitive", "time_insensitive", "loss"}
    assert str(tmp_path) not in (out / "results.json").read_text()
    main(["--resume", str(out)])
    said = capsys.readouterr().out
    assert "this run was finished already. Now, with files of yours for words in capitals:\n" in said
    given = f"--checkpoint {newest(out)} --corpus {speech.cache}"
    task = "--labels LABELS --train-split TRAIN_SPLIT --test-split TEST_SPLIT"
    assert said.count(f"\n  python -m recipes.audio.phones {given} {task}\n") == 2
    assert said.count(f"\n  python -m recipes.audio.speakers {given}\n") == 2
    with pytest.raises(ValueError, match="takes the run's folder and nothing else"):
        main(["--resume", str(out), "--epochs", "3"])
    with pytest.raises(ValueError, match="holds no run"):
        main(["--resume", str(tmp_path)])


def test_the_commands_that_follow_a_run_are_those_of_its_corpus(speech: Speech, tmp_path: Path) -> None:
    """Blanks in names, labels that heads must share, speakers that are not known, and shards, which no probe reads."""
    checkpoint = tmp_path / "a run" / "step=6.ckpt"
    config = tiny(speech, supervised=True, labels=speech.labels, split=speech.train)
    _, words, who = how_to_probe(config, checkpoint).splitlines()
    assert words.startswith(f"  python -m recipes.audio.phones --checkpoint '{checkpoint}' --corpus {speech.cache} ")
    assert words.endswith(f" --labels {speech.labels} --train-split {speech.train} --test-split TEST_SPLIT")
    assert tyro.cli(phones.Arguments, args=shlex.split(words)[3:]).checkpoint == checkpoint
    assert tyro.cli(speakers.Arguments, args=shlex.split(who)[3:]).corpus == speech.cache
    audio = audio_folder(speech.root, speaker="none")
    prepare(audio, tmp_path / "nobody", workers=1)
    assert how_to_probe(tiny(speech, corpus=tmp_path / "nobody"), checkpoint).count("\n") == 1
    write_shards(speech_sources(Corpus.open(speech.cache)), tmp_path / "shards", shard_bytes=400_000)
    lines = how_to_probe(tiny(speech, corpus=tmp_path / "shards"), checkpoint).splitlines()
    assert all("--corpus CACHE" in line for line in lines[1:])


def test_an_unknown_override_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["small-cpc", "--epoch", "3"])
    captured = capsys.readouterr()
    assert "--epochs" in captured.out + captured.err


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_a_finite_loss_and_gradients(name: str) -> None:
    """At its own widths, on windows of 16 frames."""
    config = preset(name)
    assert config.preset == name
    encoder, objective = networks.encoder(config), networks.objective(config, 41)
    generator = torch.Generator().manual_seed(0)
    b, n = 8, 2_560
    x = (3_000 * torch.randn(2, b, n, generator=generator)).to(torch.int16)
    pairs = config.time_insensitive != "none" and config.positives == "windows"
    i = torch.arange(b)
    batch = Windows(x[0], x[1] if pairs else None, utterance=i, chapter=i // 2, speaker=i // 4, start=0 * i)
    pair = SpeechPairs(object=config.object)(batch, generator)
    if config.supervised:
        pair = pair._replace(label=torch.randint(41, (b, encoder.frames(n)), generator=generator))
    terms = objective(encode(encoder, pair), None, pair)
    terms["loss"].backward()
    for value in terms.values():
        assert math.isfinite(float(value.detach()))
    for part in (encoder, objective):
        parameters = [p for p in part.parameters() if p.requires_grad]
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert len(gradients) == len(parameters) > 0
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        assert sum(bool(gradient.abs().max() > 0) for gradient in gradients) > len(gradients) / 2
    if not config.supervised:
        # At the start CPC knows nothing: about log(number of candidates).
        candidates = 1 + config.samples if config.samples else 16 * (1 if config.negatives == "sequence" else 8)
        assert abs(float(terms["time_sensitive"].detach()) - math.log(candidates)) < 0.7


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_record(name: str) -> None:
    config = dataclasses.replace(preset(name), corpus=Path("/home/alice/cache"), split=Path("/home/alice/split.txt"))
    there = json.loads(json.dumps(to_plain(config)))
    assert "alice" not in str(there)
    assert from_plain(there, source=Path("a")) == preset(name)


def test_a_record_of_another_version() -> None:
    for there in ({**to_plain(preset("cpc")), "speed": 3}, {"preset": "cpc"}):
        with pytest.raises(ValueError, match="another version of stec"):
            from_plain(there, source=Path("a"))


def settings(name: str, *fields: str) -> tuple[object, ...]:
    config = preset(name)
    return tuple(getattr(config, field) for field in fields)


def test_the_papers_preset_has_the_papers_numbers() -> None:
    """audio.md 1.1: Oord et al. 2018."""
    assert settings("cpc", "channels", "context_dim", "recurrence", "normalisation") == (512, 256, "gru", "none")
    assert settings("cpc", "steps", "predictor", "score", "samples") == (12, "linear", "dot", None)
    assert settings("cpc", "window", "batch_size", "batch_group", "negatives") == (20_480, 64, 8, "batch group")
    assert settings("cpc", "optimizer", "lr", "schedule", "own_sequence") == ("adam", 2e-4, "constant", True)
    assert settings("cpc", "input_mean", "input_std") == (0.0, 1.0)
    config = preset("cpc")
    assert config.epochs * ((28_539 - 56) // config.batch_size) == pytest.approx(300_000, rel=0.005)
    network, model = networks.encoder(config), networks.time_sensitive(config)
    assert sum(p.numel() for p in model.parameters()) == 12 * 256 * 512  # W, 1.57 M
    assert sum(p.numel() for part in (network, model) for p in part.parameters()) == 7_414_784  # 7.41 M in all


def test_greedy_infomaxs_preset_has_its_codes_numbers() -> None:
    """audio.md 1.2, first column."""
    assert settings("gim", "channels", "context_dim", "recurrence", "normalisation") == (512, 256, "gru", "none")
    assert settings("gim", "steps", "predictor", "score", "samples") == (12, "linear", "dot", 10)
    assert settings("gim", "window", "batch_size", "batch_group", "negatives") == (20_480, 8, 8, "batch group")
    assert settings("gim", "optimizer", "lr", "epochs", "sampling") == ("adam", 2e-4, 1000, "random")
    assert settings("gim", "input_mean", "input_std", "together") == (-6.78e-4, 0.0630, "uniform")
    assert preset("gim").input_mean == pytest.approx(-1_456_218.75 / 2**31, rel=1e-3)
    assert preset("gim").input_std == pytest.approx(135_303_504.0 / 2**31, rel=1e-3)
    network = networks.encoder(preset("gim"))
    assert network.paddings == (2, 2, 2, 2, 1)
    assert (network.mean, network.std) == (-6.78e-4, 0.0630)


def test_cpc_audios_preset_has_its_defaults() -> None:
    """audio.md 1.2, second column."""
    fields = ("channels", "context_dim", "recurrence", "normalisation")
    assert settings("cpc-audio", *fields) == (256, 256, "lstm", "channel")
    assert settings("cpc-audio", "steps", "predictor", "score", "samples") == (12, "transformer", "mean", 128)
    assert settings("cpc-audio", "window", "batch_size", "batch_group", "together") == (20_480, 8, 8, "speaker")
    assert settings("cpc-audio", "optimizer", "lr", "epochs", "sampling") == ("adam", 2e-4, 200, "all")
    network, model = networks.encoder(preset("cpc-audio")), networks.time_sensitive(preset("cpc-audio"))
    assert network.paddings == (3, 2, 1, 1, 1)
    assert isinstance(network.recurrence, torch.nn.LSTM)
    assert isinstance(model.predictor, TransformerPredictor)
    assert len(model.predictor.layers) == 12
    assert model.predictor.scale == 1 / 256


def test_the_second_model_is_all_that_cpc_time_insensitive_adds() -> None:
    one, other = preset("cpc"), preset("cpc-time-insensitive")
    changed = {f.name for f in dataclasses.fields(one) if getattr(one, f.name) != getattr(other, f.name)}
    assert changed == {"preset", "time_insensitive"}
    assert networks.objective(other, 0).weights == {"time_sensitive": 1.0, "time_insensitive": 0.1}


# --- labels of windows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PADDINGS)
def test_frames_of_windows_have_the_label_nearest_in_time(name: str, speech: Speech) -> None:
    corpus, labels = Corpus.open(speech.cache), speech.phones()
    encoder = CPCEncoder(channels=2, context_dim=2, paddings=PADDINGS[name])
    batches = WindowBatches(corpus, batch_size=8, seed=1, window=5_120, sampling="random", together="uniform")
    loader = LabelledWindows(
        WindowLoader(corpus, batches),
        labels,
        frames=encoder.frames(5_120),
        alignment=Alignment.nearest(frame_centre=encoder.centre),
    )
    starts, missing, steps = [], 0, 0
    for batch in loader:
        steps += 1
        assert batch.labels.shape == (8, encoder.frames(5_120))
        for row, utterance, start in zip(batch.labels, batch.windows.utterance.tolist(), batch.windows.start.tolist()):
            ids = labels[corpus.utterances[utterance]]
            starts.append(start)
            times = start + 160 * np.arange(len(row)) + encoder.centre
            apart = np.abs(times[:, None] - (160 * np.arange(len(ids)) + 200.0)[None, :])
            expected = np.where(apart.min(axis=1) <= 80, ids[apart.argmin(axis=1)], -1)
            assert row.tolist() == expected.tolist()
            missing += int((expected == -1).sum())
    assert steps == len(loader) == 3
    assert sum(start % 160 > 0 for start in starts) > 20
    assert (missing > 0) == (name != "none")  # frames at the very ends, where there is no label


def test_labels_that_do_not_fit_are_refused_before_training(speech: Speech, tmp_path: Path) -> None:
    lines = speech.labels.read_text().splitlines()
    for name, line, words in (
        ("short", " ".join(lines[0].split()[:-20]), r"1-10-0000 has \d+ labels and \d+ samples, which take"),
        ("large", lines[0] + " 123456789", "a label of 1-10-0000 is 123456789, and phones are numbered from 0"),
    ):
        (tmp_path / name).write_text("\n".join([line, *lines[1:]]) + "\n")
        with pytest.raises(ValueError, match=words):
            train(tiny(speech, supervised=True, labels=tmp_path / name), tmp_path / "run", quiet=True)
    with pytest.raises(ValueError, match="give --labels FILE"):
        train(tiny(speech, supervised=True), tmp_path / "run", quiet=True)
    assert not any((tmp_path / "run").rglob("*.ckpt"))


def test_the_supervised_loss_is_the_mean_over_labelled_frames() -> None:
    model = networks.FramePhones(3, 5).double()
    context = torch.randn(2, 4, 3, dtype=torch.float64)
    labels = torch.tensor([[0, -1, 4, 2], [-1, -1, -1, 1]])
    pair = ViewPair(context, None, context.new_zeros(2, 0), torch.ones(2, dtype=torch.bool), labels)
    shares = model.logits(context).double().log_softmax(dim=2)
    expected = -sum(shares[i, t, labels[i, t]] for i in range(2) for t in range(4) if labels[i, t] >= 0) / 4
    found = model(Features((context, context), None), None, pair)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    nothing = pair._replace(label=torch.full((2, 4), -1))
    assert model(Features((context, context), None), None, nothing).item() == 0.0


def test_the_labels_of_frames_replace_those_of_windows() -> None:
    windows = Windows(torch.zeros(2, 9, dtype=torch.int16), None, *(torch.tensor([3, 5]),) * 4)
    labels = torch.tensor([[1, -1], [0, 2]])
    pair = LabelledPairs()(Labelled(windows, labels), torch.Generator())
    assert torch.equal(pair.label, labels)
    assert pair.object is not None
    assert pair.object.tolist() == [3, 5]


# --- mistakes, found before hours are spent --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpus": None}, "give --corpus CACHE, made by python -m recipes.audio.prepare"),
        ({"corpus": Path("nowhere")}, r"nowhere does not exist; make it with python -m recipes.audio.prepare"),
        ({"split": Path("nowhere")}, "nowhere"),
        ({"window": 100_000}, "no utterance of .* has a window of 100000 samples, the longest has"),
        ({"batch_size": 32}, "less than a batch of 32; choose a smaller --batch-size"),
        ({"window": 1_600}, "12 steps ahead in windows of 1600 samples, which are 10 frames"),
        ({"batch_size": 6}, "no multiple of --batch-group 4"),
        ({"batch_size": 8, "devices": 4}, "2 windows for each of 4 processes, no multiple of --batch-group 4"),
        ({"samples": 0}, "samples is 0"),
        ({"temperature": 0.0, "time_insensitive": "pooled"}, "temperature is 0.0"),
        ({"others": "other groups"}, "--others belong to the second model"),
        ({"labels": Path("labels.txt")}, "learnt from by the supervised baseline alone"),
        ({"negatives": "same group"}, "--together speaker"),
        ({"time_insensitive": "frames", "together": "utterance"}, "would have no negatives"),
        ({"steps": 0}, "0 steps ahead"),
        ({"epochs": 0}, "epochs is 0"),
        ({"warmup_epochs": 2}, "2 warm-up epochs of 2"),
        ({"negatives": "sequence", "own_sequence": False}, "are none; choose one of the two"),
    ],
)
def test_mistakes_in_settings(changes: dict[str, Any], words: str, speech: Speech, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        train(tiny(speech, **changes), tmp_path / "run", quiet=True)


def test_an_unwritable_folder(speech: Speech, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*choose another --out"):
        train(tiny(speech), tmp_path / "file" / "run", quiet=True)


def test_an_unfinished_cache(speech: Speech, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "samples.part").write_bytes(b"\0\0")
    with pytest.raises(ValueError, match="is unfinished; run the command that prepares it again"):
        train(tiny(speech, corpus=tmp_path / "cache"), tmp_path / "run", quiet=True)


def test_models_that_ask_who_speaks_need_a_corpus_that_knows(speech: Speech, tmp_path: Path) -> None:
    """One name for all would make every window the same object: a loss without negatives, and no word of it."""
    cache = tmp_path / "cache"
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(speech.root.rglob("*.flac")):
        (flat / path.name).symlink_to(path)
    prepare(audio_folder(flat, speaker="none"), cache, workers=1)
    for changes, words in (
        ({"time_insensitive": "pooled", "object": "speaker"}, "--object speaker"),
        ({"time_insensitive": "switch", "object": "chapter"}, "--object chapter"),
        ({"time_insensitive": "pooled", "others": "other groups"}, "--others 'other groups'"),
        ({"negatives": "same group", "together": "speaker"}, "--negatives 'same group'"),
        ({"together": "speaker"}, "does not know who speaks"),
    ):
        with pytest.raises(ValueError, match=f"{words}.*--speaker folder"):
            train(tiny(speech, corpus=cache, **changes), tmp_path / "run", quiet=True)
    train(tiny(speech, corpus=cache, epochs=1, time_insensitive="pooled"), tmp_path / "run", quiet=True)


def test_a_split_of_another_corpus(speech: Speech, tmp_path: Path) -> None:
    split = write_split(tmp_path / "split.txt", ["84-1-0001", "84-1-0002"])
    with pytest.raises(ValueError, match="of 2 utterances of the split none is among the 24 of the corpus; give the"):
        train(tiny(speech, split=split), tmp_path / "run", quiet=True)


def test_a_finished_run_names_its_last_checkpoint(speech: Speech, tmp_path: Path) -> None:
    """Also where `checkpoint_every` does not divide the epochs, and the end is saved apart."""
    config = dataclasses.replace(tiny(speech), epochs=3, checkpoint_every=2)
    first = train(config, tmp_path / "run", quiet=True)
    again = train(read_config(tmp_path / "run"), tmp_path / "run", resume=True, quiet=True)
    assert again.checkpoint == first.checkpoint == newest(tmp_path / "run")


def test_an_interruption_before_the_first_checkpoint_does_not_promise_one(
    speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt, match="before the first checkpoint: start again"):
        train(tiny(speech), tmp_path / "run", quiet=True)
    monkeypatch.undo()
    train(tiny(speech), tmp_path / "run", quiet=True)
