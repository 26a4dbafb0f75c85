"""The report of one run as an HTML page: config, curves, samples, reconstructions, numbers and warnings."""

import functools
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ali_jax import evaluate as evaluators
from ali_jax.config import average_decay
from ali_jax.evaluate import Number
from ali_jax.evaluate.distances import NEAR
from ali_jax.evaluate.figures import Panel
from ali_jax.game import Game, evaluate, evaluation_key, member_of
from ali_jax.records.read import Run, changed, concerns, interval, read_run
from ali_jax.records.workdir import write_text
from ali_jax.records.writers import Spread, format_seconds, spreads
from ali_jax.report import html, svg
from ali_jax.report.curves import evaluation_curves, training_curves
from ali_jax.report.html import Cell, TableRow
from ali_jax.types import Report, TrainState, Variables

HEADLINES = 4  # at most so many numbers stand at the top
CLASSES_NAMED = 50  # at most
WIDE = "46rem"  # the width of pictures with many columns


def write_report(game: Game, state: TrainState, workdir: Path, out: Path | None = None) -> Path:
    """Write the report of a run and return its path.

    Pictures are drawn from the state; curves and numbers are read from the folder. For a population the
    pictures are those of the first member.

    Args:
      game: the run.
      state: its trained model.
      workdir: its folder.
      out: the file to write; None means report.html in the folder.
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
    drawn = {name: (title, list(parts)) for name, (title, parts) in sections.items()}
    drawn = {name: (title, parts) for name, (title, parts) in drawn.items() if parts}
    body = [
        _head(run, look),
        html.contents({name: title for name, (title, _) in drawn.items()}),
        *(html.section(name, title, *parts) for name, (title, parts) in drawn.items()),
        f"<footer>{html.paragraph(_imprint(look, time.monotonic() - began))}</footer>",
    ]
    path = workdir / "report.html" if out is None else out
    write_text(path, html.page(f"{run.name} - ali_jax", body))
    return path


class _Look:
    """The model of a run, and the reports of evaluators on it."""

    def __init__(self, game: Game, state: TrainState) -> None:
        if game.members:
            game, state = game.members[0], member_of(state, 0)
        self.game, self.state = game, state
        self.dataset, self.shape = game.dataset, game.dataset.test.shape
        variables = state.variables if state.ema is None else state.ema
        self.variables: Variables = jax.tree.map(lambda leaf: leaf.addressable_data(0), variables)
        self.weights = "raw" if state.ema is None else f"averaged (decay {average_decay(game.config):g})"
        self.key = evaluation_key(game.config)

    @functools.cache  # noqa: B019 - an instance lives as long as its page is written
    def report(self, name: str) -> Report | None:
        """Apply an evaluator; return None if it does not apply."""
        try:
            evaluators.check_applicable(name, self.dataset, self.game.ali)
        except ValueError:
            return None
        return evaluate(self.game, self.state, name)

    def picture(self, evaluator: str, name: str, description: str, wide: str = "40rem") -> str:
        """Return a picture of an evaluator as HTML, or "" if it does not apply."""
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
    for number in [number for number in evaluators.headlines() if number.name in numbers][:HEADLINES]:
        beside = []
        if number.scale and number.scale[0] in metrics:
            scale, what = number.scale
            beside.append(f"{html.format_number(metrics[scale], 3)} {what}")
        limits = interval(number.name, numbers[number.name], metrics)
        if limits:
            beside.append(f"95 %: {limits[0]:.3g} to {limits[1]:.3g} over {limits[2]}")
        value = html.format_number(numbers[number.name].mean, 3)
        small = "".join(f"<small>{escape(text)}</small>" for text in beside)
        parts.append(f"<div><dt>{escape(number.headline)}</dt><dd>{value}{small}</dd></div>")
    return f'<dl class="headlines">{"".join(parts)}</dl>' if parts else ""


def _concerns(run: Run, look: _Look) -> str:
    metrics = dict(run.metrics)
    for name in ("reconstruction_error", "posterior") if not metrics else ():  # not evaluated yet: quick ones
        report = look.report(name)
        metrics |= report.scalars if report else {}
    of_batches = ["batch_norm"] if jax.tree.leaves(look.variables.batch_stats) else []
    for name in (*of_batches, "near_duplicates"):
        report = look.report(name)
        metrics |= report.scalars if report else {}
    modes = 0 if look.dataset.modes is None else len(look.dataset.modes)
    warnings = concerns(metrics, run.training[-1] if run.training else {}, look.dataset.num_classes, modes)
    of_data = [note.text for note in look.dataset.notes if note.is_warning]
    if not warnings and not of_data:
        text = (
            "<strong>No warnings.</strong> Checked, where the run has the numbers: missing classes or modes, "
            "an ignored encoder, an extreme posterior sigma, copies of training images, test images that are "
            "also in train, a discriminator that wins, batch statistics that disagree."
        )
        return f'<div class="concerns none"><p>{text}</p></div>'
    lines = [f"<p><strong>The data.</strong> {escape(text)}</p>" for text in of_data]
    lines += [f"<p><strong>{escape(c.what)}</strong> {escape(c.why)}</p>" for c in warnings]
    return f'<div class="concerns" role="note">{"".join(lines)}</div>'


def _what_was_run(run: Run, look: _Look) -> Iterator[str]:
    dataset, sitting = look.dataset, run.sittings[-1] if run.sittings else {}
    kind = f"{'x'.join(map(str, look.shape))} {'pixels' if len(look.shape) == 3 else 'numbers'}"
    number = dataset.num_classes
    classes = f", {number} class{'es' * (number > 1)}" if number else ""
    sizes = {
        role: sum(leaf.size for leaf in jax.tree.leaves(params))
        for role, params in look.variables.params._asdict().items()
    }
    versions = sitting.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    notes = [note.text for note in dataset.notes if not note.is_warning]
    facts = {
        "data": f"{dataset.name}, {kind}{classes}",
        "training rows": f"{len(dataset.train):,} ({dataset.splits[0]})",
        "test rows": f"{len(dataset.test):,} ({dataset.splits[1]})",
        **_near_duplicates(look),
        **({"classes": _class_list(dataset.class_names)} if dataset.class_names else {}),
        **({"about the data": " ".join(notes)} if notes else {}),
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
        summary = f"Config: {len(rows)} keys that are not at their default"
        yield html.folded(summary, html.table(("key", "value", "default"), rows))


def _near_duplicates(look: _Look) -> dict[str, str]:
    """Return the row on test images that are also in train; none for data that are not images."""
    report = look.report("near_duplicates")
    if report is None:
        return {}
    n, share = int(report.scalars["n_near_duplicates"]), report.scalars["near_duplicates"]
    return {
        "near-duplicates": f"{round(n * share):,} of {n:,} test images differ by at most {NEAR:.0%} of the "
        f"range (root mean square over pixels) from one of {int(report.scalars['n_train']):,} training images"
    }


def _class_list(names: Sequence[str]) -> str:
    """Name the classes by their numbers: "0 cats, 1 dogs"; only the numbers' range where that is the name."""
    if all(name == str(k) for k, name in enumerate(names)):
        return f"0 to {len(names) - 1}"
    more = f" and {len(names) - CLASSES_NAMED} more" if len(names) > CLASSES_NAMED else ""
    return ", ".join(f"{k} {name}" for k, name in enumerate(names[:CLASSES_NAMED])) + more


