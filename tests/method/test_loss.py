"""The SLAM loss against the authors' functions (golden files), and the distance by hand.

golden/*.npz hold inputs and outputs of the authors' published PyTorch functions, computed in
float64 with made-up network outputs; they use the "paper" sigma and the "embedding" conditioning.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, jit, normal

from slam_jax.base.options import OptionError
from slam_jax.method import variance_preserving
from slam_jax.method.consistency import Point, consistency_function, distance
from slam_jax.method.method import Examples
from slam_jax.method.schedule import add_noise, gamma_embedding
from slam_jax.method.slam import Draws, Slam, interpolate, slam_loss
from slam_jax.method.solver import ddim_solve, guided
from slam_jax.method.sub_path import Starts
from slam_jax.method.variance_preserving import VariancePreserving

GOLDEN = sorted((Path(__file__).parent / "golden").glob("splam_*.npz"))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    with np.load(request.param) as file:
        return dict(file)


@pytest.fixture(params=[(np.float64, 1e-10), (np.float32, 1e-4)], ids=["float64", "float32"])
def precision(request):
    """(dtype, largest relative error); float64 only inside of the test that asks for it."""
    with jax.enable_x64(request.param[0] == np.float64):
        yield request.param


def stored_networks(g):
    """Networks that answer what the golden file says the authors' networks answered."""
    both = np.stack([g["teacher_cond"], g["teacher_uncond"]], axis=1).reshape(-1, 6, 5, 4)
    return (
        lambda x, t, context: jnp.asarray(both),
        lambda x, t, context, gamma: jnp.asarray(g["target_output"]),
        lambda x, t, context, gamma: jnp.asarray(g["student_output"]),
    )


@pytest.fixture
def float32_scalings(monkeypatch):
    """The authors compute c_skip and c_out in float32; with the exact ones errors are 6e-8."""

    t = 10 * np.arange(1000, dtype=np.float32)
    c_skip, c_out = 0.25 / (t**2 + np.float32(0.25)), t / np.sqrt(t**2 + np.float32(0.25))

    def rounded(t, dtype):
        return jnp.asarray(c_skip, dtype)[t], jnp.asarray(c_out, dtype)[t]

    monkeypatch.setattr(variance_preserving, "boundary_scalings", rounded)


def scales(at_s, at_e):
    """As `interpolate` takes them: r brings the end to the signal scale of the start."""
    return at_s, at_e, at_s[0] / at_e[0]


def in_precision(g, dtype):
    return {k: v.astype(dtype) if v.dtype == np.float64 and v.ndim else v for k, v in g.items()}


def test_golden_files_are_there():
    assert [path.stem[-6:] for path in GOLDEN] == ["k10_w3", "k20_w8", "k40_w0"]


def test_every_intermediate_equals_the_authors(golden, precision, float32_scalings):
    dtype, tolerance = precision
    g = in_precision(golden, dtype)
    schedule = VariancePreserving.from_alphas_cumprod(golden["alphas_cumprod"])
    teacher, target, student = stored_networks(g)
    s, e, context = g["start_timesteps"], g["end_timesteps"], jnp.zeros((16, 1, 1))

    @jit
    def intermediates():
        at_s, at_e = schedule.at(s), schedule.at(e)
        x_s = add_noise(g["latents"], g["noise"], *at_s)
        predict = guided(teacher, schedule, context, context, float(g["w_scale"]))
        x_e = ddim_solve(predict, schedule, x_s, s, e)
        x_g, alpha_g, sigma_g = interpolate(x_s, x_e, scales(at_s, at_e), g["gamma"], "paper")

        def f(network, *point):
            return consistency_function(network, schedule, Point(*point), context, "embedding")

        return {
            "noisy_input": x_s,
            "x_prev": x_e,
            "target": f(target, x_e, e, jnp.ones(16), *at_e),
            "inter_input": x_g,
            "student_x0": schedule.to_x0_and_eps(g["student_output"], x_g, at_s[0], sigma_g)[0],
            "student_pred": f(student, x_g, s, g["gamma"], alpha_g, sigma_g),
        }

    for name, actual in intermediates().items():
        assert actual.dtype == dtype, name
        assert_close(actual, golden[name], tolerance)


