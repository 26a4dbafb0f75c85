"""Images and arrays as people bring them: links, parts, classes, transparency, dark pixels, names of arrays.

The fault that each test holds off is one that would otherwise change what is trained on without a word.
"""

import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import small
from PIL import Image

from ali_jax import config as configs
from ali_jax import data, evaluate, game, networks
from ali_jax.data import DataError, files, images, sizes, survey
from ali_jax.evaluate import figures
from ali_jax.report import svg

SIZE = 4


def save(path, *levels, suffix="png"):
    """Save a grey image of each level in a folder, as 0.png, 1.png, ...; half of each is 0."""
    path.mkdir(parents=True, exist_ok=True)
    for i, level in enumerate(levels):
        pixels = np.full((SIZE, SIZE), level, np.uint8)
        pixels[0] = 0
        Image.fromarray(pixels).save(path / f"{i}.{suffix}")
    return path


def load(path, **options):
    return data.load("images", path=str(path), **options)


def texts(dataset, *, warnings=None):
    return [n.text for n in dataset.notes if warnings is None or n.is_warning == warnings]


def perceptrons():
    config = configs.base()
    config.latent_dim = 3
    for network in (config.encoder, config.decoder):
        network.layers = (8,)
    config.discriminator.x_layers = config.discriminator.joint_layers = (8,)
    return config


def label_of_level(dataset):
    """Return the class name of each level, over both splits."""
    names = {}
    for split in (dataset.train, dataset.test):
        batch = split.rows(np.arange(len(split)))
        for x, label in zip(batch.x, batch.label, strict=True):
            names[int(x.max())] = dataset.class_names[label] if label >= 0 else None
    return names


