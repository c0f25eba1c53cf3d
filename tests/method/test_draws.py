"""The random part: what it depends on, what it is distributed like, and no key used twice."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, sd_schedule
from scipy import stats

from slam_jax.base.options import OptionError
from slam_jax.method.lcm import Lcm
from slam_jax.method.method import RowKeys
from slam_jax.method.pcm import Pcm
from slam_jax.method.sampler import sample_consistency
from slam_jax.method.slam import GAMMA_POLICIES, Slam, draw
from slam_jax.method.sub_path import draw_starts
from slam_jax.parallel.keys import Keys, keys_of

SHAPE = (2, 2, 4)
METHOD = Slam(gammas_per_subpath=3)
KEY = 7


@partial(jit, static_argnums=2)
def _draws(key, examples, method):
    return draw(key, examples, SHAPE, method)


def draws(examples, key=KEY, method=METHOD):
    return _draws(jax.random.key(key), jnp.asarray(examples), method)


def rows(tree, i):
    return [np.asarray(a)[i].tolist() for a in (tree.starts.index, tree.starts.eps, tree.gamma)]


def test_a_row_depends_on_key_and_example_only():
    together, other_order, alone = draws([3, 11, 8, 0]), draws([8, 3, 1, 2]), draws([11])
    assert rows(other_order, 0) == rows(together, 2)
    assert rows(other_order, 1) == rows(together, 0)
    assert rows(alone, 0) == rows(together, 1)


def test_rows_and_keys_differ():
    a, b = draws(np.arange(64)), draws(np.arange(64), key=KEY + 1)
    for one, another in ((a.gamma, b.gamma), (a.starts.eps, b.starts.eps)):
        values = np.concatenate([np.ravel(one), np.ravel(another)])
        assert len(np.unique(values)) > 0.99 * len(values)  # float32 has some ties
    assert np.mean(a.starts.index == b.starts.index) < 0.2
    assert len(np.unique(a.starts.index)) > 20


def test_distributions():
    actual = draws(np.arange(4000), method=Slam(num_ddim_timesteps=10, gammas_per_subpath=1))
    assert actual.starts.index.shape == (4000,)
    assert actual.gamma.shape == (4000, 1)
    assert actual.starts.eps.shape == (4000, *SHAPE)
    assert stats.chisquare(np.bincount(actual.starts.index, minlength=10)).pvalue > 0.01
    assert stats.kstest(np.ravel(actual.gamma), "uniform").pvalue > 0.01
    assert stats.kstest(np.ravel(actual.starts.eps), "norm").pvalue > 0.01
    parts = np.stack(
        [actual.starts.index, actual.gamma[:, 0], actual.starts.eps.mean(axis=(1, 2, 3))]
    )
    assert np.abs(np.corrcoef(parts) - np.eye(3)).max() < 4 / np.sqrt(4000)


# P(gamma <= q) for q < 1, of the first gamma of an example and of the others.
POLICIES = {
    "uniform": (lambda q: q, lambda q: q),
    "half": (lambda q: q / 2, lambda q: q / 2),
    "paired": (lambda q: 0, lambda q: q),
}


@pytest.fixture(scope="module")
def gammas():
    """Two gammas of each of 4,000 examples, by policy."""
    methods = {name: Slam(gamma=name, gammas_per_subpath=2) for name in GAMMA_POLICIES}
    key, examples = jax.random.key(KEY), jnp.arange(4000)
    return jit(
        lambda: {name: draw(key, examples, SHAPE, method).gamma for name, method in methods.items()}
    )()


@pytest.mark.parametrize("policy", sorted(POLICIES.keys() | GAMMA_POLICIES.keys()))
def test_gamma_policies(policy, gammas):
    gamma = np.asarray(gammas[policy])
    if policy == "one":  # a second gamma at 1 would be the same work twice
        assert gamma.shape == (4000, 1) and np.all(gamma == 1)
        return
    assert gamma.shape == (4000, 2)
    assert np.all((gamma >= 0) & (gamma <= 1))
    for q in (0.2, 0.5, 0.9):
        expected = [below(q) for below in POLICIES[policy]]
        np.testing.assert_allclose(np.mean(gamma <= q, axis=0), expected, atol=4 * 0.5 / 4000**0.5)


@pytest.fixture
def used_keys(monkeypatch):
    """Counts how often each key is split or drawn from, per example and per step."""
    counter = Counter()

    def count(key):
        jax.debug.callback(lambda data: counter.update([tuple(data.tolist())]), key)

    def watched(function):
        def call(key, *args, **kwargs):
            count(jax.random.key_data(key))
            return function(key, *args, **kwargs)

        return call

    for name in ("split", "normal", "uniform", "randint"):
        monkeypatch.setattr(jax.random, name, watched(getattr(jax.random, name)))
    return counter


def test_draw_uses_no_key_twice(used_keys):
    draw_five = jit(lambda key: draw(key, jnp.arange(5), SHAPE, METHOD))
    jax.block_until_ready(draw_five(jax.random.key(0)))
    jax.effects_barrier()
    assert len(used_keys) == 5 * 5  # one split and four draws an example
    assert set(used_keys.values()) == {1}


def test_sampling_uses_no_key_twice(used_keys):
    schedule, context = sd_schedule(), jnp.zeros((5, 1, 1))
    timesteps = [999, 759, 499, 259]

    @jit
    def sample(key):
        x = jnp.ones((5, *SHAPE))
        return sample_consistency(
            lambda x, *_: x, schedule, x, context, np.array(timesteps), RowKeys(key, jnp.arange(5))
        )

    jax.block_until_ready(sample(jax.random.key(0)))
    jax.effects_barrier()
    assert len(used_keys) == 1 + 4 * 5  # one split, and a draw per step and example
    assert set(used_keys.values()) == {1}


def test_every_purpose_of_a_seed_has_its_own_key():
    keys = [tuple(jax.random.key_data(k).tolist()) for seed in (0, 1) for k in keys_of(seed)]
    assert len(set(keys)) == 2 * len(Keys._fields)
    assert jax.random.key_data(keys_of(jnp.asarray(1)).own).tolist() == list(keys[-1])


@pytest.mark.parametrize("kind", [Slam, Lcm, Pcm])
def test_guidance_is_uniform_around_w_and_changes_no_other_draw(kind):
    key, index = jax.random.key(KEY), jnp.arange(4000) + 7
    plain, spread = kind(w=9.0), kind(w=9.0, w_spread=6.0)
    (starts, keys), (drawn, others) = (
        jit(lambda m=m: draw_starts(key, index, SHAPE, m))() for m in (plain, spread)
    )
    assert starts.w == 9.0
    np.testing.assert_array_equal(starts.index, drawn.index)
    np.testing.assert_array_equal(starts.eps, drawn.eps)
    np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(others))
    assert stats.kstest(np.asarray(drawn.w), "uniform", (3, 12)).pvalue > 0.01
    for other in (np.asarray(drawn.index), np.asarray(drawn.eps).mean(axis=(1, 2, 3))):
        assert abs(np.corrcoef(drawn.w, other)[0, 1]) < 0.05
    some = draw_starts(key, index[100:103], SHAPE, spread)[0].w
    np.testing.assert_array_equal(some, drawn.w[100:103])
    assert set(spread.drawn(key, index[:3], SHAPE, sd_schedule())) >= {"t", "w"}
    assert "w" not in plain.drawn(key, index[:3], SHAPE, sd_schedule())


def test_guidance_is_never_negative():
    with pytest.raises(OptionError, match="w_spread = 3.0, expected at most w = 2.0"):
        Lcm(w=2.0, w_spread=3.0)
