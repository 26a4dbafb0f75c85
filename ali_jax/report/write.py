"""The page of one run: what was run, how it went, what the model makes, and what the numbers are."""

import functools
import shlex
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ali_jax import evaluate as evaluators
from ali_jax.evaluate.figures import Panel
from ali_jax.game import Game, evaluate, evaluation_key, member_of
from ali_jax.records.read import COUNTS, Run, changed, concerns, interval, read_run
from ali_jax.records.workdir import write_text
from ali_jax.records.writers import Spread, format_seconds, spreads
from ali_jax.report import html, svg
from ali_jax.report.curves import evaluation_curves, training_curves
from ali_jax.report.html import Cell, TableRow
from ali_jax.types import Report, TrainState, Variables

HEADLINES = {  # the first four that there are stand at the top
    "class_kl": "class KL",
    "modes_strict": "modes, strictly counted",
    "stacked_modes_strict": "classes of stacks, strictly counted",
    "high_quality": "samples of high quality",
    "class_kept": "class kept",
    "mode_kept": "mode kept",
    "knn_accuracy": "1-NN accuracy of codes",
    "reconstruction_mse": "reconstruction error",
    "memorisation": "distance to training data",
}

WIDE = "46rem"  # of pictures with many columns

SCALES = {  # what a headline is read against
    "class_kl": {"class_kl_floor": "for perfect samples"},
    "stacked_modes_strict": {"stacked_modes_strict_real": "for real stacks"},
    "knn_accuracy": {"knn_accuracy_pixels": "for raw pixels"},
    "reconstruction_mse": {"reconstruction_mse_random_pair": "for a random pair"},
}


def write_report(game: Game, state: TrainState, workdir: Path, out: Path | None = None) -> Path:
    """Write the page of a run and return its path.

    Pictures are drawn anew from the state; curves and numbers are those of the folder's files. Of a
    population the first member is drawn.

    Args:
      game, state: the run and its model.
      workdir: the run's folder.
      out: the page's file; None: report.html in the folder.
    """
    began = time.monotonic()
    run = read_run(workdir)
    look = _Look(game, state)
    sections = {
        "run": ("What was run", _what_was_run(run, look)),
        "curves": ("Training", _training(run)),
        "samples": ("Samples", _samples(look)),
        "reconstructions": ("Reconstructions", _reconstructions(look)),
        "latent": ("Latent space", _latent(look)),
        "memorisation": ("Memorisation", _memorisation(look)),
        "numbers": ("Numbers", _numbers(run, look)),
        "history": ("History and speed", _history(run)),
    }
    held = {name: (title, list(parts)) for name, (title, parts) in sections.items()}
    held = {name: value for name, value in held.items() if value[1]}
    body = [
        _head(run, look),
        html.contents({name: title for name, (title, _) in held.items()}),
        *(html.section(name, title, *parts) for name, (title, parts) in held.items()),
        f"<footer>{html.paragraph(_imprint(look, time.monotonic() - began))}</footer>",
    ]
    path = workdir / "report.html" if out is None else out
    write_text(path, html.page(f"{run.name} - ali_jax", body))
    return path


class _Look:
    """The model of a run, and what evaluators show of it."""

    def __init__(self, game: Game, state: TrainState) -> None:
        if game.members:
            game, state = game.members[0], member_of(state, 0)
        self.game, self.state = game, state
        self.dataset, self.shape = game.dataset, game.dataset.test.shape
        held = state.variables if state.ema is None else state.ema
        self.variables: Variables = jax.tree.map(lambda leaf: leaf.addressable_data(0), held)
        self.weights = "raw" if state.ema is None else f"averaged (decay {game.config.ema_decay:g})"
        self.key = evaluation_key(game.config)

    @functools.cache  # noqa: B019 - a page looks once
    def report(self, name: str) -> Report | None:
        """Apply an evaluator; None where it does not apply."""
        try:
            evaluators.check_applicable(name, self.dataset, self.game.ali)
        except ValueError:
            return None
        return evaluate(self.game, self.state, name)

    def picture(self, evaluator: str, name: str, description: str, wide: str = "40rem") -> str:
        """Return one of the pictures of an evaluator as HTML, or nothing where it does not apply."""
        report = self.report(evaluator)
        return "" if report is None else html.picture(report.images[name], description, wide=wide)


def _head(run: Run, look: _Look) -> str:
    config, dataset = run.config, look.dataset
    step = int(look.state.step)
    members = f", {run.members} members" if run.members > 1 else ""
    progress = f"{step:,} steps" if step >= config.num_steps else f"step {step:,} of {config.num_steps:,}"
    lead = f"ALI on {dataset.name}: {progress} of {config.batch_size:,} images{members}."
    return "\n".join(
        [
            f"<header><h1>{escape(run.name)}</h1>",
            html.paragraph(lead, "lead"),
            _headlines(run),
            _concerns(run, look),
            "</header>",
        ]
    )


