import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from mbrl_jax import environments as env
from mbrl_jax.algorithms import training
from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.imagination import disagreement
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model import fitting, losses
from mbrl_jax.model.fusion import fuse

STRIDE = 5
SMALL = 200  # rows
HELD = np.arange(2_000) % STRIDE == STRIDE - 1


@functools.cache
def fitter(ensemble):
    return jax.jit(lambda state, real, key: fitting.fit(ensemble, state, real, key, STRIDE))


def those(rows, which):
    """Some of the rows, as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[which], rows)


def head(rows, count):
    return those(rows, slice(count))


def with_others(rows, which, change):
    """Rows of which those that are named are ``change`` of what they were, whatever it is that they hold."""

    def changed(leaf):
        after = np.array(leaf)
        after[which] = change(after[which].astype(np.float32)).astype(leaf.dtype)
        return after

    return jax.tree.map(changed, rows)


@pytest.fixture(scope="module")
def begin(make_params):
    def make(ensemble, seed=0):
        params, bounds = make_params(ensemble, seed)
        elites = jnp.arange(ensemble.sampling_members, dtype=jnp.int32)
        optimizer = optax.scale_by_adam().init((params, bounds))
        return fitting.ModelState(params, bounds, optimizer, ens.init_normaliser(ensemble), elites)

    return make


@pytest.fixture(scope="module")
def fit(begin):
    """``(ensemble, rows) -> (state, log)``."""

    def run(ensemble, real, *, start=None, key=0):
        start = begin(ensemble) if start is None else start
        return jax.device_get(fitter(ensemble)(start, jax.tree.map(jnp.asarray, real), jax.random.key(key)))

    return run


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_different(one, other):
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def standard(ensemble, normaliser, real):
    """Network inputs and normalised targets of rows."""
    rows = jax.tree.map(jnp.asarray, real)
    change = np.asarray(rows.next_observation) - np.asarray(rows.observation)
    if ensemble.learns_reward:
        change = np.concatenate([change, np.asarray(rows.reward)[:, None]], axis=1)
    targets = (change - normaliser.target_mean) / normaliser.target_std
    return ens.encode(ensemble, jax.tree.map(jnp.asarray, normaliser), rows.observation, rows.action), targets


def holdout_errors(ensemble, state, real):
    """[E] squared error and [E] negative log-likelihood of a fitted ensemble."""
    inputs, targets = standard(ensemble, state.normaliser, those(real, HELD[: len(real.reward)]))

    @jax.jit
    def predict(params, bounds):
        return jax.vmap(lambda p, b: ens.split_outputs(ensemble, ensemble.network.apply(p, inputs), b))(params, bounds)

    prediction = jax.device_get(predict(state.params, state.bounds))
    square = (prediction.mean - targets) ** 2
    if prediction.log_variance is None:
        return square.sum(-1).mean(-1), 0.5 * square.sum(-1).mean(-1)
    nll = 0.5 * (square * np.exp(-prediction.log_variance) + prediction.log_variance)
    return square.sum(-1).mean(-1), nll.sum(-1).mean(-1)


# ------------------------------------------------------------------------------------------------------- a fit on CartPole


@pytest.fixture(scope="module")
def fitted(make_ensemble, fit, real_rows):
    ensemble = make_ensemble(members=4, elites=2, hidden=(16, 16), epochs=25)
    start = jax.jit(lambda key: fitting.init(ensemble, key))(jax.random.key(0))
    return ensemble, start, *fit(ensemble, real_rows, start=start)


def test_fitting_lowers_the_holdout_error_by_a_large_factor(fitted, real_rows):
    ensemble, start, state, log = fitted
    before, _ = holdout_errors(ensemble, start._replace(normaliser=state.normaliser), real_rows)
    assert (log.holdout_mse[-1] < before / 30).all()
    assert (log.holdout_mse[-1] < 0.2).all()  # normalised targets have a variance of 4 in all
    assert (log.loss[-1] < log.loss[0] - 3).all()


def test_the_logged_holdout_errors_are_those_of_the_parameters_that_come_back(fitted, real_rows):
    ensemble, _, state, log = fitted
    mse, nll = holdout_errors(ensemble, state, real_rows)
    np.testing.assert_allclose(log.holdout_mse[-1], mse, rtol=1e-3)
    np.testing.assert_allclose(log.holdout_nll[-1], nll, rtol=1e-3)
    assert log.loss.shape == log.holdout_mse.shape == log.holdout_nll.shape == (25, 4)


def test_the_elites_are_the_members_with_the_lowest_holdout_error_best_first(fitted):
    _, _, state, log = fitted
    assert state.elites.tolist() == np.argsort(log.holdout_mse[-1])[:2].tolist()
    assert len(set(log.holdout_mse[-1])) == 4


def test_imagination_gets_the_elites_and_without_them_everyone(fitted, make_ensemble, begin):
    ensemble, _, state, _ = fitted
    kernels = state.params["params"]["Dense_1"]["kernel"]
    chosen = fitting.members(ensemble, jax.tree.map(jnp.asarray, state))
    np.testing.assert_array_equal(chosen.params["params"]["Dense_1"]["kernel"], kernels[state.elites])
    assert chosen.bounds.minimum.shape == (2, 4)
    everyone = begin(make_ensemble(members=4))
    jax.tree.map(np.testing.assert_array_equal, fitting.members(make_ensemble(members=4), everyone).params, everyone.params)


def test_the_statistics_are_those_of_the_training_rows(fitted, random_transitions):
    _, _, state, _ = fitted
    training_rows = np.asarray(random_transitions.observation)[~HELD]
    change = (np.asarray(random_transitions.next_observation) - np.asarray(random_transitions.observation))[~HELD]
    expected = training_rows.mean(0), training_rows.std(0), change.mean(0), change.std(0)
    for ours, theirs in zip(state.normaliser, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_inputs_on_the_tasks_scale_are_divided_by_it_and_not_standardised(make_ensemble, fit, real_rows):
    ensemble = make_ensemble(input_scale="task", prediction="deterministic", epochs=20)
    state, log = fit(ensemble, real_rows)
    np.testing.assert_array_equal(state.normaliser.state_mean, np.zeros(4))
    np.testing.assert_array_equal(state.normaliser.state_std, np.float32(ensemble.spec.observation_scale))
    assert (state.normaliser.target_std < 0.5).all()  # targets are standardised all the same
    np.testing.assert_allclose(log.holdout_mse[-1], holdout_errors(ensemble, state, real_rows)[0], rtol=1e-4)
    assert (log.holdout_mse[-1] < 0.2 * log.holdout_mse[0]).all()


def test_deterministic_members_learn_and_their_likelihood_is_half_the_error(make_ensemble, fit, real_rows):
    _, log = fit(make_ensemble(prediction="deterministic", epochs=25), real_rows)
    assert (log.holdout_mse[-1] < 0.1 * log.holdout_mse[0]).all()
    np.testing.assert_allclose(log.holdout_nll, 0.5 * log.holdout_mse, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ what counts


def test_held_out_rows_never_influence_the_parameters_or_the_statistics(make_ensemble, fit, real_rows):
    rows = head(real_rows, SMALL)
    wild = with_others(rows, HELD[:SMALL], lambda x: 100 * x[::-1] + 7)
    state, log = fit(make_ensemble(), rows)
    other, other_log = fit(make_ensemble(), wild)
    assert_same((state.params, state.bounds, state.optimizer, state.normaliser), other[:4])
    assert_same(log.loss, other_log.loss)
    assert (other_log.holdout_mse > 10 * log.holdout_mse).all()


@pytest.mark.parametrize("kind", ["gaussian", "deterministic"])
def test_members_fitted_to_a_target_that_does_not_vary_imagine_it_as_it_is_and_agree_about_it(
    make_ensemble, fit, real_rows, kind
):
    ensemble = make_ensemble(prediction=kind, reward="learned", termination="learned")  # CartPole's reward is 1 at every step
    rows = jax.tree.map(jnp.asarray, head(real_rows, SMALL))
    still = rows.observation.at[:, 1].set(0.001)
    rows = rows._replace(observation=still, next_observation=rows.next_observation.at[:, 1].set(0.001))
    state, _ = fit(ensemble, rows)
    members = fitting.members(ensemble, jax.tree.map(jnp.asarray, state))
    assert state.normaliser.target_std.tolist()[1::3] == [0.0, 0.0]
    everyone = jax.jit(lambda: ens.predict_all(ensemble, members, 5 * rows.observation, rows.action))()
    asked = everyone.mean.shape[:2]
    imagined = ens.decode(
        ensemble,
        members.normaliser,
        everyone,
        jnp.broadcast_to(rows.observation[None], (*asked, 4)),
        jnp.broadcast_to(rows.action[None], asked),
        jnp.ones((*asked, 4)),
    )
    np.testing.assert_array_equal(imagined.next_observation[..., 1], np.float32(0.001))
    np.testing.assert_array_equal(imagined.reward, 1.0)
    varying = [0, 2, 3]
    alone = jax.tree.map(lambda leaf: leaf[..., varying], everyone._replace(termination_logit=None))
    of_all = np.sqrt(5 / 3)  # a mean over targets counts the two that do not vary
    np.testing.assert_allclose(of_all * disagreement.std(everyone), disagreement.std(alone), rtol=1e-5)
    np.testing.assert_allclose(disagreement.max_pairwise(everyone), disagreement.max_pairwise(alone), rtol=1e-5)
    if kind == "gaussian":
        member = jnp.arange(SMALL, dtype=jnp.int32) % 2
        for name in disagreement.GAUSSIAN_MEASURES:
            measure = disagreement.MEASURES[name]
            np.testing.assert_allclose(measure(everyone, member), measure(alone, member), rtol=1e-5, err_msg=name)
        assert not disagreement.information_loss(everyone, 0.01)[..., 1::3].any()
        assert np.isfinite(fuse(everyone).mean).all()


@pytest.mark.parametrize("row", [0, 3, 5, 100, SMALL - 2])
def test_a_training_row_influences_the_parameters(make_ensemble, fit, real_rows, row):
    rows = head(real_rows, SMALL)
    state, _ = fit(make_ensemble(), rows)
    states = with_others((rows.observation, rows.next_observation), row, lambda x: x + 0.5)
    other = rows._replace(observation=states[0], next_observation=states[1])
    assert_different(state.params, fit(make_ensemble(), other)[0].params)


def test_one_members_fit_does_not_touch_another_member(make_ensemble, fit, begin, real_rows):
    ensemble, rows = make_ensemble(), head(real_rows, SMALL)
    start = begin(ensemble)
    changed = start._replace(params=jax.tree.map(lambda leaf: leaf.at[1].multiply(3.0), start.params))
    one, other = fit(ensemble, rows, start=start)[0], fit(ensemble, rows, start=changed)[0]
    for member, same in ((0, True), (1, False)):
        ours, theirs = (jax.tree.map(lambda leaf, i=member: leaf[i], state.params) for state in (one, other))
        (assert_same if same else assert_different)(ours, theirs)


def test_members_that_begin_alike_part_because_their_orders_differ(make_ensemble, fit, begin, real_rows):
    start = begin(make_ensemble())
    alike = start._replace(params=jax.tree.map(lambda leaf: leaf.at[1].set(leaf[0]), start.params))
    state, _ = fit(make_ensemble(), head(real_rows, SMALL), start=alike)
    kernel = state.params["params"]["Dense_1"]["kernel"]
    assert np.any(kernel[0] != kernel[1])


def test_the_bootstrap_draws_other_minibatches_than_the_shuffle(make_ensemble, fit, real_rows):
    rows = head(real_rows, SMALL)
    shuffled, drawn = (fit(make_ensemble(bootstrap=flag), rows)[0] for flag in (False, True))
    assert_same(shuffled.normaliser, drawn.normaliser)
    assert_different(shuffled.params, drawn.params)


@pytest.mark.parametrize("learn_bounds", [False, True])
def test_the_bounds_move_only_where_they_are_learned(make_ensemble, fit, real_rows, learn_bounds):
    state, _ = fit(make_ensemble(learn_bounds=learn_bounds), head(real_rows, SMALL))
    moved = [bool(np.any(bound != value)) for bound, value in zip(state.bounds, (-10.0, 0.5), strict=True)]
    assert moved == [learn_bounds, learn_bounds]
    if learn_bounds:  # the penalty pulls them together where the likelihood does not object
        assert (state.bounds.minimum > -10).all()


def test_a_fit_is_adam_on_every_members_own_loss(make_ensemble, fit, begin, real_rows):
    ensemble = make_ensemble(batch_size=40, epochs=3, termination="learned", learning_rate=0.02)  # an epoch is one minibatch
    rows = head(real_rows, 50)
    start = begin(ensemble)
    state, log = fit(ensemble, rows, start=start)
    inputs, targets = standard(ensemble, state.normaliser, rows)
    columns = tuple(jnp.asarray(np.asarray(column)[~HELD[:50]]) for column in (inputs, targets, rows.terminated))

    @jax.jit
    def gradient(params, bounds):
        def loss(params, bounds):
            return losses.member_loss(ensemble, params, bounds, *columns, jnp.eye(4, 5))

        return jax.vmap(jax.value_and_grad(loss))(params, bounds)

    now = start.params
    first = second = jax.tree.map(np.zeros_like, now)
    for step in range(1, 4):
        value, slope = jax.device_get(gradient(now, start.bounds))
        np.testing.assert_allclose(log.loss[step - 1], value, rtol=1e-4)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slope)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, slope)

        def update(p, m, v, step=step):
            return np.asarray(p) - np.float32(0.02) * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)

        now = jax.tree.map(update, now, first, second)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4), state.params, now)


# --------------------------------------------------------------------------------------------------------- early stopping

EPOCHS, PATIENCE, RATE = 14, 1, 0.03


def early_stopping(errors, patience):
    """The best epoch of a member, and the last epoch before it rests, from its errors if it never rested."""
    best, stale = 0, 0
    for epoch in range(1, len(errors)):
        best, stale = (epoch, 0) if errors[epoch] < errors[best] else (best, stale + 1)
        if stale == patience:
            return best, epoch
    return best, len(errors) - 1


@pytest.fixture(scope="module")
def stopped(make_ensemble, fit, real_rows):
    """A fit with early stopping, the errors of the same one without, and what should have happened to each member."""
    settings = {"members": 4, "epochs": EPOCHS, "learning_rate": RATE}
    _, free = fit(make_ensemble(**settings), head(real_rows, SMALL))
    stopping = make_ensemble(**settings, patience=PATIENCE, elites=3)
    state, log = fit(stopping, head(real_rows, SMALL))
    expected = [early_stopping(free.holdout_mse[:, member], PATIENCE) for member in range(4)]
    rests = [last for _, last in expected]
    assert min(rests) < EPOCHS - 2
    assert any(
        free.holdout_mse[last + 1, i] < free.holdout_mse[: last + 1, i].min()
        for i, last in enumerate(rests[:4])
        if last < EPOCHS - 1
    )
    return stopping, state, log, free, expected


def test_early_stopping_returns_each_members_best_epoch(stopped, real_rows):
    ensemble, state, _, free, expected = stopped
    best = [free.holdout_mse[epoch, member] for member, (epoch, _) in enumerate(expected)]
    np.testing.assert_allclose(holdout_errors(ensemble, state, head(real_rows, SMALL))[0], best, rtol=1e-3)


def test_early_stopping_returns_the_parameters_of_the_best_epoch(stopped, make_ensemble, fit, real_rows):
    _, state, _, _, expected = stopped
    best = expected[0][0]
    until, _ = fit(make_ensemble(members=4, epochs=best + 1, learning_rate=RATE), head(real_rows, SMALL))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-5), state.params, until.params)


def test_a_member_rests_after_its_patience(stopped):
    _, _, log, free, expected = stopped
    for member, (_, last) in enumerate(expected):
        np.testing.assert_allclose(log.holdout_mse[: last + 1, member], free.holdout_mse[: last + 1, member], rtol=1e-3)
        np.testing.assert_allclose(log.holdout_mse[last:, member], log.holdout_mse[last, member], rtol=1e-5)


def test_elites_are_ranked_by_their_best_epochs(stopped):
    _, state, _, free, expected = stopped
    best = [free.holdout_mse[epoch, member] for member, (epoch, _) in enumerate(expected)]
    assert state.elites.tolist() == np.argsort(best)[:3].tolist()


# ------------------------------------------------------------------------------------------------------------------- refit

CAPACITY, WRITTEN = 100, 60


@functools.cache
def refitter(ensemble):
    return jax.jit(lambda state, real, size, key: fitting.refit(ensemble, state, real, size, key, STRIDE))


def refit(ensemble, state, rows):
    rows, size = jax.tree.map(jnp.asarray, rows), jnp.array(WRITTEN, jnp.int32)
    return jax.device_get(refitter(ensemble)(state, rows, size, jax.random.key(3)))


@pytest.fixture(scope="module")
def growing(real_rows):
    return with_others(head(real_rows, CAPACITY), slice(WRITTEN, None), np.zeros_like)


def test_a_refit_ignores_places_that_hold_no_data_yet(make_ensemble, begin, growing):
    ensemble = make_ensemble(refit_batches=20)
    wild = with_others(growing, slice(WRITTEN, None), lambda x: np.full_like(x, 1e3))
    start = begin(ensemble)
    state, log = refit(ensemble, start, growing)
    assert_same((state, log), refit(ensemble, start, wild))
    assert_different(state.params, start.params)
    counted = those(growing, np.flatnonzero(~HELD[:WRITTEN]))
    np.testing.assert_allclose(state.normaliser.state_mean, counted.observation.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.normaliser.target_std, (counted.next_observation - counted.observation).std(0), rtol=1e-4)
    np.testing.assert_allclose(log.holdout_mse, holdout_errors(ensemble, state, head(growing, WRITTEN))[0], rtol=1e-3)


def test_a_refit_never_trains_on_held_out_rows_and_does_on_the_newest(make_ensemble, begin, growing):
    ensemble = make_ensemble(refit_batches=20)
    start = begin(ensemble)
    state, _ = refit(ensemble, start, growing)
    held = with_others(growing, np.flatnonzero(HELD[:WRITTEN]), lambda x: x + 3)
    assert_same(state[:4], refit(ensemble, start, held)[0][:4])
    action = with_others(growing.action, WRITTEN - 2, lambda x: 1 - x)  # another one, so that the statistics stay
    newest = growing._replace(action=action)
    assert_different(state.params, refit(ensemble, start, newest)[0].params)


def test_a_refit_goes_on_from_the_present_parameters_and_moments(make_ensemble, begin, growing):
    ensemble = make_ensemble(refit_batches=20)
    start = begin(ensemble)
    once, _ = refit(ensemble, start, growing)
    twice, _ = refit(ensemble, once, growing)
    assert jax.tree.leaves(once.optimizer)[0] == 20
    assert jax.tree.leaves(twice.optimizer)[0] == 40
    assert_different(twice.params, once.params)


def refit_in_parts(make_ensemble, begin, growing, start=None):
    """A refit of 4 parts of 5 minibatches, stopped early, and the state and holdout errors after each part of one that is not."""
    settings = {"members": 3, "batch_size": 32, "learning_rate": 0.03}
    ensemble = make_ensemble(refit_batches=20, refit_passes=4, patience=1, **settings)
    start = begin(ensemble) if start is None else start
    return ensemble, start, *refit(ensemble, start, growing)


def test_a_refit_in_parts_ends_at_each_members_best_part_and_never_worse_than_it_began(make_ensemble, begin, growing):
    ensemble, start, state, log = refit_in_parts(make_ensemble, begin, growing)
    seen = jax.tree.map(lambda leaf: np.asarray(leaf)[:WRITTEN], growing)
    after = holdout_errors(ensemble, state, seen)[0]
    before = holdout_errors(ensemble, start._replace(normaliser=state.normaliser), seen)[0]
    np.testing.assert_allclose(log.holdout_mse, after, rtol=1e-3)
    assert (after <= before * 1.0001).all()
    again = refit_in_parts(make_ensemble, begin, growing, state)
    worse = holdout_errors(ensemble, again[2], seen)[0]
    assert (worse <= after * 1.0001).all()
    ran = refit(make_ensemble(refit_batches=20, members=3, batch_size=32, learning_rate=0.03), state, growing)[1]
    assert (ran.holdout_mse > again[3].holdout_mse).any(), "a refit to its end is worse for some member"


# ----------------------------------------------------------------------------------------------------------- kinds of targets


@pytest.mark.parametrize(
    "settings", [{"target": "state"}, {"normalise_targets": False}, {"target": "state", "normalise_targets": False}]
)
def test_each_kind_of_target_is_fitted_and_decoded_alike(make_ensemble, fit, real_rows, settings):
    ensemble = make_ensemble(reward="learned", prediction="deterministic", hidden=(24, 24), epochs=60, batch_size=32, **settings)
    rows = head(real_rows, SMALL)
    rows = rows._replace(reward=np.cos(rows.observation[:, 3]))
    state, log = fit(ensemble, rows)
    assert log.holdout_mse[-1].max() < 0.4 * log.holdout_mse[0].min()
    held = those(rows, np.arange(SMALL) % STRIDE == STRIDE - 1)
    members = fitting.members(ensemble, state)
    asked = (jnp.asarray(held.observation), jnp.asarray(held.action))
    prediction = ens.predict_all(ensemble, members, *asked)
    decoded = ens.decode(ensemble, members.normaliser, jax.tree.map(lambda leaf: leaf[0], prediction), *asked, None)
    target = held.next_observation if "target" in settings else held.next_observation - held.observation
    target = np.concatenate([target, held.reward[:, None]], 1)
    found = np.concatenate([decoded.next_observation, decoded.reward[:, None]], 1)
    if "target" not in settings:
        found[:, :-1] -= held.observation
    scale = 1 if "normalise_targets" in settings else np.asarray(state.normaliser.target_scale)
    errors = np.square((found - target) / scale).sum(1).mean()
    np.testing.assert_allclose(errors, log.holdout_mse[-1, 0], rtol=2e-3, atol=1e-7)


def test_targets_in_their_own_units_leave_out_only_what_does_not_vary(make_ensemble, fit, real_rows):
    rows = head(real_rows, SMALL)
    assert np.ptp(rows.reward) == 0
    state, _ = fit(make_ensemble(reward="learned", normalise_targets=False, epochs=1, batch_size=32), rows)
    assert state.normaliser.target_std.tolist() == [1.0] * 4 + [0.0]
    assert state.normaliser.target_mean.tolist() == [0.0] * 4 + [rows.reward[0]]


# ----------------------------------------------------------------------------------------------- learned reward, learned end


@pytest.fixture(scope="module")
def with_heads(make_ensemble):
    """``(kind) -> ensemble`` whose reward and termination are learned."""

    def make(kind="deterministic"):
        settings = {"hidden": (24, 24), "batch_size": 32, "epochs": 60, "learning_rate": 2e-3}
        settings["termination_weight"] = 30.0 if kind == "gaussian" else 1.0
        return make_ensemble(prediction=kind, reward="learned", termination="learned", **settings)

    return make


def imagined(ensemble, state, real):
    """What every member says of real rows: rewards and termination logits [E, N]."""
    rows = jax.tree.map(jnp.asarray, real)

    @jax.jit
    def run(state):
        members = fitting.members(ensemble, state)
        observation = jnp.broadcast_to(rows.observation[None], (2, *rows.observation.shape))
        action = jnp.broadcast_to(rows.action[None], (2, *rows.action.shape))
        prediction = ens.predict(ensemble, members, observation, action)
        return ens.decode(ensemble, members.normaliser, prediction, observation, action, None), prediction.termination_logit

    step, logit = jax.device_get(run(state))
    return step, logit


@pytest.fixture(scope="module", params=["gaussian", "deterministic"])
def learned(request, with_heads, fit, real_rows):
    """Members that learned a reward made of the state and the action, and CartPole's own end, asked about held-out rows."""
    rows = head(real_rows, None)
    push = 2 * rows.action.astype(np.float32) - 1
    rows = rows._replace(reward=3 * rows.observation[:, 2] + rows.observation[:, 1] * push + 5)
    ensemble = with_heads(request.param)
    state, _ = fit(ensemble, rows)
    return those(rows, HELD), *imagined(ensemble, state, those(rows, HELD))


