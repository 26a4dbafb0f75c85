"""Semi-supervised ALI: the losses of K + 1 classes, the minibatches, the test rule."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from scipy.special import softmax

from ali_jax import config as configs
from ali_jax import data, evaluate, game, losses, model, train
from ali_jax.data import DataError
from ali_jax.game import compile, parts
from ali_jax.program.command import override
from ali_jax.types import Batch, Logits, Losses

K = 3


def logits_and_batch(key, rows=12, classes=K):
    q, p = 3 * jax.random.normal(key, (2, rows, classes))
    label = jnp.arange(rows, dtype=jnp.int32) % (classes + 1) - 1
    return Logits(q, p), Batch(jnp.zeros((rows, 2)), label=label)


def test_class_k_plus_one_is_the_logit_zero(key):
    """Against cross-entropies over K + 1 explicit classes."""
    logits, batch = jax.device_get(logits_and_batch(key))
    (generator, discriminator), _ = jax.jit(partial(losses.semi_supervised, weight=2.0))(logits, batch)
    padded = [np.pad(np.float64(s), ((0, 0), (0, 1))) for s in logits]
    real_q, real_p = (1 - softmax(s, axis=1)[:, K] for s in padded)
    unlabelled = batch.label < 0
    of_label = softmax(np.float64(logits.q), axis=1)[~unlabelled, batch.label[~unlabelled]]
    supervised = -np.log(of_label).mean()
    expected = -np.log(real_q[unlabelled]).mean() - np.log(1 - real_p).mean() + 2 * supervised
    np.testing.assert_allclose(discriminator, expected, rtol=1e-5)
    expected = -np.log(1 - real_q[unlabelled]).mean() - np.log(real_p).mean()
    np.testing.assert_allclose(generator, expected, rtol=1e-5)


def test_with_one_class_losses_and_gradients_are_alis(key):
    logits, batch = logits_and_batch(key, classes=1)
    unlabelled = batch._replace(label=jnp.full(12, -1))
    flat = Logits(*(s[:, 0] for s in logits))

    def both_players(loss, logits):
        value, pull = jax.vjp(lambda s: loss(s, unlabelled)[0], logits)
        return value, pull(Losses(1.0, 0.0)), pull(Losses(0.0, 1.0))

    run = jax.jit(both_players, static_argnums=0)
    found, expected = run(losses.semi_supervised, flat), run(losses.ali, flat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)
    assert losses.semi_supervised(logits, batch)[1]["loss/labelled"] == 0


def test_the_labelled_term_reaches_the_discriminator_only(key):
    logits, batch = logits_and_batch(key)
    by_weight = [losses.semi_supervised(logits, batch, weight=w)[0] for w in (0.0, 1.0)]
    assert by_weight[0].generator == by_weight[1].generator
    assert by_weight[0].discriminator < by_weight[1].discriminator


@pytest.mark.parametrize("labelled", [9, 1])
def test_shards_with_unequal_numbers_of_labels_average_to_the_whole(key, labelled):
    """Gradients of the shards' losses, averaged over the axis, are the gradient of the whole batch's."""
    logits, batch = logits_and_batch(key)
    order = jnp.argsort(batch.label)
    logits, label = jax.tree.map(lambda a: a[order], (logits, batch.label))
    label = jnp.where(jnp.arange(12) < 12 - labelled, -1, label)

    def gradient(logits, label, axis_name=None):
        def loss(s):
            return losses.semi_supervised(s, Batch(label, label=label), axis_name=axis_name)[0].discriminator

        return jax.value_and_grad(loss)(logits)

    def of_shard(logits, label):
        value, by_logits = gradient(logits, label, "data")
        return jax.lax.pmean(value, "data"), jax.tree.map(lambda g: g / 3, by_logits)

    shards = jax.tree.map(lambda a: a.reshape(3, 4, *a.shape[1:]), (logits, label))
    value, found = jax.jit(jax.vmap(of_shard, axis_name="data"))(*shards)
    expected_value, expected = jax.jit(gradient)(logits, label)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for shard, whole in zip(found, expected, strict=True):
        np.testing.assert_allclose(shard.reshape(whole.shape), whole, rtol=1e-5, atol=1e-7)


def test_a_batch_without_labels_is_refused(key):
    logits, batch = logits_and_batch(key)
    with pytest.raises(ValueError, match=r"needs batch\.label"):
        losses.semi_supervised(logits, batch._replace(label=None))


def semi_feed(kind):
    split = data.load("digits").train
    index = data.class_balanced(split.label, 10, 50, seed=3)
    splits = (data.Relabelled(split, hidden=True), data.Relabelled(split, index))
    feeds = [data.make_feed(s, batch_size=20, seed=0, divisor=16.0, kind=kind) for s in splits]
    return data.SemiSupervisedFeed(*feeds), split, index


@pytest.mark.parametrize("kind", ["device", "host"])
def test_each_step_has_as_many_labelled_rows_as_others_and_no_more_labels_than_were_kept(kind):
    feed, split, index = semi_feed(kind)
    kept = {split.x[i].tobytes(): split.label[i] for i in index}
    loaded = feed.load(0, 4)
    take = jax.jit(feed.take)
    batches = jax.device_get([take(loaded, i, i) for i in range(4)])
    feed.close()
    assert {batch.x.shape for batch in batches} == {(40, 8, 8, 1)}
    for batch in batches:
        assert (batch.label[::2] == -1).all()
        for x, label in zip(np.rint(16 * batch.x[1::2]).astype(np.uint8), batch.label[1::2], strict=True):
            assert kept[x.tobytes()] == label
    shown = np.concatenate([batch.x[1::2] for batch in batches])  # 80 of 50 rows: each once before any twice
    assert len({x.tobytes() for x in shown[:50]}) == 50


def test_labels_are_drawn_balanced_by_the_seed():
    label = np.repeat(np.arange(10), 20)
    one, same, other = (data.class_balanced(label, 10, 50, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(np.bincount(label[one]), 5)
    assert len(set(one)) == 50
    np.testing.assert_array_equal(one, same)
    assert set(one) != set(other)


@pytest.mark.parametrize(
    ("count", "message"), [(55, "multiple of the 10 classes"), (210, "set it to 200 or less")]
)
def test_more_labels_than_there_are_is_an_error_that_says_how_many_there_are(count, message):
    with pytest.raises(DataError, match=message):
        data.class_balanced(np.repeat(np.arange(10), 20), 10, count, seed=0)


def test_a_discriminator_of_k_classes_learns_them(key):
    """A few hundred steps on digits with 100 labels; chance would be wrong 90 times in 100."""
    config = small.narrow(small.experiment("digits"), maps=64)
    config.discriminator.num_classes = 10
    config.loss, config.dataset.labelled, config.num_steps = "semi_supervised", 100, 400
    config.latent_dim = 8
    ali, _, _ = small.game("digits", maps=64, edit=lambda c: c.update(config))
    dataset = data.load("digits")
    tx, loss = parts.make_optimizer(config), parts.make_loss(config)
    index = data.class_balanced(dataset.train.label, 10, 100, seed=0)
    splits = (data.Relabelled(dataset.train, hidden=True), data.Relabelled(dataset.train, index))
    feed = data.SemiSupervisedFeed(*(data.make_feed(s, batch_size=32, seed=0, divisor=16.0) for s in splits))
    first = Batch(jnp.asarray(dataset.train.x[:100]) / 16)
    state = jax.jit(lambda: train.init_state(ali, tx, key, first, ema=True))()
    call = compile.make_train_step(ali, tx, loss, feed=feed, steps=400, ema_decay=0.99)
    state, metrics = call(state, feed.load(0, 400))
    assert metrics["accuracy/label"] > 0.8
    found = evaluate.label_error(ali, state.ema, key, dataset).scalars
    assert found["label_error"] < 0.25
    assert found["label_error_sampled"] < 0.25
    z = model.encode(ali, state.ema, first.x)
    assert model.discriminate(ali, state.ema, first.x, z).shape == (100, 10)


@pytest.mark.parametrize(("name", "labels"), [("cifar10_semi", 4000), ("svhn_semi", 1000)])
def test_the_narrow_variant_has_a_third_of_the_maps_and_is_otherwise_the_same(name, labels):
    wide, narrow = (configs.flat(small.experiment(which)) for which in (name, f"{name}:narrow"))
    assert narrow["dataset.labelled"] == labels
    changed = {key for key in wide if wide[key] != narrow[key]}
    stacks = ("x_layers", "z_layers", "joint_layers")
    assert changed == {"encoder.layers", "decoder.layers", *(f"discriminator.{key}" for key in stacks)}
    for key in changed:
        for of_wide, of_narrow in zip(wide[key], narrow[key], strict=True):
            maps = [layer if isinstance(layer, int) else layer[2] for layer in (of_wide, of_narrow)]
            assert maps[1] / maps[0] == pytest.approx(1 / 3, rel=0.05)
    with pytest.raises(ValueError, match="narrow, or a number of labels"):
        small.experiment(f"{name}:wide")


def test_label_error_needs_a_discriminator_of_classes(key):
    ali, _, _ = small.game("digits")
    with pytest.raises(ValueError, match="needs a discriminator of K classes"):
        evaluate.check_applicable("label_error", data.load("digits"), ali)


def test_packs_cannot_have_classes():
    options = ["--config.dataset.labelled=100", "--config.loss=semi_supervised"]
    config = small.experiment("digits")
    override(config, [*options, "--config.discriminator.num_classes=10", "--config.discriminator.packing=2"])
    with pytest.raises(ValueError, match=r"packing is 2; with labelled rows, .* it must be 1"):
        game.prepare(config)
