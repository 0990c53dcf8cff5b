import os
import sys
from importlib import util

import pytest
from sample_kernel import SOURCE

from mbrl_jax.config import ConfigError
from mbrl_jax.cuda import compiling, nvrtc
from mbrl_jax.cuda.compiling import Source, lowered, options_of, ptx_of
from mbrl_jax.cuda.nvrtc import CompilationError, Compiled, Nvrtc

MACROS = {"N": 8, "SCALE": 2}
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA has no NVRTC for this system")


class Counting:
    """A compiler that counts its calls and gives its options back."""

    version = (13, 0)

    def __init__(self):
        self.calls = 0

    def compile(self, source, name, headers, options):
        self.calls += 1
        return Compiled(f".version 9.0\n.target {' '.join(options)}\n".encode(), "")


@pytest.fixture
def counting():
    return Counting()


@pytest.mark.parametrize("path", list(nvrtc.installed()), ids=lambda path: path.name)
def test_every_wheel_compiles_for_every_architecture(path):
    compiler = Nvrtc(path)
    for architecture in ("80", "89", "90", "120"):
        made = compiler.compile(SOURCE.text, SOURCE.name, dict(SOURCE.headers), options_of(MACROS, f"compute_{architecture}"))
        assert f".target sm_{architecture}\n" in made.code.decode()
        assert ".visible .entry add(" in made.code.decode()
    options = [*options_of(MACROS, "sm_90"), "--ptxas-options=-v"]
    made = compiler.compile(SOURCE.text, SOURCE.name, dict(SOURCE.headers), options)
    assert made.code[:4] == b"\x7fELF"
    assert "Used" in made.log


@on_linux
def test_wheels_of_both_major_versions_are_installed_newest_first():
    versions = [Nvrtc(path).version for path in nvrtc.installed()]
    assert [major for major, _ in versions] == [13, 12]
    assert nvrtc.newest().version == versions[0]


@on_linux
def test_a_source_that_does_not_compile_is_refused_with_the_compilers_words():
    broken = Source("broken.cu", 'extern "C" __global__ void f(float* x) { x[0] = nothing; }')
    with pytest.raises(CompilationError, match=r'(?s)broken\.cu for .*compute_90.*identifier "nothing" is undefined'):
        ptx_of(broken, {}, "90", folder=None)


def test_a_file_that_is_no_compiler_and_a_missing_one_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "libnvrtc.so.13"
    file.write_text("not a library")
    with pytest.raises(ConfigError, match=r"libnvrtc\.so\.13 is no NVRTC that can be loaded"):
        Nvrtc(file)
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    monkeypatch.setattr(nvrtc.ctypes.util, "find_library", lambda name: None)
    nvrtc.newest.cache_clear()
    with pytest.raises(ConfigError, match=r"engine: 'cuda' does not fit; libnvrtc.*pip install 'mbrl-jax\[cuda13\]'"):
        nvrtc.newest()


def test_what_was_compiled_is_not_compiled_again(tmp_path, counting):
    first = ptx_of(SOURCE, MACROS, "90", counting, tmp_path)
    assert ptx_of(SOURCE, MACROS, "90", counting, tmp_path) == first
    assert counting.calls == 1
    assert len(list(tmp_path.iterdir())) == 1  # no temporary file is left


def test_other_sizes_sources_headers_architectures_and_compilers_are_compiled_apart(tmp_path, counting):
    ptx_of(SOURCE, MACROS, "90", counting, tmp_path)
    ptx_of(SOURCE, {**MACROS, "N": 9}, "90", counting, tmp_path)
    ptx_of(SOURCE, MACROS, "89", counting, tmp_path)
    ptx_of(SOURCE._replace(text=SOURCE.text + " "), MACROS, "90", counting, tmp_path)
    ptx_of(SOURCE._replace(headers=(("by.cuh", "other"),)), MACROS, "90", counting, tmp_path)
    counting.version = (13, 1)
    ptx_of(SOURCE, MACROS, "90", counting, tmp_path)
    assert counting.calls == len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize(
    "harm", [lambda text: text[:-1], lambda text: text.replace("9.0", "9.1"), lambda text: "", lambda text: "x"]
)
def test_a_file_that_is_not_what_was_written_is_compiled_again(tmp_path, counting, harm):
    whole = ptx_of(SOURCE, MACROS, "90", counting, tmp_path)
    (file,) = tmp_path.iterdir()
    kept = file.read_text()
    file.write_text(harm(kept))
    assert ptx_of(SOURCE, MACROS, "90", counting, tmp_path) == whole
    assert counting.calls == 2
    assert file.read_text() == kept


def test_bytes_that_are_no_text_are_compiled_again(tmp_path, counting):
    ptx_of(SOURCE, MACROS, "90", counting, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"\xff\xfe\x00")
    ptx_of(SOURCE, MACROS, "90", counting, tmp_path)
    assert counting.calls == 2


def test_a_folder_that_cannot_be_written_to_costs_a_warning_and_nothing_else(tmp_path, counting):
    place = tmp_path / "a file"
    place.write_text("")
    with pytest.warns(UserWarning, match="a compiled kernel could not be kept"):
        assert ".version 7.8" in ptx_of(SOURCE, MACROS, "90", counting, place)


def test_the_cache_is_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiling.cache_folder() == tmp_path / "mbrl_jax" / "cuda"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # the home folder is not known
    assert compiling.cache_folder() is None


@pytest.mark.parametrize(
    ("architecture", "own", "version"),
    [
        ("80", "9.5", "7.8"),
        ("90", "9.0", "7.8"),
        ("90", "7.8", "7.8"),
        ("90", "7.4", "7.4"),  # an old compiler's own
        ("100", "9.5", "8.6"),
        ("120", "9.5", "8.7"),
        ("120", "8.7", "8.7"),
        ("121", "9.5", "8.8"),
        ("130", "9.5", "9.5"),  # a later one: which version brought it is not known here
    ],
)
def test_ptx_has_the_oldest_version_that_has_its_architecture(architecture, own, version):
    ptx = f"// .version 1.0\n.version {own}\n.target sm_{architecture}\nld.param; .version 3.3\n"
    assert lowered(ptx, architecture) == ptx.replace(f"\n.version {own}", f"\n.version {version}", 1)
