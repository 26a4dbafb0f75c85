"""Data sets are read by name and from files; mistakes are refused with a helpful message."""

import io
import re
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image
from scipy.io import savemat

from ali_jax import data
from ali_jax.data import DataError, files, images, prepare, tfds
from ali_jax.data.dataset import select, stratified

rng = np.random.default_rng(0)


def pixels(n, side=8, channels=3):
    return rng.integers(0, 256, (n, side, side, channels)).astype(np.uint8)


def save_npz(path, **changes):
    arrays = {
        "train_image": pixels(6),
        "test_image": pixels(3),
        "train_label": np.arange(6),
        "test_label": np.arange(3),
    }
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez(path, **arrays)
    return arrays


def save_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def refuse(path, *words, **options):
    """Check that loading fails with one message that names the file and contains the words."""
    with pytest.raises(DataError) as error:
        data.load("digits", path=str(path), **options)
    for word in (path.name, *words):
        assert word in str(error.value)


class TestDigits:
    def test_split_is_stratified_and_covers_the_set(self):
        digits = data.load("digits", seed=5)
        assert (len(digits.train), len(digits.test), digits.train.shape) == (1400, 397, (8, 8, 1))
        train, test = (s.rows(np.arange(len(s))) for s in (digits.train, digits.test))
        assert train.x.dtype == np.uint8
        assert train.label.dtype == np.int32
        assert train.x.max() == digits.divisor == 16
        counts = np.bincount(train.label) * 397 - np.bincount(test.label) * 1400
        assert np.abs(counts / 1797).max() <= 1  # at most one image from proportion
        everything = {row.tobytes() for row in np.concatenate([train.x, test.x])}
        from sklearn.datasets import load_digits

        assert everything == {row.astype(np.uint8).tobytes() for row in load_digits().images}

    def test_same_for_every_seed(self):
        a, b = (data.load("digits", seed=seed).test.rows(np.arange(9)) for seed in (0, 1))
        np.testing.assert_array_equal(a.x, b.x)


class TestMixtures:
    @pytest.mark.parametrize(
        ("name", "k", "std"), [("mixture", 25, 0.05), ("mixture_100", 100, 0.05), ("ring", 8, 0.01)]
    )
    def test_points_have_the_declared_moments(self, name, k, std):
        mixture = data.load(name)
        rows = mixture.train.rows(np.arange(100_000))
        assert mixture.modes.shape == (k, 2)
        assert rows.x.dtype == np.float32
        residual = (rows.x - mixture.modes[rows.label]) / std
        assert abs(residual.std() - 1) < 0.01
        assert np.abs(residual.mean(0)).max() < 0.02
        counts = np.bincount(rows.label, minlength=k)
        assert np.abs(counts / 100_000 * k - 1).max() < 0.1
        assert len(mixture.test) == 10_000

    def test_modes_are_those_of_the_paper(self):
        assert {tuple(m) for m in data.load("mixture").modes} == {
            (a, b) for a in range(-4, 5, 2) for b in range(-4, 5, 2)
        }
        assert {tuple(m) for m in data.load("mixture_100").modes} == {
            (a, b) for a in range(-9, 10, 2) for b in range(-9, 10, 2)
        }
        np.testing.assert_allclose(np.hypot(*data.load("ring").modes.T), 1, rtol=1e-6)

    def test_test_points_and_other_seeds_are_other_points(self):
        index = np.arange(10_000)
        a, b = data.load("mixture"), data.load("mixture", seed=1)
        draws = [split.rows(index) for split in (a.train, a.test, b.train, b.test)]
        for i, one in enumerate(draws):
            for other in draws[:i]:
                assert np.mean(one.x == other.x) < 0.01
                assert np.mean(one.label == other.label) < 0.1
        np.testing.assert_array_equal(data.load("mixture").train.rows(index).x, draws[0].x)

    def test_scale_multiplies_points_modes_and_std(self):
        one, half = data.load("ring"), data.load("ring", scale=0.5)
        index = np.arange(100)
        np.testing.assert_allclose(half.train.rows(index).x, one.train.rows(index).x / 2, rtol=1e-6)
        np.testing.assert_allclose(half.modes, one.modes / 2)
        assert half.mode_std == one.mode_std / 2