class TestFolders:
    def test_a_linked_class_folder_is_a_class(self, tmp_path):
        save(tmp_path / "in" / "cats", 10, 20)
        save(tmp_path / "in" / "birds", 30, 40)
        (tmp_path / "in" / "dogs").symlink_to(save(tmp_path / "elsewhere", 50, 60))
        dataset = load(tmp_path / "in")
        assert dataset.class_names == ("birds", "cats", "dogs")
        assert label_of_level(dataset) == {
            level: name
            for name, levels in (("cats", (10, 20)), ("birds", (30, 40)), ("dogs", (50, 60)))
            for level in levels
        }

    def test_each_folder_is_read_once_and_circles_end(self, tmp_path):
        root = tmp_path / "in"
        save(root / "cats", 10, 20)
        save(root / "dogs", 30, 40)
        (root / "again").symlink_to(root / "cats")
        (root / "cats" / "up").symlink_to(root)
        (root / "outside").symlink_to(tmp_path)
        dataset = load(root)
        assert sorted(label_of_level(dataset)) == [10, 20, 30, 40]
        assert len(dataset.train) + len(dataset.test) == 4
        assert "Skipped: 3 links to a folder that is read elsewhere." in texts(dataset)[0]

    def test_what_is_skipped_is_counted_by_reason_in_one_line(self, tmp_path):
        save(tmp_path, 10, 20, 30, 40, 50, 60)
        for i in range(3):
            (tmp_path / f"x{i}.HEIC").write_bytes(b"x")
            (tmp_path / f"no_suffix_{i}").write_bytes(b"x")
        (tmp_path / "x.heic").write_bytes(b"x")
        (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
        (tmp_path / "self.png").symlink_to("self.png")
        (tmp_path / "self").symlink_to("self")
        (tmp_path / ".hidden.png").write_bytes(b"x")
        (tmp_path / ".git").mkdir()
        os.mkfifo(tmp_path / "pipe.png")
        (line,) = texts(load(tmp_path))
        kept, _, skipped = line.partition(" Skipped: ")
        assert kept == f"{tmp_path.name} has 6 images."
        assert sorted(skipped.rstrip(".").split(", ")) == [
            "1 device",
            "1 hidden file",
            "1 hidden folder",
            "3 files without a suffix",
            "3 links to nothing",
            "4 .heic files",
        ]

    def test_links_to_images_are_followed(self, tmp_path):
        save(tmp_path / "real", 10, 20, 30, 40)
        (tmp_path / "in").mkdir()
        for i in range(4):
            (tmp_path / "in" / f"{i}.png").symlink_to(tmp_path / "real" / f"{i}.png")
        assert len(load(tmp_path / "in").train) == 2

    @pytest.mark.parametrize(
        ("train", "test", "named"),
        [
            ("Train", "Test", "test"),
            ("training", "TESTING", "test"),
            ("train", "Val", "validation"),
            ("TRAINING", "valid", "validation"),
            ("Train ", "Test ", "test"),
            ("train", "validation", "validation"),
        ],
    )
    def test_parts_are_recognised_whatever_their_case(self, tmp_path, train, test, named):
        for i, name in enumerate(("cats", "dogs")):
            save(tmp_path / train / name, 10 + i, 20 + i, 30 + i)
            save(tmp_path / test / name, 40 + i)
        dataset = load(tmp_path)
        assert (len(dataset.train), len(dataset.test)) == (6, 2)
        assert dataset.splits == ("train", named)
        assert dataset.class_names == ("cats", "dogs")
        assert texts(dataset) == ["2 classes (training + test rows): cats 3 + 1, dogs 3 + 1."]

    def test_validation_is_a_split_beside_test(self, tmp_path):
        for part, levels in {"train": (10, 20), "val": (30,), "test": (40, 50)}.items():
            save(tmp_path / part, *levels)
        assert [len(split) for split in load(tmp_path)[1:3]] == [2, 2]
        for name in ("val", "valid", "validation"):
            dataset = load(tmp_path, test_split=name)
            assert dataset.splits == ("train", "validation")
            assert dataset.test.rows(np.arange(1)).x.max() == 30

    def test_images_outside_the_parts_are_counted(self, tmp_path):
        save(tmp_path / "train", 10, 20)
        save(tmp_path / "test", 30)
        save(tmp_path / "more", 40, 50)
        save(tmp_path, 60)
        dataset = load(tmp_path)
        assert (len(dataset.train), len(dataset.test)) == (2, 1)
        assert "Skipped: 3 images outside the folders train, test." in texts(dataset)[0]

    def test_two_folders_of_one_part_are_refused(self, tmp_path):
        for part in ("train", "Training", "test"):
            save(tmp_path / part, 10)
        with pytest.raises(DataError, match="the folders Training and train both mean train"):
            load(tmp_path)

    @pytest.mark.parametrize("around", ["images", "data/images", "train/images", "all/train"])
    def test_a_folder_around_class_folders_is_looked_through(self, tmp_path, around):
        tests = [around.replace("train", "test")] if "train" in around else []
        for folder in (around, *tests):
            save(tmp_path / folder / "cats", 10, 20)
            save(tmp_path / folder / "dogs", 30, 40)
        dataset = load(tmp_path)
        assert dataset.class_names == ("cats", "dogs")
        assert label_of_level(dataset) == {10: "cats", 20: "cats", 30: "dogs", 40: "dogs"}

    def test_folders_that_name_no_classes_are_said(self, tmp_path):
        save(tmp_path / "images" / "cats", 10, 20)
        save(tmp_path / "images" / "dogs", 30, 40)
        save(tmp_path, 50)
        dataset = load(tmp_path)
        assert dataset.class_names == ()
        (warning,) = texts(dataset, warnings=True)
        assert warning.startswith("The folders images/cats, images/dogs are not taken as classes.")
        (tmp_path / "0.png").unlink()
        assert load(tmp_path).class_names == ("cats", "dogs")

    def test_numbers_sort_as_numbers(self, tmp_path):
        for name in ("10", "9", "100", "b", "a"):
            save(tmp_path / name, 1 + len(name))
        assert load(tmp_path).class_names == ("9", "10", "100", "a", "b")

    def test_images_in_no_class_folder_have_no_label_and_this_is_said(self, tmp_path):
        for name, level in (("cats", 10), ("dogs", 20)):
            save(tmp_path / "train" / name, level)
        save(tmp_path / "train", 30)
        save(tmp_path / "test", 40, 50)
        dataset = load(tmp_path)
        assert label_of_level(dataset) == {10: "cats", 20: "dogs", 30: None, 40: None, 50: None}
        assert texts(dataset, warnings=True) == [
            "1 of 3 images of train lie in no class folder: no label.",
            "2 of 2 images of test lie in no class folder: no label.",
            "There are no test rows of cats, dogs.",
        ]
        with pytest.raises(DataError, match="needs a label for every row"):
            load(tmp_path, conditional=True)
        ali = networks.build(perceptrons(), dataset.train.shape)
        with pytest.raises(ValueError, match="needs labels of two classes or more, in train and in test"):
            evaluate.check_applicable("class_balance", dataset, ali)

    def test_a_class_that_one_split_lacks_is_named(self, tmp_path):
        for folder in ("train/cats", "train/dogs", "test/cats", "test/birds"):
            save(tmp_path / folder, 100)
        dataset = load(tmp_path)
        assert dataset.class_names == ("birds", "cats", "dogs")
        assert texts(dataset, warnings=True) == [
            "There are no training rows of birds.",
            "There are no test rows of dogs.",
        ]

    def test_labels_are_known_without_decoding_in_slices_too(self, tmp_path, monkeypatch):
        for name, level in (("cats", 10), ("dogs", 200)):
            save(tmp_path / name, level, level, level, level)
        monkeypatch.setattr(files, "EAGER_BYTES", 0)
        dataset = load(tmp_path, train_split="train[-4:]")
        label = dataset.train.rows(np.arange(4)).label
        np.testing.assert_array_equal(label, [0, 1, 1, 1])
        np.testing.assert_array_equal(data.known_labels(dataset.train), label)
        assert texts(dataset)[0] == "2 classes (training + test rows): cats 1 + 1, dogs 3 + 1."

    def test_many_classes_are_named_in_part(self):
        split = data.ArraySplit(np.zeros((40, 1), np.float32), None, np.arange(40, dtype=np.int32), 40)
        (note,) = survey.class_notes([f"c{k}" for k in range(40)], split, split)
        assert note.text.startswith("40 classes (training + test rows): c0 1 + 1, c1 1 + 1, ")
        assert note.text.endswith("c19 1 + 1 and 20 more.")

    def test_several_broken_files_are_named_at_once(self, tmp_path):
        save(tmp_path, *range(10, 22))
        for i in range(3):
            (tmp_path / f"{i}.png").write_bytes(b"not a png")
        with pytest.raises(DataError, match=r"^3 files cannot be used: ") as error:
            load(tmp_path)
        assert re.findall(r"(\d+)\.png: not a readable", str(error.value)) == ["0", "1", "2"]
        for i in range(3, 8):
            (tmp_path / f"{i}.png").write_bytes(b"not a png")
        with pytest.raises(DataError, match=r"^8 files cannot be used: .*; and 3 more$") as error:
            load(tmp_path)
        assert len(re.findall(r"\d\.png: not", str(error.value))) == 5

    def test_several_cut_files_are_named_at_once(self, tmp_path):
        save(tmp_path, *range(10, 22), suffix="bmp")
        for i in (2, 5):
            (tmp_path / f"{i}.bmp").write_bytes((tmp_path / f"{i}.bmp").read_bytes()[:-SIZE])
        with pytest.raises(DataError, match=r"^2 files cannot be used: ") as error:
            load(tmp_path)
        assert sorted(re.findall(r"(\d)\.bmp", str(error.value))) == ["2", "5"]

    def test_how_many_images_have_a_wrong_size_is_said(self, tmp_path):
        save(tmp_path, 10, 20, 30, 40)
        for name in ("a", "b", "c"):
            Image.new("L", (5, 5)).save(tmp_path / f"{name}.png")
        with pytest.raises(
            DataError, match=r"a\.png is 5x5 .* like .*0\.png \(2 other images are of a wrong"
        ):
            load(tmp_path)


def ramp(height, width):
    """Return an image whose red rises from left to right and whose green rises from top to bottom."""
    down, across = np.meshgrid(np.linspace(0, 255, height), np.linspace(0, 255, width), indexing="ij")
    return np.stack([across, down, np.zeros_like(down)], axis=-1).astype(np.uint8)


class TestSizes:
    @pytest.mark.parametrize(
        ("fit", "left", "right", "top", "bottom"),
        [  # of 60 x 120 to 30 x 30: the colours in the middle of the four sides of the result
            ("crop", 64, 191, 0, 255),  # the middle half of the width
            ("stretch", 0, 255, 0, 255),
            ("pad", 0, 255, 255, 255),  # 7 or 8 white rows above and below
        ],
    )
    def test_an_image_is_cropped_stretched_or_padded_about_its_centre(self, fit, left, right, top, bottom):
        x = sizes.fitted(ramp(60, 120), sizes.Sizing((30, 30), fit)).astype(int)
        assert x.shape == (30, 30, 3)
        found = x[15, 0, 0], x[15, -1, 0], x[0, 15, 1], x[-1, 15, 1]
        assert np.abs(np.subtract(found, (left, right, top, bottom))).max() <= 6
        white = (x == 255).all(axis=(1, 2))
        assert list(np.flatnonzero(white)) == ([*range(7), *range(22, 30)] if fit == "pad" else [])

    @pytest.mark.parametrize("size", [(7, 20), (1, 1), (90, 31)])
    @pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
    def test_every_size_is_reached_grey_or_in_colour(self, size, fit):
        for pixels in (ramp(9, 33), ramp(33, 9)[..., :1]):
            x = sizes.fitted(pixels, sizes.Sizing(size, fit, background=7))
            assert (x.shape, x.dtype) == ((*size, pixels.shape[-1]), np.uint8)

    def test_a_shrunk_image_is_antialiased(self):
        stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None]
        assert sizes.fitted(stripes, sizes.Sizing((16, 16))).std() < 30  # every fourth pixel: 0 or 255 alone

    def photographs(self, folder):
        for i, (height, width) in enumerate([(60, 80), (80, 60), (60, 80), (40, 40), (20, 20)]):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ramp(height, width)).save(folder / f"{i}.png")
        return folder

    def test_a_folder_of_several_sizes_names_the_key_and_is_accepted_with_it(self, tmp_path):
        folder = self.photographs(tmp_path / "photos")
        with pytest.raises(
            DataError, match=r"80x60 pixels \(height x width\).*set config.dataset.resize, such"
        ):
            load(folder)
        dataset = load(folder, resize=(30, 40))
        assert dataset.train.shape == dataset.test.shape == (30, 40, 3)
        assert texts(dataset)[0] == (
            "5 images of 4 sizes (20x20 to 80x60, height x width) are resized to 30x40 by crop: on average "
            "19 % of an image is cut off, at most 44 % (enlarged: 1)."
        )
        assert load(folder, resize=32).train.shape == (32, 32, 3)
        assert data.facts.describe(dataset)["resize"] == "crop"
        assert data.facts.describe(load(tmp_path / "photos", resize=8, fit="pad"))["resize"] == "pad"

    @pytest.mark.parametrize(
        ("fit", "loss"),
        [
            ("crop", "25 % of an image is cut off"),
            ("pad", "25 % of the result is background"),
            ("stretch", "one side is stretched by up to 1.33 times the other"),
        ],
    )
    def test_what_is_lost_is_said(self, fit, loss):
        (note,) = sizes.fit_notes([(90, 120)] * 3, sizes.Sizing((32, 32), fit))
        assert note.text == f"3 images of 90x120 (height x width) are resized to 32x32 by {fit}: {loss}."
        (note,) = sizes.fit_notes([(90, 120)] * 3, sizes.Sizing((30, 40), fit))
        assert note.text.endswith(": nothing is cut off or distorted.")
        assert not sizes.fit_notes([(30, 40)] * 3, sizes.Sizing((30, 40), fit))

    def test_padding_has_the_background_of_the_config(self, tmp_path):
        dataset = load(self.photographs(tmp_path), resize=(20, 80), fit="pad", background="77")
        x = dataset.train.rows(np.arange(1)).x[0]
        assert (x[:, 0] == 77).all()

    def test_images_that_lie_on_their_side_have_their_upright_shape(self, tmp_path):
        for i in range(4):
            exif = Image.Exif()
            exif[0x0112] = 6  # rotate by a quarter
            Image.fromarray(ramp(20, 30)).save(tmp_path / f"{i}.jpg", exif=exif, quality=95)
        dataset = load(tmp_path)
        x = dataset.train.rows(np.arange(1)).x[0].astype(int)
        assert x.shape == (30, 20, 3)
        assert np.abs(x - np.rot90(ramp(20, 30), -1)).mean() < 12
        Image.fromarray(ramp(30, 20)).save(tmp_path / "4.jpg")
        assert load(tmp_path).train.shape == (30, 20, 3)

    def test_arrays_and_data_sets_by_name_are_resized_too(self, tmp_path):
        np.savez(tmp_path / "a.npz", train_image=np.stack([ramp(9, 12)] * 4), test_image=ramp(9, 12)[None])
        dataset = load(tmp_path / "a.npz", resize=(6, 8), fit="stretch")
        expected = sizes.fitted(ramp(9, 12), sizes.Sizing((6, 8), "stretch"))
        np.testing.assert_array_equal(dataset.train.rows(np.arange(4)).x, np.stack([expected] * 4))
        assert texts(dataset)[0].startswith("5 images of 9x12 (height x width) are resized to 6x8 by stretch")
        digits = data.load("digits", resize=16)
        assert (digits.train.shape, digits.divisor) == ((16, 16, 1), 16.0)
        assert digits.train.x.max() == 16  # resampling overshoots, but not beyond white
        padded = data.load("digits", resize=(8, 16), fit="pad", background="black").train.x
        assert not padded[:, :, [0, -1]].any()
        assert (data.load("digits", resize=(8, 16), fit="pad").train.x[:, :, [0, -1]] == 16).all()
        np.testing.assert_array_equal(digits.train.label, data.load("digits").train.label)
        with pytest.raises(DataError, match="mixture has vectors, which have no height"):
            data.load("mixture", resize=8)

    def test_train_and_test_of_two_sizes_are_told_the_key(self, tmp_path):
        np.savez(tmp_path / "a.npz", train_image=X, test_image=np.stack([ramp(5, 4)] * 2)[..., :1])
        with pytest.raises(DataError, match=r"must agree; set config.dataset.resize=\(4, 4\)"):
            load(tmp_path / "a.npz")

    @pytest.mark.parametrize(
        ("given", "wanted", "cure"),
        [
            ((8, 9, 3), (4, 5, 3), "set config.dataset.resize=(4, 5)"),
            ((4, 5, 1), (4, 5, 3), "convert the images to colour"),
            ((8, 8, 3), (4, 4, 1), "set config.dataset.resize=(4, 4) and convert the images to grey"),
            ((7,), (4, 4, 1), "give data of shape 4x4x1"),
        ],
    )
    def test_the_cure_names_only_what_differs(self, given, wanted, cure):
        assert sizes.cure(given, wanted) == cure

    def test_the_frames_that_are_not_read_are_counted(self, tmp_path):
        save(tmp_path, 10, 20, 30)
        frames = [Image.new("L", (SIZE, SIZE), level) for level in (40, 50, 60)]
        frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
        assert texts(load(tmp_path))[0] == (
            f"{tmp_path.name} has 4 images. Skipped: all but the first frame of 1 image."
        )
        frames[0].save(
            tmp_path / "phone.jpg", "MPO", save_all=True, append_images=frames[1:2]
        )  # with a preview
        assert texts(load(tmp_path))[0].endswith("5 images. Skipped: all but the first frame of 1 image.")