def _headlines(run: Run) -> str:
    metrics = run.metrics
    numbers = spreads(metrics)
    parts = []
    for name in [name for name in HEADLINES if name in numbers][:4]:
        beside = [
            f"{html.format_number(metrics[other], 3)} {what}"
            for other, what in SCALES.get(name, {}).items()
            if other in metrics
        ]
        limits = interval(name, numbers[name], metrics)
        if limits:
            beside.append(f"95 %: {limits[0]:.3g} to {limits[1]:.3g} over {limits[2]}")
        value = html.format_number(numbers[name].mean, 3)
        small = "".join(f"<small>{escape(text)}</small>" for text in beside)
        parts.append(f"<div><dt>{escape(HEADLINES[name])}</dt><dd>{value}{small}</dd></div>")
    return f'<dl class="headlines">{"".join(parts)}</dl>' if parts else ""


def _concerns(run: Run, look: _Look) -> str:
    metrics = dict(run.metrics)
    for name in ("reconstruction_error", "posterior") if not metrics else ():  # quick ones, of an early look
        report = look.report(name)
        metrics |= report.scalars if report else {}
    if jax.tree.leaves(look.variables.batch_stats):
        report = look.report("batch_norm")
        metrics |= report.scalars if report else {}
    modes = 0 if look.dataset.modes is None else len(look.dataset.modes)
    found = concerns(metrics, run.training[-1] if run.training else {}, look.dataset.num_classes, modes)
    if not found:
        text = (
            "<strong>No warnings.</strong> Checked, as far as the run has the numbers: missing classes or "
            "modes, "
            "an ignored encoder, extreme posterior sigma, copies of training images, a discriminator that "
            "wins, "
            "batch statistics that disagree."
        )
        return f'<div class="concerns none"><p>{text}</p></div>'
    lines = (f"<p><strong>{escape(c.what)}</strong> {escape(c.why)}</p>" for c in found)
    return f'<div class="concerns" role="note">{"".join(lines)}</div>'


def _what_was_run(run: Run, look: _Look) -> Iterator[str]:
    dataset, sitting = look.dataset, run.sittings[-1] if run.sittings else {}
    kind = f"{'x'.join(map(str, look.shape))} {'pixels' if len(look.shape) == 3 else 'numbers'}"
    classes = f", {dataset.num_classes} classes" if dataset.num_classes else ""
    sizes = {
        role: sum(leaf.size for leaf in jax.tree.leaves(params))
        for role, params in look.variables.params._asdict().items()
    }
    versions = sitting.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    facts = {
        "data": f"{dataset.name}, {kind}{classes}",
        "training rows": f"{len(dataset.train):,} ({dataset.splits[0]})",
        "test rows": f"{len(dataset.test):,} ({dataset.splits[1]})",
        "parameters": ", ".join(f"{role} {size:,}" for role, size in sizes.items()),
        "loss": run.config.loss,
        "weights shown": look.weights + (", first member" if run.members > 1 else ""),
        "device": str(sitting.get("device", "not recorded")),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded",
    }
    yield html.table((), [TableRow((name, value)) for name, value in facts.items()])
    if "command" in sitting:
        yield html.heading("Command")
        yield html.code(_over_lines(str(sitting["command"])))
    rows = [
        TableRow((Cell(key, code=True), Cell(repr(new), code=True), Cell(repr(old), code=True)))
        for key, (old, new) in changed(run.config).items()
    ]
    if rows:
        summary = f"Config: {len(rows)} keys that differ from the default"
        yield html.folded(summary, html.table(("key", "value", "default"), rows))


def _over_lines(command: str) -> str:
    """Begin a line at each option of a shell command, such that it stays the same command."""
    try:
        words = shlex.split(command)
    except ValueError:  # no command
        return command
    return " ".join(("\\\n    " if word.startswith("--") else "") + shlex.quote(word) for word in words)


def _training(run: Run) -> Iterator[str]:
    curves = training_curves(run)
    if curves:
        band = (
            " Bands are 95 % t intervals of the mean over the population's members."
            if run.members > 1
            else ""
        )
        yield html.figure(
            html.group("panels wide", curves),
            f"Means over the steps between two lines of the log.{band}",
            "losses that level off near those of a discriminator that cannot tell (2 log 2 = 1.386 each for "
            "the "
            "loss ali), and accuracies near 0.5; accuracies near 1 mean that the discriminator has won.",
        )
    curves = evaluation_curves(run)
    if curves:
        yield html.heading("Over the evaluations")
        yield html.figure(
            html.group("panels", curves),
            "Numbers of the evaluations during training, with the weights shown.",
        )
    elif run.evaluations:
        yield html.paragraph(
            "The run was evaluated once. With config.evaluate_every its numbers are shown as curves here.",
            "note",
        )