class TestNames:
    def test_every_source_is_listed(self):
        assert set(data.names()) == {"digits", "mixture", "mixture_100", "ring", *tfds.NAMES}

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [("digit", "digits"), ("cifra10", "cifar10"), ("imagenet_resized/65x65", "imagenet_resized/64x64")],
    )
    def test_unknown_name_says_what_there_is_and_the_nearest(self, name, nearest):
        with pytest.raises(DataError, match=f"Did you mean {nearest}"):
            data.load(name)
        with pytest.raises(DataError, match="celeb_a, cifar10, digits"):
            data.load(name)

    def test_images_of_ones_own_need_a_path(self):
        with pytest.raises(DataError, match=r"^give your images: --config.dataset.path=DIR or an .npz$"):
            data.load("images")

    def test_conditions_are_refused_where_there_are_none(self, tmp_path):
        black = {f"{part}_image": np.zeros((3, 8, 8), np.uint8) for part in ("train", "test")}
        np.savez(tmp_path / "black.npz", **black)
        with pytest.raises(DataError, match="has neither attributes nor labels: set it to False"):
            data.load("images", path=str(tmp_path / "black.npz"), conditional=True)

    def test_conditions_are_classes_where_there_are_no_attributes(self):
        dataset = data.load("digits", conditional=True)
        batch = dataset.train.rows(np.arange(50))
        np.testing.assert_array_equal(batch.y, np.eye(10)[batch.label])
        assert dataset.attributes == tuple("0123456789")

    def test_scale_is_refused_for_images(self):
        with pytest.raises(DataError, match="scale is 2"):
            data.load("digits", scale=2.0)


TEN = {"train": data.ArraySplit(np.arange(10, dtype=np.float32)[:, None])}