class TestTransparency:
    def black_logo(self, folder, count=4):
        """Save black squares on transparency, as grey with alpha."""
        folder.mkdir(parents=True, exist_ok=True)
        logo = np.zeros((SIZE, SIZE, 2), np.uint8)
        logo[1:3, 1:3, 1] = 255
        for i in range(count):
            Image.fromarray(logo, "LA").save(folder / f"{i}.png")
        return folder

    @pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0), ("128", 128)])
    def test_what_is_transparent_becomes_the_background(self, tmp_path, background, level):
        dataset = load(self.black_logo(tmp_path), background=background)
        expected = np.full((SIZE, SIZE), level)
        expected[1:3, 1:3] = 0
        for x in dataset.train.rows(np.arange(2)).x[..., 0]:
            np.testing.assert_array_equal(x, expected)
        name = background if level != 128 else "grey 128"
        assert texts(dataset)[0] == (
            "4 of 4 images with an alpha channel are transparent in places: they are composited onto "
            f"{name} (config.dataset.background)."
        )

    def test_the_background_of_a_config_reaches_the_images(self, tmp_path):
        from ali_jax.game.from_config import load_data

        config = configs.base()
        config.dataset.path = str(self.black_logo(tmp_path))
        config.dataset.background = "77"
        assert load_data(config).train.rows(np.arange(1)).x[0, 0, 0, 0] == 77

    def test_where_compositing_makes_images_constant_the_key_is_named(self, tmp_path):
        dataset = load(self.black_logo(tmp_path), background="black")
        assert texts(dataset, warnings=True)[0] == (
            "4 of these images are all but constant on black: set config.dataset.background to white or "
            "another grey level."
        )
        assert not texts(load(tmp_path), warnings=True)

    def test_partial_opacity_mixes(self):
        image = Image.fromarray(np.array([[[200, 100, 0, 51]]], np.uint8))  # a fifth
        np.testing.assert_array_equal(images.to_uint8(image, 3, background=100), [[[120, 100, 80]]])
        np.testing.assert_array_equal(images.to_uint8(image, 3), [[[244, 224, 204]]])

    @pytest.mark.parametrize("mode", ["LA", "RGBA", "La", "RGBa"])
    def test_noise_under_full_transparency_is_gone(self, mode):
        channels = 1 if mode.startswith("L") else 3
        noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, channels + 1)).astype(np.uint8)
        noise[..., -1] = 0
        straight = "LA" if channels == 1 else "RGBA"
        image = Image.fromarray(noise, straight).convert(mode)
        assert (images.to_uint8(image, channels) == 255).all()

    def test_the_transparent_colour_of_a_palette_or_of_a_png_without_alpha_counts(self, tmp_path):
        palette = Image.new("P", (2, 1))
        palette.putpalette([10, 20, 30, 40, 50, 60])
        palette.putpixel((1, 0), 1)
        palette.save(tmp_path / "p.png", transparency=1)
        Image.fromarray(np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)).save(
            tmp_path / "rgb.png", transparency=(40, 50, 60)
        )
        for name in ("p.png", "rgb.png"):
            with images.opened(tmp_path / name) as image:
                np.testing.assert_array_equal(images.to_uint8(image, 3), [[[10, 20, 30], [255, 255, 255]]])

    def test_transparent_sixteen_bits(self):
        image = Image.fromarray(np.array([[0, 65535, 257]], np.uint16))
        image.info["transparency"] = 257
        np.testing.assert_array_equal(images.to_uint8(image, 1, background=9)[..., 0], [[0, 255, 9]])

    @pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "P"])
    def test_opaque_images_do_not_change_by_a_bit(self, mode, tmp_path):
        colours = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        image = Image.fromarray(colours).convert("L" if mode.startswith("L") else "RGB")
        channels = 1 if mode.startswith("L") else 3
        expected = np.asarray(image).reshape(16, 16, channels)
        if mode == "P":
            image = image.quantize(255)
            expected = np.asarray(image.convert("RGB"))
            image.info["transparency"] = 255  # a colour that no pixel has
        image = image.convert(mode)
        np.testing.assert_array_equal(images.to_uint8(image, channels, background=3), expected)


