"""Fig. 4 on a few rendered images: the command itself, what it measures, and mistakes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib import colormaps
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.markers import MarkerStyle
from PIL import Image
from torch import Tensor

from recipes import records
from recipes.vision import embed, embed_picture
from recipes.vision.config import Config
from recipes.vision.presets import preset
from recipes.vision.run import load_learner
from recipes.vision.run import pretrain as train
from stec.core.probe import extract
from stec.vision.analysis import centroid_distances
from stec.vision.data import ImageSet
from stec.vision.views import SIMCLR_IMAGENET, SIMCLR_STL

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")


def tiny(**changes: object) -> Config:
    """A run of a second."""
    config = dataclasses.replace(
        preset("quickstart"),
        width=4,
        limit=32,
        batch_size=16,
        epochs=1,
        warmup_epochs=0,
        precision="32-true",
        projection_hidden=16,
        projection_out=8,
        manipulation_hidden=16,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """One of SimCLR and two of S-TEC."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"simclr": tiny(lambda_manip=0.0), "stec": tiny(), "stec-1": tiny(seed=1)}
    return tuple(train(config, folder / name, quiet=True).checkpoint for name, config in settings.items())


def first_two(features: Tensor, *, seed: int) -> Tensor:
    """A projection in UMAP's place, which takes long to compile."""
    return features[:, :2].clone()


