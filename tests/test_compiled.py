"""What the tutorial preset compiles to: these programs must not grow unnoticed."""

import sys
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import compiled

from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import DynaQConfig, load
from mbrl_jax.runs import execution, runner

SEEDS = 3
CONFIGS = Path(__file__).parents[1] / "configs"
HOST = ("infeed", "outfeed", "send", "recv", "custom-call")
KERNELS = {"cartpole_batch": 187, "cartpole_batch_model_free": 113}
"""Of a real step of all seeds at once, as compiled for a CPU. Fewer is better: lower these when they fall."""


@pytest.fixture(scope="module", params=KERNELS)
def preset(request):
    return request.param


@pytest.fixture(scope="module")
def program(preset):
    """The text of a round of several seeds at once, as an accelerator runs them."""
    config = load(CONFIGS / f"{preset}.yaml")
    algorithm = runner.make_train(config)
    axes = algorithm.axes
    state, _ = jax.eval_shape(jax.vmap(algorithm.init, out_axes=(axes, 0)), seed_keys(0, SEEDS))
    layout = execution.choose_layout(1)._replace(batch=None)
    shared = jax.tree.map(lambda _: None, config)
    advance = execution.spread(algorithm.advance, (axes, shared), (axes, 0), layout)
    with pytest.MonkeyPatch.context() as patch:  # with the passes that tests leave out elsewhere
        patch.setitem(execution.COMPILER_OPTIONS, "cpu", execution.COMPILER_OPTIONS["cpu"] | {"xla_disable_hlo_passes": ""})
        return execution.lower(advance, state, config, donate=(0,)).compile().call.as_text()


def test_a_round_hashes_for_all_its_random_numbers_no_more_often_than_they_wait_for_each_other():
    algorithm = runner.make_train(config := load(CONFIGS / "cartpole_batch.yaml"))
    state, _ = jax.eval_shape(algorithm.init, jax.random.key(0))
    traced = str(jax.make_jaxpr(algorithm.advance)(state, config))
    assert traced.count("threefry2x32") == 6  # a stream, its moment, the round's parts, the lanes' parts, the actions' two, all
    assert not {"random_bits", "random_split", "random_fold_in"} & set(traced.split())


@pytest.fixture(scope="module")
def step(preset, program):
    """The body of the loop over real steps."""
    return compiled.loop_body(program, load(CONFIGS / f"{preset}.yaml").round_steps)


def test_a_real_step_launches_no_more_kernels_than_are_on_record(preset, step):
    assert 0.5 * KERNELS[preset] < compiled.kernels(step) <= KERNELS[preset]


def test_replays_are_written_in_place_and_never_copied_or_scattered_to_in_the_loop(preset, step):
    config = load(CONFIGS / f"{preset}.yaml")
    imagined = [config.imagination.capacity] if isinstance(config, DynaQConfig) else []
    for capacity in [config.real_transitions, *imagined]:
        done = compiled.opcodes_on(step, f"f32[{SEEDS},{capacity},13]")
        assert not done & {"copy", "copy-start", "scatter", "select", "pad"}
    assert "scatter" not in compiled.opcodes(step)


def test_nothing_in_the_program_asks_the_host(program):
    assert not set(compiled.opcodes(program)) & set(HOST)


def test_a_loop_that_is_not_there_is_missed():
    with pytest.raises(ValueError, match="no loop that runs 99999 times"):
        compiled.loop_body("ENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n", 99999)


def test_kernels_are_counted_without_what_launches_nothing():
    def twice(x):
        return jax.lax.scan(lambda x, _: (jax.numpy.sin(x) @ x, None), x, None, length=7)[0]

    text = jax.jit(twice).lower(jax.numpy.ones((40, 40))).compile().as_text()
    body = compiled.loop_body(text, 7)
    assert 2 <= compiled.kernels(body) <= 6  # the sine, the product, the counter, perhaps copies
    assert compiled.opcodes_on("  %a.1 = f32[3,4]{1,0} copy(%b)\n  %c = f32[3,5]{1,0} add(%b, %b)", "f32[3,4]") == {"copy"}
