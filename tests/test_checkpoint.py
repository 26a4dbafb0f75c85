"""Checkpoints bring back every bit, survive donation, and damage to the newest one."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ali_jax.program import hosts
from ali_jax.records import checkpoint, workdir
from ali_jax.types import Networks, TrainState, Variables


def make_state(size: int = 300) -> TrainState:
    params = Networks(
        {"w": jnp.full((size, size), 1 / 3)}, {"w": jnp.ones(3, jnp.bfloat16)}, {"b": jnp.zeros(2)}
    )
    tx = optax.multi_transform(
        {"generator": optax.adam(1e-3), "discriminator": optax.adam(optax.constant_schedule(1e-3))},
        Networks("generator", "generator", "discriminator"),
    )
    stats = Networks({}, {"mean": jnp.ones(2)}, {})
    return TrainState(
        jnp.zeros((), jnp.int32), jax.random.PRNGKey(7), Variables(params, stats), None, tx.init(params)
    )


def abstract(state: TrainState, devices: int = 1) -> TrainState:
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()[:devices]), ("data",)), PartitionSpec())
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding), state)


@jax.jit
def advance(state: TrainState) -> TrainState:
    return jax.tree.map(lambda v: v + jnp.ones_like(v), state)


def assert_same_bits(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def saved(folder: Path, keep: int = 3) -> list[TrainState]:
    """Save the states of steps 1 to 3, each donated to the next step at once; return copies."""
    donate = jax.jit(advance, donate_argnums=0)
    manager = checkpoint.open_manager(folder, keep, create=True)
    state, copies = jax.device_put(make_state(), abstract(make_state()).step.sharding), []
    for step in range(1, 4):
        state = donate(state)
        copies.append(jax.tree.map(np.array, state))
        checkpoint.save(manager, state, {"wall_seconds": float(step)})
    donate(state)
    manager.close()
    return copies


def damage(folder: Path, step: int) -> None:
    """Cut the files that hold the arrays of a step short."""
    files = [path for path in (folder / str(step) / "state").rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:10])


def test_every_leaf_returns_bit_for_bit_although_its_buffer_was_donated(tmp_path):
    copies = saved(tmp_path)
    manager = checkpoint.open_manager(tmp_path)
    state, progress, damaged = checkpoint.restore(manager, abstract(make_state()))
    assert_same_bits(state, copies[-1])
    assert progress == {"wall_seconds": 3.0}
    assert damaged == {}


def test_a_state_resumes_on_another_number_of_devices(tmp_path):
    copies = saved(tmp_path)
    state, *_ = checkpoint.restore(checkpoint.open_manager(tmp_path), abstract(make_state(), devices=4))
    assert len(state.key.sharding.device_set) == 4
    assert_same_bits(state, copies[-1])


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["2", "3"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_can_be_saved_again(tmp_path):
    copies = saved(tmp_path)
    damage(tmp_path, 3)
    manager = checkpoint.open_manager(tmp_path, 3)
    state, progress, damaged = checkpoint.restore(manager, abstract(make_state()))
    assert_same_bits(state, copies[1])
    assert progress == {"wall_seconds": 2.0}
    assert list(damaged) == [3]
    checkpoint.delete(manager, damaged)
    assert manager.all_steps() == [1, 2]
    checkpoint.save(manager, advance(state), {})
    manager.wait_until_finished()
    assert_same_bits(checkpoint.restore(manager, abstract(make_state()))[0], copies[2])


def test_a_folder_of_damaged_checkpoints_is_an_error_that_names_the_newest(tmp_path):
    saved(tmp_path)
    for step in (1, 2, 3):
        damage(tmp_path, step)
    with pytest.raises(checkpoint.CheckpointError, match=r"No checkpoint in .* can be read. Of step 3"):
        checkpoint.restore(checkpoint.open_manager(tmp_path), abstract(make_state()))


def test_a_checkpoint_under_the_name_of_another_step_is_not_used(tmp_path):
    copies = saved(tmp_path)
    (tmp_path / "3").rename(tmp_path / "7")
    state, _, damaged = checkpoint.restore(checkpoint.open_manager(tmp_path), abstract(make_state()))
    assert damaged == {7: "it has the state of step 3."}
    assert_same_bits(state, copies[1])


def test_a_state_of_other_shapes_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"not damaged, but .*encoder/w is \(300, 300\)"):
        checkpoint.restore(checkpoint.open_manager(tmp_path), abstract(make_state(size=5)))


def test_an_empty_folder_is_an_error_that_says_what_to_do(tmp_path):
    manager = checkpoint.open_manager(tmp_path, create=True)
    with pytest.raises(checkpoint.CheckpointError, match=r"There is no checkpoint in .*: train first"):
        checkpoint.restore(manager, abstract(make_state()))


def test_a_checkpoint_of_a_later_format_is_refused_with_both_formats_and_not_passed_over(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.configs, "FORMAT", 7)
        saved(tmp_path)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"/3 cannot be read\. It has format 7, .* up to 2: use"
    ):
        checkpoint.restore(checkpoint.open_manager(tmp_path), abstract(make_state()))


class Failing:
    """A manager whose last save failed in the background."""

    def __init__(self, directory: Path, error: Exception) -> None:
        self.directory, self.error = directory, error

    def wait_until_finished(self) -> None:
        try:
            raise self.error
        except Exception as error:
            raise ValueError("the save failed") from error


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError, RuntimeError])
def test_a_process_that_is_gone_during_a_save_is_not_blamed_on_the_disk(tmp_path, monkeypatch, kind):
    lost = kind("UNKNOWN: Gloo AllGather failed: connection closed by peer")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    caught = pytest.raises(workdir.RunError, match=r"lost another process of the run.*Gloo")
    with caught as error, hosts.device_errors():
        checkpoint.wait(Failing(tmp_path, lost))
    assert "disk" not in str(error.value)
    with pytest.raises(checkpoint.CheckpointError, match="check the disk"), hosts.device_errors():
        checkpoint.wait(Failing(tmp_path, OSError("No space left on device")))


def test_a_result_that_another_process_never_sent_is_no_error_of_a_value(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(workdir.RunError, match="lost another process of the run"), hosts.device_errors():
        raise ValueError("UNKNOWN: Gloo AllReduce failed: connection closed by peer")
    with pytest.raises(ValueError, match="a wrong value"), hosts.device_errors():
        raise ValueError("a wrong value")