class TestRange:
    def save(self, folder, pixels):
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(4):
            Image.fromarray(pixels).save(folder / f"{i}.tif")
        return folder

    @pytest.mark.parametrize(
        ("pixels", "scale", "what", "high"),
        [
            (np.eye(SIZE, dtype=np.uint8), 255, "from 0 to 1 of 255", "1 is to be white"),
            (np.eye(SIZE, dtype=np.uint16) * 4080, 16, "from 0 to 4080 of 65535", "4095 is to be white"),
            (np.eye(SIZE, dtype=np.int32) * 255, 257, "from 0 to 255 of 65535", "255 is to be white"),
        ],
        ids=["mask", "12 bits in 16", "8 bits in 32"],
    )
    def test_images_that_are_all_but_black_are_told_with_the_cure(self, tmp_path, pixels, scale, what, high):
        dark = load(self.save(tmp_path / "dark", pixels))
        (warning,) = texts(dark, warnings=True)
        assert warning == (
            f"The images are all but black: the pixels run {what}; set config.dataset.scale={scale} "
            f"if {high}."
        )
        cured = load(tmp_path / "dark", scale=scale)
        assert not cured.notes
        x = cured.train.rows(np.arange(1)).x[0, ..., 0]
        assert set(np.unique(x)) == {0, 254 if high.startswith("4095") else 255}
        assert (x > 0).sum() == SIZE

    def test_an_npz_of_masks_too(self, tmp_path):
        masks = np.random.default_rng(0).integers(0, 2, (12, 8, 8)).astype(np.uint8)
        np.savez(tmp_path / "a.npz", train_image=masks, test_image=masks[:4])
        (warning,) = texts(load(tmp_path / "a.npz"), warnings=True)
        assert "from 0 to 1 of 255; set config.dataset.scale=255" in warning
        cured = load(tmp_path / "a.npz", scale=255)
        np.testing.assert_array_equal(cured.train.rows(np.arange(12)).x[..., 0], 255 * masks)
        assert not cured.notes

    @pytest.mark.parametrize(("brightest", "is_dark"), [(16, True), (17, False)])
    def test_the_limit_is_16_of_255(self, brightest, is_dark):
        assert bool(survey.range_notes(0, brightest, 255, 1.0)) == is_dark

    def test_a_scale_that_clips_is_told(self, tmp_path):
        dataset = load(save(tmp_path, 10, 20, 30, 100), scale=4)
        assert texts(dataset, warnings=True) == [
            "config.dataset.scale=4 clips the brightest pixels: the pixels run from 0 to 100 of 255, and "
            "white is 63.75."
        ]
        rows = np.concatenate([split.rows(np.arange(2)).x for split in dataset[1:3]])
        assert sorted(rows.max(axis=(1, 2, 3))) == [40, 80, 120, 255]

    def test_images_of_ordinary_range_have_no_warning(self, tmp_path):
        assert not load(save(tmp_path, 10, 20, 200, 255)).notes

    def test_pixels_below_zero_are_refused_with_their_range(self, tmp_path):
        with pytest.raises(DataError, match="pixels run from -3 to 0, but 16 bits hold 0 to 65535"):
            load(self.save(tmp_path / "x", np.eye(SIZE, dtype=np.int32) * -3))


X = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE), dtype=np.uint8)


class TestArrays:
    @pytest.mark.parametrize(
        ("given", "names", "codes"),
        [
            ([7, 1_000_000], ("7", "1000000"), [0, 1]),
            ([1, 2, 3], ("1", "2", "3"), [0, 1, 2]),
            ([10, 9, -1], ("9", "10"), [1, 0, -1]),
            ([0, 1, 3], ("0", "1", "3"), [0, 1, 2]),
            (["dog", "cat"], ("cat", "dog"), [1, 0]),
            (["10", "9"], ("9", "10"), [1, 0]),
            ([b"dog", b"cat"], ("cat", "dog"), [1, 0]),
        ],
    )
    def test_labels_are_recoded_and_keep_their_names(self, tmp_path, given, names, codes):
        label, code = np.resize(given, 40), np.resize(codes, 40)
        np.savez(tmp_path / "a.npz", train_image=X, train_label=label, test_image=X[:5], test_label=label[:5])
        dataset = load(tmp_path / "a.npz")
        assert dataset.class_names == names
        assert dataset.num_classes == dataset.train.num_classes == len(names)
        np.testing.assert_array_equal(dataset.train.rows(np.arange(40)).label, code)
        np.testing.assert_array_equal(dataset.test.rows(np.arange(5)).label, code[:5])
        assert dataset.train.rows(np.arange(2)).label.dtype == np.int32

    def test_a_class_of_test_alone_has_the_same_code_in_both(self, tmp_path):
        np.savez(
            tmp_path / "a.npz",
            train_image=X[:2],
            train_label=np.array([5, 9]),
            test_image=X[:3],
            test_label=np.array([9, 7, 5]),
        )
        dataset = load(tmp_path / "a.npz")
        np.testing.assert_array_equal(dataset.train.rows(np.arange(2)).label, [0, 2])
        np.testing.assert_array_equal(dataset.test.rows(np.arange(3)).label, [2, 1, 0])
        assert texts(dataset, warnings=True) == ["There are no training rows of 7."]

    def test_labels_of_two_integer_types_are_not_rounded(self, tmp_path):
        near = np.resize([2**60 + 1, 2**60 + 3], 40)
        arrays = {"train_image": X, "test_image": X, "test_label": near}
        np.savez(tmp_path / "a.npz", **arrays, train_label=near.astype(np.uint64))
        assert load(tmp_path / "a.npz").class_names == (str(2**60 + 1), str(2**60 + 3))
        np.savez(tmp_path / "a.npz", **arrays, train_label=near.astype(np.uint64) + 2**63)
        with pytest.raises(DataError, match=r"a.npz: train_label runs to 1\d+; class numbers must be less"):
            load(tmp_path / "a.npz")

    def test_labels_that_are_no_classes_are_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ali_jax.data.archives.MAX_CLASSES", 39)
        arrays = {
            "train_image": X,
            "train_label": np.arange(40),
            "test_image": X,
            "test_label": np.arange(40),
        }
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(
            DataError, match="the labels have 40 different values, and 39 classes are the limit"
        ):
            load(tmp_path / "a.npz")

    @pytest.mark.parametrize(
        "form", ["{part}_image", "{part}_images", "x_{part}", "X_{part}", "images_{part}", "{part}_x"]
    )
    def test_arrays_have_the_names_of_keras_or_of_medmnist(self, tmp_path, form):
        of_label = form.replace("image", "label").replace("x", "y").replace("X", "y")
        arrays = {}
        for part, n in {"train": 20, "val": 8, "test": 12}.items():
            arrays[form.format(part=part)] = X[:n]
            arrays[of_label.format(part=part)] = np.arange(n)[:, None] % 2
        np.savez(tmp_path / "a.npz", **arrays)
        dataset = load(tmp_path / "a.npz")
        assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (20, 12, 2)
        np.testing.assert_array_equal(dataset.train.rows(np.arange(20)).x[..., 0], X[:20])
        np.testing.assert_array_equal(dataset.test.rows(np.arange(12)).label, np.arange(12) % 2)
        assert len(load(tmp_path / "a.npz", test_split="val").test) == 8

    @pytest.mark.parametrize("name", ["arr_0", "images", "x", "faces"])
    def test_a_single_array_is_divided(self, tmp_path, name):
        label = np.arange(40) % 2
        np.savez(tmp_path / "a.npz", **{name: X, "labels": label})
        dataset = load(tmp_path / "a.npz")
        assert (len(dataset.train), len(dataset.test)) == (36, 4)
        of = {x.tobytes(): k for x, k in zip(X, label, strict=True)}
        for split in dataset[1:3]:
            batch = split.rows(np.arange(len(split)))
            assert [of.pop(x.tobytes()) for x in batch.x] == list(batch.label)
        np.testing.assert_array_equal(np.bincount(dataset.test.label), [2, 2])
        np.savez(tmp_path / "b.npz", **{name: X})
        assert load(tmp_path / "b.npz").num_classes == 0

    @pytest.mark.parametrize(
        ("low", "high", "line"),
        [
            (0, 1, "np.rint(255 * x).astype(np.uint8)"),
            (-1, 1, "np.rint(127.5 * (x + 1)).astype(np.uint8)"),
            (0, 255, "np.rint(x).astype(np.uint8)"),
            (-40, 700, "np.rint(255 * (x - x.min()) / np.ptp(x)).astype(np.uint8)"),
        ],
    )
    def test_floats_are_told_their_range_and_the_line_that_converts_them(self, tmp_path, low, high, line):
        x = np.linspace(low, high, 4 * SIZE * SIZE).reshape(4, SIZE, SIZE)
        np.savez(tmp_path / "a.npz", train_image=x, test_image=x)
        with pytest.raises(DataError) as error:
            load(tmp_path / "a.npz")
        assert f"Its values run from {low} to {high}: write {line} in its place" in str(error.value)
        converted = eval(line, {"np": np, "x": x})
        np.savez(tmp_path / "a.npz", train_image=converted, test_image=converted)
        rows = load(tmp_path / "a.npz").train.rows(np.arange(4)).x
        assert (rows.min(), rows.max()) == (0, 255)

    def test_channels_that_come_first_are_told_how_to_move(self, tmp_path):
        x = np.zeros((4, 3, 9, 8), np.uint8)
        np.savez(tmp_path / "a.npz", train_image=x, test_image=x)
        with pytest.raises(DataError, match=r"channels last; write np.moveaxis\(x, 1, -1\) in its place"):
            load(tmp_path / "a.npz")

    def test_arrays_that_are_not_used_are_named(self, tmp_path):
        np.savez(tmp_path / "a.npz", train_image=X, test_image=X, train_lable=X, test_lable=X)
        assert texts(load(tmp_path / "a.npz")) == [
            "Of a.npz these arrays are not used: test_lable, train_lable."
        ]


