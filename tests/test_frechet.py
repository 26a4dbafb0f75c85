"""Frechet and kernel distances against closed forms and brute force, and the layout of Inception-v3."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from ali_jax.metrics import frechet, inception
from ali_jax.metrics.classifier import fit_classifier


@pytest.fixture
def rng():
    """Give a generator of fixed seed."""
    return np.random.default_rng(0)


def gaussian(rng, size=6):
    """Return a mean and a covariance of full rank."""
    root = rng.standard_normal((size, size))
    return rng.standard_normal(size), root @ root.T + 0.1 * np.eye(size)


def exact(mean, covariance, count=1_000):
    return frechet.Moments(count, mean, covariance * (count - 1))


def test_the_frechet_distance_of_known_gaussians_is_scipys(rng):
    (mean_a, cov_a), (mean_b, cov_b) = gaussian(rng), gaussian(rng)
    cross = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b)).real
    theirs = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    ours = frechet.frechet_distance(exact(mean_a, cov_a), exact(mean_b, cov_b))
    assert ours == pytest.approx(theirs, rel=1e-10)


def test_the_distance_of_scaled_and_shifted_gaussians_is_known(rng):
    mean, cov = gaussian(rng)
    shifted = frechet.frechet_distance(exact(mean, cov), exact(mean + 2, 9 * cov))
    assert shifted == pytest.approx(6 * 4 + (3 - 1) ** 2 * np.trace(cov), rel=1e-10)


def test_the_distance_of_a_set_with_itself_is_0_even_without_full_rank(rng):
    few = frechet.moments(rng.standard_normal((5, 40)))
    assert frechet.frechet_distance(few, few) < 1e-10
    broken = frechet.moments(np.full((5, 40), np.nan))
    assert math.isnan(frechet.frechet_distance(few, broken))


def test_moments_of_parts_merge_to_those_of_the_whole(rng):
    features = 1e3 + rng.standard_normal((100, 4))
    whole = frechet.moments(features)
    parts = frechet.stream(np.split(features, [1, 30, 77]))
    np.testing.assert_allclose(whole.covariance, np.cov(features.T), rtol=1e-12)
    assert parts.count == 100
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-9, atol=1e-11)


def test_the_kernel_distance_is_the_brute_force_one(rng):
    x, y = rng.standard_normal((6, 3)), 1 + rng.standard_normal((8, 3))

    def mean(a, b, same):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
        return np.mean([(a[i] @ b[j] / 3 + 1) ** 3 for i, j in pairs])

    blocks = [
        mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
        for a, b in ((x[:3], y[:4]), (x[3:], y[4:]))
    ]
    result = frechet.kernel_distance(x, y, blocks=2)
    assert result.value == pytest.approx(np.mean(blocks), rel=1e-12)
    assert result.error == pytest.approx(abs(blocks[0] - blocks[1]) / 2, rel=1e-12)


def test_the_kernel_distance_is_unbiased_and_its_error_honest(rng):
    draws = [
        frechet.kernel_distance(rng.standard_normal((60, 3)), rng.standard_normal((80, 3)))
        for _ in range(300)
    ]
    values = np.array([draw.value for draw in draws])
    assert abs(values.mean()) < 3.3 * values.std() / np.sqrt(300)
    assert np.mean([draw.error**2 for draw in draws]) == pytest.approx(values.var(), rel=0.25)
    far = frechet.kernel_distance(rng.standard_normal((200, 3)), 1 + rng.standard_normal((200, 3)))
    assert far.value > 4 * far.error


def test_numbers_of_unlike_provenance_do_not_stand_in_one_table():
    common = frechet.Provenance("classifier", "none", 397, "digits train", "0-0", "ema", "none")
    rows = {
        "a": frechet.Measurement(1.25, common),
        "b": frechet.Measurement(2, common._replace(weights="raw")),
    }
    with pytest.raises(ValueError, match=r"'a' and 'b' .* \(weights: ema and raw\)"):
        frechet.table(rows)
    more = {**rows, "c": frechet.Measurement(3, common._replace(count=10, seed="0-1"))}
    with pytest.raises(ValueError, match=r"\(count: 397 and 10; seed: 0-0 and 0-1\)"):
        frechet.table(more, compared=["weights"])
    text = frechet.table(rows, compared=["weights"])
    assert "| a | ema | 1.25 |\n| b | raw | 2 |" in text
    assert "count: 397" in text
    assert "weights" not in text.splitlines()[-1]
    with pytest.raises(ValueError, match="no size, but extractor"):
        frechet.table(rows, compared=["size"])


def test_what_cannot_be_measured_is_refused(rng):
    with pytest.raises(ValueError, match="needs two rows"):
        frechet.frechet_distance(*[frechet.moments(np.ones((1, 3)))] * 2)
    with pytest.raises(ValueError, match="of 3 and of 4 features have no distance"):
        frechet.frechet_distance(frechet.moments(np.ones((5, 3))), frechet.moments(np.ones((5, 4))))
    with pytest.raises(ValueError, match="into 10 blocks"):
        frechet.kernel_distance(np.ones((19, 3)), np.ones((40, 3)))
    with pytest.raises(ValueError, match=r"must be \[N, F\]"):
        frechet.moments(np.ones(3))


@pytest.mark.parametrize(
    ("b", "floor", "differ"),
    [(15.05, 0.1, False), (15.15, 0.1, True), (14.95, -1.0, False), (15.05, -1.0, True), (15.05, 6.0, False)],
)
def test_distances_disagree_beyond_half_of_the_smaller_and_the_floor(b, floor, differ):
    assert [frechet.disagree(*pair, floor) for pair in ((10.0, b), (b, 10.0))] == [differ, differ]


def test_the_features_of_the_classifier_are_what_its_last_layer_reads(rng):
    label = rng.integers(2, size=200)
    x = (label[:, None] + 0.1 * rng.standard_normal((200, 3))).astype(np.float32)
    trained = fit_classifier(x, label, 2, length=0.04)
    features = trained.features(x)
    assert features.shape == (200, 256)
    assert features.min() == 0
    separate = np.linalg.norm(features[label == 0].mean(axis=0) - features[label == 1].mean(axis=0))
    assert separate > 3 * features[label == 0].std(axis=0).max()
    assert (trained.predict(x) == label).all()


def test_inception_has_the_known_layers_and_shapes():
    kernels = inception.kernel_shapes()
    assert len(kernels) == 94
    # torchvision's documented 27,161,264 parameters less those of its auxiliary and its last linear layer.
    auxiliary = 128 * 768 + 768 * 128 * 25 + 2 * (128 + 768) + 769 * 1_000
    total = sum(math.prod(shape) + 2 * shape[-1] for shape in kernels.values())
    assert total == 27_161_264 - auxiliary - 2_049 * 1_000
    # Channels that enter the blocks, as their authors give them: 192, 288, 768, 1280, 2048.
    entering = {name: kernels[f"{name}.branch1x1"][2] for name in ("Mixed_5b", "Mixed_5d", "Mixed_6b")}
    assert entering == {"Mixed_5b": 192, "Mixed_5d": 288, "Mixed_6b": 768}
    assert [kernels[f"{name}.branch1x1"][2] for name in ("Mixed_7b", "Mixed_7c")] == [1280, 2048]
    shapes = inception.file_shapes()
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert shapes["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)

    params = {
        name: inception.Layer(
            *(jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, shape[-1:], shape[-1:]))
        )
        for name, shape in kernels.items()
    }
    for channels in (1, 3):
        images = jax.ShapeDtypeStruct((2, 32, 32, channels), jnp.float32)
        assert jax.eval_shape(inception.features, params, images).shape == (2, 2048)
    with pytest.raises(ValueError, match=r"1 or 3\]; these have shape \(2, 32, 32, 2\)"):
        jax.eval_shape(inception.features, params, jax.ShapeDtypeStruct((2, 32, 32, 2), jnp.float32))


def test_average_pools_leave_the_padding_out():
    np.testing.assert_allclose(inception._average_pool(jnp.ones((1, 4, 5, 2))), 1, rtol=1e-6)


def test_a_file_of_weights_is_read_by_name_without_pickle(tmp_path, monkeypatch):
    layers = {"a": (1, 1, 2, 3), "b.c": (3, 1, 3, 2)}
    monkeypatch.setattr(inception, "kernel_shapes", lambda: layers)
    rng = np.random.default_rng(0)
    weights = {name: rng.random(shape).astype(np.float32) for name, shape in inception.file_shapes().items()}
    np.savez(tmp_path / "good.npz", **weights, **{"fc.weight": np.zeros((1008, 2048), np.float16)})
    layer = inception.load(tmp_path / "good.npz")["b.c"]
    x = rng.random((4, 3)).astype(np.float32)
    norm = (x @ weights["b.c.conv.weight"][:, :, 2, 0].T - weights["b.c.bn.running_mean"][None]) / np.sqrt(
        weights["b.c.bn.running_var"][None] + 1e-3
    )
    expected = norm * weights["b.c.bn.weight"][None] + weights["b.c.bn.bias"][None]
    result = x @ layer.kernel[2, 0] * layer.scale[None] + layer.offset[None]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)

    np.savez(tmp_path / "short.npz", **{k: v for k, v in weights.items() if k != "a.bn.bias"})
    with pytest.raises(ValueError, match=r"a.bn.bias has shape none; .* it is \(3,\)"):
        inception.load(tmp_path / "short.npz")
    np.savez(tmp_path / "pickled.npz", **{**weights, "a.bn.bias": np.array([{}], object)})
    for bad in ("pickled.npz", "missing.npz", "text.npz"):
        (tmp_path / "text.npz").write_text("no archive")
        with pytest.raises(ValueError, match=f"{bad} is not an .npz file of arrays"):
            inception.load(tmp_path / bad)