class TestSplits:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("train", range(10)),
            ("train[:4]", range(4)),
            ("train[4:]", range(4, 10)),
            ("train[-3:]", range(7, 10)),
            ("train[20%:50%]", range(2, 5)),
            ("train[ 8 : 99 ]", range(8, 10)),
        ],
    )
    def test_slices(self, text, expected):
        part = select(TEN, text)
        np.testing.assert_array_equal(part.rows(np.arange(len(part))).x[:, 0], expected)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("trian", "there is no split .* are train"),
            ("train[5:5]", "no rows: train has 10"),
            ("train[1:2", "not of the form"),
        ],
    )
    def test_mistakes(self, text, message):
        with pytest.raises(DataError, match=message):
            select(TEN, text)

    @pytest.mark.parametrize(
        ("train", "test", "problem"),
        [
            ("trian", "test", "there is no split 'trian'; the splits are train, test"),
            ("train", "valid", "'valid': there is no split 'validation'; the splits are train, test"),
            ("train[:4]", "extra", "there is no split 'extra'"),
            ("train[:45000]", "train[45000:]", "has no rows: train has 6; the splits are train, test"),
            ("train[50000:", "test", "is not of the form NAME, .*; the splits are train, test"),
            ("train[:3]+extra", "test", "is not of the form NAME"),
        ],
    )
    def test_a_split_that_files_lack_is_refused_with_those_that_there_are(
        self, tmp_path, train, test, problem
    ):
        save_npz(tmp_path / "a.npz")
        asked_for = f"train_split is {train!r}, test_split is {test!r}"
        with pytest.raises(DataError, match=rf"a\.npz: config\.dataset\.{re.escape(asked_for)}: .*") as error:
            data.load("", path=str(tmp_path / "a.npz"), train_split=train, test_split=test)
        assert re.search(problem, str(error.value))

    @pytest.mark.parametrize(
        ("asked_for", "given"),
        [
            (("extra", "train"), ("train", "test")),  # as experiments/svhn.py
            (("extra", "test"), ("train", "test")),
            (("extra[:4]", "train[4:]"), ("train[:4]", "train[4:]")),
        ],
    )
    def test_train_stands_for_the_extra_split_of_svhn_and_this_is_said(self, tmp_path, asked_for, given):
        arrays = save_npz(tmp_path / "a.npz")
        train, test = asked_for
        dataset = data.load("", path=str(tmp_path / "a.npz"), train_split=train, test_split=test)
        assert dataset.splits == given
        x = dataset.train.rows(np.arange(len(dataset.train))).x
        np.testing.assert_array_equal(x, arrays["train_image"][: len(x)])
        note = f"There is no split extra, which SVHN has: training is on {given[0]}, testing on {given[1]}."
        assert note in [note.text for note in dataset.notes]

    def test_equal_splits_are_used_with_a_warning(self, tmp_path):
        save_npz(tmp_path / "a.npz")
        own = data.load("", path=str(tmp_path / "a.npz"), test_split="train")
        for dataset in (own, data.load("digits", test_split="train")):
            assert len(dataset.train) == len(dataset.test)
            assert dataset.notes[-1] == data.Note(
                "Training and test rows are the same: both are train.", True
            )
        assert not data.load("digits").notes

    def test_an_npz_may_have_the_names_of_keras(self, tmp_path):
        arrays = save_npz(tmp_path / "a.npz")
        names = {"train_image": "x_train", "test_image": "x_test", "train_label": "y_train"}
        np.savez(tmp_path / "b.npz", **{names.get(key, key): value for key, value in arrays.items()})
        one, other = (data.load("", path=str(tmp_path / name)) for name in ("a.npz", "b.npz"))
        for a, b in ((one.train, other.train), (one.test, other.test)):
            rows = np.arange(len(a))
            np.testing.assert_array_equal(a.rows(rows).x, b.rows(rows).x)
            np.testing.assert_array_equal(a.rows(rows).label, b.rows(rows).label)

    def test_files_are_sliced_as_the_splits_say(self, tmp_path):
        arrays = save_npz(tmp_path / "a.npz")
        dataset = data.load("", path=str(tmp_path / "a.npz"), train_split="train[:4]", test_split="train[4:]")
        assert dataset.splits == ("train[:4]", "train[4:]")
        np.testing.assert_array_equal(dataset.train.rows(np.arange(4)).x, arrays["train_image"][:4])
        np.testing.assert_array_equal(dataset.test.rows(np.arange(2)).label, [4, 5])
        for i in range(20):
            save_image(tmp_path / "folder" / f"{i}.png", np.full((8, 8), i, np.uint8))
        swapped = data.load("", path=str(tmp_path / "folder"), train_split="test", test_split="train[:50%]")
        assert (len(swapped.train), len(swapped.test)) == (2, 9)

    def test_a_data_set_says_which_splits_it_holds(self):
        dataset = data.load("digits", train_split="train[:9]", test_split="train[9:]")
        assert (len(dataset.train), dataset.splits) == (9, ("train[:9]", "train[9:]"))
        assert data.load("ring").splits == ("train", "test")

    def test_stratified_holds_out_every_class_in_proportion(self):
        label = np.repeat([0, 1, 2], [50, 30, 20])
        train, test = stratified(label, 10)
        np.testing.assert_array_equal(np.bincount(label[test]), [5, 3, 2])
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(100))


