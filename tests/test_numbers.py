"""A new evaluator is one function with its declaration: written into one module, it is known everywhere."""

import json
import re

import pytest
from test_loop import tiny

from ali_jax import config as configs
from ali_jax import evaluate
from ali_jax.evaluate import joint
from ali_jax.main import main
from ali_jax.metrics.intervals import wilson_interval
from ali_jax.program import loop

PLANTED = '''
@evaluator(
    needs=(TWO_TEST_ROWS,),
    numbers=(
        Number(
            "darkness_kept",
            "share of dark test images | that stay dark",
            share_of="n_test",
            headline="darkness",
            scale=("darkness_floor", "for a lamp"),
        ),
        Number("darkness_floor", "the same of a lamp", control=True),
        N_TEST,
    ),
)
def darkness(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure darkness."""
    return Report({"darkness_kept": 0.25, "darkness_floor": 0.125, "n_test": float(len(dataset.test))}, {})
'''


@pytest.fixture
def planted(monkeypatch):
    """Append an evaluator to a module, as an editor would."""
    namespace = dict(vars(joint))
    exec(PLANTED, namespace)
    monkeypatch.setattr(joint, "darkness", namespace["darkness"], raising=False)


def test_an_evaluator_is_unknown_before_it_is_planted():
    with pytest.raises(ValueError, match="no evaluator 'darkness'"):
        evaluate.named("darkness")


def test_a_number_that_several_evaluators_have_means_the_same_in_each():
    meanings = {}
    for name, numbers in evaluate.declared().items():
        for number in numbers:
            said_by, meaning = meanings.setdefault(number.name, (name, number.meaning))
            assert number.meaning == meaning, f"{number.name} of {said_by} and of {name}"


def test_a_planted_evaluator_is_in_the_lookups_and_in_the_table_of_the_docs(planted):
    assert evaluate.darkness is evaluate.named("darkness")
    assert evaluate.glossary()["darkness"]["darkness_floor"] == "the same of a lamp"
    assert evaluate.is_control("darkness_floor")
    assert not evaluate.is_control("darkness_kept")
    first, *others = evaluate.table()[evaluate.table().index("| `darkness` |") :].splitlines()[:4]
    assert first == "| `darkness` | | Measure darkness. |"
    assert others[0] == r"| | `darkness_kept` | share of dark test images \| that stay dark |"
    assert others[2] == "| | `n_test` | test rows used |"


def test_a_planted_evaluator_is_run_reported_and_evaluated_anew(planted, tmp_path, capsys):
    config = tiny(report=True, num_steps=10, evaluators=("darkness",), ema_decay=0.9)
    configs.validate(config)
    assert loop.run(config, tmp_path) == 0
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert (metrics["darkness_kept"], metrics["raw/darkness_kept"]) == (0.25, 0.25)
    assert "raw/darkness_floor" not in metrics

    page = (tmp_path / "report.html").read_text()
    low, high = wilson_interval(0.25 * 397, 397)
    headline = re.search("<dt>darkness</dt><dd>(.*?)</dd>", page)[1]
    assert "0.125 for a lamp" in headline
    assert f"95 %: {low:.3g} to {high:.3g} over test rows" in headline
    words = re.sub("<[^>]*>", " ", page)
    for text in ("Darkness", f"{low:.3g} to {high:.3g}", "that stay dark", "n_test = 397"):
        assert text in words[words.index("From the evaluation at") :]
    control = re.search(r'<tr class="control">((?!</tr>).)*darkness_floor', page, flags=re.DOTALL)
    assert control

    capsys.readouterr()
    arguments = ["--mode", "evaluate", "--workdir", str(tmp_path), "--json"]
    assert main([*arguments, "--config.evaluators=('darkness',)"]) == 0
    assert '"darkness_kept": 0.25' in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["darkness_kept"] == 0.25
