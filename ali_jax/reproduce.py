"""One command per table or figure of the paper: python -m ali_jax.reproduce NAME [--budget full|short].

A reproduction trains its models in folders below --workdir, prints the paper's rows beside ours, and says
where its pictures are. A second call does not train again. The short budget takes a few minutes on two cores:
it shows that everything works, and does not try to reach the paper's numbers.
"""

if __name__ == "__main__":
    from ali_jax.program import terminal

    terminal.set_up()

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from ali_jax import config as configs
from ali_jax import evaluate
from ali_jax import game as games
from ali_jax.config import Config
from ali_jax.evaluate import figures
from ali_jax.game import Game, population
from ali_jax.main import guarded, set_up_jax
from ali_jax.metrics.intervals import wilson_interval
from ali_jax.names import public_functions
from ali_jax.program.command import UsageError, load_config
from ali_jax.program.loop import run
from ali_jax.records.workdir import RunError, read_config, read_metrics, write_text
from ali_jax.types import TrainState, Variables

SHORT_STEPS = {  # training steps in the short budget
    "svhn_svm": 300,
    "svhn_semi": 200,
    "cifar10_semi": 200,
    "mnist_semi": 300,
    "mixture": 1_000,
    "samples": 200,
    "reconstructions": 200,
    "interpolations": 200,
    "conditional": 3_000,
}
IMAGE_EXPERIMENTS = ("svhn", "cifar10", "celeba", "tiny_imagenet")
LABELS = (1000, 2000, 4000, 8000)  # numbers of labels in the paper's table for CIFAR-10
DRAWS = 5  # of the 100 labels of MNIST


class Setting(NamedTuple):
    """The arguments of the command line."""

    name: str
    full: bool  # the full budget, not the short one
    steps: int | None  # instead of the budget's
    workdir: Path
    path: str  # the user's copy of the data, for experiments with images
    experiments: Path  # the folder with the files of the experiments
    experiment: str  # which experiment, for figures that the paper has of several


class Row(NamedTuple):
    """A row of the paper's table, with our result beside it."""

    what: str
    paper: str
    ours: str = ""