class TestNpz:
    def test_images_and_labels(self, tmp_path):
        arrays = save_npz(tmp_path / "my.npz")
        dataset = data.load(path=str(tmp_path / "my.npz"))
        assert (dataset.name, dataset.divisor, dataset.num_classes, dataset.train.shape) == (
            "my",
            255,
            6,
            (8, 8, 3),
        )
        batch = dataset.train.rows(np.array([5, 0]))
        np.testing.assert_array_equal(batch.x, arrays["train_image"][[5, 0]])
        np.testing.assert_array_equal(batch.label, [5, 0])

    def test_grey_images_get_a_channel_and_labels_may_lack(self, tmp_path):
        save_npz(
            tmp_path / "a.npz",
            train_image=pixels(6)[..., 0],
            test_image=pixels(3)[..., 0],
            train_label=None,
            test_label=None,
        )
        dataset = data.load("", path=str(tmp_path / "a.npz"))
        assert (dataset.train.shape, dataset.num_classes) == ((8, 8, 1), 0)
        assert dataset.train.rows(np.arange(2)).label is None

    def test_vectors_become_scaled_float32(self, tmp_path):
        arrays = save_npz(
            tmp_path / "a.npz", train_image=rng.normal(size=(6, 5)), test_image=rng.normal(size=(3, 5))
        )
        dataset = data.load("", path=str(tmp_path / "a.npz"), scale=2.0)
        assert (dataset.train.dtype, dataset.divisor) == (np.float32, 1.0)
        np.testing.assert_allclose(dataset.test.rows(np.arange(3)).x, 2 * arrays["test_image"], rtol=1e-6)

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"test_image": None}, "no array test_image"),
            ({"train_image": np.array([{}] * 6)}, "Python objects"),
            ({"train_image": np.zeros((6, 8, 8, 3), np.int64)}, "train_image is int64"),
            ({"train_image": np.zeros((6, 8, 8, 3), np.float32)}, "must be uint8"),
            ({"train_image": np.zeros((6, 8), np.uint8)}, "train_image is uint8 [6, 8]"),
            ({"train_image": np.zeros((6, 8, 9, 3), np.uint8)}, "(8, 9, 3) in train but (8, 8, 3) in test"),
            ({"train_image": np.zeros((6, 8, 8, 4), np.uint8)}, "1 or 3 channels"),
            (
                {"train_image": np.zeros((0, 8, 8, 3), np.uint8), "train_label": None, "test_label": None},
                "is empty",
            ),
            ({"train_image": pixels(6, 4)}, "(4, 4, 3) in train but (8, 8, 3) in test"),
            ({"train_image": np.full((6, 2), np.nan), "test_image": np.zeros((3, 2))}, "NaN"),
            ({"train_label": np.arange(5)}, "5 entries for 6 images"),
            ({"train_label": np.arange(6.0)}, "must be integers or names"),
            ({"train_label": np.arange(6) - 2}, "runs from -2 to 3"),
            ({"test_label": None}, "only train has labels"),
            (
                {"train_image": None, "test_label": None, "pictures": pixels(2)},
                "no array train_image; its arrays are: test_image uint8 [3, 8, 8, 3], train_label int64 [6], "
                "pictures uint8 [2, 8, 8, 3]",
            ),
        ],
    )
    def test_mistakes(self, tmp_path, changes, word):
        save_npz(tmp_path / "bad.npz", **changes)
        refuse(tmp_path / "bad.npz", word)

    def test_damaged_files(self, tmp_path):
        save_npz(tmp_path / "good.npz")
        content = (tmp_path / "good.npz").read_bytes()
        (tmp_path / "cut.npz").write_bytes(content[:-100])
        refuse(tmp_path / "cut.npz", "truncated")
        (tmp_path / "flipped.npz").write_bytes(content[:300] + bytes([content[300] ^ 255]) + content[301:])
        refuse(tmp_path / "flipped.npz", "damaged")
        (tmp_path / "text.npz").write_text("no zip at all")
        refuse(tmp_path / "text.npz", "not an .npz file")
        with zipfile.ZipFile(tmp_path / "alien.npz", "w") as archive:
            archive.writestr("train_image.npy", b"nothing")
        refuse(tmp_path / "alien.npz", "damaged")

    def test_wrong_places(self, tmp_path):
        refuse(tmp_path / "absent.npz", "no such file")
        (tmp_path / "a.rar").write_text("")
        refuse(tmp_path / "a.rar", "unsupported file type; give a directory, a zip or a tar of images, ")


