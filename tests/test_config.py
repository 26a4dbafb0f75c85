"""The table of config keys: defaults, rules, the page made from it, and what may change in a resumed run."""

import math
import re
import runpy
import subprocess
import sys

import pytest
from small import ROOT
from test_loop import tiny

from ali_jax import config as configs
from ali_jax import rules

PAGE = ROOT / "docs" / "reference" / "config.md"
STRANGE = (
    *(None, True, 0, -1, 1.5, math.nan, math.inf, 10**400, "a", b"a", object(), {}, {"a": 1}, [], (), ((),)),
    *((None,), ("a",), (1,), (1.5, 2.5), (3, 1, 4), ((3, 1, 4),), ((3,),), ((3, 1, 4, 0, 9),), ("a", (1,))),
    *((("a",),), (("a", ()),), ((1, (2,)),), (("a", (1, "b")),), (math.nan, math.nan), ({}, [])),
)
RULES = {key.rule.allowed: key.rule for key in configs.KEYS.values()}


def test_every_default_keeps_its_rule_and_has_a_meaning():
    configs.validate(configs.base())
    for name, key in configs.KEYS.items():
        configs.check_value(name, key.default)
        assert re.fullmatch(r"[A-Z].*\.", key.meaning), name
    assert configs.base().is_locked


def test_base_has_the_defaults_of_the_table():
    assert configs.flat(configs.base()) == {name: key.default for name, key in configs.KEYS.items()}


def test_the_reference_page_is_current(monkeypatch, capsys):
    runpy.run_path(str(ROOT / "ali_jax" / "config.py"), run_name="__main__")
    assert PAGE.read_text() == capsys.readouterr().out, "python -m ali_jax.config > docs/reference/config.md"


def test_the_reference_lists_every_key_once():
    listed = re.findall(r"^\| `([\w.]+)` \|", configs.reference(), flags=re.MULTILINE)
    assert listed == list(configs.KEYS)


@pytest.mark.parametrize("allowed", RULES)
def test_rules_answer_for_values_of_any_type_and_refuse_some(allowed):
    answers = {RULES[allowed].holds(value) for value in STRANGE}
    assert False in answers
    assert answers <= {True, False}


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        (rules.one_of("a", "b"), ["a", "b"], ["c", "", 0, ("a",)]),
        (rules.flag, [True, False], [0, 1, None]),
        (rules.flags, [True, (True, False), ()], [(1,), 0, ("x",)]),
        (rules.finite, [0, -1.5], [math.nan, math.inf, True, "1"]),
        (rules.positive, [1e-8, 3], [0.0, -1.0, math.inf]),
        (rules.not_negative, [0, 0.0, 3.5], [-1e-9, math.nan, math.inf]),
        (rules.fraction, [0.0, 0.999], [1.0, -0.1, math.nan]),
        (rules.fractions, [0.5, (0.0, 0.5), ()], [(1.0,), (0.1, "x"), -0.1]),
        (rules.count, [1, 2**31 - 1], [0, 2**31, 1.0, True]),
        (rules.count_or_zero, [0, 2**40], [-1, 0.0, False]),
        (rules.seed, [0, 2**32 - 1], [-1, 2**32]),
        (rules.stack, [0, 3], [1, 2, False]),
        (rules.grid, [(2, 3)], [(3,), (1, 2, 3), (0, 3), 4]),
        (rules.shape, [(), (2,), (8, 8, 1)], [(8, 8), (0,), (8, 8, 1.0), 8]),
        (rules.roles, [(), ("decoder",)], [("decoders",), "decoder", ({},)]),
        (rules.texts, [(), ("samples",)], [(1,), "samples"]),
        (rules.layers, [(), (8,), ((4, 2, 8), (4, 1, 8, 0), 9)], [((4, 2),), (True,), ((4, 0, 8),), 8]),
        (rules.widths, [(), (8, 8)], [((4, 2, 8),), (0,), (1.0,)]),
        (rules.clip, [(), (-6.0, 0.5)], [(0.5, -6.0), (1.0,), (0, math.nan)]),
        (rules.frequencies, [(), (64, 3.0)], [(64,), (1.5, 3.0), (64, -1.0)]),
        (
            rules.variations,
            [(), (("encoder.init_std", (0.1, 1)),)],
            ["a", ("a",), (("a", ()),), (("a", ("b",)),), (("a", 1.0),), (("a", (math.inf,)),)],
        ),
    ],
)
def test_a_rule_allows_and_refuses(rule, allowed, refused):
    assert [value for value in allowed if not rule.holds(value)] == []
    assert [value for value in refused if rule.holds(value)] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "config.batch_size is 0; it must be positive and below 2^31."),
        ({"penalties__r1__at": "x"}, "config.penalties.r1.at is 'x'; it must be one of encoder, decoder, "),
        ({"penalties__r1__gamma_z": math.nan}, "config.penalties.r1.gamma_z is nan; it must be finite."),
        ({"frozen": ("decoder",)}, "a decoder that is not trained needs config.init_from"),
        ({"frozen": ("encoders",)}, "config.frozen is ('encoders',); it must be a tuple of names among "),
        ({"dataset__labelled": 100}, "the loss 'semi_supervised' needs labelled rows"),
        ({"dataset__stack": 3, "dataset__conditional": True}, "config.dataset.conditional must be False"),
        ({"log_every": 15}, "not a multiple of config.steps_per_call = 10. Change one of them, e.g. "),
        ({"encoder__layers": ((3,),)}, "config.encoder.layers is ((3,),); it must be layers, each "),
    ],
)
def test_a_value_that_no_run_can_use_is_named_with_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        configs.validate(tiny(**changes))


