"""The shortened benchmark of known answers passes for a sound game and fails for planted faults."""

import jax.numpy as jnp
import numpy as np
import pytest

from ali_jax import model
from ali_jax.types import Networks, Variables
from benchmarks import gaussian, known_answer


def test_a_sound_game_finds_the_posterior_of_the_decoder_that_it_learns():
    found = known_answer.inference_findings("learnt", frozen=(), steps=2_000)
    assert [f.name for f in found if not f.passes] == []


@pytest.mark.parametrize("fault", known_answer.FAULTS)
def test_a_planted_fault_is_found(fault):
    by_moments, by_codes, *calibration = known_answer.inference_findings("frozen", fault, steps=300)
    assert not by_codes.passes
    assert by_codes.value > 1
    assert any(not p.passes for p in calibration)
    assert not by_moments.passes or fault == "shared_noise"


def test_the_logit_is_the_log_ratio_unless_a_penalty_shrinks_it():
    found = known_answer.logit_findings(gammas=(0.0, 1.0), steps=800)
    assert [f.name for f in found if not f.passes] == []
    assert found[-1].value < 0.3  # the slope under the penalty


def test_the_mismatch_is_the_one_that_is_stated(key):
    ali = known_answer.make_networks()
    params = Networks(known_answer.mismatched_encoder(), known_answer.true_decoder(), {})
    variables = Variables(params, Networks({}, {}, {}))
    x, _ = known_answer.draw_data(key, 50)
    exact = gaussian.posterior(known_answer.TRUTH, np.asarray(x))
    mean, log_sigma = model.posterior(ali, variables, x)
    np.testing.assert_allclose(mean, exact.mean + known_answer.SHIFT, atol=1e-5)
    stretched = known_answer.STRETCH * np.sqrt(np.diag(exact.covariance))
    np.testing.assert_allclose(np.exp(log_sigma), jnp.broadcast_to(stretched, (50, 2)), rtol=1e-5)
    assert np.allclose(exact.covariance, np.diag(np.diag(exact.covariance)), atol=1e-7)


def test_the_command_fails_where_a_finding_does(monkeypatch, capsys):
    fine, off = known_answer.Finding("fine", 1.0, 0, 2), known_answer.Finding("off", np.nan, 0, 2)
    monkeypatch.setattr(known_answer, "logit_findings", lambda steps: [fine])
    for finding, status in ((fine, 0), (off, 1)):
        monkeypatch.setattr(known_answer, "inference_findings", lambda *_, finding=finding, **__: [finding])
        assert known_answer.main([]) == status
    assert "| off | nan | 0 to 2 | FAIL |" in capsys.readouterr().out
