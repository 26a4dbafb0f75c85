"""The modes that take --inputs: what they write of which images, and what they refuse."""

import csv
import dataclasses
import io
import json
import re
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import small
from PIL import Image
from pyarrow import parquet
from test_loop import tiny
from test_main import message, size_of

from ali_jax import game
from ali_jax.data import DataError, Note, hub, inputs
from ali_jax.data.images import Stored
from ali_jax.data.pictures import NamedImage
from ali_jax.evaluate.rows import Rows
from ali_jax.main import main
from ali_jax.metrics import directions
from ali_jax.program import command, new_images
from ali_jax.records import known_data, weights
from ali_jax.records.workdir import absolute, read_config
from ali_jax.tools.anomaly import anomaly_scores
from ali_jax.tools.export import _kind_of
from ali_jax.tools.trained import Model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Give a folder of three classes of images: grey of the model's size, in colour, and wide."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, shape in (("a", (8, 8)), ("b", (8, 8, 3)), ("c", (12, 24))):
        (folder / name).mkdir()
        for i in range(2):
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def use(mode, run, photos, *more):
    return main(["--mode", mode, "--workdir", str(run), "--inputs", str(photos), *map(str, more)])


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_codes_of_a_folder_are_written_with_names_and_labels(run, trained, photos, capsys):
    assert use("encode", run, photos) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(run / "codes.npz"), str(run / "codes.csv")]
    assert err == (
        f"{photos.name}: 6 images. 2 made grey. 6 images of 2 sizes (8x8 to 12x24, height x width) are "
        "resized to 8x8 by crop: on average 17 % of an image is cut off, at most 50 %.\n"
    )
    written = np.load(run / "codes.npz")
    assert written["name"].tolist() == ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "c/0.png", "c/1.png"]
    assert written["label"].tolist() == list("aabbcc")
    mean, sigma = trained.posterior([photos / name for name in written["name"][:4]])
    np.testing.assert_allclose(written["mean"][:4], mean, atol=1e-6)
    np.testing.assert_allclose(written["sigma"][:4], sigma, atol=1e-6)
    rows = table(run / "codes.csv")
    assert list(rows[0]) == ["name", "label", *(f"{m}_{k}" for m in ("mean", "sigma") for k in range(3))]
    assert float(rows[5]["mean_2"]) == pytest.approx(written["mean"][5, 2], rel=1e-5)


