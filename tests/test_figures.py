"""Pictures: what stands where, and files that are whole."""

import numpy as np
import pytest
from PIL import Image

from ali_jax.evaluate import figures


def flat_images(values, height=4, width=4, channels=1):
    return np.full((len(values), height, width, channels), 0.0) + np.reshape(values, (-1, 1, 1, 1))


def cells(grid, rows, cols, pad=figures.PAD):
    """Cut a grid into the values in the middle of its cells [rows, cols]."""
    height, width = (grid.shape[0] - pad) // rows, (grid.shape[1] - pad) // cols
    return grid[pad + height // 2 :: height, pad + width // 2 :: width, 0][:rows, :cols]


def test_images_stand_row_by_row_in_255ths():
    grid = figures.image_grid(flat_images([0, 0.2, 0.4, 0.6, 0.8, 1]), 2, 3)
    np.testing.assert_array_equal(cells(grid, 2, 3), [[0, 51, 102], [153, 204, 255]])
    assert grid.dtype == np.uint8


def test_cells_without_an_image_are_white():
    grid = figures.image_grid(flat_images([0, 0]), 1, 3)
    np.testing.assert_array_equal(cells(grid, 1, 3), [[0, 0, 255]])


def test_values_outside_the_range_are_clipped_and_no_number_is_black():
    grid = figures.image_grid(flat_images([-1, 2, np.nan]), 1, 3)
    np.testing.assert_array_equal(cells(grid, 1, 3), [[0, 255, 0]])


@pytest.mark.parametrize(
    ("size", "rows", "cols"),
    [(8, 10, 10), (28, 10, 10), (32, 10, 10), (64, 10, 10), (32, 10, 20), (8, 4, 13)],
)
def test_grids_are_600_to_1000_pixels_wide(size, rows, cols):
    grid = figures.image_grid(np.zeros((rows * cols, size, size, 3)), rows, cols)
    assert 600 <= grid.shape[1] <= 1000


def test_enlarging_repeats_pixels_and_keeps_colours():
    image = np.random.default_rng(0).random((1, 8, 8, 3))
    grid = figures.image_grid(image, 1, 1, pad=0)
    factor = grid.shape[0] // 8
    np.testing.assert_array_equal(grid[factor // 2 :: factor, factor // 2 :: factor], np.rint(255 * image[0]))


def test_odd_columns_are_originals_and_even_ones_reconstructions():
    grid = figures.reconstruction_grid(flat_images([0, 0.2, 0.4, 0.6]), flat_images([1.0] * 4), 2, 2)
    np.testing.assert_array_equal(cells(grid, 2, 4), [[0, 255, 51, 255], [102, 255, 153, 255]])


@pytest.mark.parametrize(("count", "rows", "cols"), [(100, 10, 20), (12, 2, 12), (3, 1, 6), (99, 10, 20)])
def test_a_grid_of_fewer_reconstructions_than_cells_has_no_empty_rows(count, rows, cols):
    """Twelve pairs are two rows of six, not two of ten."""
    grid = figures.reconstruction_grid(flat_images([0.0] * count), flat_images([0.2] * count), 10, 10)
    found = cells(grid, rows, cols)
    assert (found[:-1] < 255).all()
    assert (found[-1] < 255).sum() == 2 * count - (rows - 1) * cols


def test_interpolations_stand_between_their_originals():
    path = np.stack([flat_images([0.2, 0.4, 0.6]), flat_images([0.6, 0.4, 0.2])])
    grid = figures.interpolation_grid(flat_images([0, 0]), path, flat_images([1, 1]))
    np.testing.assert_array_equal(cells(grid, 2, 5), [[0, 51, 102, 153, 255], [0, 153, 102, 51, 255]])


def test_impossible_grids_are_refused():
    with pytest.raises(ValueError, match="5 images do not fit"):
        figures.image_grid(np.zeros((5, 8, 8, 1)), 2, 2)
    with pytest.raises(ValueError, match="C = 1 or 3"):
        figures.image_grid(np.zeros((4, 8, 8, 2)), 2, 2)
    with pytest.raises(ValueError, match=r"needs \[N, 2\]"):
        figures.scatter([[figures.Panel("x", np.zeros((5, 3)))]])


def test_a_scatter_plot_shows_its_points_where_they_are():
    left = figures.scatter([[figures.Panel("", np.full((50, 2), [-3.0, 3.0]))]]).astype(int)
    right = figures.scatter([[figures.Panel("", np.full((50, 2), [3.0, 3.0]))]]).astype(int)
    columns = np.argwhere((left != right).any(axis=-1))[:, 1]
    assert left.shape == right.shape == (300, 300, 3)
    assert columns.min() < 100 < 200 < columns.max()


def test_the_mixture_panel_has_two_rows_of_three():
    points = np.random.default_rng(0).standard_normal((5, 30, 2))
    points[2, 0] = np.nan  # a model that has diverged still gets its picture
    plain, coloured = (
        figures.scatter(figures.mixture_panels(*points, labels=labels))
        for labels in (None, np.arange(30) % 4)
    )
    assert plain.shape == coloured.shape == (600, 900, 3)
    assert (plain[:300, :600] != coloured[:300, :600]).any()
    np.testing.assert_array_equal(plain[:300, 600:], coloured[:300, 600:])  # samples have no labels


def test_a_png_is_written_exactly_and_leaves_nothing_else(tmp_path):
    image = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)
    figures.save_png(tmp_path / "picture.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "picture.png")), image)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_failed_write_leaves_the_earlier_picture(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    figures.save_png(path, np.zeros((4, 4, 3), np.uint8))
    before = path.read_bytes()

    def fail(image, file, format):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.save_png(path, np.ones((4, 4, 3), np.uint8))
    assert path.read_bytes() == before
