"""Conditional ALI: where y enters, whose projection it is, and what its pictures show."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
import test_evaluate

from ali_jax import data, evaluate, model, networks
from ali_jax.data import ArraySplit, Dataset, tfds
from ali_jax.evaluate import figures, pictures
from ali_jax.metrics import classifier
from ali_jax.networks import layers
from ali_jax.tools import describe
from ali_jax.types import Networks, Variables

RECIPE = classifier._Recipe((), (4,), 5, 0.0, 0, 2, 1e-3, "native")


def parameters(variables, name):
    """Return the paths of parameters under a module of that name."""
    paths = jax.tree.leaves_with_path(variables.params)
    return [path for path, _ in paths if name in jax.tree_util.keystr(path)]


@pytest.mark.parametrize(("variant", "learned"), [("celeba_conditional", 0), ("celeba_conditional:paper", 6)])
def test_the_embedding_is_frozen_in_the_code_and_learned_in_the_papers_reading(variant, learned):
    config = small.experiment(variant)
    batch = describe.abstract_batch(config, tuple(config.dataset.shape))
    ali, *_ = small.game(variant)
    variables = jax.eval_shape(lambda x, y: model.init(ali, jax.random.PRNGKey(0), x, y), batch.x, batch.y)
    assert len(parameters(variables, "embed")) == learned  # a kernel and a bias in each network
    assert describe._frozen_parameters(config) == (0 if learned else 10_496)


def test_the_frozen_projection_never_changes():
    """Checkpoints rely on it."""
    kernel = layers.frozen_projection(40, 256)
    assert abs(kernel.std() - 0.01) < 2e-4
    np.testing.assert_allclose(kernel[0, :3], [0.01764052, 0.00400157, 0.00978738], rtol=1e-5)
    assert layers.frozen_projection(40, 256) is kernel


def test_y_reaches_all_three_networks(key):
    ali, _, batch = small.game("mnist:conditional", maps=8)
    variables = small.draw(ali, batch.x, batch.y)
    other = batch.y[::-1] + 1
    z = jax.random.normal(key, (4, model.latent_dim(ali)))
    for function, argument in ((model.encode, batch.x), (model.decode, z)):
        one, two = (function(ali, variables, argument, y) for y in (batch.y, other))
        assert jnp.abs(one - two).max() > 1e-6
    one, two = (model.discriminate(ali, variables, batch.x, z, y) for y in (batch.y, other))
    assert jnp.abs(one - two).max() > 1e-6


def test_both_kinds_of_pairs_see_the_same_y(key):
    """A D that reads y alone gives both the same logit, and nobody learns."""
    ali, _, batch = small.game("mnist:conditional")
    variables = small.draw(ali, batch.x, batch.y)
    noise = model.draw_noise(ali, key, 4)
    pairs, _ = model.generate(ali, *variables, batch, noise)
    np.testing.assert_array_equal(pairs.y, batch.y)
    params = variables.params.discriminator
    blind = {
        **params,
        "x": jax.tree.map(jnp.zeros_like, params["x"]),
        "z": jax.tree.map(jnp.zeros_like, params["z"]),
    }
    logits, _ = model.judge(ali, blind, {}, pairs, key)
    np.testing.assert_allclose(logits.q, logits.p, rtol=1e-6)
    assert optax.tree.norm(logits.q - logits.q[0][None]) > 0


def painter(dataset):
    """Give a model whose decoder adds the first condition to z, shown at z = 0 and with a code per pixel."""
    shape = dataset.train.shape
    ali = Networks(test_evaluate.Copy(int(np.prod(shape))), test_evaluate.Paste(shape), test_evaluate.Blind())
    zero = {"one": jnp.zeros(())}
    return ali, Variables(Networks(zero, {"one": jnp.ones(())}, {}), Networks({}, {}, {}))


def test_the_attribute_grid_has_the_papers_rows_and_columns(key, monkeypatch):
    shown = []
    decode = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda *args: shown.append(args[-2:]) or decode(*args))
    y = np.zeros((3, 40), np.float32)
    faces = ArraySplit(np.zeros((3, 4, 4, 3), np.uint8), y)
    dataset = Dataset("faces", faces, faces, 255.0, attributes=tfds.CELEBA_ATTRIBUTES)
    report = evaluate.attribute_grid(*painter(dataset), key, dataset)
    ((z, y),) = shown
    assert (z == z[:1]).all()
    names = [{tfds.CELEBA_ATTRIBUTES[i] for i in np.flatnonzero(row)} for row in y]
    assert names[0] == {"Attractive", "Male", "Young"}
    assert names[12] == {"Attractive", "Male"}
    assert names[24 + 7] == {"Attractive", "Young", "Blond_Hair", "Bald"}
    assert (
        {"Eyeglasses", "Wearing_Hat", "Mouth_Slightly_Open"}
        < names[47]
        == names[36] | names[11] - {"Male", "Young"}
    )
    height, width, _ = report.images["attribute_grid"].shape
    assert width / height == pytest.approx(3, abs=0.1)


def test_samples_agree_with_the_class_they_were_asked_for(key):
    """A decoder that recalls a digit of the class agrees; one that recalls any agrees once in ten."""
    dataset = data.load("digits", conditional=True)
    rows = dataset.train.rows(np.arange(1400))
    first = np.stack([rows.x[np.flatnonzero(rows.label == k)[:20]] for k in range(10)]) / np.float32(16)

    class Librarian(test_evaluate.Recall):
        """The decoder that recalls an image of the class y."""

        def __call__(self, z, y=None, *, train):
            chosen = (jax.scipy.stats.norm.cdf(z[:, 0]) * 20).astype(jnp.int32)
            return jnp.asarray(first)[jnp.argmax(y, axis=-1), chosen]

    ali, variables = test_evaluate.recaller(dataset, first.reshape(-1, 8, 8, 1))
    found = [
        evaluate.condition_agreement(model, variables, key, dataset, num_samples=500).scalars
        for model in (ali._replace(decoder=Librarian((8, 8, 1), 200)), ali)
    ]
    assert found[0]["condition_agreement"] > 0.97
    assert abs(found[1]["condition_agreement"] - 0.1) < 0.05
    assert found[0]["condition_agreement_min"] > 0.9
    picture = evaluate.conditional_samples(ali, variables, key, dataset, grid=(3, 5)).images
    picture = picture["conditional_samples"]
    grid = picture[:, -(len(picture) // 2 + 1) :]  # 10 rows of 5, with white lines of 2
    margin = picture[:, : -grid.shape[1]]
    named = figures.with_row_names(grid, dataset.attributes)
    np.testing.assert_array_equal(margin, named[:, : -grid.shape[1]])


@pytest.fixture(scope="module")
def told():
    """Give random pixels with random labels of five classes, a fifth of them each, which are given as y."""
    rng = np.random.default_rng(0)
    splits = []
    for n in (500, 200):
        label = np.arange(n, dtype=np.int32) % 5
        x = rng.integers(256, size=(n, 4, 4, 1), dtype=np.uint8)
        splits.append(ArraySplit(x, np.eye(5, dtype=np.float32)[label], label, 5))
    return Dataset("told", *splits, divisor=255.0, num_classes=5, attributes=tuple("abcde"))


@pytest.mark.parametrize("name", ["probes", "hidden_probe", "l2_svm", "label_error"])
def test_what_codes_say_of_the_class_is_not_asked_where_the_encoder_is_told_it(name, told, key):
    without_names = told._replace(attributes=(), train=ArraySplit(*vars(told.train).values()))
    discriminator = test_evaluate.TenClasses(num_classes=5)
    ali = Networks(networks.Encoder(2, (3,)), painter(told)[0].decoder, discriminator)
    for dataset in (told, without_names):
        with pytest.raises(ValueError, match=f"'{name}' needs a model that is not given y.*leave it out"):
            evaluate.check_applicable(name, dataset, ali)
        with pytest.raises(ValueError, match=f"'{name}' needs a model that is not given y"):
            evaluate.named(name)(ali, None, key, dataset)
    hidden = told._replace(
        attributes=(),
        **{p: ArraySplit(s.x, None, s.label, 5) for p, s in (("train", told.train), ("test", told.test))},
    )
    evaluate.check_applicable(name, hidden, ali)


def test_samples_are_read_and_reconstructions_are_not_where_y_is_given(told, key, monkeypatch):
    monkeypatch.setattr(classifier, "_recipe_for", lambda *_: RECIPE)
    found = evaluate.class_balance(*painter(told), key, told, num_samples=50).scalars
    assert found.keys() >= {"class_kl", "class_score", "class_share_min"}
    assert not found.keys() & {"class_kept", "class_kept_sampled"}
    mixture = data.load("mixture", conditional=True)
    found = evaluate.modes(*painter(mixture), key, mixture).scalars
    assert {"modes_strict", "high_quality", "modes_paper"} < found.keys()
    assert "mode_kept" not in found


def test_codes_that_are_told_the_class_have_one_colour(told, key):
    assert evaluate.code_panel(*painter(told), told)[0].labels is None
    mixture = data.load("mixture", conditional=True)
    panels = evaluate.plane_panels(*painter(mixture), key, mixture)
    assert [panel.labels for row in panels for panel in row] == [None] * 5
    plain = data.load("mixture")
    assert evaluate.code_panel(*painter(plain), plain)[0].labels is not None


def test_conditional_experiments_ask_for_what_applies_to_them(told):
    variants = ("mnist:conditional", "celeba_conditional", "celeba_conditional:paper")
    asked = {name for variant in variants for name in small.experiment(variant).evaluators}
    ali = Networks(networks.Encoder(2, (3,)), painter(told)[0].decoder, test_evaluate.TenClasses(5))
    for name in asked - {"attribute_grid"}:  # of CelebA's attributes
        evaluate.check_applicable(name, told, ali)


def test_conditional_evaluators_need_conditions():
    ali, _, _ = small.game("digits")
    for name in ("conditional_samples", "condition_agreement", "attribute_grid"):
        with pytest.raises(ValueError, match="as conditions"):
            evaluate.check_applicable(name, data.load("digits"), ali)
