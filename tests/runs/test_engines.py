"""Which engine a run gets. No GPU is needed: what is there is told by the devices that JAX names."""

from types import SimpleNamespace

import jax
import pytest

from mbrl_jax.config import ConfigError, ModelFreeQConfig, MPCConfig
from mbrl_jax.cuda import coverage
from mbrl_jax.engine import PLAIN, Engine
from mbrl_jax.runs import engines, runner
from mbrl_jax.runs.display import Display


def mine(config, task):
    return Engine("mine")


def test_xla_is_what_a_run_gets_unless_another_is_asked_for(tiny):
    assert runner.make_train(tiny).engine == PLAIN
    assert runner.make_train(tiny, engine="xla").engine == PLAIN


def test_auto_takes_xla_where_the_kernels_do_not_fit_and_says_why(tiny):
    chosen = runner.make_train(tiny, engine="auto").engine
    assert chosen.name == "xla"
    (note,) = chosen.notes
    assert note.startswith("not cuda: engine: 'cuda' does not fit; it needs NVIDIA GPUs, and JAX computes on")
    assert engines.describe(chosen) == f"engine xla; {note}"


def test_auto_takes_the_kernels_where_they_fit(tiny, monkeypatch):
    monkeypatch.setattr("mbrl_jax.cuda.engine.engine", mine)
    chosen = runner.make_train(tiny, engine="auto").engine
    assert (chosen.name, chosen.notes) == ("mine", ())
    assert engines.describe(chosen) == "engine mine"


def test_cuda_is_refused_where_there_is_no_nvidia_gpu(tiny):
    with pytest.raises(ConfigError, match="engine: 'cuda' does not fit; it needs NVIDIA GPUs"):
        runner.make_train(tiny, engine="cuda")


def test_an_engine_of_ones_own_is_taken_as_it_is(tiny):
    assert runner.make_train(tiny, engine=mine).engine.name == "mine"


def test_an_engine_that_is_not_known_is_refused(tiny):
    with pytest.raises(ConfigError, match="engine: 'triton' is not known; it must be 'auto', 'xla', 'cuda'"):
        runner.make_train(tiny, engine="triton")


@pytest.mark.parametrize(("config", "name"), [(ModelFreeQConfig(), "model_free_q"), (MPCConfig(), "mpc")])
def test_algorithms_without_kernels_refuse_an_engine_and_take_xla_under_auto(config, name):
    with pytest.raises(ConfigError, match=f"engine: 'cuda' does not fit the algorithm '{name}'.*it must be 'xla'"):
        runner.make_train(config, engine="cuda")
    chosen = runner.make_train(config, engine="auto").engine
    assert chosen.name == "xla"
    assert name in chosen.notes[0]


def test_what_is_wrong_with_a_configuration_is_wrong_under_auto_as_well(tiny):
    import dataclasses

    wrong = dataclasses.replace(tiny, imagination=dataclasses.replace(tiny.imagination, lanes=5))
    with pytest.raises(ConfigError, match="imagination.lanes: 5"):
        runner.make_train(wrong, engine="auto")


def test_a_person_who_asks_for_an_engine_reads_which_one_runs(tiny):
    said = []
    display = Display.silent()
    display.say = said.append
    runner.prepare([tiny], 1, engine=mine, display=display, at_once=1)
    runner.prepare([tiny], 1, display=display, at_once=1)
    assert said == ["engine mine"]


def test_a_summary_gives_the_engine_back():
    engine = Engine("cuda", notes=("the fit by xla: model.loss",))
    assert engines.from_json(engines.as_json(engine)) == engine
    assert engines.as_json(None) is None
    assert engines.from_json(None) is None


def device(platform="gpu", capability="9.0"):
    return SimpleNamespace(platform=platform, device_kind="an accelerator", compute_capability=capability)


@pytest.mark.parametrize(
    ("devices", "architecture", "shared"),
    [([device()], "90", 227), ([device(capability="8.9")] * 2, "89", 99), ([device(capability="12.0")], "120", 99)],
)
def test_the_gpu_is_known_by_its_compute_capability(monkeypatch, devices, architecture, shared):
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert coverage.gpu() == coverage.Gpu(architecture, shared * 1024)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([device(platform="cpu", capability="")], "it needs NVIDIA GPUs, and JAX computes on an accelerator"),
        ([device(capability="gfx90a")], "it needs NVIDIA GPUs"),
        ([device(capability="9.0"), device(capability="8.0")], r"of several kinds \(8\.0, 9\.0\)"),
        ([device(capability="7.5")], "a GPU of compute capability '75'; it covers 8.0, 8.6"),
        ([device(), device(platform="cpu", capability="")], "it needs NVIDIA GPUs"),
    ],
)
def test_other_devices_are_refused(monkeypatch, devices, message):
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    with pytest.raises(ConfigError, match=message):
        coverage.gpu()