class Result(NamedTuple):
    """The output of a reproduction."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]  # data, budget, and how to read the numbers
    pictures: tuple[Path, ...] = ()


def svhn_svm(setting: Setting) -> Result:
    """Reproduce "ALI + L2-SVM" on SVHN with 1,000 labels (paper, table 1; protocol in section 4.4)."""
    config = _config(setting, "svhn.py", evaluators=("samples", "reconstructions"))
    game, state = _trained(setting, config, "svhn")
    probed = configs.with_values(game.config, {"dataset.train_split": "train", "dataset.test_split": "test"})
    game = game._replace(config=probed.lock(), dataset=games.load_data(probed))
    found = games.evaluate(game, state, "l2_svm").scalars
    error, std = 100 * found["svm_error"], 100 * found["svm_error_std"]
    low, high = 100 * found["svm_error_low"], 100 * found["svm_error_high"]
    draws = f"mean and standard deviation over {found['n_svm_draws']:.0f} draws"
    ours = f"{error:.2f} ± {std:.2f} ({draws})"
    rows = (
        *_OTHERS_ON_SVHN,
        Row("ALI + L2-SVM", "19.14 ± 0.50", ours),
        Row("its 95 % interval from the number of test images", "", f"{low:.2f} to {high:.2f} (Wilson)"),
    )
    sizes = ", ".join(f"{found[f'n_svm_{part}']:.0f} {part}" for part in ("pool", "validation", "test"))
    notes = (f"ln C = {found['svm_log_c']:.2f}, chosen on validation images; {sizes}.",)
    return Result("Test error in % on SVHN, 1,000 labels", rows, (*notes, *_provenance(setting, game)))


def svhn_semi(setting: Setting) -> Result:
    """Reproduce semi-supervised ALI on SVHN with 1,000 labels (paper, table 1)."""
    game, error = _semi_supervised(setting, "svhn", 1000)
    rows = (*_OTHERS_ON_SVHN, Row("ALI, K + 1 classes", "7.42 ± 0.65", error))
    return Result("Test error in % on SVHN, 1,000 labels", rows, _provenance(setting, game))


def cifar10_semi(setting: Setting) -> Result:
    """Reproduce semi-supervised ALI on CIFAR-10 (paper, table 2); the short budget has 4,000 labels only."""
    paper = dict(zip(LABELS, ("19.98 ± 0.89", "19.09 ± 0.44", "17.99 ± 1.62", "17.05 ± 1.49"), strict=True))
    others = dict(zip(LABELS, ("21.83 ± 2.01", "19.61 ± 2.09", "18.63 ± 2.32", "17.72 ± 1.82"), strict=True))
    rows = [Row(f"feature matching (Salimans et al.), {n:,} labels", others[n]) for n in LABELS]
    rows += [Row(f"{what}, 4,000 labels", error) for what, error in _OTHERS_ON_CIFAR10.items()]
    notes = [
        "The paper's ± are three standard deviations. Published numbers are without augmentation; not all of "
        "them stand in the paper."
    ]
    for labels in LABELS:
        what = Row(f"ALI, K + 1 classes, {labels:,} labels", paper[labels], "not run")
        if setting.full or labels == 4000:
            game, error = _semi_supervised(setting, "cifar10", labels)
            what = what._replace(ours=error)
            notes += _provenance(setting, game)
        rows.append(what)
    return Result("Test error in % on CIFAR-10", tuple(rows), tuple(dict.fromkeys(notes)))


def mnist_semi(setting: Setting) -> Result:
    """Train semi-supervised ALI on MNIST with 100 labels, which the paper has not.

    The full budget has several draws of the labels, the short one has one.
    """
    errors, game = [], None
    for seed in range(DRAWS if setting.full else 1):
        config = _config(setting, "mnist_semi.py", seed=seed)
        game, _ = _trained(setting, config, f"mnist_100_{seed}")
        errors.append(100 * read_metrics(setting.workdir / f"mnist_100_{seed}")["label_error"])
    assert game is not None
    rows = (*_OTHERS_ON_MNIST, Row("ALI, K + 1 classes", "", _over_draws(errors)))
    notes = (
        "100 labels train, 1,000 more selected the settings, on draws of labels that are not among these.",
        "Networks that do not know the order of pixels. ± is the standard deviation over draws of labels.",
    )
    return Result("Test error in % on MNIST, 100 labels", rows, (*notes, *_provenance(setting, game)))


def mixture(setting: Setting) -> Result:
    """Reproduce "Learning inference jointly" (paper, section 4.3): mode counts and the 5 x 4 figure."""
    ali, ali_state = _trained(setting, _config(setting, "mixture.py:search"), "search")
    gan, _ = _trained(setting, _config(setting, "mixture.py:gan_search"), "gan_search")
    best_ali, best_gan = (_best_member(setting, name) for name in ("search", "gan_search"))
    values = {key: v[best_gan] for key, v in population.varied(gan.config).items()}
    inherited = {"init_from": str(setting.workdir / "gan_search"), "init_member": best_gan, **values}
    columns = [("ALI", ali.members[best_ali], games.member_of(ali_state, best_ali))]
    rows = [
        Row("ALI, random search", "13.4 ± 5.8, 8 to 25", _mode_counts(setting, "search")),
        Row("GAN, the same draws", "10.4 ± 9.2, 1 to 22", _mode_counts(setting, "gan_search")),
    ]
    for title, variant in (("ALI, authors' setting, b1 = 0.2", "code"), ("the same, b1 = 0.8", "b1_0.8")):
        _trained(setting, _config(setting, f"mixture.py:{variant}"), variant)
        m = read_metrics(setting.workdir / variant)
        ours = f"{m['modes']:.0f} modes, {100 * m['high_quality']:.1f} %, KL {m['reverse_kl']:.2f}"
        rows.append(Row(title, "PacGAN's re-run: 24.1 modes, 95.7 %, KL 0.14", ours))
    for title, variant, given in (
        ("GAN + inverse mapping", "inverse", inherited),
        ("GAN + post-hoc ALI", "posthoc", inherited),
        ("VAE", "vae", {}),
    ):
        columns.append(
            (title, *_trained(setting, _config(setting, f"mixture.py:{variant}", **given), variant))
        )
        kept = f"{100 * read_metrics(setting.workdir / variant)['mode_kept']:.1f} %"
        rows.append(Row(f"{title}: reconstructions that keep their mode", "(a figure)", kept))
    picture = setting.workdir / "mixture.png"
    figures.save_png(picture, _five_by_four(columns))
    notes = (
        "The first two rows count a mode if at least one of 10,000 samples is nearest to it, over ten draws "
        "of learning rate, b1 and initial deviation. The paper does not publish its ranges, so these are "
        "ours, and this does not test its 13.4. A member that diverged counts as 0.",
        "The next two rows count a mode if one of 2,500 samples lies within three standard deviations of it; "
        "PacGAN's numbers are means of 10 runs of 400 epochs.",
    )
    return Result("Modes of 25", tuple(rows), (*notes, *_provenance(setting, ali)), (picture,))


def samples(setting: Setting) -> Result:
    """Reproduce a grid of samples from --experiment."""
    return _figure(setting, "samples")


def reconstructions(setting: Setting) -> Result:
    """Reproduce a grid of test images of --experiment and their reconstructions."""
    return _figure(setting, "reconstructions")


def interpolations(setting: Setting) -> Result:
    """Reproduce interpolations between pairs of test images of --experiment."""
    return _figure(setting, "interpolations")


def conditional(setting: Setting) -> Result:
    """Reproduce the attribute grid of CelebA; the short budget trains conditional ALI on MNIST instead."""
    if setting.full:
        game, _ = _trained(setting, _config(setting, "celeba_conditional.py"), "celeba_conditional")
        picture = _picture(setting, "celeba_conditional", "attribute_grid")
        return Result("Conditional samples of CelebA", (), _provenance(setting, game), (picture,))
    shown = ("conditional_samples", "condition_agreement")
    config = _config(setting, "mnist.py:conditional", evaluators=shown)
    game, _ = _trained(setting, config, "mnist_conditional")
    found = read_metrics(setting.workdir / "mnist_conditional")
    whole, worst = (100 * found[key] for key in ("condition_agreement", "condition_agreement_min"))
    ours = f"{whole:.1f} % (worst class {worst:.1f} %)"
    rows = (Row("samples that show the class they were given", "(CelebA: a figure)", ours),)
    accuracy = f"Judged by a classifier with an accuracy of {100 * found['classifier_accuracy']:.1f} %."
    picture = _picture(setting, "mnist_conditional", "conditional_samples")
    return Result("Conditional ALI on MNIST", rows, (accuracy, *_provenance(setting, game)), (picture,))


_OTHERS_ON_CIFAR10 = {
    "ladder network": "20.40",
    "CatGAN": "19.58",
    "manifold regularisation (Lecouat et al. 2018)": "14.45",
    "Bad GAN (Dai et al. 2017)": "14.41",
    "VAT with entropy (Miyato et al. 2018)": "13.15",
}
_OTHERS_ON_MNIST = (
    Row("CatGAN", "1.39 ± 0.28"),
    Row("ladder network", "1.06 ± 0.37"),
    Row("feature matching (Salimans et al.)", "0.93 ± 0.065"),
)
_OTHERS_ON_SVHN = (
    Row("VAE (M1 + M2)", "36.02"),
    Row("SWWAE with dropout", "23.56"),
    Row("DCGAN + L2-SVM", "22.18"),
    Row("SDGM", "16.61"),
    Row("GAN, feature matching", "8.11 ± 1.3"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None = those of the process) and return its exit status."""
    return guarded(lambda: _main(argv))