class TestNames:
    def test_conditions_have_the_names_of_the_classes(self, tmp_path):
        for name, level in (("cats", 10), ("dogs", 20)):
            save(tmp_path / name, level, level, level)
        assert load(tmp_path, conditional=True).attributes == ("cats", "dogs")

    def test_pictures_name_the_classes(self):
        points = np.array([[0.0, 0], [1, 1], [1, 1], [-2, 1]])
        panel = figures.Panel("codes", points, np.array([1, 0, 0, 1]), names=("a<b", "dogs"))
        assert figures.class_centers(panel) == {"a<b": (1.0, 1.0), "dogs": (-1.0, 0.5)}
        drawn = svg.points(panel, name_classes=True)
        assert re.findall(r'class="class"[^>]*>([^<]*)<', drawn) == ["a&lt;b", "dogs"]
        bare = figures.scatter([[panel._replace(names=())]])
        assert (figures.scatter([[panel]]) != bare).any()

    def test_rows_of_conditional_samples_are_named_at_their_height(self):
        grid = np.full((40, 30, 3), 200, np.uint8)
        page = figures.with_row_names(grid, ("", "dogs"))
        np.testing.assert_array_equal(page[:, -30:], grid)
        margin = page[:, :-30]
        assert (margin[:20] == 255).all()
        assert margin[20:].min() < 100

    def test_digits_and_svhn_have_names(self):
        assert data.load("digits").class_names == tuple("0123456789")


