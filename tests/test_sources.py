"""Images in archives, in Parquet files and on the Hugging Face hub are those of a folder with the same files.

The fault that each test holds off is one that would lose or change images or labels, or let a file of a
stranger take more than it should.
"""

import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ali_jax import data
from ali_jax.data import DataError, files, hub, inputs, packed, tables
from ali_jax.main import main

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def picture(level, size=(8, 6)):
    """Return an image of one grey level as PNG bytes."""
    file = io.BytesIO()
    Image.fromarray(np.full(size, level, np.uint8)).save(file, "PNG")
    return file.getvalue()


CLASSES = {"ants": (10, 20, 30, 40), "bees": (110, 120, 130, 140)}
FILES = {
    f"{part}/{name}/{level}.png": picture(level + at)
    for at, part in enumerate(("train", "test"))
    for name, levels in CLASSES.items()
    for level in levels[: 4 - 2 * at]
}


def load(path, **options):
    return data.load("images", path=str(path), **options)


def content(dataset):
    """Return the class name of each level, by split."""
    found = []
    for split in (dataset.train, dataset.test):
        rows = split.rows(np.arange(len(split)))
        levels = [int(x[0, 0, 0]) for x in rows.x]
        assert all((x == x[0, 0]).all() for x in rows.x)
        names = [dataset.class_names[k] if k >= 0 else None for k in rows.label]
        found.append(dict(zip(levels, names, strict=True)))
    return found


EXPECTED = [
    {level + at: name for name, levels in CLASSES.items() for level in levels[: 4 - 2 * at]} for at in (0, 1)
]


def pack(path, contents, form=None):
    """Write an archive of files by name; None is a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", form or zipfile.ZIP_STORED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content or b"")
        return path
    with tarfile.open(path, form or "w") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content or b"")
            info.type = tarfile.REGTYPE if content is not None else tarfile.DIRTYPE
            archive.addfile(info, io.BytesIO(content or b""))
    return path


class TestArchives:
    @pytest.mark.parametrize(
        ("name", "form"),
        [
            ("a.zip", zipfile.ZIP_STORED),
            ("a.ZIP", zipfile.ZIP_DEFLATED),
            ("a.tar", "w"),
            ("a.tgz", "w:gz"),
            ("a.tar.xz", "w:xz"),
            ("a.tar", "w:bz2"),  # compressed, though its name does not say so
        ],
    )
    @pytest.mark.parametrize("eager", [True, False])
    def test_an_archive_has_the_images_classes_and_parts_of_its_folders(
        self, tmp_path, monkeypatch, name, form, eager
    ):
        monkeypatch.setattr(files, "EAGER_BYTES", files.EAGER_BYTES if eager else 0)
        path = tmp_path / name
        packed_files = {"mine/": None, **{f"mine/{name}": content for name, content in FILES.items()}}
        if path.suffix == ".ZIP":
            pack(tmp_path / "a.zip", packed_files, form).rename(path)
        else:
            pack(path, packed_files, form)
        dataset = load(path)
        assert content(dataset) == EXPECTED
        assert dataset.train.shape == (8, 6, 1)
        assert isinstance(dataset.train, data.ArraySplit if eager else data.SourceSplit)
        assert sorted(tmp_path.iterdir()) == [path]  # nothing is written

    def test_an_archive_without_parts_is_divided_and_says_what_it_skips(self, tmp_path):
        images = {
            f"./{name}/{level}.png": picture(level) for name, levels in CLASSES.items() for level in levels
        }
        others = {"__MACOSX/._1.png": b"x", "notes.txt": b"x", "/../../ants/1.heic": b"x", ".git/a.png": b"x"}
        dataset = load(pack(tmp_path / "a.zip", images | others))
        assert (len(dataset.train), len(dataset.test), dataset.class_names) == (6, 2, ("ants", "bees"))
        (line, _) = [note.text for note in dataset.notes]
        assert line == "a.zip has 8 images. Skipped: 3 hidden files, 1 .txt file."

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
    def test_links_in_a_tar_are_refused(self, tmp_path, kind):
        path = pack(tmp_path / "a.tar", FILES)
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo("train/ants/link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        with pytest.raises(DataError, match=r"a.tar: train/ants/link.png is a link, .* --dereference"):
            load(path)

    def test_links_in_a_zip_are_refused(self, tmp_path):
        path = pack(tmp_path / "a.zip", FILES)
        with zipfile.ZipFile(path, "a") as archive:
            info = zipfile.ZipInfo("train/ants/link.png")
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
        with pytest.raises(DataError, match=r"a.zip: train/ants/link.png is a link"):
            load(path)

    def test_what_an_image_may_take_is_bounded_before_it_is_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(packed, "MAX_BYTES", 10_000)
        bomb = {"train/ants/bomb.png": b"\0" * 10_001}
        for path in (tmp_path / "a.zip", tmp_path / "a.tar"):
            with pytest.raises(DataError, match=r"bomb.png has 10001 bytes; at most 10000"):
                load(pack(path, FILES | bomb))
        load(pack(tmp_path / "a.zip", FILES | {"train/large.txt": b"\0" * 10_001}))  # no image: not read

    def test_a_compressed_tar_may_not_take_more_memory_than_there_is(self, tmp_path, monkeypatch):
        asked_for = []
        monkeypatch.setattr(packed, "check_fits", lambda path, needed: asked_for.append(needed))
        load(pack(tmp_path / "a.tgz", FILES | {"a.txt": b"\0" * 10_000}, "w:gz"))
        assert asked_for[-1] == sum(map(len, FILES.values()))
        asked_for.clear()
        load(pack(tmp_path / "a.tar", FILES))
        assert not asked_for  # read where it lies

    def test_an_encrypted_image_is_refused(self, tmp_path):
        path = pack(tmp_path / "a.zip", FILES)
        raw = bytearray(path.read_bytes())
        at = raw.index(b"PK\x01\x02")
        raw[at + 8] |= 1
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"10.png is encrypted; make an archive without a password"):
            load(path)

    @pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
    def test_damaged_archives_are_one_sentence(self, tmp_path, name):
        form = {"a.tar.gz": "w:gz", "a.tar.xz": "w:xz"}.get(name)
        whole = pack(tmp_path / name, FILES, form).read_bytes()
        for broken in (b"", b"no archive", whole[: len(whole) // 2], whole[: len(whole) // 4]):
            (tmp_path / name).write_bytes(broken)
            with pytest.raises(DataError, match=f"{name}"):
                load(tmp_path / name)

    def test_a_broken_image_in_an_archive_is_named(self, tmp_path):
        path = pack(tmp_path / "a.zip", FILES | {"train/ants/10.png": b"no image"})
        with pytest.raises(DataError, match=r"a.zip/train/ants/10.png: not a readable image"):
            load(path)


def features(**columns):
    """Return the metadata that the hub's library writes."""
    return {"huggingface": json.dumps({"info": {"features": columns}})}