class TestFolder:
    def test_class_folders_give_labels_in_the_order_of_names(self, tmp_path):
        shown = {}
        for i in range(30):
            array = pixels(1)[0]
            save_image(tmp_path / "abc"[i % 3] / f"{i}.png", array)
            shown[array.tobytes()] = i % 3
        save_image(tmp_path / ".hidden" / "x.png", pixels(1, 4)[0])
        (tmp_path / "README.txt").write_text("not an image")
        dataset = data.load("", path=str(tmp_path))
        assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (27, 3, 3)
        for split in (dataset.train, dataset.test):
            batch = split.rows(np.arange(len(split)))
            assert [shown.pop(x.tobytes()) for x in batch.x] == list(batch.label)
        np.testing.assert_array_equal(np.sort(dataset.test.rows(np.arange(3)).label), [0, 1, 2])
        again = data.load("", path=str(tmp_path)).test.rows(np.arange(3))
        np.testing.assert_array_equal(again.x, dataset.test.rows(np.arange(3)).x)

    def test_train_and_test_folders_share_their_classes(self, tmp_path):
        for folder in ("train/cat", "train/dog", "test/cat", "test/dog"):
            save_image(tmp_path / folder / "1.png", pixels(1)[0])
        dataset = data.load("", path=str(tmp_path))
        assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (2, 2, 2)
        np.testing.assert_array_equal(dataset.test.rows(np.arange(2)).label, [0, 1])

    def test_a_single_folder_is_no_class(self, tmp_path):
        for i in range(4):
            save_image(tmp_path / "all" / f"{i}.png", pixels(1)[0])
        assert data.load("", path=str(tmp_path)).num_classes == 0

    def test_a_tenth_is_held_out_but_two_at_least(self, tmp_path):
        for i in range(4):
            save_image(tmp_path / f"{i}.png", pixels(1)[0])
        assert [len(split) for split in data.load("", path=str(tmp_path))[1:3]] == [2, 2]
        for i in range(4, 30):
            save_image(tmp_path / f"{i}.png", pixels(1)[0])
        assert [len(split) for split in data.load("", path=str(tmp_path))[1:3]] == [27, 3]

    def test_photographs_stand_upright(self, tmp_path):
        top_dark = np.repeat(np.array([0, 0, 255, 255], np.uint8).repeat(2)[:, None], 8, axis=1)
        exif = Image.Exif()
        exif[0x0112] = 6  # "the first row is the right side": the viewer turns it clockwise
        lying = Image.fromarray(np.rot90(top_dark))
        for i in range(4):
            lying.save(tmp_path / f"{i}.png", exif=exif)
        x = data.load("", path=str(tmp_path)).train.rows(np.arange(1)).x[0, ..., 0]
        np.testing.assert_array_equal(x, top_dark)

    def test_damaged_metadata_leave_the_pixels(self, tmp_path):
        for i in range(4):
            Image.new("L", (8, 8), 7).save(tmp_path / f"{i}.png", exif=b"Exif\0\0no header")
        assert (data.load("", path=str(tmp_path)).train.rows(np.arange(1)).x == 7).all()

    @pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "gif", "jpg", "webp"])
    def test_formats(self, tmp_path, suffix):
        ramp = np.stack(np.meshgrid(np.arange(8) * 30, np.arange(8) * 30, [128], indexing="ij"), -1)[:, :, 0]
        for i in range(4):
            save_image(tmp_path / f"{i}.{suffix.upper()}", ramp.astype(np.uint8))
        x = data.load("", path=str(tmp_path)).train.rows(np.arange(1)).x[0].astype(int)
        assert x.shape == (8, 8, 3)
        assert np.abs(x - ramp).mean() < 12  # the lossy ones; a permutation of channels is off by 50

    def test_grey_images_keep_one_channel_unless_others_have_colours(self, tmp_path):
        grey = pixels(4, channels=1)[..., 0]
        for i in range(4):
            save_image(tmp_path / "a" / f"{i}.png", grey[i])
        assert data.load("", path=str(tmp_path / "a")).train.shape == (8, 8, 1)
        save_image(tmp_path / "a" / "4.png", pixels(1)[0])
        dataset = data.load("", path=str(tmp_path / "a"))
        rows = np.concatenate([s.rows(np.arange(len(s))).x for s in (dataset.train, dataset.test)])
        assert any((x == grey[0][..., None]).all() for x in rows)

    def test_a_large_folder_is_decoded_when_asked(self, tmp_path, monkeypatch):
        for i in range(5):
            save_image(tmp_path / f"{i}.png", np.full((8, 8, 3), i, np.uint8))
        eager = data.load("", path=str(tmp_path))
        monkeypatch.setattr(files, "EAGER_BYTES", 0)
        lazy = data.load("", path=str(tmp_path))
        assert isinstance(lazy.train, data.SourceSplit)
        assert lazy.train.nbytes == 3 * 8 * 8 * 3
        index = np.array([2, 0])
        np.testing.assert_array_equal(lazy.train.rows(index).x, eager.train.rows(index).x)
        for path in tmp_path.glob("*.png"):
            path.write_bytes(b"damaged later")
        with pytest.raises(DataError, match=r"\d.png: not a readable image"):
            lazy.train.rows(index)

    def test_mistakes(self, tmp_path):
        def folder(name, *arrays):
            for i, array in enumerate(arrays):
                save_image(tmp_path / name / f"{i}.png", array)
            (tmp_path / name).mkdir(exist_ok=True)
            return tmp_path / name

        refuse(folder("empty"), "no images")
        refuse(folder("few", *pixels(3)), "too few images (3)")
        refuse(folder("mixed", *pixels(3), pixels(1, 4)[0]), "3.png is 4x4", "8x8", "0.png")
        broken = folder("broken", *pixels(4))
        (broken / "1.png").write_bytes(b"not a png")
        refuse(broken, "1.png: not a readable image")
        cut = folder("cut", *pixels(4, 32))
        (cut / "0.png").write_bytes((cut / "0.png").read_bytes()[:200])
        refuse(cut, "0.png: not a readable image")
        half = folder("half/train", pixels(1)[0]).parent
        refuse(half, "none named test")

    def test_decompression_bomb(self, tmp_path, monkeypatch):
        for i in range(4):
            save_image(tmp_path / "bomb" / f"{i}.png", pixels(1)[0])
        monkeypatch.setattr(images, "MAX_PIXELS", 63)
        refuse(tmp_path / "bomb", "0.png: too large (8x8 pixels)")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        refuse(tmp_path / "bomb", "0.png: too large")


