"""Few-label fine-tuning: which labels, against a loop written out here, resumption, records, and mistakes."""

import copy
import dataclasses
import errno
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from recipes import records
from recipes.stopping import Stopped, going_on_by, kept
from recipes.vision import finetune, inputs
from recipes.vision.config import Config
from recipes.vision.finetune import Arguments, Runs
from recipes.vision.measure import plain_batches
from recipes.vision.presets import preset
from recipes.vision.run import load_learner, pretrain, to_plain
from stec.core.actions import ViewPair, step_seed
from stec.core.checkpoints import load_checkpoint
from stec.core.learner import Learner
from stec.core.objective import Features
from stec.core.probe import extract
from stec.vision.affine import CropFlip
from stec.vision.data import ImageSet, class_share
from stec.vision.finetune import Classification, OneView, fine_tuner, tuned
from stec.vision.folder import ImageFiles, image_folder
from stec.vision.streaming import CroppedPairs, collate
from stec.vision.views import CROP_FLIP

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")


def save_colours(folder: Path, n: int, *, sizes: tuple[int, ...] = (32,), seed: int = 0) -> None:
    """Three classes that differ in their brightest channel, under noise; the sizes in turn."""
    generator = torch.Generator().manual_seed(seed)
    for channel, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            size = sizes[i % len(sizes)]
            pixels = torch.randint(160, (size, size, 3), dtype=torch.uint8, generator=generator)
            pixels[:, :, 2 - channel] += 95
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")


