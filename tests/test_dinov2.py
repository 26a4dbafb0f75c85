"""DINOv2: a forward pass against one by hand, how images are resized, and files that are wrong."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ali_jax import evaluate
from ali_jax.metrics import dinov2

WIDTH, DEPTH, SIDE = 128, 2, 3  # two heads; 3x3 positions, and images of 2x2 patches


@pytest.fixture
def tiny(monkeypatch):
    """Give the tensors of a tiny file, by name, for images of 28x28."""
    monkeypatch.setattr(dinov2, "SIZE", 28)
    rng = np.random.default_rng(0)
    shapes = dinov2.file_shapes(WIDTH, 1 + SIDE**2, DEPTH)
    return {
        name: (rng.normal(size=shape) / math.sqrt(math.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }


def cubic(d, a=-0.75):
    """Return Keys's kernel at a distance."""
    d = abs(d)
    if d < 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def position(table, i, j):
    """Return a position of the 2x2 patches, from those of 3x3 around it."""
    y, x = ((at + 0.5) * SIDE / 2 - 0.5 for at in (i, j))
    total = np.zeros(WIDTH)
    for p in range(-3, 6):
        for q in range(-3, 6):
            row, column = min(max(p, 0), SIDE - 1), min(max(q, 0), SIDE - 1)
            total += cubic(y - p) * cubic(x - q) * table[1 + row * SIDE + column]
    return total


def norm(h, w, name):
    deviation = np.sqrt(((h - h.mean()) ** 2).mean() + 1e-6)
    return (h - h.mean()) / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]


def dense(h, w, name):
    return w[f"{name}.weight"] @ h + w[f"{name}.bias"]


def by_hand(w, x):
    """Return the class token of one image [28, 28, 3] in [0, 1], token by token and head by head."""
    w = {name: np.float64(tensor) for name, tensor in w.items()}
    x = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    table = w["embeddings.position_embeddings"][0]
    tokens = [w["embeddings.cls_token"][0, 0] + table[0]]
    kernel, bias = (w[f"embeddings.patch_embeddings.projection.{part}"] for part in ("weight", "bias"))
    for i in range(2):
        for j in range(2):
            patch = x[14 * i : 14 * i + 14, 14 * j : 14 * j + 14]
            embedded = [(kernel[f] * patch.transpose(2, 0, 1)).sum() for f in range(WIDTH)]
            tokens.append(embedded + bias + position(table, i, j))
    for layer in range(DEPTH):
        at = f"encoder.layer.{layer}"
        normed = [norm(h, w, f"{at}.norm1") for h in tokens]
        query, key, value = (
            [dense(h, w, f"{at}.attention.attention.{name}") for h in normed]
            for name in ("query", "key", "value")
        )
        for t in range(len(tokens)):
            heads = []
            for part in (slice(0, 64), slice(64, 128)):
                scores = np.exp([query[t][part] @ k[part] / 8 for k in key])
                heads.append(sum(s * v[part] for s, v in zip(scores / scores.sum(), value, strict=True)))
            mixed = dense(np.concatenate(heads), w, f"{at}.attention.output.dense")
            tokens[t] = tokens[t] + w[f"{at}.layer_scale1.lambda1"] * mixed
        for t, h in enumerate(tokens):
            hidden = dense(norm(h, w, f"{at}.norm2"), w, f"{at}.mlp.fc1")
            hidden = np.array([0.5 * u * (1 + math.erf(u / math.sqrt(2))) for u in hidden])
            tokens[t] = h + w[f"{at}.layer_scale2.lambda1"] * dense(hidden, w, f"{at}.mlp.fc2")
    return norm(tokens[0], w, "layernorm")


def test_the_features_are_those_of_a_forward_pass_by_hand(tiny, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(tiny, tmp_path / "model.safetensors")
    x = np.random.default_rng(1).random((2, 28, 28, 3))
    extractor = evaluate.dinov2_extractor(str(tmp_path / "model.safetensors"))
    found = extractor.features(x.astype(np.float32))
    assert (extractor.name, found.shape) == ("dinov2", (2, WIDTH))
    np.testing.assert_allclose(found, [by_hand(tiny, image) for image in x], atol=2e-5)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 3), (300, 3)])
def test_images_are_resized_as_pillow_does_and_standardised(size, channels):
    x = np.random.default_rng(0).random((1, size, size, channels)).astype(np.float32)
    resized = [
        np.asarray(Image.fromarray(x[0, :, :, c % channels]).resize((224, 224), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    expected = (np.clip(np.stack(resized, -1), 0, 1) - dinov2.MEAN) / dinov2.STD
    np.testing.assert_allclose(dinov2._prepared(jnp.asarray(x))[0], expected, atol=1e-4)


def test_a_vit_s_has_the_known_number_of_parameters_and_features():
    """22,056,576 as published; the hub's file also has a mask token of 384, which is not used."""
    shapes = dinov2.file_shapes(384, 1370, 12)
    assert sum(map(math.prod, shapes.values())) == 22_056_576 - 384
    struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    file = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    params = jax.eval_shape(lambda: dinov2.params_of(file))
    assert jax.eval_shape(dinov2.features, params, struct((2, 32, 32, 1))).shape == (2, 384)
    with pytest.raises(ValueError, match=r"images \[B, H, W, 1 or 3\]; these have shape \(2, 32, 32, 2\)"):
        jax.eval_shape(dinov2.features, params, struct((2, 32, 32, 2)))


SECOND = "encoder.layer.1.mlp.fc2.weight"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (SECOND, None, r"has encoder.layer.1.mlp.fc2.weight of shape none, not \(128, 512\)"),
        (
            SECOND,
            (512, 128),
            r"fc2.weight of shape \(512, 128\), not \(128, 512\) as in a DINOv2 of width 128",
        ),
        (
            "embeddings.cls_token",
            None,
            r"has embeddings.cls_token of shape none, not \(1, 1, a multiple of 64",
        ),
        ("embeddings.cls_token", (1, 1, 100), r"has embeddings.cls_token of shape \(1, 1, 100\)"),
        (
            "embeddings.position_embeddings",
            (1, 9, 128),
            r"of shape \(1, 9, 128\), not \(1, 1 \+ a square, 128\)",
        ),
        ("embeddings.register_tokens", (1, 4, 128), "is of a model with registers"),
        ("encoder.layer.0.mlp.weights_in.weight", (4, 4), "is of the giant model"),
    ],
)
def test_tensors_that_are_missing_or_of_another_shape_are_named(name, shape, message, tiny):
    file = {key: tensor for key, tensor in tiny.items() if key != name}
    if shape is not None:
        file[name] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=f"^weights .*{message}.*give model.safetensors of facebook/dinov2"):
        dinov2.params_of(file, "weights")


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    (tmp_path / "damaged").write_bytes(b"no tensors")
    for name in ("damaged", "missing"):
        with pytest.raises(ValueError, match=f"{name} is not a safetensors file .*: give model.safetensors"):
            dinov2.load(tmp_path / name)
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"damaged needs safetensors: pip install 'ali_jax\[export\]'"):
        dinov2.load(tmp_path / "damaged")