def test_folders_are_decoded_when_the_guide_says(tmp_path, monkeypatch):
    """A folder above the limit is decoded once for a feed on the device, at each use for one on the host."""
    text = (Path(small.ROOT) / "docs/guide/your_data.md").read_text()
    assert files.EAGER_BYTES == 2**30
    assert "1 GiB of decoded images (train and test together)" in text
    save(tmp_path, *range(10, 30))
    decoded = []
    to_uint8 = images.to_uint8
    monkeypatch.setattr(images, "to_uint8", lambda *a, **k: decoded.append(1) or to_uint8(*a, **k))
    dataset = load(tmp_path)
    at_start = len(decoded)
    split = dataset.train
    split.rows(np.arange(len(split)))
    assert len(decoded) == at_start  # small: it is in memory
    monkeypatch.setattr(files, "EAGER_BYTES", 0)
    split = load(tmp_path).train
    counts = {}
    for kind in ("device", "host"):
        decoded.clear()
        feed = data.make_feed(split, batch_size=len(split), seed=0, divisor=255.0, kind=kind)
        rows = feed.load(0, 2)
        if kind == "host":
            assert rows.x.shape[:2] == (2, len(split))
        feed.close()
        counts[kind] = len(decoded)
    assert counts["device"] == len(split)
    assert counts["host"] >= 2 * len(split)