def pretrained(root: Path, folder: Path, **changes: object) -> Path:
    """The checkpoint of a run of two steps on `root`."""
    config = dataclasses.replace(
        preset("quickstart"),
        data="folder",
        root=root,
        limit=None,
        width=4,
        batch_size=30,
        epochs=1,
        warmup_epochs=0,
        precision="32-true",
        projection_hidden=16,
        projection_out=8,
        manipulation_hidden=16,
        workers=0,
    )
    config = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    assert isinstance(config, Config)
    return pretrain(config, folder, quiet=True).checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 training and 10 test images of each class."""
    folder = tmp_path_factory.mktemp("colours")
    save_colours(folder / "train", 20)
    save_colours(folder / "test", 10, seed=1)
    return folder


@pytest.fixture(scope="module")
def checkpoint(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(root, tmp_path_factory.mktemp("runs") / "run")


def few(path: Path, /, **changes: object) -> Arguments:
    """Runs of a second: 12 images, three steps an epoch."""
    arguments = Arguments(path, share=(0.2,), seeds=(0,), epochs=3, batch_size=4)
    return dataclasses.replace(arguments, **changes)  # type: ignore[arg-type]


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)


# --- which labels ----------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(50, 80), min_size=1, max_size=5),
    unlabelled=st.integers(0, 20),
    shares=st.tuples(st.floats(0.1, 0.5), st.floats(0.1, 0.5)),
    seed=st.integers(0, 99),
)
def test_shares_are_balanced_nested_and_labelled(
    sizes: list[int], unlabelled: int, shares: tuple[float, float], seed: int
) -> None:
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(sizes)] + [torch.full((unlabelled,), -1)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    names = [str(k) for k in range(len(sizes))]
    small, large = (class_share(labels, share, classes=names, seed=seed) for share in sorted(shares))
    assert len(large) == round(max(shares) * sum(sizes))
    assert bool((large.diff() > 0).all())
    assert set(small.tolist()) <= set(large.tolist())
    for chosen in (small, large):
        counts = [labels[chosen].tolist().count(k) for k in range(-1, len(sizes))]
        assert counts[0] == 0
        assert max(counts[1:]) - min(counts[1:]) <= 1


def test_the_seed_alone_changes_a_share() -> None:
    labels = torch.arange(1000) % 10
    names = list("abcdefghij")
    one, again, other = (class_share(labels, 0.01, classes=names, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(class_share(labels, 1, classes=names, seed=3), torch.arange(1000))


def test_unequal_classes_give_the_share_of_each() -> None:
    labels = torch.tensor([0] * 1000 + [1] * 60 + [2] * 2 + [-1] * 5)
    chosen = class_share(labels, 0.3, classes=("cat", "dog", "emu"), seed=0)
    assert labels[chosen].bincount().tolist() == [300, 18, 1]
    assert torch.equal(chosen, chosen.sort().values)
    assert torch.equal(chosen, class_share(labels, 0.3, classes=("cat", "dog", "emu"), seed=0))
    assert not torch.equal(chosen, class_share(labels, 0.3, classes=("cat", "dog", "emu"), seed=1))


@pytest.mark.parametrize(
    ("share", "labels", "words"),
    [
        (0.0, [0, 1], "share is 0.0; need more than 0"),
        (1.5, [0, 1], "share is 1.5; need more than 0 and at most 1"),
        (math.nan, [0, 1], "share is nan"),
        (0.5, [-1, -1], "no item has a label"),
        (0.1, [0, 1] * 5, r"0.1 of 10 labels is 1, but there are 2 classes; take at least 2 / 10"),
        (0.5, [0] * 15 + [1] * 5, None),
        (0.5, [0] * 10, "no item of class dog has a label"),
    ],
)
def test_shares_that_cannot_be_taken(share: float, labels: list[int], words: str | None) -> None:
    if words is None:
        chosen = class_share(torch.tensor(labels), share, classes=("cat", "dog"), seed=0)
        assert torch.tensor(labels)[chosen].bincount().tolist() == [5, 5]
        return
    with pytest.raises(ValueError, match=words):
        class_share(torch.tensor(labels), share, classes=("cat", "dog"), seed=0)


def test_every_encoder_sees_the_same_images(root: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = pretrained(root, tmp_path / "other", width=8, seed=5, lambda_manip=0.0)
    for seed in (0, 1):
        one, two = (Runs(few(path)).choose(0.2, seed) for path in (checkpoint, other))
        assert torch.equal(one, two)
        assert len(one) == 12


# --- the pieces ------------------------------------------------------------------------------------------------------


def pair_of(label: Tensor) -> ViewPair:
    n = len(label)
    return ViewPair(torch.zeros(n, 3, 2, 2), None, torch.zeros(n, 0), torch.ones(n, dtype=torch.bool), label)


def test_classification_is_the_surprise_of_the_label() -> None:
    model = Classification(5, 3, seed=0)
    assert float(model.linear.weight.detach().std()) == pytest.approx(0.01, rel=0.5)
    assert not model.linear.bias.any()
    assert torch.equal(model.linear.weight, Classification(5, 3, seed=0).linear.weight)
    nn.init.normal_(model.linear.weight)
    features, label = torch.randn(7, 5, requires_grad=True), torch.randint(3, (7,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(Features(features, None), None, pair_of(label))
    expected = 0.0
    for row, k in zip(features.detach().double(), label.tolist()):
        logits = [float(weight @ row) for weight in model.linear.weight.detach().double()]
        expected += (math.log(sum(math.exp(value) for value in logits)) - logits[k]) / 7
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)
    loss.backward()
    assert features.grad is not None
    assert float(features.grad.abs().sum()) > 0


def test_one_view_is_a_crop_and_flip_and_nothing_else() -> None:
    images = torch.randint(256, (6, 3, 20, 24), dtype=torch.uint8)
    label = torch.arange(6)
    law = dataclasses.replace(CROP_FLIP, size=16)
    pair = OneView(law)((images, label), torch.Generator().manual_seed(4))
    draw = CropFlip.draw(
        6, (20, 24), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), p_flip=0.5, generator=torch.Generator().manual_seed(4)
    )
    assert torch.equal(pair.x, draw.apply(images, 16))
    assert pair.x_prime is None
    assert pair.action.shape == (6, 0)
    assert torch.equal(pair.label, label)


def test_streamed_images_give_their_first_view(tmp_path: Path) -> None:
    save_colours(tmp_path, 2, sizes=(40, 50))
    files = image_folder(tmp_path, labelled=True)
    pairs = CroppedPairs(files, 16, scale=(0.2, 1.0), ratio=(1.0, 1.0), p_flip=0.5)
    batch = collate([pairs[i, 7 + i] for i in range(4)])
    pair = OneView(CROP_FLIP)(batch, torch.Generator())
    torch.testing.assert_close(pair.x, batch.x.float() / 255, rtol=0, atol=1e-7)
    assert torch.equal(pair.label, files.labels[:4])


# --- training --------------------------------------------------------------------------------------------------------


def by_hand(runs: Runs, images: ImageSet, *, epochs: int, batch_size: int, lr: float) -> nn.Sequential:
    """Fine-tuning by the formulas of SGD with Nesterov momentum, a tensor at a time."""
    encoder = runs.encoder("pretrained", 0)
    layer = nn.Linear(int(encoder.feature_dim), 3)  # type: ignore[arg-type]
    nn.init.normal_(layer.weight, 0.0, 0.01, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(layer.bias)
    network = nn.Sequential(encoder, layer).train()
    buffers = [torch.zeros_like(p) for p in network.parameters()]
    step, total = 0, epochs * (len(images) // batch_size)
    for epoch in range(epochs):
        order = torch.randperm(
            len(images), generator=torch.Generator().manual_seed(step_seed(0, epoch, stream=1))
        ).tolist()
        for start in range(0, len(images) - batch_size + 1, batch_size):
            index = torch.tensor(order[start : start + batch_size])
            generator = torch.Generator().manual_seed(step_seed(0, step, stream=2))
            x = CROP_FLIP.draw_crops(batch_size, (32, 32), generator=generator).apply(images.images[index], 32)
            loss = -F.log_softmax(network(x), dim=1)[torch.arange(batch_size), images.labels[index]].mean()
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            rate = lr * (1 + math.cos(math.pi * step / total)) / 2
            with torch.no_grad():
                for parameter, buffer, gradient in zip(network.parameters(), buffers, gradients):
                    buffer.mul_(0.9).add_(gradient)
                    parameter -= rate * (gradient + 0.9 * buffer)
            step += 1
    return network


def test_training_follows_the_formulas_from_the_checkpoints_weights(checkpoint: Path, tmp_path: Path) -> None:
    arguments = few(checkpoint, from_scratch=False, lr=0.1)
    runs = Runs(arguments)
    there = load_checkpoint(checkpoint).part("encoder")
    before = runs.encoder("pretrained", 0).state_dict()
    assert all(torch.equal(before[name], there[name]) for name in there)
    found = finetune.finetune(arguments, tmp_path)
    chosen = inputs.read(runs.config, runs.images.select(runs.choose(0.2, 0))).images
    assert isinstance(chosen, ImageSet)
    expected = by_hand(runs, chosen, epochs=3, batch_size=4, lr=0.1 * 4 / 256)
    after = load_checkpoint(newest(tmp_path / "share0.2-seed0-pretrained"))
    assert after.step == 9
    encoder, layer = expected
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(after.part("encoder")[name], value, rtol=1e-3, atol=1e-5)
        assert not torch.equal(value, there[name]), name  # running statistics too: BatchNorm is in training mode
    head = after.part("objective.models.classification.linear")
    torch.testing.assert_close(head["weight"], layer.weight.detach(), rtol=1e-3, atol=1e-5)
    # the recorded accuracy is that of these weights on whole test images, in evaluation mode
    test = runs.test.images
    assert isinstance(test, ImageSet)
    logits, labels = extract(expected, [(test.images.float() / 255, test.labels)], device="cpu")
    assert found[0].results[0].value == round(float((logits.argmax(dim=1) == labels).double().mean()), 4)


def test_an_interrupted_command_goes_on_exactly(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune.finetune(few(checkpoint), tmp_path / "whole")

    class Pulled(Exception):
        pass

    with monkeypatch.context() as patch:
        from recipes.progress import EpochProgress

        def pull(self: object, trainer: object, *rest: object) -> None:
            if trainer.global_step == 5:  # type: ignore[attr-defined]
                raise Pulled

        patch.setattr(EpochProgress, "on_train_batch_end", pull)
        with pytest.raises(Pulled):
            finetune.finetune(few(checkpoint), tmp_path / "broken")
    assert newest(tmp_path / "broken" / "share0.2-seed0-pretrained").name == "step=3.ckpt"
    trained: list[int] = []
    with monkeypatch.context() as patch:
        train_step = Learner.training_step

        def watched(self: Learner, batch: object, batch_idx: int) -> Tensor:
            trained.append(self.global_step)
            return train_step(self, batch, batch_idx)

        patch.setattr(Learner, "training_step", watched)
        again = finetune.finetune(few(checkpoint), tmp_path / "broken")
    assert trained == [*range(3, 9), *range(9)]  # the rest of one run, then the other
    for one, other in zip(whole, again, strict=True):
        assert one.results == other.results
    for start in ("pretrained", "untrained"):
        name = f"share0.2-seed0-{start}"
        unbroken, resumed = (load_checkpoint(newest(tmp_path / w / name)).weights for w in ("whole", "broken"))
        assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)

    # what is finished is not trained again, and not taken for something else
    monkeypatch.setattr(finetune, "fit", None)
    assert finetune.finetune(few(checkpoint), tmp_path / "broken") == again
    with pytest.raises(
        ValueError, match=r"pretrained holds a run with other settings \(epochs 3 there, 4 here\); give"
    ):
        finetune.finetune(few(checkpoint, epochs=4), tmp_path / "broken")


def test_a_checkpoint_of_another_encoder_is_not_taken_up(root: Path, checkpoint: Path, tmp_path: Path) -> None:
    finetune.finetune(few(checkpoint, from_scratch=False), tmp_path / "out")
    other = pretrained(root, tmp_path / "other", width=8)
    with pytest.raises(
        ValueError, match=r"other settings \(checkpoint \w{10} there, \w{10} here\); give another --out"
    ):
        finetune.finetune(few(other, from_scratch=False), tmp_path / "out")
    (tmp_path / "out" / "share0.2-seed0-pretrained" / "results.json").unlink()
    with pytest.raises(ValueError, match="was made with other settings: checkpoint"):
        finetune.finetune(few(other, from_scratch=False), tmp_path / "out")


def test_records_name_the_protocol_and_the_colours_are_learnt(checkpoint: Path, tmp_path: Path) -> None:
    found = finetune.finetune(few(checkpoint, share=(0.05, 1.0), seeds=(3,), epochs=9, batch_size=15, lr=1.0), tmp_path)
    assert [r.method for r in found] == ["S-TEC exact", "untrained encoder"] * 2
    assert {r.seed for r in found} == {3}
    assert [x.protocol for x in found[0].results] == ["finetune 5%", "linear 5%", "logistic 5%"]
    assert [x.protocol for x in found[-1].results] == ["finetune 100%", "linear 100%", "logistic 100%"]
    assert {x.details["train"] for x in found[0].results} == {3}
    assert {x.details["train"] for x in found[-1].results} == {60}
    assert all(r.results[0].value > 0.9 for r in found[2:])
    path = tmp_path / "share1-seed3-untrained" / "results.json"
    assert str(tmp_path) not in path.read_text()
    assert records.read(path) == [found[-1]]
    assert found[-1].settings["pretraining"] == to_plain(load_learner(checkpoint)[1])


def test_the_command_shows_means_over_seeds_and_writes_all(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"x --checkpoint {checkpoint} --share 0.2 --seeds 0 1 --no-from-scratch --epochs 1 --out {tmp_path / 'out'}"
    monkeypatch.setattr(sys, "argv", words.split())
    finetune.main()
    found = records.read(tmp_path / "out" / "results.json")
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith("fit ")] == [
        "fit 1 of 2: 20 % of the labels, seed 0, pretrained",
        "fit 2 of 2: 20 % of the labels, seed 1, pretrained",
    ]
    for i in range(3):
        one, two = (100 * record.results[i].value for record in found)
        assert f"{(one + two) / 2:.1f} ± {abs(one - two) / 2**0.5:.1f}" in shown
    finetune.main()
    assert "fit 1" not in capsys.readouterr().out  # both are finished


@pytest.mark.parametrize("ends", ["SIGTERM", "SIGINT", "disk"])
def test_what_ends_a_run_says_how_the_command_goes_on(
    ends: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so it does: finetune has no --resume, and the one of pretrain knows no such run."""
    arguments = few(checkpoint, from_scratch=False)
    with monkeypatch.context() as patch:
        from recipes.progress import EpochProgress

        def end(self: object, trainer: Any, *rest: object) -> None:
            if trainer.global_step == 5:
                if ends == "disk":
                    raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")
                os.kill(os.getpid(), signal.Signals[ends])

        patch.setattr(EpochProgress, "on_train_batch_end", end)
        # Where the tests run in the background of a shell, Ctrl+C is ignored, and Python leaves it so.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises((Stopped, KeyboardInterrupt, RuntimeError)) as raised:
            finetune.finetune(arguments, tmp_path / "out")
        signal.signal(signal.SIGINT, before)
    told = capsys.readouterr().out + str(raised.value)
    expected = {
        "SIGTERM": "SIGTERM: step 5 is saved; the same command goes on",
        "SIGINT": "interrupted; the same command goes on",
        "disk": "step=3.ckpt is kept; once the cause is mended, the same command goes on",
    }
    assert expected[ends] in told
    assert "--resume" not in told
    (record,) = finetune.finetune(arguments, tmp_path / "out")
    assert record.results[0].protocol == "finetune 20%"