IMAGE = {"_type": "Image"}
LABEL = {"_type": "ClassLabel", "names": list(CLASSES)}


def table(levels, labels=None, metadata=None, image="image", label="label", **others):
    """Return a table of images as structs, and of labels."""
    images = [{"bytes": picture(level), "path": f"{level}.png"} for level in levels]
    columns = {image: images, **({} if labels is None else {label: labels}), **others}
    return pa.table(columns).replace_schema_metadata(metadata)


def parquet(folder, **parts):
    """Write a table to each file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        path = folder / f"{name.replace('__', '/')}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(part, path, row_group_size=3)
    return folder


def of_hub():
    """Return tables as the hub stores them, in two files for train."""
    metadata = features(image=IMAGE, label=LABEL)
    train = [(level, k) for k, levels in enumerate(CLASSES.values()) for level in levels]
    test = [(level + 1, k) for k, levels in enumerate(CLASSES.values()) for level in levels[:2]]
    return [table(*zip(*rows, strict=True), metadata) for rows in (train[:5], train[5:], test)]


class TestTables:
    @pytest.mark.parametrize("names", [
        ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"),
        ("train__0000", "train__0001", "test__0000"),
        ("data__train_a", "data__train.b", "data__Validation-1"),
    ])  # fmt: skip
    def test_parts_labels_and_class_names_are_those_of_the_hub(self, tmp_path, names):
        dataset = load(parquet(tmp_path / "mine", **dict(zip(names, of_hub(), strict=True))))
        assert content(dataset) == EXPECTED
        assert dataset.class_names == ("ants", "bees")
        assert (dataset.train.shape, dataset.name) == ((8, 6, 1), "mine")

    def test_a_class_that_the_schema_names_and_no_row_has_keeps_its_number(self, tmp_path):
        metadata = features(image=IMAGE, label={**LABEL, "names": ["ants", "bees", "cats"]})
        dataset = load(parquet(tmp_path, a=table(range(10), [0, 2] * 5, metadata)) / "a.parquet")
        assert dataset.class_names == ("ants", "bees", "cats")
        assert {k: names for part in content(dataset) for k, names in part.items()} == {
            level: ("ants", "cats")[level % 2] for level in range(10)
        }
        with pytest.raises(DataError, match="column label has the label 2, which has no name"):
            load(
                parquet(tmp_path, b=table(range(4), [0, 1, 2, 1], features(image=IMAGE, label=LABEL)))
                / "b.parquet"
            )

    @pytest.mark.parametrize(
        ("labels", "names"),
        [
            ([7, 10, 9, 7, -1, None] * 2, ("7", "9", "10")),
            (["dog", "cat", None, "dog", "cat", "cat"] * 2, ("cat", "dog")),
        ],
    )
    def test_without_metadata_the_labels_are_their_values(self, tmp_path, labels, names):
        dataset = load(parquet(tmp_path, a=table(range(12), labels)) / "a.parquet")
        assert dataset.class_names == names
        assert (len(dataset.train), len(dataset.test)) == (10, 2)
        found = {level: name for part in content(dataset) for level, name in part.items()}
        assert found == {i: None if v in (None, -1) else str(v) for i, v in enumerate(labels)}

    @pytest.mark.parametrize("image", ["img", "scan"])
    def test_images_may_be_bytes_under_another_name_and_other_columns_are_said(self, tmp_path, image):
        columns = {"id": list(range(8)), image: [picture(level) for level in range(8)], "year": [1] * 8}
        dataset = load(parquet(tmp_path, a=pa.table(columns)) / "a.parquet")
        assert (len(dataset.train), dataset.num_classes) == (6, 0)
        assert dataset.notes[0].text == "Of a.parquet these columns are not used: id, year."

    def test_the_labels_of_the_schema_come_before_numbers_of_another_kind(self, tmp_path):
        metadata = features(img=IMAGE, fine={**LABEL}, id={"_type": "Value"})
        made = table(range(8), [0, 1] * 4, metadata, image="img", label="fine", id=list(range(8)))
        assert load(parquet(tmp_path, a=made) / "a.parquet").class_names == ("ants", "bees")

    def test_a_lone_train_part_is_divided_and_files_of_no_part_are_said(self, tmp_path):
        dataset = load(parquet(tmp_path, train=table(range(20)), unsupervised=table(range(5))))
        assert (len(dataset.train), len(dataset.test)) == (18, 2)
        assert [note.text for note in dataset.notes][:2] == [
            f"{tmp_path.name} has 20 images. Skipped: 1 .parquet file of another part.",
            f"{tmp_path.name} has no part to test on: a tenth of train is held out.",
        ]

    def test_a_folder_of_images_beside_a_table_stays_a_folder_of_images(self, tmp_path):
        parquet(tmp_path, features=pa.table({"a": [1]}))
        for level in range(5):
            (tmp_path / f"{level}.png").write_bytes(picture(level))
        assert len(load(tmp_path).train) == 3

    def test_several_sizes_and_colours_are_brought_to_one(self, tmp_path):
        rows = [{"bytes": picture(i, (8 + i, 9))} for i in range(4)]
        parquet(tmp_path, a=pa.table({"image": rows}))
        with pytest.raises(DataError, match=r"a.parquet row 1 is 9x9 pixels"):
            load(tmp_path)
        assert load(tmp_path, resize=8).train.shape == (8, 8, 1)

    @pytest.mark.parametrize(
        ("made", "problem"),
        [
            (pa.table({"a": [1, 2], "b": ["x", "y"]}), "no column holds images, .* its columns are a, b"),
            (pa.table({"image": [{"bytes": None, "path": "a.png"}] * 4}, schema=pa.schema(
                {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})})),
             "row 0 has no bytes of an image"),
            (pa.table({"image": [b"no image"] * 4}), "4 files cannot be used: .*row 0: not a readable image"),
            (table(range(2)), "too few images"),
        ],
        ids=["none", "paths", "broken", "few"],
    )  # fmt: skip
    def test_mistakes(self, tmp_path, made, problem):
        parquet(tmp_path, a=made)
        with pytest.raises(DataError, match=problem):
            load(tmp_path / "a.parquet")

    def test_a_broken_image_is_named_by_its_row_in_the_file(self, tmp_path):
        rows = [picture(level) for level in range(10)]
        parquet(
            tmp_path, a=pa.table({"image": pa.chunked_array([rows[:7], [rows[7], b"no image", rows[9]]])})
        )
        with pytest.raises(DataError, match=r"a\.parquet row 8: not a readable image"):
            load(tmp_path)

    def test_damaged_tables_are_one_sentence(self, tmp_path):
        whole = (parquet(tmp_path, a=table(range(9))) / "a.parquet").read_bytes()
        for broken in (b"", b"PAR1PAR1", whole[:-20], whole[:4] + bytes(200) + whole[204:]):
            (tmp_path / "a.parquet").write_bytes(broken)
            with pytest.raises(DataError, match=r"a\.parquet.*: not a readable") as error:
                load(tmp_path)
            assert "\n" not in str(error.value)

    def test_memory_is_asked_for_before_it_is_taken(self, tmp_path, monkeypatch):
        asked_for = []
        monkeypatch.setattr(tables, "check_fits", lambda root, needed: asked_for.append(needed))
        made = table(range(50), text=["x" * 5000] * 50)
        load(parquet(tmp_path, a=made))
        size = sum(len(picture(level)) for level in range(50))
        assert size <= asked_for[0] < 3 * size
        monkeypatch.setattr(packed, "MAX_BYTES", 10)
        with pytest.raises(DataError, match=r"an image of .* bytes; at most 10 are read"):
            load(tmp_path)

    def test_pyarrow_is_imported_for_tables_alone(self, tmp_path):
        import subprocess
        import sys

        for level in range(5):
            (tmp_path / f"{level}.png").write_bytes(picture(level))
        code = f"import sys; from ali_jax import data; data.load('', path={str(tmp_path)!r}); " + (
            "print({'pyarrow', 'datasets'} & set(sys.modules))"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "set()"


class TestHub:
    def test_without_the_library_the_extra_is_named(self, monkeypatch):
        monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            DataError, match=r"^hf:mnist needs the library `datasets`: pip install 'ali_jax\[hf\]'$"
        ):
            data.load("hf:mnist")

    @pytest.fixture
    def saved(self, tmp_path):
        """Give a folder that the library saved, of two parts and one that is not used."""
        datasets = pytest.importorskip("datasets")
        kinds = datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES)), id=datasets.Value("int32")
        )

        def split(at):
            rows = [
                (level + at, k) for k, levels in enumerate(CLASSES.values()) for level in levels[: 4 - 2 * at]
            ]
            images = [Image.open(io.BytesIO(picture(level))) for level, _ in rows]
            columns = {"image": images, "label": [k for _, k in rows], "id": [0] * len(rows)}
            return datasets.Dataset.from_dict(columns, kinds)

        made = datasets.DatasetDict(train=split(0), test=split(1), extra=split(0))
        made.save_to_disk(tmp_path / "insects")
        return tmp_path / "insects"

    @pytest.mark.parametrize("as_name", [True, False])
    def test_a_set_of_the_library_has_its_images_labels_and_names(self, saved, as_name):
        name = f"hf:{saved}"
        dataset = data.load(name) if as_name else load(name)
        assert content(dataset) == EXPECTED
        assert (dataset.class_names, dataset.name) == (("ants", "bees"), "insects")
        assert [note.text for note in dataset.notes][:2] == [
            f"Of {saved} these columns are not used: id.",
            f"Of {saved} these splits are not used: extra.",
        ]

    def test_a_lone_split_is_divided(self, saved):
        dataset = data.load(f"hf:{saved / 'train'}")
        assert (len(dataset.train), len(dataset.test)) == (6, 2)

    def test_all_splits_are_inputs_of_a_trained_model(self, saved):
        found = inputs.read(Path(f"hf:{saved}"), inputs.Rule((8, 6, 1)))
        train = [level for levels in CLASSES.values() for level in levels]
        test = [level + 1 for levels in CLASSES.values() for level in levels[:2]]
        assert found.x[:, 0, 0, 0].tolist() == [*train, *test, *train]
        assert found.names[7:9] == ("train[7]", "test[0]")
        assert found.labels[:8] == ("ants",) * 4 + ("bees",) * 4
        lone = inputs.read(Path(f"hf:{saved / 'test'}"), inputs.Rule((8, 6, 1)))
        assert lone.names == tuple(f"test[{i}]" for i in range(4))

    def test_no_name_and_a_library_that_is_not_whole_are_one_sentence(self, monkeypatch):
        with pytest.raises(DataError, match=r"^hf: names no set: give hf:NAME, such as hf:mnist$"):
            hub.read_rows("")
        monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: True)
        missing = ModuleNotFoundError("No module named 'multiprocess'")
        monkeypatch.setattr(hub.importlib, "import_module", lambda name: (_ for _ in ()).throw(missing))
        with pytest.raises(DataError, match=r"`datasets` cannot be imported .*'multiprocess'.* pip install"):
            hub.read_rows("mnist")

    def test_an_absent_name_is_one_sentence(self, tmp_path, capsys):
        pytest.importorskip("datasets")
        command = ["--config", "experiments/images.py", "--workdir", str(tmp_path / "run")]
        assert main([*command, f"--config.dataset.path=hf:{tmp_path}/absent"]) == 1
        err = capsys.readouterr().err
        assert re.fullmatch(r"ali_jax: hf:\S+/absent cannot be loaded: .*\n", err)