def _samples(look: _Look) -> Iterator[str]:
    if look.shape == (2,):
        yield from _plane(look)
        return
    picture = look.picture("samples", "samples", "A grid of samples")
    if picture:
        yield html.figure(
            picture,
            f"Samples of the decoder at z ~ N(0, I), not selected; weights: {look.weights}.",
            "variety: repeated images, or kinds of image that are missing, are signs of collapse.",
        )


def _plane(look: _Look) -> Iterator[str]:
    names = {
        "x": "Data x",
        "x_hat": "Reconstructions of x",
        "x_tilde": "Samples",
        "z_hat": "Codes of x",
        "z": "Prior draws z",
    }
    panels = evaluators.plane_panels(look.game.ali, look.variables, look.key, look.dataset)
    yield html.figure(
        html.group("panels", (html.titled(names[p.title], svg.points(p)) for row in panels for p in row)),
        f"{len(panels[0][0].points):,} test points with sampled codes, and as many samples; colour is the "
        "component that a point was drawn from, the same in all panels.",
        "samples on every component and few between them; reconstructions with the colour of the component "
        "they "
        "lie on; codes that fill the plane as the prior does, one region per colour.",
    )


def _reconstructions(look: _Look) -> Iterator[str]:
    report = look.report("error_extremes")
    if report is None:
        return
    errors = {name: report.scalars[f"reconstruction_error_{name}"] for name in ("best", "median", "worst")}
    n = int(report.scalars["n_test"])
    strips = (
        html.titled(
            f"{name.capitalize()}, error {error:.3g}",
            html.picture(
                report.images[f"error_{name}"], f"Originals above reconstructions, {name}", wide=WIDE
            ),
        )
        for name, error in errors.items()
    )
    yield html.figure(
        html.group("strips", strips),
        f"Test images above their reconstructions from the mean code: the best of {n:,}, those about the "
        "median, "
        f"and the worst, by rising mean squared error per pixel; weights: {look.weights}.",
        "what is kept where the error is small (stroke, slant, background) and what changes where it is "
        "large "
        "(often the class).",
    )


def _latent(look: _Look) -> Iterator[str]:
    picture = look.picture("interpolations", "interpolations", "Rows of images between two originals", WIDE)
    if picture:
        yield html.heading("Interpolations")
        yield html.figure(
            picture,
            "Outer columns: two test images. Between them: decodings on the straight line between their "
            "sampled "
            "codes, the two reconstructions included.",
            "images that stay plausible all along the way, and change gradually.",
        )
    picture = look.picture("traversals", "traversals", "Rows of images along single code dimensions")
    if picture:
        yield html.heading("Traversals")
        yield html.figure(
            picture,
            "The mean code of one test image, one dimension moved from -2.5 to 2.5 standard deviations of "
            "the prior "
            "from left to right; the most effective dimensions first, one a row.",
            "dimensions with one meaning, and rows without change: those the decoder ignores.",
        )
    if look.report("codes") is not None and look.shape != (2,):
        panel, share = evaluators.code_panel(look.game.ali, look.variables, look.dataset)
        yield html.heading("Codes")
        yield html.figure(_codes(panel), *_about_codes(panel, share, look))


def _codes(panel: Panel) -> str:
    named = panel.labels is not None and len(np.unique(panel.labels)) <= svg.CLASS_COLOURS
    return f'<div class="large">{svg.points(panel, size=600, name_classes=named)}</div>'


def _about_codes(panel: Panel, share: float, look: _Look) -> tuple[str, str]:
    size = f"{look.game.ali.encoder.latent_dim} dimensions"
    plane = (
        "the plane of their codes"
        if share == 1
        else (
            f"the plane of the two principal components of their {size}, which holds {share:.0%} of the "
            "variance"
        )
    )
    coloured = ", coloured and named by class" if panel.labels is not None else ""
    return (
        f"Mean codes of {len(panel.points):,} test rows in {plane}{coloured}.",
        "classes that lie together though the encoder never saw a label; a plane shows less than all "
        "dimensions do.",
    )


def _memorisation(look: _Look) -> Iterator[str]:
    picture = look.picture("neighbours", "neighbours", "Samples above their nearest training images")
    if picture:
        yield html.figure(
            picture,
            "Top row: of 500 samples the ten that lie nearest to a training image. Below each: its three "
            "nearest "
            "training images, by Euclidean distance between pixels.",
            "samples that repeat the image below exactly. Likeness is expected; these are the most alike.",
        )