def _over_lines(command: str) -> str:
    """Break a shell command into lines, one for each option; it stays the same command."""
    try:
        words = shlex.split(command)
    except ValueError:  # not a shell command
        return command
    return " ".join(("\\\n    " if word.startswith("--") else "") + shlex.quote(word) for word in words)


def _training(run: Run) -> Iterator[str]:
    curves = training_curves(run)
    if curves:
        call = run.config.steps_per_call
        band = (
            " Bands are 95 % t intervals of the mean over the population's members."
            if run.members > 1
            else ""
        )
        yield html.figure(
            html.group("panels wide", curves),
            f"Each point is the mean over the last steps up to it, at most {call:,}.{band}",
            "losses that level off near those of a discriminator that cannot tell the pairs apart "
            "(2 log 2 = 1.386 each for the loss ali), and accuracies near 0.5. Accuracies near 1 mean that "
            "the discriminator has won.",
        )
    curves = evaluation_curves(run)
    if curves:
        yield html.heading("Over the evaluations")
        yield html.figure(
            html.group("panels", curves),
            "Numbers of the evaluations during training, with the weights named above.",
        )
    elif run.evaluations:
        yield html.paragraph(
            "The run was evaluated only once. With config.evaluate_every this section shows its numbers as "
            "curves.",
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
            f"Samples of the decoder at z ~ N(0, I), not selected. Weights: {look.weights}.",
            "variety. Repeated images and missing kinds of image are signs of mode collapse.",
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
    caption = f"{len(panels[0][0].points):,} test points with sampled codes, and as many samples."
    look_for = "samples on every component and few between them; "
    if panels[0][0].labels is None:  # the networks are told the component
        look_for += "codes that fill the plane as the prior does."
    else:
        caption += " The colour of a point is the component that it was drawn from, in all panels."
        look_for += (
            "reconstructions that lie on the component of their colour; codes that fill the plane as the "
            "prior does, one region per colour."
        )
    plots = html.group("panels", (html.titled(names[p.title], svg.points(p)) for row in panels for p in row))
    yield html.figure(plots, caption, look_for)


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
        f"median and the worst, by rising mean squared error per pixel. Weights: {look.weights}.",
        "what is preserved where the error is small (stroke, slant, background), and what changes where it "
        "is large (often the class).",
    )