def names() -> dict[str, Callable[[Setting], Result]]:
    """Return the reproductions by name."""
    found = public_functions(sys.modules[__name__])
    return {name: f for name, f in found.items() if f.__annotations__.get("return") is Result}


def _main(argv: Sequence[str] | None) -> int:
    setting = _parse(argv)
    set_up_jax()
    result = names()[setting.name](setting)
    _show(result, setting)
    return 0


def _parse(argv: Sequence[str] | None) -> Setting:
    parser = argparse.ArgumentParser(
        prog="python -m ali_jax.reproduce", description="Reproduce a table or figure of the paper."
    )
    parser.add_argument("name", choices=sorted(names()))
    parser.add_argument(
        "--budget", choices=("full", "short"), default="full", help="the paper's, or a few minutes"
    )
    parser.add_argument("--steps", type=int, help="training steps, instead of the budget's")
    parser.add_argument("--workdir", default="", help="default: runs/reproduce/NAME_BUDGET")
    parser.add_argument("--path", default="", help="your copy of the data, as in config.dataset.path")
    parser.add_argument("--experiments", default="experiments", help="the folder with the experiments")
    parser.add_argument("--experiment", choices=IMAGE_EXPERIMENTS, default="svhn", help="for pictures")
    given = parser.parse_args(argv)
    if given.steps is not None and given.steps < 1:
        raise UsageError(f"--steps is {given.steps}; it must be positive.")
    if not Path(given.experiments).is_dir():
        raise UsageError(
            f"There is no folder {given.experiments!r}: run this in a clone, or give --experiments."
        )
    workdir = Path(given.workdir or f"runs/reproduce/{given.name}_{given.budget}").expanduser()
    return Setting(
        given.name,
        given.budget == "full",
        given.steps,
        workdir,
        given.path,
        Path(given.experiments),
        given.experiment,
    )