class TestPixels:
    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path):
        wide = np.array([[0, 257, 65535], [400, 32768, 65000]], np.uint16)  # 400 is 1.56, 65,000 is 252.9
        save_image(tmp_path / "a.png", wide)
        with images.opened(tmp_path / "a.png") as image:
            np.testing.assert_array_equal(images.to_uint8(image, 1)[..., 0], [[0, 1, 255], [2, 128, 253]])
            assert images.is_grey(image)

    def test_palette_and_transparency(self):
        image = Image.new("P", (1, 1))
        image.putpalette([10, 20, 30])
        image.info["transparency"] = b"\x00"
        np.testing.assert_array_equal(images.to_uint8(image, 3, background=7), [[[7, 7, 7]]])
        rgba = Image.fromarray(np.array([[[1, 2, 3, 128]]], np.uint8))
        expected = [round((c * 128 + 255 * 127) / 255) for c in (1, 2, 3)]
        np.testing.assert_array_equal(images.to_uint8(rgba, 3), [[expected]])

    def test_floats_are_refused(self):
        with pytest.raises(DataError, match="floats"):
            images.to_uint8(Image.new("F", (2, 2)), 1)

    def test_celeba_crop_keeps_the_centre_rows(self):
        # Height is a ramp: row i of 78 shows the source around (i + 0.5) 218 / 78, and i = 7, ..., 70 stay.
        ramp = np.repeat(np.arange(218, dtype=np.uint8)[:, None, None], 178, axis=1).repeat(3, axis=2)
        x = images.crop_celeba(Image.fromarray(ramp))
        assert x.shape == (64, 64, 3)
        expected = (np.arange(7, 71) + 0.5) * 218 / 78 - 0.5
        assert np.abs(x[:, 32, 0] - expected).max() <= 1

    def test_celeba_crop_is_antialiased(self):
        stripes = (
            np.tile(np.array([0, 255], np.uint8), 89)[None, :, None].repeat(218, axis=0).repeat(3, axis=2)
        )
        x = images.crop_celeba(Image.fromarray(stripes)).astype(float)
        assert x[:, 4:-4].std() < 25  # a point-sampled grid would keep 0 and 255: 127