def _latent(look: _Look) -> Iterator[str]:
    picture = look.picture("interpolations", "interpolations", "Rows of images between two originals", WIDE)
    if picture:
        yield html.heading("Interpolations")
        yield html.figure(
            picture,
            "The outer columns are two test images. Between them are decodings on the straight line between "
            "their sampled codes; the first and the last of these are their reconstructions.",
            "images that change gradually and look plausible all along the line.",
        )
    picture = look.picture("traversals", "traversals", "Rows of images along single code dimensions")
    if picture:
        yield html.heading("Traversals")
        yield html.figure(
            picture,
            "Decodings of the mean code of one test image. In each row one dimension moves from -2.5 to 2.5 "
            "standard deviations of the prior; the first row is the dimension that changes the image most.",
            "dimensions that have one meaning each. The decoder ignores a dimension whose row does not "
            "change.",
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
            f"the plane of the first two principal components of their {size}, which retains {share:.0%} of "
            "the variance"
        )
    )
    caption = f"Mean codes of {len(panel.points):,} test rows in {plane}"
    if panel.labels is None:
        return f"{caption}.", "one cloud about the origin, as the prior has."
    return (
        f"{caption}, coloured and named by class.",
        "classes that form groups although the encoder never saw a label. All dimensions together separate "
        "the classes better than a plane can show.",
    )


def _memorisation(look: _Look) -> Iterator[str]:
    picture = look.picture("neighbours", "neighbours", "Samples above their nearest training images")
    if picture:
        yield html.figure(
            picture,
            "The top row shows, of 500 samples, the ten that are nearest to a training image. Below each are "
            "its three nearest training images, by Euclidean distance between pixels.",
            "samples that are exact copies of the image below. Some similarity is expected, since these are "
            "the samples most similar to training images.",
        )


def _numbers(run: Run, look: _Look) -> Iterator[str]:
    metrics = run.metrics
    if not metrics:
        return
    numbers = spreads({name: value for name, value in metrics.items() if not name.startswith("raw/")})
    raw = spreads({name[4:]: value for name, value in metrics.items() if name.startswith("raw/")})
    yield html.paragraph(
        f"From the evaluation at step {run.evaluated_step:,}. "
        f"Weights: {look.weights}{', beside them the raw ones' if raw else ''}. "
        f"Train is {look.dataset.splits[0]} of {look.dataset.name}, test is {look.dataset.splits[1]}. "
        "Grey rows are controls: they do not depend on the trained weights. Intervals are at 95 %. For "
        "shares of test rows they are Wilson's. For a population they are Student's t intervals for the mean "
        "over its members.",
    )
    shown = {name for name in numbers if not name.startswith("n_")}
    for evaluator, declared in _by_first_number(list(numbers), run.config.evaluators).items():
        meanings = {number.name: number.meaning for number in declared}
        names = [name for name in numbers if name in shown and name in meanings]
        if names:
            shown -= set(names)
            yield html.heading(evaluator.replace("_", " ").capitalize())
            yield _table(names, numbers, raw, meanings, metrics, _counts(declared, metrics))
    if shown:
        yield html.heading("Further numbers")
        yield _table([name for name in numbers if name in shown], numbers, raw, {}, metrics, "")


def _by_first_number(order: list[str], listed: Sequence[str]) -> dict[str, tuple[Number, ...]]:
    """Return what the evaluators declare, the one whose number comes first in `order` first.

    Of two that declare it, it is that which the run lists.
    """

    def first(declared: tuple[Number, ...]) -> int:
        return min((order.index(n.name) for n in declared if n.name in order and not n.is_count), default=0)

    declarations = sorted(evaluators.declared().items())
    return dict(sorted(declarations, key=lambda item: (first(item[1]), item[0] not in listed)))


def _counts(declared: tuple[Number, ...], metrics: dict[str, float | None]) -> str:
    """Return the counts of an evaluator, as in "n_test = 397"."""
    counts = {number.name: metrics.get(number.name) for number in declared if number.is_count}
    return ", ".join(f"{name} = {value:,.0f}" for name, value in counts.items() if value is not None)


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
            "including compilation and evaluation. It trained on "
            f"{float(summary['images_per_second']):,.0f} images per second."
        )
    if run.sittings:
        rows = [
            TableRow(
                (
                    str(sitting.get("started", "")).replace("T", " "),
                    html.number(_as_number(sitting.get("from_step")), 9),
                    html.number(_as_number(sitting.get("to_step")), 9),
                    Cell(_duration(sitting.get("seconds")), "number"),
                    str(sitting.get("end", "not recorded: killed, failed or still running")),
                    str(sitting.get("device", "")),
                )
            )
            for sitting in run.sittings
        ]
        heads = (
            "started (UTC)",
            Cell("from step", "number"),
            Cell("to step", "number"),
            Cell("h:mm:ss", "number"),
        )
        yield html.table(
            (*heads, "end", "device"),
            rows,
            "The sittings of the run. Each continues where the one before it stopped.",
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
