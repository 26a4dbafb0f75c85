"""Reproductions: each one works from training to its table, on small copies of the experiments."""

import json
import textwrap

import numpy as np
import pytest
import small
from PIL import Image
from test_pages import wilson

from ali_jax import reproduce
from ali_jax.records.workdir import read_metrics
from ali_jax.reproduce import main


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """Give a folder of experiments with the structure of ours, a few units wide."""
    folder = tmp_path_factory.mktemp("experiments")
    for name, variants in (("mixture", True), ("svhn", False), ("mnist_semi", False)):
        text = f"""
            import sys
            sys.path.insert(0, {str(small.ROOT / "tests")!r})
            import small

            def get_config(variant="code"):
                config = small.narrow(small.experiment({name!r} + (":" + variant) * {variants}))
                config.batch_size, config.report = 8, False
                small.shallow(config)
                if {name!r} == "mnist_semi":
                    config.dataset.shape = (8, 8, 3)  # of `digits_of_color`
                if {variants}:  # what takes long to compile, and pictures that nothing here looks at
                    config.evaluators = ("modes",)
                    config.encoder.layers = config.decoder.layers = (4,)
                    config.discriminator.joint_layers = config.discriminator.joint_layers[:1]
                    config.discriminator.activation = "leaky_relu"
                config.population.vary = tuple((key, v[:2]) for key, v in config.population.vary)
                return config
            """
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


@pytest.fixture(scope="module")
def digits_of_color(tmp_path_factory):
    """Give an .npz of labelled 8x8 images."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    rng = np.random.default_rng(0)
    arrays = {}
    for part, number in (("train", 1600), ("test", 40)):
        label = np.arange(number) % 10
        noise = rng.integers(0, 50, (number, 8, 8, 3))
        arrays[f"{part}_image"] = (20 * label[:, None, None, None] + noise).astype(np.uint8)
        arrays[f"{part}_label"] = label
    np.savez(path, **arrays)
    return path


def test_the_mixture_has_all_rows_and_the_figure_and_a_second_call_trains_nothing(
    experiments, tmp_path, capsys
):
    arguments = ["mixture", "--budget", "short", "--steps", "2", "--workdir", str(tmp_path)]
    arguments += ["--experiments", str(experiments)]
    assert main(arguments) == 0
    assert "SHORT BUDGET" in capsys.readouterr().out
    what, paper, here = columns(tmp_path / "result.txt")
    assert what.startswith(
        "ALI, random search GAN, the same draws ALI, authors' setting, b1 = 0.2 the same, "
    )
    assert paper.startswith("13.4 ± 5.8, 8 to 25 10.4 ± 9.2, 1 to 22 PacGAN's re-run: 24.1 modes, ")
    numbers = {run.name: read_metrics(run) for run in tmp_path.iterdir() if run.is_dir()}
    expected = []
    for run in ("search", "gan_search"):
        a, b = sorted(np.nan_to_num([numbers[run][f"modes_paper/{k}"] for k in (0, 1)]))
        expected.append(f"{(a + b) / 2:.1f} ± {(b - a) / 2**0.5:.1f}, {a:.0f} to {b:.0f}")
    for run in ("code", "b1_0.8"):
        m = numbers[run]
        expected.append(f"{m['modes']:.0f} modes, {100 * m['high_quality']:.1f} %, KL {m['reverse_kl']:.2f}")
    expected += [f"{100 * numbers[run]['mode_kept']:.1f} %" for run in ("inverse", "posthoc", "vae")]
    assert here == " ".join(expected)
    image = Image.open(tmp_path / "mixture.png")
    assert image.height / image.width == pytest.approx(5 / 4, rel=0.01)
    gan, posthoc = (
        json.loads((tmp_path / run / "config.json").read_text()) for run in ("gan_search", "posthoc")
    )
    rates = dict(gan["population"]["vary"])["optimizer.generator.learning_rate"]
    assert posthoc["optimizer"]["generator"]["learning_rate"] == rates[posthoc["init_member"]]
    assert main(arguments) == 0
    again = capsys.readouterr()
    assert "nothing to do" in again.out
    assert "loss/generator" not in again.err
    assert (tmp_path / "result.txt").read_text() in again.out


def columns(path) -> list[str]:
    """Return the three columns of a written table, each as one text without its title."""
    lines = (line for line in path.read_text().splitlines() if line.startswith("│"))
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return [" ".join(filter(None, column)) for column in zip(*cells, strict=True)]


@pytest.mark.parametrize("name", ["svhn_semi", "mnist_semi", "reconstructions"])
def test_images_of_ones_own_go_all_the_way(experiments, digits_of_color, tmp_path, capsys, name):
    arguments = [name, "--budget", "short", "--steps", "2", "--workdir", str(tmp_path)]
    assert main([*arguments, "--experiments", str(experiments), "--path", str(digits_of_color)]) == 0
    out = capsys.readouterr().out.replace("\n", " ")
    assert "1,600 training and 40 test rows, 2 steps" in out
    if name == "reconstructions":
        picture = tmp_path / "svhn" / "images" / "reconstructions_2.png"
        assert f"Picture: {picture}" in (tmp_path / "result.txt").read_text().replace("\n", "")
        assert picture.exists()
    elif name == "mnist_semi":
        error = 100 * read_metrics(tmp_path / "mnist_100_0")["label_error"]
        assert columns(tmp_path / "result.txt")[2] == f"{error:.2f} (one draw of labels)"
        assert "100 labels train, 1,000 more selected the settings" in out
    else:
        m = read_metrics(tmp_path / "svhn_1000")
        low, high = (100 * end for end in wilson(m["label_error"], 40))
        assert columns(tmp_path / "result.txt")[2] == (
            f"{100 * m['label_error']:.2f} (95 % from 40 test images: {low:.2f} to {high:.2f}); "
            f"ten codes: {100 * m['label_error_sampled']:.2f}"
        )


def test_errors_over_draws_have_their_mean_and_deviation():
    assert reproduce._over_draws([1.0, 2.0, 4.5]) == "2.50 ± 1.80 (1.00, 2.00, 4.50)"


def test_every_table_has_a_short_budget():
    assert set(reproduce.names()) == set(reproduce.SHORT_STEPS)


def test_the_best_member_covers_most_modes_and_a_lost_one_none(tmp_path):
    metrics = {"modes_paper": [20.0, None, 22.0, 22.0], "high_quality": [0.9, None, 0.1, 0.3]}
    flat = {f"{name}/{k}": value for name, values in metrics.items() for k, value in enumerate(values)}
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "summary.json").write_text(json.dumps({"metrics": flat}))
    config = small.experiment("mixture")
    config.population.seeds = 4
    (tmp_path / "search" / "config.json").write_text(reproduce.configs.to_json(config))
    setting = reproduce.Setting("mixture", False, None, tmp_path, "", tmp_path, "svhn")
    assert reproduce._best_member(setting, "search") == 3
    assert reproduce._mode_counts(setting, "search") == "16.0 ± 10.7, 0 to 22"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["samples", "--steps", "0"], "--steps is 0"),
        (["samples", "--experiments", "/absent"], "There is no folder '/absent'"),
        (["samples", "--path", "/absent.npz", "--workdir", "/tmp/never"], "/absent.npz"),
    ],
)
def test_a_usage_error_is_one_message(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_name_lists_those_there_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["mixtures"])
    assert "'svhn_semi', 'svhn_svm'" in capsys.readouterr().err