def test_codes_become_the_file_that_out_names(run, photos, tmp_path):
    for name in ("x.parquet", "x.csv", "folder"):
        assert use("encode", run, photos, "--out", tmp_path / name) == 0
    written = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert written["name"][0] == "a/0.png"
    csv_rows = table(tmp_path / "x.csv")
    assert [float(row["sigma_1"]) for row in csv_rows] == pytest.approx(written["sigma_1"], rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["codes.csv", "codes.npz"]


def test_pictures_show_what_was_given_and_nothing_else(run, photos, tmp_path):
    """Six images are three rows of two pairs; a line is one row; amounts stand beside the original."""
    shapes = {"reconstruct": (2, 6), "interpolate": (1, 13), "edit": (6, 10), "nearest": (6, 13)}
    for mode, (rows, columns) in shapes.items():
        more = ("--direction", "3") if mode == "edit" else ()
        assert use(mode, run, photos, "--out", tmp_path / f"{mode}.png", *more) == 0
        width, height = size_of(tmp_path / f"{mode}.png")
        assert (width - 2) / (height - 2) == pytest.approx(columns / rows, rel=0.01), mode
    assert use("interpolate", run, photos, "--pairs", "--out", tmp_path / "pairs.png") == 0
    width, height = size_of(tmp_path / "pairs.png")
    assert (width - 2) / (height - 2) == pytest.approx(13 / 3, rel=0.01)
    with Image.open(tmp_path / "reconstruct.png") as picture:
        first = np.asarray(picture.resize((6 * 8, 2 * 8), Image.Resampling.BOX))
    assert first.std() > 10
    assert [new_images._columns(n) for n in (1, 2, 3, 5, 9, 10, 100)] == [1, 2, 2, 3, 3, 4, 10]


def test_single_files_and_moving_pictures(run, trained, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(new_images, "FRAMES", 4)
    assert use("reconstruct", run, photos / "a" / "0.png", "--out", tmp_path / "single") == 0
    (path,) = (tmp_path / "single").iterdir()
    with Image.open(path) as image:
        assert (image.size, image.mode, path.name) == ((8, 8), "L", "0.png")
        written = np.asarray(image)[..., None] / 255
    np.testing.assert_allclose(written, trained.reconstruct(photos / "a" / "0.png"), atol=0.003)
    assert (
        use("edit", run, photos, "--direction", "pc1", "--amount", "0,1.5", "--out", tmp_path / "edit") == 0
    )
    names = sorted(path.name for path in (tmp_path / "edit").iterdir())
    assert names[:2] == ["a_0_+0.png", "a_0_+1.5.png"]
    assert len(names) == 12
    for mode, name, frames in (("interpolate", "x.gif", 6), ("edit", "x.webp", 6)):
        more = ("--direction", "pc1") if mode == "edit" else ()
        assert use(mode, run, photos, "--out", tmp_path / name, *more) == 0
        with Image.open(tmp_path / name) as moving:
            assert moving.n_frames in (frames - 1, frames)  # two that are equal become one


def test_a_direction_is_the_difference_of_class_means_and_is_kept(run, trained, photos, monkeypatch):
    (run / "directions.json").unlink(missing_ok=True)
    train = game.load_data(tiny()).train
    batch = train.rows(np.arange(len(train)))
    z, label = trained.encode(batch.x), np.asarray(batch.label)
    expected = {
        "3": z[label == 3].mean(0) - z[label != 3].mean(0),
        "4:7": z[label == 7].mean(0) - z[label == 4].mean(0),
    }
    config = tiny()
    for name, vector in expected.items():
        options = command.parse(["--mode=edit", f"--workdir={run}", "--inputs=x", f"--direction={name}"])
        found = new_images.direction(config, options, trained)
        assert found[0] == name
        np.testing.assert_allclose(found[1], vector, atol=1e-5)
    monkeypatch.setattr(game, "load_data", lambda _: pytest.fail("the data are read again"))
    assert use("edit", run, photos, "--direction", "4:7") == 0
    kept = json.loads((run / "directions.json").read_text())
    assert (kept["step"], list(kept["directions"])) == (10, ["3", "4:7"])
    other = trained.__class__(**{**vars(trained), "step": 20})
    with pytest.raises(pytest.fail.Exception, match="read again"):
        new_images.direction(config, options, other)


def test_a_direction_between_two_folders(run, trained, photos, capsys):
    more = ("--from", photos / "a", "--to", photos / "b", "--direction", "a b", "--amount", "1")
    assert use("edit", run, photos / "a", *more) == 0
    z = [trained.encode(sorted((photos / name).iterdir())) for name in "ab"]
    kept = json.loads((run / "directions.json").read_text())["directions"]["a b"]
    np.testing.assert_allclose(kept["vector"], z[1].mean(0) - z[0].mean(0), atol=1e-5)
    assert kept["source"] == [str(photos / "a"), str(photos / "b")]
    assert use("edit", run, photos / "a", "--direction", "a b") == 0
    capsys.readouterr()
    assert use("edit", run, photos / "a", "--direction", "b") == 2
    assert "There is no direction 'b'. This run has 0, 1, 2," in capsys.readouterr().err


def test_a_direction_of_folders_is_that_of_their_images_today(run, trained, photos, tmp_path):
    ends = [tmp_path / name for name in ("from", "to")]
    for end, name in zip(ends, "ab", strict=True):
        shutil.copytree(photos / name, end)
    more = ("--from", ends[0], "--to", ends[1], "--direction", "mine")
    assert use("edit", run, photos / "a", *more) == 0
    shutil.copy(photos / "c" / "0.png", ends[1] / "new.png")
    assert use("edit", run, photos / "a", *more) == 0
    rule = inputs.Rule(trained.shape)
    z = [trained.encode(inputs.read(end, rule).x / np.float32(255)) for end in ends]
    kept = json.loads((run / "directions.json").read_text())["directions"]["mine"]
    np.testing.assert_allclose(kept["vector"], z[1].mean(0) - z[0].mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--direction", "3", "--from", "a", "--to", "b"), "3 is a direction of the run's own data"),
        (("--direction", "4:7", "--from", "a", "--to", "b"), "4:7 is a direction of the run's own data"),
        (("--direction", "pc1", "--from", "a", "--to", "b"), "pc1 is a direction of the run's own data"),
        (("--direction", "mine", "--from", "a", "--to", "a"), "'mine' leads nowhere"),
        (("--direction", "4:4"), "'4:4' leads nowhere"),
    ],
)
def test_a_direction_that_is_taken_or_leads_nowhere_is_refused(
    run, photos, capsys, monkeypatch, flags, message
):
    monkeypatch.chdir(photos)
    assert use("edit", run, photos / "a", *flags) == 2
    assert message in capsys.readouterr().err


def test_what_is_skipped_or_lies_under_transparency_is_said_as_in_training(tmp_path):
    rng = np.random.default_rng(0)
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[2:5, 2:5] = (0, 0, 0, 255)
    Image.fromarray(ink).save(tmp_path / "logo.png")
    frames = [Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "photo.heic").touch()
    rule = inputs.Rule((8, 8, 1))
    note = inputs.read(tmp_path, rule).note
    assert note.startswith(f"{tmp_path.name}: 2 images. ")
    assert note.count("2 images") == 1
    assert "Skipped: 1 .heic file, all but the first frame of 1 image" in note
    assert "transparen" in note
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("logo.png", "moving.gif", "photo.heic"):
            archive.write(tmp_path / name, name)
    of_zip = inputs.read(tmp_path / "all.zip", rule).note
    assert of_zip.replace("all.zip", tmp_path.name) == note
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray((rng.random((8, 8)) < 0.5).astype(np.uint8)).save(masks / "0.png")
    assert "all but black" in inputs.read(masks, rule).note


def test_correlated_attributes_are_told_apart_by_least_squares():
    rng = np.random.default_rng(0)
    true = np.array([[1.0, 0, 2], [0, -3, 0]])
    y = (rng.random((4_000, 1)) < 0.5).repeat(2, axis=1).astype(float)
    y[:, 1] = np.where(rng.random(4_000) < 0.9, y[:, 0], 1 - y[:, 0])
    z = 5 + y @ true + 0.1 * rng.standard_normal((4_000, 3))
    np.testing.assert_allclose(directions.attribute_directions(z, y), true, atol=0.02)
    is_set = y[:, 0] > 0
    plain = directions.class_direction(z, is_set, ~is_set)
    assert np.abs(plain - true[0]).max() > 1  # the difference of means follows the other attribute, too
    alone = directions.attribute_directions(z, y[:, :1])[0]
    np.testing.assert_allclose(alone, plain, atol=1e-9)


def test_a_principal_axis_is_one_deviation_long():
    z = np.random.default_rng(0).standard_normal((5_000, 3)) @ np.diag([3.0, 1, 0.5]) + 7
    np.testing.assert_allclose(directions.principal_axis(z, 1), [3, 0, 0], atol=0.15)
    np.testing.assert_allclose(directions.principal_axis(z, 3), [0, 0, 0.5], atol=0.05)
    with pytest.raises(ValueError, match="the axes 1 to 3"):
        directions.principal_axis(z, 4)
    with pytest.raises(ValueError, match="0 at its start"):
        directions.class_direction(z, np.ones(5_000, bool), np.zeros(5_000, bool))


def test_nearest_images_are_the_training_rows_themselves(run, tmp_path):
    train = game.load_data(tiny()).train.rows(np.arange(20))
    np.savez(tmp_path / "own.npz", images=train.x[[3, 11]])
    assert use("nearest", run, tmp_path / "own.npz", "--out", tmp_path / "n.csv") == 0
    rows = table(tmp_path / "n.csv")
    assert [(row["name"], row["rank"]) for row in rows[::5]] == [("images[0]", "1"), ("images[1]", "1")]
    assert [row["pixel_row"] for row in rows[::5]] == ["3", "11"]
    assert [int(row["code_row"]) for row in rows[::5]] == [3, 11]
    assert float(rows[0]["pixel_distance"]) == 0 < float(rows[1]["pixel_distance"])


def test_scores_have_the_p_values_of_the_test_rows(run, trained, tmp_path, capsys):
    test = game.load_data(tiny()).test
    x = test.rows(np.arange(len(test))).x
    np.savez(tmp_path / "own.npz", image=np.concatenate([x[:2], 16 - x[:1]]), label=np.array([4, -1, 5]))
    assert use("score", run, tmp_path / "own.npz", "--out", tmp_path / "s.csv") == 0
    err = capsys.readouterr().err
    assert f"compare with {len(x)} test rows of digits" in err
    rows = table(tmp_path / "s.csv")
    assert [row["label"] for row in rows] == ["4", "", "5"]
    scores = anomaly_scores(trained, x)
    for row, score in zip(rows, scores[:2], strict=False):
        assert float(row["score"]) == pytest.approx(score, rel=1e-4)
        assert float(row["p_value"]) == pytest.approx((1 + (scores >= score).sum()) / (1 + len(x)), abs=0.01)
    assert float(rows[2]["p_value"]) == pytest.approx(1 / (1 + len(x)), rel=1e-3)


def test_a_conditional_model_takes_the_folders_as_classes(photos):
    conditional = Model(None, None, (8, 8, 1), conditions=("a", "b", "c", "d"))
    found = inputs.read(photos, inputs.Rule((8, 8, 1)))
    assert new_images._conditions(conditional, found) == list("aabbcc")
    for path, labels in ((photos / "b", "bb"), (photos / "b" / "0.png", "b")):
        alone = inputs.read(path, inputs.Rule((8, 8, 1)), classes=conditional.conditions)
        assert new_images._conditions(conditional, alone) == list(labels)
    with pytest.raises(command.UsageError, match="'no class' is none of a, b, c, d"):
        new_images._conditions(conditional, found._replace(labels=("",)))
    with pytest.raises(command.UsageError, match="'c' is none of a, b"):
        new_images._conditions(dataclasses.replace(conditional, conditions=("a", "b")), found)


@pytest.fixture(scope="module")
def conditional():
    """Give a config, a model of it that is given the class, and eight rows."""
    config = tiny()
    config.dataset.conditional, config.condition.size = True, 10
    dataset = game.load_data(config)
    ali, batch = game.prepare(config, dataset).ali, dataset.train.rows(np.arange(8))
    variables = small.draw(ali, batch.x / np.float32(16), batch.y)
    return config, Model(ali, variables, (8, 8, 1), divisor=16.0, conditions=dataset.attributes), batch


def test_a_line_between_two_classes_has_the_class_of_each_end(conditional, tmp_path, monkeypatch):
    config, trained, batch = conditional
    x, y = batch.x / np.float32(16), ["3", "3", "7"]
    options = command.parse(["--mode=interpolate", f"--workdir={tmp_path}", "--inputs=x"])
    found = inputs.Inputs(batch.x[:3], ("a", "b", "c"), tuple(y), False, "")
    given = new_images.Given(config, options, trained, found, x[:3], y)
    drawn = []
    monkeypatch.setattr(new_images, "STEPS", 3)
    monkeypatch.setattr(new_images.figures, "interpolation_grid", lambda _, path, __: drawn.extend(path))
    monkeypatch.setattr(new_images.figures, "save_picture", lambda *_: None)
    assert len(list(new_images._MODES["interpolate"](given))) == 1
    (line,) = drawn
    np.testing.assert_allclose(line[[0, 2]], trained.reconstruct(x[[0, 2]], ["3", "7"]), atol=1e-5)
    z = trained.encode(x[[0, 2]], ["3", "7"]).mean(axis=0)
    half = np.eye(10, dtype=np.float32)[[3, 7]].mean(axis=0)
    np.testing.assert_allclose(line[1], trained.decode(z, half), atol=1e-5)
    assert np.abs(trained.reconstruct(x[2], "3") - line[2]).max() > 1e-3


@pytest.mark.parametrize("mode", ["nearest", "score"])
def test_a_conditional_model_compares_each_image_under_its_own_class(mode, conditional, tmp_path):
    """The second image is the first under another class: its code differs, its pixels do not."""
    config, trained, batch = conditional
    names = [trained.conditions[k] for k in np.argmax(batch.y, axis=1)]
    other = next(name for name in trained.conditions if name != names[0])
    found = inputs.Inputs(batch.x[[0, 0]], ("a", "b"), (names[0], other), False, "")
    options = command.parse(
        [f"--mode={mode}", f"--workdir={tmp_path}", "--inputs=x", f"--out={tmp_path}/x.csv"]
    )
    given = new_images.Given(config, options, trained, found, trained.rows(found.x), list(found.labels))
    assert list(new_images._MODES[mode](given)) == [tmp_path / "x.csv"]
    rows = table(tmp_path / "x.csv")
    if mode == "score":
        expected = anomaly_scores(trained, found.x, [names[0], other])
        np.testing.assert_allclose([float(row["score"]) for row in rows], expected, rtol=1e-4)
        assert abs(expected[0] / expected[1] - 1) > 1e-3
        with pytest.raises(ValueError, match="kind is 'egbad', and this model is given conditions"):
            anomaly_scores(trained, found.x, other, kind="egbad")
    else:
        first, second = rows[0], rows[len(rows) // 2]
        assert float(first["code_distance"]) < 1e-5 < float(second["code_distance"])
        assert first["pixel_row"] == second["pixel_row"] == "0"


def test_other_data_than_those_of_the_run_are_named_not_the_inputs(run, photos, tmp_path, capsys):
    np.savez(
        tmp_path / "other.npz",
        train_image=np.zeros((9, 9, 9), np.uint8),
        test_image=np.zeros((9, 9, 9), np.uint8),
    )
    arguments = [
        "--workdir",
        str(run),
        "--inputs",
        str(photos),
        f"--config.dataset.path={tmp_path}/other.npz",
    ]
    for mode in ("nearest", "score"):
        assert main(["--mode", mode, *arguments]) == 2
        err = capsys.readouterr().err
        assert re.search(
            r"the data of the run, .*other.npz' are \[9, 9, 1\], while this model takes \[8,", err
        )


def given_of(run, trained, *flags, **changes):
    """Return what a mode is given of a run, without inputs; keywords are keys of the config's data."""
    config = read_config(run)
    with config.unlocked():
        config.dataset.update(changes)
    options = command.parse([f"--workdir={run}", "--inputs=x", *flags])
    return new_images.Given(config, options, trained, None, None, None)


def test_other_data_of_the_model_s_shape_are_said_to_be_others(run, trained, tmp_path, capsys):
    new_images._own_data(given_of(run, trained, "--mode=score"))
    assert capsys.readouterr().err == ""
    rows = np.zeros((9, 8, 8), np.uint8)
    np.savez(tmp_path / "other.npz", train_image=rows, test_image=rows)
    given = given_of(run, trained, "--mode=score", path=str(tmp_path / "other.npz"))
    assert new_images._own_data(given).name == "other"
    said = "The data are not those that the run was trained on: divisor of pixels was 16; now 255"
    assert capsys.readouterr().err.startswith(said)
    new_images._data_with_names(given.config, run)
    assert capsys.readouterr().err.startswith(said)


def test_an_exported_model_takes_new_images(run, trained, photos, tmp_path, capsys):
    pytest.importorskip("safetensors")
    exported = tmp_path / "exported"
    exported.mkdir()
    shutil.copy(run / "config.json", exported)
    weights.write(exported, trained.variables, 10)
    known_data.write(exported, _kind_of(game.load_data(tiny())))
    assert use("encode", exported, photos / "a", "--out", tmp_path / "codes.npz") == 0
    codes = np.load(tmp_path / "codes.npz")["mean"]
    np.testing.assert_allclose(codes, trained.encode(sorted((photos / "a").iterdir())), atol=1e-5)
    capsys.readouterr()
    new_images._own_data(given_of(exported, trained, "--mode=score"))  # it does not know the rows
    assert capsys.readouterr().err == ""
    for mode in ("evaluate", "sample"):
        said = message(capsys, ["--mode", mode, "--workdir", str(exported)], 2)
        assert f"holds an exported model: --mode {mode} needs the folder of its run" in said


def test_vectors_are_scaled_once(tmp_path):
    vectors = np.array([[1, 2], [3, 4]], np.float32)
    two = Model(None, None, (2,), scale=2.0)
    found = inputs.Inputs(vectors, ("a", "b"), ("", ""), False, "")
    np.testing.assert_array_equal(two.rows(new_images._units(two, found)), 2 * vectors)
    dataset = SimpleNamespace(divisor=1.0)
    given = new_images.Given(None, None, two, found, None, None)
    stored = new_images._stored(given, dataset, Rows(2 * vectors, None, None))  # as the data are loaded
    np.testing.assert_array_equal(two.rows(stored), 2 * vectors)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a/0.png", "b/1.jpg"], ["a_0", "b_1"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        (["a/b.jpg", "a/b.png", "a_b.png"], ["1_a_b.jpg", "2_a_b.png", "3_a_b.png"]),
        (["A.png", "a.png"], ["1_A.png", "2_a.png"]),
        (["x[0]", "x[1]"], ["x_0", "x_1"]),
        (["v1.5", "v1.6"], ["v1.5", "v1.6"]),
        (["../x.png", "?"], [".._x", "image"]),
    ],
)
def test_each_row_has_a_file_of_its_own(names, files):
    assert new_images._file_names(names) == files