def test_only_within_it_a_run_goes_on_by_other_words(tmp_path: Path) -> None:
    with going_on_by("the same command goes on"):
        assert kept(tmp_path).endswith("is mended, the same command goes on")
    assert kept(tmp_path).endswith(f"is mended, go on with --resume {tmp_path}")


def test_epochs_follow_the_share_and_the_number_of_steps(checkpoint: Path) -> None:
    runs = Runs(few(checkpoint, epochs=None, batch_size=16))
    assert runs.settings(0.2, 0, "pretrained").epochs == 400  # one step each
    assert runs.settings(1.0, 0, "pretrained").epochs == math.ceil(400 / 3)
    assert runs.settings(1.0, 0, "pretrained").lr == pytest.approx(0.05 / 16)
    runs = Runs(few(checkpoint, epochs=None, batch_size=2))
    assert runs.settings(1.0, 0, "pretrained").epochs == 30


def test_images_of_many_sizes_are_streamed(tmp_path: Path) -> None:
    save_colours(tmp_path / "train", 10, sizes=(40, 48))
    save_colours(tmp_path / "test", 4, sizes=(48, 40), seed=1)
    law = dataclasses.replace(preset("quickstart").augmentation, size=32)
    checkpoint = pretrained(tmp_path, tmp_path / "run", augmentation=law)
    arguments = few(checkpoint, share=(0.4,), from_scratch=False, epochs=12, lr=1.0)
    assert isinstance(Runs(arguments).test.images, ImageFiles)
    found = finetune.finetune(arguments, tmp_path / "out")
    assert found[0].results[0].value > 0.6