class TestSVHN:
    def write(self, folder, name, n):
        x, y = pixels(n, 32), np.arange(1, n + 1)[:, None].astype(np.uint8)
        savemat(folder / f"{name}_32x32.mat", {"X": np.moveaxis(x, 0, 3), "y": y})
        return x

    def test_original_files(self, tmp_path):
        x = self.write(tmp_path, "extra", 10)
        self.write(tmp_path, "test", 3)
        dataset = data.load("", path=str(tmp_path), train_split="extra")
        batch = dataset.train.rows(np.arange(10))
        np.testing.assert_array_equal(batch.x, x)
        np.testing.assert_array_equal(batch.label, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
        assert dataset.num_classes == 10
        assert dataset.class_names == tuple("0123456789")

    def test_mistakes(self, tmp_path):
        self.write(tmp_path, "test", 3)
        refuse(tmp_path, "train_32x32.mat: no such file")
        content = (tmp_path / "test_32x32.mat").read_bytes()
        (tmp_path / "train_32x32.mat").write_bytes(content[:5000])
        refuse(tmp_path, "train_32x32.mat: not a readable .mat file")
        savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((3, 4))})
        refuse(tmp_path, "train_32x32.mat: not an SVHN file")


class TinyPictures(tensorflow_datasets.core.GeneratorBasedBuilder):
    """A prepared data set like a user's: encoded images in array_record files."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(8, 8, 3)),
                    "label": features.ClassLabel(names=["ant", "bee", "cat", "dog"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "validation": self._generate_examples(6)}

    def _generate_examples(self, n):
        for i in range(n):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": i % 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    tensorflow_datasets.disable_progress_bar()
    builder = TinyPictures(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return folder


class TinyFaces(tensorflow_datasets.core.GeneratorBasedBuilder):
    """A few images with CelebA's features."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    FACE = pixels(1, 218)[0][:, :178]

    def _info(self):
        features = tensorflow_datasets.features
        attributes = dict.fromkeys(tfds.CELEBA_ATTRIBUTES, np.bool_)
        image = features.Image(shape=(218, 178, 3), encoding_format="png")
        return tensorflow_datasets.core.DatasetInfo(
            builder=self, features=features.FeaturesDict({"image": image, "attributes": attributes})
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples() for name in ("train", "validation")}

    def _generate_examples(self):
        for i in range(4):
            file = io.BytesIO()
            Image.fromarray(self.FACE).save(file, "PNG")
            file.seek(0)
            yield (
                i,
                {
                    "image": file,
                    "attributes": {name: name in ("Male", "Young") for name in tfds.CELEBA_ATTRIBUTES},
                },
            )


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    tensorflow_datasets.disable_progress_bar()
    builder = TinyFaces(data_dir=str(tmp_path_factory.mktemp("faces")), file_format="array_record")
    builder.download_and_prepare()
    return builder