def _numbers(run: Run, look: _Look) -> Iterator[str]:
    metrics = run.metrics
    if not metrics:
        return
    numbers = spreads({name: value for name, value in metrics.items() if not name.startswith("raw/")})
    raw = spreads({name[4:]: value for name, value in metrics.items() if name.startswith("raw/")})
    glossary = evaluators.glossary()
    left = {name for name in numbers if not name.startswith("n_")}
    at = f"step {run.evaluations[-1]['step']:,}" if run.evaluations else "the newest checkpoint"
    yield html.paragraph(
        f"Of the evaluation at {at}. Weights: {look.weights}{', the raw ones beside' if raw else ''}. "
        f"Train is {look.dataset.splits[0]} of {look.dataset.name}, test is {look.dataset.splits[1]}. "
        "Grey rows are controls: they do not depend on the trained weights. Intervals are of 95 %: for "
        "shares Wilson's over the test rows; of a population, Student's t for the mean over members.",
    )
    order = list(numbers)
    groups = sorted(
        glossary, key=lambda e: min((order.index(n) for n in glossary[e] if n in numbers), default=0)
    )
    for evaluator in groups:
        meanings = glossary[evaluator]
        names = [name for name in numbers if name in left and name in meanings]
        if names:
            left -= set(names)
            yield html.heading(evaluator.replace("_", " ").capitalize())
            counts = [
                f"{c} = {metrics[c]:,.0f}" for c in COUNTS.get(evaluator, ()) if metrics.get(c) is not None
            ]
            yield _table(names, numbers, raw, meanings, metrics, ", ".join(counts))
    if left:
        yield html.heading("Further numbers")
        yield _table([name for name in numbers if name in left], numbers, raw, {}, metrics, "")


def _table(
    names: list[str],
    numbers: dict[str, Spread],
    raw: dict[str, Spread],
    meanings: dict[str, str],
    metrics: dict[str, float | None],
    caption: str,
) -> str:
    population = any(numbers[name].members for name in names)
    intervals = {name: interval(name, numbers[name], metrics) for name in names}
    columns: dict[str, Callable[[str], Cell]] = {
        "mean" if population else "value": lambda name: html.number(numbers[name].mean),
    }
    if population:
        columns["std"] = lambda name: html.number(numbers[name].std, 2)
    if any(intervals.values()):
        columns["95 % interval"] = lambda name: _interval_cell(intervals[name])
    if any(name in raw for name in names):
        columns["raw"] = lambda name: html.number(raw[name].mean) if name in raw else Cell("")
    rows = [
        TableRow(
            (
                Cell(name, code=True),
                *(make(name) for make in columns.values()),
                Cell(meanings.get(name, ""), "words"),
            ),
            "control" if evaluators.is_control(name) else "",
        )
        for name in names
    ]
    heads = ["metric", *(Cell(column, "number") for column in columns), "what it is" if meanings else ""]
    return html.table(heads, rows, caption)


def _interval_cell(limits: tuple[float, float, str] | None) -> Cell:
    return Cell(f"{limits[0]:.3g} to {limits[1]:.3g}" if limits else "", "number")


def _history(run: Run) -> Iterator[str]:
    summary = run.summary
    if "wall_seconds" in summary and "images_per_second" in summary:
        yield html.paragraph(
            f"The run took {format_seconds(float(summary['wall_seconds']))} (h:mm:ss) over all sittings, "
            "compilation and "
            f"evaluation included, and saw {float(summary['images_per_second']):,.0f} images per second "
            "while training."
        )
    if run.sittings:
        rows = [
            TableRow(
                (
                    str(sitting.get("started", "")).replace("T", " "),
                    html.number(_as_number(sitting.get("from_step")), 9),
                    html.number(_as_number(sitting.get("to_step")), 9),
                    Cell(_duration(sitting.get("seconds")), "number"),
                    str(sitting.get("end", "not noted: killed, failed or still under way")),
                    str(sitting.get("device", "")),
                )
            )
            for sitting in run.sittings
        ]
        heads = (
            "begun (UTC)",
            Cell("from step", "number"),
            Cell("to step", "number"),
            Cell("h:mm:ss", "number"),
        )
        yield html.table(
            (*heads, "end", "device"), rows, "The sittings of the run: it goes on where it stopped."
        )


def _as_number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) else None


def _duration(value: Any) -> str:
    return format_seconds(value) if isinstance(value, (int, float)) else "\N{EN DASH}"


def _imprint(look: _Look, seconds: float) -> str:
    return (
        f"Made by ali_jax in {seconds:.0f} s from the files of the run and its model at step "
        f"{int(look.state.step):,}. This page is one file: it loads nothing and can be sent as it is."
    )