def test_a_mean_over_space_of_a_perceptron_is_refused(tmp_path):
    config = perceptrons()
    config.discriminator.x_pool = True
    ali = networks.build(config, (8, 8, 1))
    with pytest.raises(ValueError, match=r"x_pool averages maps over space, but D\(x\) makes no maps"):
        jax.eval_shape(ali.discriminator.init, jax.random.key(0), np.zeros((2, 8, 8, 1)), np.zeros((2, 3)))


def test_an_archive_whose_table_of_contents_is_damaged_is_one_message(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, train_image=np.zeros((4, 8, 8), np.uint8), test_image=np.zeros((4, 8, 8), np.uint8))
    damaged = bytearray(path.read_bytes())
    damaged[damaged.rindex(b"PK\x01\x02")] ^= 0xFF  # the entry of the last file
    path.write_bytes(damaged)
    with pytest.raises(data.DataError, match="truncated or damaged; write it again"):
        data.load("images", path=str(path))


def test_half_transparent_pixels_are_rounded_to_the_nearest_level():
    image = Image.fromarray(np.array([[[101, 128]]], np.uint8), "LA")
    assert images.to_uint8(image, 1).item() == 178  # 101 * 128 / 255 + 127 = 177.7
    assert images.to_uint8(image, 1, background=0).item() == 51  # 50.7


@pytest.mark.parametrize(
    ("x", "divisor", "message"),
    [
        (
            np.full((4, 8, 8, 1), 200, np.uint8),
            1.0,
            r"from 200 to 200, after .* by 1 .*\[0, 1\]",
        ),
        (np.full((4, 8, 8, 1), -1.0, np.float32), 1.0, "run from -1 to -1, "),
        (np.full((4, 8, 8, 1), np.nan, np.float32), 1.0, "images has values that are not finite"),
    ],
)
def test_arrays_that_networks_cannot_learn_are_refused_by_prepare(x, divisor, message):
    split = data.ArraySplit(x, None, None, 0)
    white = data.ArraySplit(np.ones((4, 8, 8, 1), np.uint8), None, None, 0)
    config = small.narrow(small.experiment("digits"))
    config.evaluators = ()
    with pytest.raises(ValueError, match=message):
        game.prepare(config, data.Dataset("images", split, split, divisor))
    game.prepare(config, data.Dataset("images", white, white, 1.0))