def test_the_command_writes_picture_and_record(checkpoints: tuple[Path, ...], tmp_path: Path) -> None:
    """With UMAP, in Python rather than compiled: that is faster for few images."""
    words = ["--checkpoint", str(checkpoints[1]), "--n", "10", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "recipes.vision.embed", *words],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Warning" not in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"embedding.png", "embedding.json"}
    with Image.open(tmp_path / "out" / "embedding.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
    assert (tmp_path / "out" / "embedding.png").stat().st_size < 150_000
    (record,) = records.read(tmp_path / "out" / "embedding.json")
    assert (record.method, record.stage) == ("S-TEC exact", "analysis")
    assert [(x.metric, x.protocol) for x in record.results] == [
        (metric, space)
        for space in ("features", "embedding")
        for metric in ("centroid distance", "centroid distance over class distance")
    ]
    for distance, ratio in (record.results[:2], record.results[2:]):
        assert ratio.value == pytest.approx(distance.value / distance.details["between classes"], rel=0.02)
        each = distance.details["each class"]
        assert isinstance(each, dict)
        assert len(each) == 10
        assert sum(each.values()) / 10 == pytest.approx(distance.value, abs=1e-3)
    assert record.settings["embedding"]["images"]["n"] == 10
    assert record.settings["embedding"]["umap"]["n_neighbors"] == 15
    assert str(tmp_path) not in (tmp_path / "out" / "embedding.json").read_text()


def test_distances_are_those_of_the_features_of_one_set_of_views(
    checkpoints: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the encoders themselves; both see the same pixels."""
    monkeypatch.setattr(embed, "umap_places", first_two)
    seen: list[list[Tensor]] = []

    def spied(encoder: torch.nn.Module, batches: object, **settings: object) -> object:
        kept = list(batches)  # type: ignore[call-overload]
        seen.append([views for views, _ in kept])
        return extract(encoder, kept, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(embed, "extract", spied)
    arguments = embed.Arguments(checkpoints[:2], n=260)
    found = embed.embed(arguments, tmp_path)
    pixels = [torch.cat(batches) for batches in seen]
    assert [len(batch) for batches in seen for batch in batches] == [256, 4, 256, 4]
    assert torch.equal(pixels[0], pixels[1])
    images, _ = embed.test_images(arguments, load_learner(checkpoints[0])[1])
    assert images.labels.bincount().tolist() == [26] * 10
    for path, record in zip(checkpoints, found):
        encoder = load_learner(path)[0].encoder.eval()
        with torch.no_grad():
            still, moved = encoder(images.images.float() / 255), encoder(pixels[0])
        for space, points in ((0, (still, moved)), (2, (still[:, :2], moved[:, :2]))):
            expected = centroid_distances(*points, labels=images.labels, augmented_labels=images.labels)
            assert record.results[space].value == pytest.approx(expected.distance, abs=2e-4)
            assert record.results[space + 1].value == pytest.approx(expected.ratio, abs=2e-4)


def test_runs_of_one_method_are_told_apart_by_their_folders(
    checkpoints: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the picture, the table and the record's settings; the method of a record stays what it is."""
    monkeypatch.setattr(embed, "umap_places", first_two)
    drawn: list[str] = []
    draw = embed_picture.draw

    def spied(rows: list[embed_picture.Row], *rest: object, **settings: object) -> object:
        drawn.extend(row.name for row in rows)
        return draw(rows, *rest, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(embed_picture, "draw", spied)
    words = [word for path in checkpoints for word in ("--checkpoint", str(path))]
    monkeypatch.setattr(sys, "argv", ["x", *words, "--n", "40", "--out", str(tmp_path / "out")])
    embed.main()
    expected = ["SimCLR", "S-TEC exact, stec", "S-TEC exact, stec-1"]
    assert drawn == expected
    table = capsys.readouterr().out.split("plain centroids")[1].splitlines()
    assert [" ".join(line.split()[:-4]) for line in table if "0." in line] == expected
    found = records.read(tmp_path / "out" / "embedding.json")
    assert [(r.method, r.settings["embedding"]["row"]) for r in found] == [
        (name.partition(",")[0], name) for name in expected
    ]


def test_checkpoints_of_one_run_and_runs_of_one_name_are_told_apart_too() -> None:
    def named(*paths: str) -> list[str]:
        return embed.told_apart(["A"] * len(paths), [Path(path) for path in paths])

    assert named("x/checkpoints/1.ckpt") == ["A"]
    assert named("x/checkpoints/1.ckpt", "x/checkpoints/2.ckpt") == ["A, x, 1", "A, x, 2"]
    alike = ["a/x/checkpoints/1.ckpt", "b/x/checkpoints/1.ckpt"]
    assert named(*alike) == [f"A, {path}" for path in alike]
    assert named(alike[0], alike[0]) == [f"A, {alike[0]}"] * 2


def test_views_follow_the_law_of_pretraining_and_know_their_magnitude() -> None:
    """Magnitude tells the crop: with no other change, the view of a ramp spans as much of it as the crop does."""
    n = 512
    pictures = torch.arange(96, dtype=torch.uint8)[None, None, None].repeat(n, 3, 96, 1)
    pictures[:, 1] = (torch.arange(n) // 2)[:, None, None]  # each has a mark of its own
    images = ImageSet(pictures, torch.arange(n), tuple(str(i) for i in range(n)))
    law = dataclasses.replace(SIMCLR_STL, strength=0.0, p_jitter=0.0, p_grayscale=0.0, p_blur=0.0, p_solarise=0.0)
    views = embed.draw_views(images, law, seed=0)
    assert not torch.equal(views.magnitude, embed.draw_views(images, law, seed=1).magnitude)
    assert not torch.equal(*views.magnitude.chunk(2))  # no batch repeats the one before it
    pixels, labels = (torch.cat(parts) for parts in zip(*views.batches()))
    assert torch.equal(labels, images.labels)
    assert torch.equal((pixels[:, 1, 48, 48] * 255).round().long(), labels // 2)
    spans = (pixels[:, 0, 48].amax(dim=1) - pixels[:, 0, 48].amin(dim=1)) * 255 / 95  # the crop's width over 96
    width = torch.cat([crops.width for crops, _ in views.draws]) / 96
    height = torch.cat([crops.height for crops, _ in views.draws]) / 96
    assert (spans - width).abs().max() < 0.03
    assert views.magnitude.tolist() == pytest.approx((1 - width * height).tolist(), abs=1e-6)
    coloured, _ = next(embed.draw_views(images, SIMCLR_STL, seed=0).batches())
    changed = (coloured - pixels[:256]).abs().flatten(1).amax(dim=1) > 0.02
    assert 0.6 < float(changed.float().mean()) < 1.0  # four fifths are jittered, the crops are the same
    batch, _ = next(embed.draw_views(images, SIMCLR_IMAGENET, seed=0).batches())
    assert batch.shape == (256, 3, 224, 224)


def a_row(n: int, classes: int) -> tuple[embed_picture.Row, Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    places = torch.randn(2 * n, 2, generator=generator)
    found = centroid_distances(*places.chunk(2), labels=labels, augmented_labels=labels)
    row = embed_picture.Row("S-TEC", places, torch.cat((labels, labels)), found, found)
    return row, torch.rand(n, generator=generator), [f"class {i}" for i in range(classes)]


@pytest.mark.parametrize(("classes", "rows"), [(2, 1), (10, 3), (20, 1), (100, 1)])
def test_every_encoder_has_four_panels(classes: int, rows: int, tmp_path: Path) -> None:
    row, magnitude, names = a_row(200, classes)
    figure = embed_picture.draw([row] * rows, magnitude, names, path=tmp_path / "x.png")
    assert len(figure.axes) == 4 * rows + 1  # and the bar of magnitudes
    shown = [len(panel.collections[0].get_offsets()) for panel in figure.axes[:3]]
    assert shown == [400, 400, 200]
    assert len(figure.axes[3].lines) == 3 * classes
    # the first panel's colours are magnitudes, grey for plain images, and each point has its own
    points = figure.axes[0].collections[0]
    of_point = dict(zip(map(tuple, points.get_offsets().tolist()), points.get_facecolor().tolist()))
    for i in (0, 7, 199):
        assert to_hex(of_point[tuple(row.places[i].tolist())]) == embed_picture.PLAIN
        shade = colormaps["viridis"](float(magnitude[i]))
        assert of_point[tuple(row.places[200 + i].tolist())] == pytest.approx(shade, abs=1e-6)
    # and those of the second and third are classes
    colours = embed_picture.colours(torch.arange(classes), classes)
    assert len({tuple(colour) for colour in colours.tolist()}) == classes
    both, alone = (figure.axes[k].collections[0] for k in (1, 2))
    of_both = dict(zip(map(tuple, both.get_offsets().tolist()), both.get_facecolor().tolist()))
    assert torch.equal(torch.from_numpy(alone.get_offsets().data).float(), row.places[:200])
    for i in (0, 7, 199):
        assert alone.get_facecolor()[i].tolist() == pytest.approx(colours[i % classes].tolist())
        assert of_both[tuple(row.places[200 + i].tolist())] == pytest.approx(colours[i % classes].tolist())


@pytest.mark.parametrize(("n", "size"), [(20, 24.0), (200, 10.0), (1000, 2.4)])
def test_plain_images_are_points_and_augmented_ones_crosses_larger_where_they_are_few(
    n: int, size: float, tmp_path: Path
) -> None:
    row, magnitude, names = a_row(n, 10)
    figure = embed_picture.draw([row], magnitude, names, path=tmp_path / "x.png")
    plain = {tuple(place) for place in row.places[:n].tolist()}
    for panel in figure.axes[:3]:
        (cloud,) = panel.collections
        assert isinstance(cloud, PathCollection)
        places, sizes, paths = cloud.get_offsets().tolist(), cloud.get_sizes().tolist(), cloud.get_paths()
        assert len(places) == len(sizes) == len(paths)
        for place, area, path in zip(places, sizes, paths):
            mark = "o" if tuple(place) in plain else "x"
            own = MarkerStyle(mark)
            assert path.vertices.tolist() == own.get_path().transformed(own.get_transform()).vertices.tolist()
            assert area == pytest.approx(size * (1 if mark == "o" else 1.6))


def test_without_umap_the_extra_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[analysis\]" in the clone'):
        embed.embed(embed.Arguments((tmp_path / "nowhere.ckpt",)), tmp_path)


def test_a_folder_called_umap_is_not_taken_for_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without umap-learn Python imports the folder, as a package without content."""
    (tmp_path / "umap").mkdir()
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "argv", ["x", "--checkpoint", "nowhere.ckpt", "--out", str(tmp_path / "new")])
    try:
        with pytest.raises(ValueError, match=rf'finds {tmp_path}/umap in its place: pip install -e "\.\[analysis\]"'):
            embed.main()
    finally:
        sys.modules.pop("umap", None)
    assert not (tmp_path / "new").exists()


def test_images_of_many_sizes_are_cut_to_that_of_the_views(checkpoints: tuple[Path, ...], tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i, size in enumerate([(40, 50), (64, 36)]):
            folder = tmp_path / split / f"class{i}"
            folder.mkdir(parents=True)
            for k in range(6):
                Image.new("RGB", size).save(folder / f"{k}.png")
    arguments = embed.Arguments(checkpoints, root=tmp_path, data="folder")
    config = load_learner(checkpoints[0])[1]
    with pytest.raises(ValueError, match="these images are of many sizes"):
        embed.test_images(arguments, config)
    sized = dataclasses.replace(config, augmentation=dataclasses.replace(config.augmentation, size=24))
    images, _ = embed.test_images(arguments, sized)
    assert images.images.shape == (12, 3, 24, 24)


def test_too_few_images(checkpoints: tuple[Path, ...]) -> None:
    with pytest.raises(ValueError, match="9 images are too few for an embedding; give at least --n 10"):
        embed.test_images(embed.Arguments(checkpoints, n=9), load_learner(checkpoints[0])[1])


def test_a_checkpoint_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["embed"])
    with pytest.raises(ValueError, match="give --checkpoint FILE"):
        embed.main()