@pytest.mark.parametrize("module", ["config", "main"])
def test_the_config_and_the_command_import_no_jax(module):
    code = f"import sys, ali_jax.{module}; print({{'jax', 'numpy'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_keys_of_networks_of_ones_own_have_no_rule_and_lists_count_as_tuples():
    configs.check_value("encoder.own", object())
    configs.check_value("encoder.layers", [[4, 2, 8], 8])


def test_a_config_survives_json():
    config = tiny(evaluators=("samples",))
    again = configs.from_json(configs.to_json(config))
    assert configs.differences(config, again) == {}
    assert again.is_locked
    assert again.encoder.layers == (8,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "lacks seed, batch_size"),
        ('{"sed": 0}', "There is no config key 'sed'. Did you mean seed?"),
        ('{"seed": 0.5}', "config.seed is 0.5; it must be of type int"),
    ],
)
def test_json_that_is_no_config_is_refused(text, expected):
    with pytest.raises(ValueError, match=r".") as error:
        configs.from_json(text)
    assert expected in str(error.value)


def test_num_steps_may_grow_only_where_no_schedule_depends_on_it():
    constant = {"optimizer__constant_fraction": 1.0, "penalties__r1__gamma": 1.0}
    annealed = {"penalties__r1__gamma": 0.0, "penalties__r1__gamma_final": 0.1}
    of_members = {"population__vary": (("penalties.r1.gamma", (0.1, 1.0)),)}
    for scheduled in (
        {},
        {"optimizer__constant_fraction": 0.5},
        {"penalties__r1__gamma_final": 0.1},
        {"optimizer__b2_final": 0.9},
        {**annealed, "penalties__r1__gamma_z": 1.0},
        {**annealed, **of_members},
    ):
        changes = {**constant, "penalties__r1__gamma_final": -1.0, **scheduled}
        old, new = tiny(**changes), tiny(**changes, num_steps=40)
        assert configs.conflicts(old, new) == ({"num_steps": (30, 40)} if scheduled else {})
        assert configs.conflicts(new, old) == {"num_steps": (40, 30)}