class TestTFDS:
    def test_reads_without_tensorflow(self, prepared, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow", None)  # its import fails
        dataset = data.load("tiny_pictures", directory=prepared)
        assert (len(dataset.train), len(dataset.test), dataset.train.shape) == (20, 6, (8, 8, 3))
        assert (dataset.num_classes, dataset.divisor) == (4, 255.0)
        assert dataset.class_names == ("ant", "bee", "cat", "dog")
        batch = dataset.train.rows(np.arange(20))
        np.testing.assert_array_equal(np.sort(batch.x[:, 3, 3, 1]), np.arange(20))
        np.testing.assert_array_equal(batch.label, batch.x[:, 0, 0, 0] % 4)

    def test_splits(self, prepared):
        dataset = data.load(
            "tiny_pictures", directory=prepared, train_split="train[:15]+validation", test_split="train[15:]"
        )
        assert (len(dataset.train), len(dataset.test)) == (21, 5)
        with pytest.raises(DataError, match="split 'trian' of tiny_pictures: Unknown split"):
            data.load("tiny_pictures", directory=prepared, train_split="trian")

    @pytest.mark.parametrize("name", tfds.NAMES)
    def test_not_prepared_is_said_at_once(self, name, tmp_path, caplog):
        start = time.monotonic()
        with pytest.raises(DataError) as error:
            data.load(name, directory=str(tmp_path))
        assert time.monotonic() - start < 1
        assert not caplog.records
        for part in (
            f"{name} is not prepared: there is nothing in {tmp_path}",
            "pip install 'ali_jax[tfds]'",
            f"python -m ali_jax.data.prepare {name} --directory {tmp_path}",
            "--config.dataset.path",
        ):
            assert part in str(error.value)

    def test_other_data_sets_need_images_of_one_size(self, tmp_path):
        with pytest.raises(DataError, match="no feature 'image'"):
            data.load("ag_news_subset", directory=str(tmp_path))
        with pytest.raises(DataError, match=r"different sizes; set config\.dataset\.resize, such as 64"):
            data.load("cats_vs_dogs", directory=str(tmp_path))
        with pytest.raises(DataError, match="cats_vs_dogs is not prepared"):
            data.load("cats_vs_dogs", directory=str(tmp_path), resize=64)
        with pytest.raises(DataError, match="kmnist is not prepared"):
            data.load("kmnist", directory=str(tmp_path))

    def test_attributes_are_those_that_the_files_have(self, tmp_path):
        builder = tfds.find("celeb_a", str(tmp_path))
        assert set(builder.info.features["attributes"]) == set(tfds.CELEBA_ATTRIBUTES)
        assert len(tfds.CELEBA_ATTRIBUTES) == 40
        assert tfds.CELEBA_ATTRIBUTES.index("Male") == 20  # column 21 of list_attr_celeba.txt

    @pytest.mark.parametrize("conditional", [False, True])
    def test_celeba_is_cropped_and_has_its_attributes_only_where_asked(self, faces, monkeypatch, conditional):
        monkeypatch.setattr(tfds, "find", lambda name, directory: faces)
        dataset = data.load("celeb_a", test_split="validation", conditional=conditional)
        batch = dataset.test.rows(np.arange(2))
        np.testing.assert_array_equal(batch.x[1], images.crop_celeba(Image.fromarray(TinyFaces.FACE)))
        if conditional:
            assert dataset.attributes == tfds.CELEBA_ATTRIBUTES
            np.testing.assert_array_equal(np.flatnonzero(batch.y[1]), [20, 39])
        else:
            assert batch.y is None
            assert dataset.attributes == ()


class TestPrepare:
    def error(self, capsys, *arguments):
        assert prepare.main(arguments) == 1
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        return message

    def test_done_already(self, prepared, capsys):
        assert prepare.main(["tiny_pictures", "--directory", prepared]) == 0
        assert prepared in capsys.readouterr().out

    def test_unknown(self, capsys):
        assert "Did you mean cifar10?" in self.error(capsys, "cifar_10")

    def test_without_tensorflow(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
        assert "pip install 'ali_jax[tfds]'" in self.error(capsys, "mnist", "--directory", str(tmp_path))

    def test_without_network(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(prepare, "is_reachable", lambda url: False)
        message = self.error(capsys, "svhn_cropped", "--directory", str(tmp_path))
        assert "extra_32x32.mat, test_32x32.mat, train_32x32.mat" in message
        assert "--manual_dir" in message
        (tmp_path / "test_32x32.mat").write_text("")
        message = self.error(
            capsys, "svhn_cropped", "--directory", str(tmp_path), "--manual_dir", str(tmp_path)
        )
        assert "holds extra_32x32.mat, train_32x32.mat" in message
        message = self.error(capsys, "svhn_cropped", "--manual_dir", str(tmp_path / "none"))
        assert "no such directory" in message

    def test_a_host_that_refuses_connections_is_not_reachable(self):
        assert not prepare.is_reachable("http://127.0.0.1:9/file", seconds=1.0)

    def test_wrong_files_are_one_message(self, capsys, tmp_path, monkeypatch):
        tensorflow_datasets.disable_progress_bar()
        monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: object())
        for name in ("train", "test", "extra"):
            (tmp_path / f"{name}_32x32.mat").write_text("not the file")
        message = self.error(
            capsys, "svhn_cropped", "--directory", str(tmp_path), "--manual_dir", str(tmp_path)
        )
        assert "preparing svhn_cropped failed" in message

    def test_runs_as_a_module(self):
        done = subprocess.run(
            [sys.executable, "-m", "ali_jax.data.prepare", "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "--manual_dir" in done.stdout


def test_real_svhn_loads(real_data):
    path = real_data / "svhn.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    dataset = data.load("", path=str(path))
    assert dataset.train.shape == (32, 32, 3)
    assert dataset.num_classes == 10