def test_a_picture_goes_into_the_folder_that_out_names(run, trained, tmp_path):
    (tmp_path / "there").mkdir()
    for out, path in (("there", "there/nearest.png"), ("new", "new/nearest.png"), ("x.jpg", "x.jpg")):
        given = given_of(run, trained, "--mode=nearest", f"--out={tmp_path / out}")
        assert new_images._picture_path(given, "nearest") == tmp_path / path
        assert path == "x.jpg" or (tmp_path / out).is_dir()


def test_images_are_not_written_among_those_that_are_read(run, photos, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    for out in (photos, photos / "made", "."):
        flags = [f"--workdir={run}", f"--inputs={photos}", f"--out={out}"]
        assert "whose images are read" in message(capsys, ["--mode=reconstruct", *flags], 2)
    assert not (photos / "made").exists()


def test_frames_lead_through_the_amounts_in_their_order(monkeypatch):
    monkeypatch.setattr(new_images, "FRAMES", 5)
    for amounts, frames in (((2, -2), (2, 1, 0, -1, -2)), ((0, 4, 1), (0, 2, 4, 2.5, 1)), ((3,), (3,) * 5)):
        assert new_images._in_frames(np.array(amounts, np.float32)).tolist() == list(frames)


def test_a_set_of_the_hub_is_read_whole(run, monkeypatch, capsys):
    arguments = ["--mode=encode", "--workdir", str(run), "--inputs=hf:someone/faces"]
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    assert "hf:someone/faces needs the library `datasets`: pip install" in message(capsys, arguments, 1)
    assert absolute("hf:someone/faces") == "hf:someone/faces"
    asked = []
    some = [NamedImage(Stored("x", lambda: png(200)), "train[0]", "a")]
    monkeypatch.setattr(hub, "read_rows", lambda name: asked.append(name) or (some, [Note("Of it.")]))
    found = inputs.read(Path("hf:someone/faces"), inputs.Rule((8, 8, 1)))
    assert asked == ["someone/faces"]
    assert (found.names, found.labels) == (("train[0]",), ("a",))
    assert found.note.startswith("faces: 1 image. Of it. ")


def test_broken_files_are_named_and_left_out_if_asked(run, photos, tmp_path, capsys):
    for i in range(2):
        Image.new("L", (8, 8), 99).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    arguments = ["--mode", "encode", "--workdir", str(run), "--inputs", str(tmp_path)]
    found = message(capsys, arguments, 1)
    assert "bad.png: not a readable image" in found
    assert "; --skip-broken leaves such files out" in found
    out = tmp_path / "out"
    assert main([*arguments, "--skip-broken", "--out", str(out)]) == 0
    assert "Skipped: " in capsys.readouterr().err
    assert np.load(out / "codes.npz")["name"].tolist() == ["0.png", "1.png"]


def test_inputs_are_padded_or_stretched_as_the_run_says(tmp_path):
    wide = np.zeros((4, 8), np.uint8)
    wide[:, :2] = 255
    Image.fromarray(wide).save(tmp_path / "x.png")
    x = {
        fit: inputs.read(tmp_path, inputs.Rule((8, 8, 1), fit, 128)).x[0, ..., 0]
        for fit in ("crop", "pad", "stretch")
    }
    assert x["crop"].max() < 60  # the white part is cut off
    assert (x["pad"][[0, 1, 6, 7]] == 128).all()
    assert x["pad"][3, 0] == 255
    assert x["stretch"][0, 0] == 255
    assert x["stretch"][7, 7] < 30


def test_an_archive_and_a_parquet_file_are_read_as_the_folder(photos, tmp_path):
    shutil.make_archive(str(tmp_path / "x"), "zip", photos)
    rule = inputs.Rule((8, 8, 1))
    folder = inputs.read(photos, rule)
    images = [{"bytes": (photos / name).read_bytes(), "path": name} for name in folder.names]
    write_rows(tmp_path / "x.parquet", images, list(folder.labels))
    for name in ("x.zip", "x.parquet"):
        found = inputs.read(tmp_path / name, rule)
        assert (found.names, found.labels) == (folder.names, folder.labels)
        np.testing.assert_array_equal(found.x, folder.x)
        assert found.note == folder.note.replace(photos.name, name)


def png(level, shape=(8, 8)):
    """Return an image of one grey level as the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.full(shape, level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_rows(path, images, label):
    parquet.write_table(pyarrow.table({"image": images, "label": label}), path, row_group_size=3)


def test_all_rows_of_tables_are_read_in_the_order_of_their_files(tmp_path):
    """Ten labels of ten rows are no classes, and a part is not left out: nothing is trained on here."""
    levels, rule = [20 * i for i in range(10)], inputs.Rule((8, 8, 1))
    write_rows(
        tmp_path / "rows.parquet",
        [{"bytes": png(level), "path": f"img_{level}.png"} for level in levels],
        levels,
    )
    found = inputs.read(tmp_path / "rows.parquet", rule)
    assert found.x[:, 0, 0, 0].tolist() == levels
    assert found.names == tuple(f"img_{level}.png" for level in levels)
    assert found.labels == tuple(map(str, levels))

    parts = tmp_path / "parts"
    parts.mkdir()
    for part, rows in {"train": levels[:5], "validation": levels[5:8], "test": levels[8:]}.items():
        images = [{"bytes": png(level), "path": f"{i}.png"} for i, level in enumerate(rows)]
        write_rows(parts / f"{part}-0.parquet", images, ["dog", None, "cat", "dog", "cat"][: len(rows)])
    found = inputs.read(parts, rule)
    assert found.x[:, 0, 0, 0].tolist() == [*levels[8:], *levels[:5], *levels[5:8]]
    assert found.names[1:4] == ("test-0.parquet[1]", "train-0.parquet[0]", "train-0.parquet[1]")
    assert found.names[5:7] == ("3.png", "4.png")  # no other row has these paths
    assert found.labels[2:7] == ("dog", "", "cat", "dog", "cat")
    assert found.note.startswith("parts: 10 images.")


def test_one_row_of_a_table_is_enough_and_a_broken_one_is_left_out(tmp_path):
    rule = inputs.Rule((8, 8, 1))
    write_rows(tmp_path / "one.parquet", [png(7)], [3])
    found = inputs.read(tmp_path / "one.parquet", rule)
    assert (found.names, found.labels, found.x.max()) == (("one.parquet[0]",), ("3",), 7)
    write_rows(tmp_path / "two.parquet", [b"no image", png(7)], [3, 4])
    with pytest.raises(DataError, match=r"two\.parquet row 0: not a readable image .* --skip-broken leaves"):
        inputs.read(tmp_path / "two.parquet", rule)
    found = inputs.read(tmp_path / "two.parquet", rule, skip_broken=True)
    assert (found.names, found.labels) == (("two.parquet[1]",), ("4",))


def test_the_folder_of_a_class_is_the_label_of_what_lies_in_it(tmp_path, monkeypatch):
    (tmp_path / "3" / "new").mkdir(parents=True)
    for name in ("0.png", "new/1.png"):
        (tmp_path / "3" / name).write_bytes(png(0))
    rule = inputs.Rule((8, 8, 1))
    for path, plain, of_classes in (
        (tmp_path, ("3", "new"), ("3", "3")),
        (tmp_path / "3", ("", "new"), ("3", "3")),
        (tmp_path / "3" / "0.png", ("",), ("3",)),
        (tmp_path / "3" / "new" / "1.png", ("",), ("",)),
    ):
        assert inputs.read(path, rule).labels == plain
        assert inputs.read(path, rule, classes=("3", "7")).labels == of_classes
    monkeypatch.chdir(tmp_path / "3")
    assert inputs.read(Path("."), rule, classes=("3", "7")).labels == ("3", "3")
    assert inputs.read(Path("0.png"), rule, classes=("3", "7")).labels == ("3",)


def test_arrays_of_other_types_are_resized_as_bytes_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 24, 3))
    read = {}
    for name, x in {"byte": pixels.astype(np.uint8), "int": pixels, "float": pixels / 255}.items():
        np.savez(tmp_path / "x.npz", image=x)
        read[name] = inputs.read(tmp_path / "x.npz", inputs.Rule((8, 8, 1)))
    assert read["byte"].x.shape == (2, 8, 8, 1)
    assert read["byte"].x.std() > 10
    np.testing.assert_array_equal(read["int"].x, read["byte"].x)
    np.testing.assert_array_equal(np.rint(255 * read["float"].x), read["byte"].x)
    assert read["float"].x.max() <= 1
    assert read["int"].note == read["float"].note == read["byte"].note
    own = np.random.default_rng(0).random((2, 8, 8))
    np.savez(tmp_path / "x.npz", image=own)
    np.testing.assert_array_equal(inputs.read(tmp_path / "x.npz", inputs.Rule((8, 8, 1))).x[..., 0], own)


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        (np.zeros((90, 120, 3), np.uint8), r"\[90, 120, 3\] of its array looks .* 90 grey images of 120x3$"),
        (np.zeros((8, 8), np.uint8), r"\[8, 8\] of its array looks .*write x\[None\] .* for one image$"),
        (np.zeros((2, 3, 12, 24), np.uint8), r"have 24 channels, .* np.moveaxis\(x, 1, -1\)"),
        (np.full((2, 12, 24), 300), "images are int64; .* integers from 0 to 255, .*run from 300 to 300"),
        (
            np.full((2, 12, 24), -1.0),
            r"images are float64; .* or floats from 0 to 1\. Its values run from -1",
        ),
    ],
)
def test_arrays_that_are_no_images_of_the_usual_kinds_are_refused(tmp_path, x, problem):
    np.savez(tmp_path / "x.npz", image=x)
    with pytest.raises(DataError, match=problem):
        inputs.read(tmp_path / "x.npz", inputs.Rule((8, 8, 1)))


def test_arrays_of_any_part_and_other_channels_are_read(tmp_path):
    colour = np.zeros((2, 8, 8, 3), np.uint8)
    colour[1] = 255
    np.savez(tmp_path / "x.npz", x_train=colour, x_test=colour[:1], y_train=[5, 6], y_test=[7])
    found = inputs.read(tmp_path / "x.npz", inputs.Rule((8, 8, 1)))
    assert found.x.shape == (3, 8, 8, 1)
    assert found.names == ("x_train[0]", "x_train[1]", "x_test[0]")
    assert found.labels == ("5", "6", "7")
    assert found.x.reshape(3, -1)[:, 0].tolist() == [0, 255, 0]
    np.savez(tmp_path / "alpha.npz", image=np.zeros((2, 9, 9, 4), np.uint8))
    with pytest.raises(DataError, match=r"images \[9, 9, 4\] have 4 channels, .* leave out the transparency"):
        inputs.read(tmp_path / "alpha.npz", inputs.Rule((8, 8, 1)))
    np.savez(tmp_path / "y.npz", a=colour, b=colour)
    with pytest.raises(DataError, match="no array of images; its arrays are a, b"):
        inputs.read(tmp_path / "y.npz", inputs.Rule((8, 8, 1)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--mode=encode"], "--mode encode needs --inputs PATH"),
        (
            ["--mode=sample", "--inputs=x"],
            "--inputs goes with --mode encode, edit, nearest, score, reconstruct",
        ),
        (["--mode=reconstruct", "--skip-broken"], "--skip-broken goes with --inputs"),
        (
            ["--mode=reconstruct", "--inputs=x", "--pairs"],
            "--pairs goes with --inputs and --mode interpolate",
        ),
        (["--mode=encode", "--inputs=x", "--amount=1"], "--amount goes with --inputs and --mode edit"),
        (["--mode=edit", "--inputs=x"], "needs --direction NAME, or --from DIR and --to DIR"),
        (["--mode=edit", "--inputs=x", "--from=a"], "--from DIR and --to DIR go together"),
        (["--mode=edit", "--inputs=x", "--direction=3", "--amount=a..b"], "--amount is 'a..b'; give a range"),
        (["--mode=encode", "--inputs=x", "--out=x.png"], "--mode encode writes .npz or .csv or .parquet"),
        (["--mode=encode", "--inputs=absent"], "absent: there is no such file or folder"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(run, capsys, arguments, expected):
    assert expected in message(capsys, ["--workdir", str(run), *arguments], 2)


def test_amounts_are_a_range_or_numbers():
    assert command.amounts("-2..2") == (-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2)
    assert command.amounts("-1,0,0.5") == (-1, 0, 0.5)
