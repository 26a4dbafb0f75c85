"""Files from elsewhere run no code, do not unpack to more than the memory, and write nothing outside."""

import ast
import io
import json
import os
import zipfile

import numpy as np
import pytest
import small
from PIL import Image

from ali_jax import config as configs
from ali_jax.data import DataError, archives, images, load
from ali_jax.names import printable
from ali_jax.records import workdir, writers


class Marker:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_objects_in_an_npz_are_refused_and_not_unpickled(tmp_path):
    x = np.zeros((4, 8, 8, 1), np.uint8)
    bad = np.array([Marker(str(tmp_path / "made"))] * 4, object)
    for name in ("train_label", "train_image"):
        np.savez(tmp_path / "x.npz", **{"train_image": x, "test_image": x, name: bad})
        with pytest.raises(DataError, match="holds Python objects"):
            load("images", path=str(tmp_path / "x.npz"))
    assert not (tmp_path / "made").exists()


def test_no_module_unpickles_or_evaluates():
    """Only `runpy` runs code: that of the config file that the user names, which is their own."""
    forbidden = {"eval", "exec", "compile", "__import__"}
    for path in (small.ROOT / "ali_jax").rglob("*.py"):
        tree = ast.parse(path.read_text())
        called = {
            n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not called & forbidden, path
        assert not imported & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, path
        assert "runpy" not in imported or path.name == "command.py", path
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            if ast.unparse(call.func) == "np.load":
                assert "allow_pickle=False" in ast.unparse(call), path


def test_a_small_archive_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    x = np.zeros((4000, 8, 8, 1), np.uint8)
    np.savez_compressed(tmp_path / "bomb.npz", train_image=x, test_image=x)
    assert (tmp_path / "bomb.npz").stat().st_size < x.nbytes / 50
    monkeypatch.setattr(
        archives.os, "sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 2 * x.nbytes - 1
    )
    with pytest.raises(DataError, match="unpacked it takes"):
        load("images", path=str(tmp_path / "bomb.npz"))


def test_a_header_that_claims_more_than_the_file_holds_is_damage(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (2**50, 8, 8, 1)}
    )
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in ("train_image", "test_image"):
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(64))
    with pytest.raises(DataError, match=r"train_image\.npy is damaged"):
        load("images", path=str(tmp_path / "x.npz"))


def test_nothing_is_extracted_wherever_members_point(tmp_path):
    x = np.zeros((4, 8, 8, 1), np.uint8)
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "x.npz", train_image=x, test_image=x)
    with zipfile.ZipFile(tmp_path / "in" / "x.npz", "a") as archive:
        archive.writestr("../../escaped.npy", b"x")
        archive.writestr("/tmp/ali_jax_escaped.npy", b"x")
    load("images", path=str(tmp_path / "in" / "x.npz"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "x.npz"]
    assert not os.path.exists("/tmp/ali_jax_escaped.npy")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (3000, 3000)).save(tmp_path / "big.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 3000 * 3000 - 1)
    with pytest.raises(DataError, match="too large"), images.opened(tmp_path / "big.png"):
        pytest.fail("it was opened")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"seed": "__import__"}', "\ud800"])
def test_a_config_json_is_data_however_it_is_nested(text):
    with pytest.raises(ValueError, match="onfig"):
        configs.from_json(text)


def test_rows_and_summaries_of_others_are_read_without_harm(tmp_path):
    lines = ['{"step": "x"}', '{"step": [1]}', "[" * 100_000, "null", "3", '{"step": 2, "a": 1}', "\x00"]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    assert writers.read_rows(tmp_path / "metrics.jsonl", 5) == [{"step": 2, "a": 1}]
    for text in ("[" * 100_000, "[]", json.dumps({"step": None})):
        (tmp_path / "summary.json").write_text(text)
        assert not workdir.is_finished(configs.base(), tmp_path)


def test_a_terminal_is_shown_no_control_characters():
    shown = printable("a\x1b[2Jb\r\x07\u202e\nc é")
    assert shown == "a\\x1b[2Jb\\r\\x07\\u202e\nc é"