def test_other_images_come_at_the_encoders_size_and_without_the_runs_limit(root: Path, tmp_path: Path) -> None:
    limited = pretrained(root, tmp_path / "run", limit=30)
    own = Runs(few(limited))
    assert (own.config.limit, len(own.images)) == (30, 30)
    assert Runs(few(limited, limit=15)).config.limit == 15
    assert Runs(few(limited, data="rendered")).config.limit is None
    for split in ("train", "test"):
        save_colours(tmp_path / "large" / split, 10, sizes=(48,))
    other = Runs(few(limited, root=tmp_path / "large"))
    assert other.settings(0.2, 0, "pretrained").augmentation.size == 32
    images, _ = next(plain_batches(other.test, other.config))
    assert images.shape == (30, 3, 32, 32)


def test_many_classes_are_counted_among_the_first_five_too(checkpoint: Path) -> None:
    runs = Runs(few(checkpoint))
    images = ImageSet(
        torch.randint(256, (200, 3, 32, 32), dtype=torch.uint8), torch.arange(200) % 100, tuple(map(str, range(100)))
    )
    source = inputs.Inputs(images, "")
    runs.test = source
    learner = fine_tuner(runs.encoder("pretrained", 0), 100, augmentation=CROP_FLIP, lr=0.1, total_steps=1, seed=0)
    found = runs.measure(runs.settings(0.2, 0, "pretrained"), source, learner)
    logits, _ = extract(tuned(copy.deepcopy(learner)), [(images.images / 255, images.labels)], device="cpu")
    ranks = (logits > logits.gather(1, images.labels[:, None])).sum(dim=1)
    assert (found[1].metric, found[1].protocol) == ("top-5 accuracy", "finetune 20%")
    assert [x.value for x in found[:2]] == [float((ranks < k).double().mean()) for k in (1, 5)]


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": (0.2, 0.01)}, r"0.01 of 60 labels is 1, but there are 3 classes; take at least 3 / 60"),
        ({"batch_size": 1}, "batch_size is 1; BatchNorm needs at least 2"),
        ({"epochs": 0}, "epochs is 0; need at least 1"),
        ({"root": Path("nowhere")}, "nowhere does not exist; give --root"),
        ({"data": "cifar10"}, "give --root FOLDER"),
        ({"data": "tiny-imagenet", "root": Path("nowhere")}, r"wnids\.txt does not exist"),
        ({"checkpoint": Path("nowhere.ckpt")}, r"no checkpoint at nowhere\.ckpt"),
    ],
)
def test_mistakes_are_found_before_training(
    changes: dict[str, object], words: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "fit", None)
    with pytest.raises(ValueError, match=words):
        finetune.finetune(few(checkpoint, **changes), tmp_path)


def test_unlabelled_pretraining_needs_another_folder(root: Path, tmp_path: Path) -> None:
    for i, path in enumerate(sorted((root / "train").glob("*/*.png"))[:30]):
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / f"{i}.png").write_bytes(path.read_bytes())
    checkpoint = pretrained(tmp_path / "flat", tmp_path / "run")
    with pytest.raises(ValueError, match="no labels to probe with"):
        finetune.finetune(few(checkpoint), tmp_path / "out")
    found = finetune.finetune(few(checkpoint, root=root, from_scratch=False), tmp_path / "out")
    assert found[0].results[0].details["train"] == 12
