"""The order of the data is a permutation per epoch, and both feeds follow it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ali_jax.data import ArraySplit, DeviceFeed, HostFeed, SourceSplit, make_feed, shuffled_rows

SIZES = (1, 2, 3, 5, 7, 10, 64, 97, 1000, 1400, 4906)  # 4906 needs the most passes of all below 5000
WORDS = np.array([7, 1], np.uint32)


def order(size, epoch=0, words=WORDS):
    return shuffled_rows(words, np.full(size, epoch, np.uint32), np.arange(size, dtype=np.uint32), size)


def images(n=37, side=4):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (n, side, side, 3)).astype(np.uint8)
    x[:, 0, 0, 0] = np.arange(n)  # so that an image tells its row
    y = generator.normal(size=(n, 2)).astype(np.float32)
    return ArraySplit(x, y, np.arange(n, dtype=np.int32) % 5, 5)


def run(feed, step, steps, shard=None):
    """Return the batches of consecutive steps, stacked, as a training loop would see them."""

    @jax.jit
    def call(data):
        def body(_, i):
            return None, feed.take(data, step + i, i, shard=shard)

        return jax.lax.scan(body, None, jnp.arange(steps))[1]

    return jax.tree.map(np.asarray, call(feed.load(step, steps)))


def feeds(split, **kwargs):
    arguments = {"batch_size": 8, "seed": 3, "divisor": 255.0} | kwargs
    return [make_feed(split, kind=kind, **arguments) for kind in ("device", "host")]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("size", SIZES)
def test_every_epoch_is_a_permutation(size):
    for epoch in (0, 1, 2**32 - 1):
        np.testing.assert_array_equal(np.sort(order(size, epoch)), np.arange(size))


@pytest.mark.parametrize("size", [7, 1400, 4906])
def test_numpy_and_jax_agree_on_the_order(size):
    epoch = np.arange(300, dtype=np.uint32) * np.uint32(20_000_003)
    offset = np.arange(300, dtype=np.uint32) * np.uint32(11) % np.uint32(size)
    traced = jax.jit(lambda w, e, o: shuffled_rows(w, e, o, size, jnp))(WORDS, epoch, offset)
    np.testing.assert_array_equal(traced, shuffled_rows(WORDS, epoch, offset, size))


def test_epochs_and_seeds_differ():
    others = [(0, WORDS), (1, WORDS), (0, WORDS + np.uint32([1, 0])), (0, WORDS + np.uint32([0, 1]))]
    orders = [order(100, epoch, words) for epoch, words in others]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert np.mean(a == b) < 0.1


def test_rows_are_uniform_and_neighbours_independent():
    size, epochs = 20, 4000
    epoch = np.repeat(np.arange(epochs, dtype=np.uint32), 2)
    offset = np.tile(np.array([4, 5], np.uint32), epochs)
    first, second = shuffled_rows(WORDS, epoch, offset, size).reshape(epochs, 2).T
    counts = np.bincount(first, minlength=size)
    expected = epochs / size
    assert np.sum((counts - expected) ** 2 / expected) < 50.8  # 0.9999 quantile of chi2 with 19 degrees
    # Pairs without repetition have correlation -1 / (N - 1).
    assert abs(np.corrcoef(first, second)[0, 1] + 1 / (size - 1)) < 0.07


@pytest.mark.parametrize("kind", ["device", "host"])
def test_every_image_is_used_once_per_epoch(kind):
    split = images()
    feed = make_feed(split, batch_size=8, seed=0, divisor=255.0, kind=kind)
    rows = np.rint(run(feed, 0, 37).x[..., 0, 0, 0].reshape(-1) * 255).astype(int)  # 37 steps of 8: 8 epochs
    feed.close()
    epochs = rows.reshape(8, 37)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(37))
    assert not (epochs[0] == epochs[1]).all()


@pytest.mark.parametrize("step", [0, 37, 2**31 - 6])
def test_host_and_device_feed_are_equal(step):
    device, host = feeds(images(), dequantize=0.01 if step == 37 else 0.0)
    assert isinstance(device, DeviceFeed)
    assert isinstance(host, HostFeed)
    assert_equal(run(device, step, 5), run(host, step, 5))
    host.close()


def test_calls_of_other_lengths_and_jumps_see_the_same_stream():
    device, host = feeds(images())
    whole = run(device, 0, 6)
    for feed in (device, host):
        parts = [run(feed, 4, 2), run(feed, 0, 1), run(feed, 1, 3)]  # the second goes back
        joined = jax.tree.map(lambda *a: np.concatenate(a), parts[1], parts[2], parts[0])
        assert_equal(joined, whole)
    host.close()


def test_batch_may_exceed_the_split():
    device, host = feeds(images(5), batch_size=16)
    batch = run(device, 2, 2)
    assert batch.x.shape == (2, 16, 4, 4, 3)
    assert_equal(batch, run(host, 2, 2))
    host.close()


def test_rows_keep_together_and_x_is_scaled():
    split = images()
    batch = run(feeds(split)[0], 0, 3)
    x = batch.x.reshape(-1, 4, 4, 3)
    rows = np.rint(x[:, 0, 0, 0] * 255).astype(int)
    np.testing.assert_allclose(x, split.x[rows] / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(batch.label.reshape(-1), split.label[rows])
    np.testing.assert_array_equal(batch.y.reshape(-1, 2), split.y[rows])


def test_vectors_stay_as_they_are():
    split = ArraySplit(np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32))
    batch = run(make_feed(split, batch_size=9, seed=0, divisor=1.0), 0, 1)
    np.testing.assert_array_equal(np.sort(batch.x[0], axis=0), np.sort(split.x, axis=0))
    assert batch.label is None


def test_dequantisation_is_uniform_and_new_in_every_step():
    split = ArraySplit(np.zeros((4, 16, 16, 1), np.uint8))
    feed = make_feed(split, batch_size=4, seed=0, divisor=255.0, dequantize=0.5)
    x = run(feed, 0, 2).x
    assert np.abs(x).max() <= 0.5
    assert abs(x.std() - 1 / np.sqrt(12)) < 0.02
    assert abs(np.corrcoef(x[0].ravel(), x[1].ravel())[0, 1]) < 0.1
    shards = [run(feed, 0, 1, (i, 2)).x.ravel() for i in range(2)]
    assert abs(np.corrcoef(*shards)[0, 1]) < 0.15


@pytest.mark.parametrize("kind", [0, 1])
def test_shards_are_contiguous_slices_of_the_global_batch(kind):
    feed = feeds(images())[kind]
    whole = run(feed, 5, 2)
    mapped = jax.vmap(
        lambda data: feed.take(data, 5, 0, shard=(jax.lax.axis_index("data"), 4)),
        in_axes=None,
        axis_size=4,
        axis_name="data",
    )(feed.load(5, 2))
    assert_equal(
        jax.tree.map(lambda a: np.asarray(a).reshape(8, *a.shape[2:]), mapped),
        jax.tree.map(lambda a: a[0], whole),
    )
    with pytest.raises(ValueError, match="not a multiple of 3"):
        run(feed, 0, 1, (0, 3))
    feed.close()


def test_host_block_of_one_shard_alone_is_taken_whole():
    host = feeds(images())[1]
    block = host.load(0, 1)
    shard = host.take(jax.tree.map(lambda a: a[:, 4:6], block), 0, 0, shard=(2, 4))
    assert_equal(shard, host.take(block, 0, 0, shard=(2, 4)))
    host.close()


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_on_a_mesh_both_feeds_give_sharded_batches_equal_to_one_device():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    shardings = {
        "sharding": NamedSharding(mesh, PartitionSpec()),
        "batch_sharding": NamedSharding(mesh, PartitionSpec(None, "data")),
    }
    single = run(feeds(images())[0], 3, 2)
    for feed in feeds(images(), **shardings):
        data = feed.load(3, 2)
        batch = jax.jit(lambda data, feed=feed: feed.take(data, 3, 0))(data)
        assert batch.x.sharding.spec[0] == "data"
        assert_equal(jax.tree.map(np.asarray, batch), jax.tree.map(lambda a: a[0], single))
        feed.close()


def test_device_feed_keeps_bytes_and_transfers_once():
    feed = feeds(images())[0]
    first, second = feed.load(0, 5), feed.load(5, 5)
    assert first.rows.x.dtype == jnp.uint8
    assert first.rows.x is second.rows.x


def test_host_feed_reads_decoded_sources_in_the_same_order():
    split = images()
    lazy = SourceSplit(
        range(len(split)),
        lambda i: jax.tree.map(lambda a: a[i], split.rows(np.arange(37))),
        (4, 4, 3),
        split.dtype,
        5,
        2,
    )
    host = feeds(lazy)[1]
    assert_equal(run(host, 2, 3), run(feeds(split)[0], 2, 3))
    host.close()


def test_auto_goes_by_size():
    split = images()
    arguments = {"batch_size": 4, "seed": 0, "divisor": 255.0}
    assert isinstance(make_feed(split, **arguments, device_bytes=split.nbytes), DeviceFeed)
    assert isinstance(make_feed(split, **arguments, device_bytes=split.nbytes - 1), HostFeed)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="must be auto, device or host"):
        make_feed(images(), batch_size=4, seed=0, divisor=1.0, kind="gpu")
    with pytest.raises(ValueError, match="both must be positive"):
        make_feed(images(), batch_size=0, seed=0, divisor=1.0)
    with pytest.raises(ValueError, match="too many for one call"):
        feeds(images())[0].load(0, 2**30)