def test_a_learned_reward_head_learns_the_reward(learned):
    rows, step, _ = learned
    for member in range(2):
        assert np.mean((step.reward[member] - rows.reward) ** 2) < 0.05 * rows.reward.var()


def test_a_learned_termination_head_tells_ends_from_other_steps(learned):
    rows, step, logit = learned
    ended = rows.terminated
    assert ended.sum() >= 10
    for member in range(2):
        pairs = ended.sum() * (~ended).sum()
        separation = scipy.stats.mannwhitneyu(logit[member][ended], logit[member][~ended]).statistic / pairs
        assert separation > 0.97
        assert step.terminated[member][ended].mean() > 0.4
        assert step.terminated[member][~ended].mean() < 0.05


def test_a_learned_termination_head_never_learns_the_time_limit(with_heads, fit):
    """Pushed to one side all the time, the speed tells the time: a head that were shown truncations would learn them."""
    ensemble, short = with_heads(), env.make_environment(EnvironmentConfig(time_limit=7))

    @jax.jit
    def push(key):
        draws = env.draw_collection(short, key, 2_000)
        transitions = env.collect(short, draws._replace(actions=jnp.ones_like(draws.actions)))[1]
        return transitions, training.real_rows(transitions)

    transitions, rows = jax.device_get(push(jax.random.key(0)))
    cut = transitions.truncated & HELD
    assert cut.sum() > 20
    state, _ = fit(ensemble, rows)
    logit = imagined(ensemble, state, those(rows, cut))[1]
    assert (logit < -2).all()
    state, _ = fit(ensemble, rows._replace(terminated=transitions.truncated))
    logit = imagined(ensemble, state, those(rows, cut))[1]
    assert (logit > 0).mean() > 0.8