@pytest.mark.parametrize("kind", ["l2", "huber"])
def test_losses_equal_the_authors(golden, precision, float32_scalings, kind):
    dtype, tolerance = precision
    g = in_precision(golden, dtype)
    teacher, target, student = stored_networks(g)
    seen = {}

    def spy(name, network):
        def told(x, t, context, gamma):
            seen[name] = t, gamma
            return network(x, t, context, gamma)

        return told

    count, w = int(g["num_ddim_timesteps"]), float(g["w_scale"])
    method = Slam(num_ddim_timesteps=count, w=w, distance=kind)
    starts = Starts(jnp.asarray(g["index"]), g["noise"], w)
    draws = Draws(starts, jnp.asarray(g["gamma"])[:, None])
    schedule = VariancePreserving.from_alphas_cumprod(golden["alphas_cumprod"])
    context = jnp.zeros((16, 1, 1))
    examples = Examples(g["latents"], context, context, jnp.arange(16))

    @jit
    def losses():
        networks = spy("student", student), spy("target", target), teacher
        return slam_loss(networks, schedule, examples, draws, method), seen

    actual, told = losses()
    assert actual.dtype == dtype
    assert_close(actual[:, 0], golden[f"loss_{kind}_per_example"], tolerance)
    assert float(actual.mean()) == pytest.approx(float(golden[f"loss_{kind}"]), rel=tolerance)
    for name, times, gammas in (
        ("student", golden["start_timesteps"], golden["gamma"]),
        ("target", golden["end_timesteps"], np.ones(16)),
    ):
        assert told[name][0].tolist() == times.tolist()
        assert_close(told[name][1], gammas, tolerance)


def test_gamma_embedding_equals_the_authors(golden, x64):
    """Theirs was computed in float32, which leaves 2^-20 of an angle uncertain."""
    frequencies = 10000.0 ** -np.tile(np.arange(128) / 127, 2)
    angles = 1000 * (10 - 10 * golden["gamma"])[:, None] * frequencies
    actual = np.asarray(gamma_embedding(jnp.asarray(golden["gamma"]), 256))
    assert golden["gamma_embedding"].dtype == np.float32
    assert np.all(np.abs(actual - golden["gamma_embedding"]) <= 2.0**-20 * angles + 2.0**-23)


@pytest.mark.parametrize(
    ("a", "b", "kind", "expected"),
    [
        ([[3.0, 0.0]], [[0.0, 0.0]], "l2", [4.5]),
        ([[3.0, 0.0]], [[0.0, 0.0]], "huber", [0.5]),  # c = 4: sqrt(9 + 16) - 4, and 0
        ([[-5.0, 2.0], [1.0, 1.0]], [[-2.0, 5.0], [1.0, 1.0]], "huber", [1.0, 0.0]),
        ([[-5.0, 2.0], [1.0, 1.0]], [[-2.0, 4.0], [1.0, 1.0]], "l2", [6.5, 0.0]),
    ],
)
def test_distance_by_hand(a, b, kind, expected):
    assert distance(jnp.asarray(a), jnp.asarray(b), kind, 4.0).tolist() == expected
    assert distance(jnp.asarray(b), jnp.asarray(a), kind, 4.0).tolist() == expected


@pytest.mark.parametrize("kind", ["l2", "huber"])
def test_distance_is_unreduced_and_refuses_shapes_and_kinds(kind):
    import torch

    a, b = normal(5, 2, 3, 4, 2, 5).astype(np.float32)
    squared = torch.nn.functional.mse_loss(*map(torch.from_numpy, (a, b)), reduction="none")
    pseudo_huber = torch.sqrt(squared + 1e-3**2) - 1e-3
    expected = (squared if kind == "l2" else pseudo_huber).mean(dim=(1, 2, 3))
    np.testing.assert_allclose(distance(a, b, kind), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="shapes"):
        distance(a, b[:1], kind)  # would broadcast
    with pytest.raises(ValueError, match="'l1'"):
        distance(a, b, "l1")


@pytest.mark.parametrize(
    "change",
    [
        dict(gamma="two"),
        dict(sigma="true"),
        dict(conditioning="time"),
        dict(distance="l1"),
        dict(num_ddim_timesteps=0),
        dict(solver_substeps=0),
        dict(gammas_per_subpath=-1),
        dict(w=-0.5),
        dict(huber_c=0.0),
        dict(name="dmd"),
        dict(gamma="paired"),  # one gamma cannot be two
    ],
)
def test_impossible_methods_are_refused(change):
    key = "gammas_per_subpath" if change == dict(gamma="paired") else next(iter(change))
    with pytest.raises(OptionError, match=f"^{key} = .*expected ") as caught:
        Slam(**change)
    assert caught.value.key == key