def _show(result: Result, setting: Setting) -> None:
    """Print the table, and write it to result.txt beside the runs."""
    table = RichTable(title=result.title, title_justify="left")
    for column in ("", "paper", "here"):
        table.add_column(column)
    for row in result.rows:
        table.add_row(*row)
    console = Console(highlight=False, width=110, record=True, file=sys.stdout)
    if result.rows:
        console.print(table)
    for line in (*result.notes, *(f"Picture: {path}" for path in result.pictures)):
        console.print(line, markup=False)
    write_text(setting.workdir / "result.txt", console.export_text())


def _config(setting: Setting, spec: str, **values: Any) -> Config:
    """Load an experiment, with the steps of the budget, the user's data, and other values by dotted key."""
    config = load_config(str(setting.experiments / spec))
    steps = setting.steps or (None if setting.full else SHORT_STEPS[setting.name])
    changed = dict(values)
    if steps is not None:
        per_call = min(config.steps_per_call, steps)
        every = dict.fromkeys(("log_every", "checkpoint_every"), per_call * max(1, 200 // per_call))
        changed |= {**every, "evaluate_every": 0, "num_steps": steps, "steps_per_call": per_call}
    if setting.path and len(config.dataset.shape) == 3:
        changed["dataset.path"] = os.path.abspath(os.path.expanduser(setting.path))
    return configs.with_values(config, changed).lock()


def _trained(setting: Setting, config: Config, folder: str) -> tuple[Game, TrainState]:
    """Train a config, unless its folder has the finished run; return the game and the last state."""
    workdir = setting.workdir / folder
    status = run(config, workdir)
    if status:
        raise KeyboardInterrupt
    game = games.prepare(read_config(workdir), trained=True)
    return game, games.trained_state(game, workdir)[0]


def _picture(setting: Setting, folder: str, name: str) -> Path:
    found = sorted(
        (setting.workdir / folder / "images").glob(f"{name}_*.png"), key=lambda p: p.stat().st_mtime
    )
    if not found:
        raise RunError(
            f"{setting.workdir / folder} has no picture {name}: delete the folder and run this command again."
        )
    return found[-1]


def _figure(setting: Setting, name: str) -> Result:
    config = _config(setting, f"{setting.experiment}.py", evaluators=(name,))
    game, _ = _trained(setting, config, setting.experiment)
    picture = _picture(setting, setting.experiment, name)
    return Result(f"{name} of {setting.experiment}", (), _provenance(setting, game), (picture,))


def _semi_supervised(setting: Setting, name: str, labels: int) -> tuple[Game, str]:
    """Train the experiment with K + 1 classes; in the short budget, with the appendix's smaller networks."""
    if setting.full:
        config = _config(setting, f"{name}_semi.py:{labels}")
    else:
        splits = {"dataset.train_split": "train", "dataset.test_split": "test"}
        classes = {"loss": "semi_supervised", "dataset.labelled": labels, "discriminator.num_classes": 10}
        average = {"ema_decay": 0.99, "evaluators": ("samples", "reconstructions", "label_error")}
        config = _config(setting, f"{name}.py", **splits, **classes, **average)
    folder = f"{name}_{labels}"
    game, _ = _trained(setting, config, folder)
    found = read_metrics(setting.workdir / folder)
    errors = [100 * found[key] for key in ("label_error", "label_error_sampled")]
    number = int(found["n_test_labelled"])
    low, high = (100 * end for end in wilson_interval(found["label_error"] * number, number))
    interval = f"95 % from {number} test images: {low:.2f} to {high:.2f}"
    return game, f"{errors[0]:.2f} ({interval}); ten codes: {errors[1]:.2f}"


def _over_draws(errors: Sequence[float]) -> str:
    """Return errors in % as mean and standard deviation, with each of them; or the only one there is."""
    each = ", ".join(f"{error:.2f}" for error in errors)
    if len(errors) == 1:
        return f"{each} (one draw of labels)"
    return f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f} ({each})"


def _mode_counts(setting: Setting, folder: str) -> str:
    counts = np.nan_to_num(_of_members(setting, folder, "modes_paper"))
    return f"{counts.mean():.1f} ± {counts.std(ddof=1):.1f}, {counts.min():.0f} to {counts.max():.0f}"


def _best_member(setting: Setting, folder: str) -> int:
    """Return the member with the most modes; among those, the one with the most high-quality samples."""
    modes, quality = (
        np.nan_to_num(_of_members(setting, folder, name)) for name in ("modes_paper", "high_quality")
    )
    return int(np.lexsort((quality, modes))[-1])


def _of_members(setting: Setting, folder: str, name: str) -> np.ndarray:
    """Return one metric of every member of a population, [K]."""
    metrics = read_metrics(setting.workdir / folder)
    members = population.size(read_config(setting.workdir / folder))
    return np.array([metrics[f"{name}/{k}"] for k in range(members)])


def _five_by_four(columns: Sequence[tuple[str, Game, TrainState]]) -> np.ndarray:
    """Draw the paper's figure: test points, codes, reconstructions, prior draws, samples of each model."""
    drawn = []
    for title, game, state in columns:
        variables: Variables = state.variables if state.ema is None else state.ema
        key = games.evaluation_key(game.config)
        (x, x_hat, x_tilde), (z_hat, z) = evaluate.plane_panels(game.ali, variables, key, game.dataset)
        drawn.append(
            [panel._replace(title=f"{title}: {panel.title}") for panel in (x, z_hat, x_hat, z, x_tilde)]
        )
    return figures.scatter(list(zip(*drawn, strict=True)))


def _provenance(setting: Setting, game: Game) -> tuple[str, ...]:
    """Return notes on the data and the number of steps behind our numbers."""
    train, test = len(game.dataset.train), len(game.dataset.test)
    config = game.config
    made = (
        f"Here: {game.dataset.name}, {train:,} training and {test:,} test rows, {config.num_steps:,} steps."
    )
    if setting.full and setting.steps is None:
        return (made,)
    return (f"SHORT BUDGET, not comparable with the paper. {made}",)


if __name__ == "__main__":
    sys.exit(main())
