"""Download and prepare a data set of TensorFlow Datasets: python -m ali_jax.data.prepare NAME.

Only this step needs TensorFlow (to encode the images) and, unless all files are in --manual_dir, a network.
Reading the prepared files needs neither.
"""

import argparse
import importlib.util
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ali_jax.data import tfds
from ali_jax.data.dataset import DataError

PROBE_SECONDS = 5.0


def prepare(name: str, directory: str = "", manual_dir: str = "") -> Path:
    """Download a data set and prepare it as array_record files, unless they exist; return their folder.

    Args:
        name: the data set with its variant, such as imagenet_resized/64x64.
        directory: where to write it; empty for TensorFlow Datasets' default.
        manual_dir: files found here under their original names are not downloaded.

    Raises:
        DataError: the data set is unknown or has no usable images, TensorFlow is not installed, there is no
            network, or a download failed.
    """
    builder = tfds.find(name, directory, file_format="array_record")
    if builder is None:
        raise tfds.unknown(name, tfds.NAMES)
    tfds.check_images(name, builder)
    if tfds.is_prepared(builder):
        return Path(builder.data_path)
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(f"preparing {name} needs TensorFlow, which is not installed: {tfds.INSTALL}")
    if manual_dir and not Path(manual_dir).expanduser().is_dir():
        raise DataError(f"--manual_dir {manual_dir}: no such directory")
    _check_reachable(name, builder, manual_dir)
    _download_and_prepare(name, builder, manual_dir)
    return Path(builder.data_path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog=tfds.PREPARE, description="Download and prepare a data set.")
    parser.add_argument("name", help=f"{', '.join(tfds.NAMES)}, or another with images")
    parser.add_argument(
        "--directory", default="", help="where to write it (default: TensorFlow Datasets' own)"
    )
    parser.add_argument("--manual_dir", default="", help="a folder of files downloaded by hand")
    given = parser.parse_args(arguments)
    try:
        print(f"{given.name} is ready in {prepare(given.name, given.directory, given.manual_dir)}")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _check_reachable(name: str, builder: Any, manual_dir: str) -> None:
    """Raise a DataError if files are missing and there is no network; the library would try for minutes."""
    files = {url: info.filename for url, info in builder.url_infos.items() if info.filename}
    folder = Path(manual_dir).expanduser()
    missing = sorted({file for file in files.values() if not manual_dir or not (folder / file).exists()})
    some_suffice = "/" in name and len(missing) < len(files)  # the list covers all variants
    if not missing or some_suffice or is_reachable(next(iter(files))):
        return
    variant = " (those that the variant needs)" if "/" in name else ""
    raise DataError(
        f"cannot reach {urllib.parse.urlsplit(next(iter(files))).netloc}. Without a network, download the "
        f"files of {name} elsewhere and run\n    {tfds.PREPARE} {name} --manual_dir DIR\n"
        f"where DIR is a folder that holds {', '.join(missing)}{variant}"
    )


def is_reachable(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Tell whether the host of a URL answers, even with an error; proxy settings are respected."""
    parts = urllib.parse.urlsplit(url)
    request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _download_and_prepare(name: str, builder: Any, manual_dir: str) -> None:
    import tensorflow_datasets

    config = tensorflow_datasets.download.DownloadConfig(
        manual_dir=str(Path(manual_dir).expanduser()) if manual_dir else None,
        try_download_gcs=False,  # its prepared copies are in a format that only TensorFlow reads
    )
    try:
        builder.download_and_prepare(download_config=config, file_format="array_record")
    except Exception as error:  # network, checksum and disk errors share no base class
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"preparing {name} failed: {reason}") from error


if __name__ == "__main__":
    sys.exit(main())
