"""The documentation's site is built without a warning, is whole by itself, and has the API of every room."""

import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import mbrl_jax

pytest.importorskip("mkdocs", reason="pip install 'mbrl-jax[docs]'")

ROOT = Path(__file__).parents[1]
EXTENSIONS = ROOT / "docs" / "site"


def build(where, to):
    """``mkdocs build --strict`` in a folder."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", to]
    return subprocess.run(
        command, cwd=where, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if built := os.environ.get("MBRL_JAX_SITE"):  # .ci/run has built it already
        return Path(built)
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXTENSIONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class References(HTMLParser):
    """The anchors of a page, and what it leads to and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        of = dict(attributes)
        self.anchors |= {of[name] for name in ("id", "name") if of.get(name)}
        if tag == "a" and of.get("href"):
            self.links.append(of["href"])
        if tag in ("img", "script", "source") and of.get("src"):
            self.loaded.append(of["src"])
        if tag == "link" and of.get("rel") != "canonical" and of.get("href"):
            self.loaded.append(of["href"])


@pytest.fixture(scope="module")
def pages(site):
    return {path: References(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_of_the_site_leads_to_a_file_and_an_anchor_of_it(pages):
    inside = 0
    for path, page in pages.items():
        for link in page.links:
            address, _, anchor = unquote(link).partition("#")
            if "://" in link or link.startswith("mailto:"):
                continue
            target = (path.parent / address).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path} leads to {link}"
            assert not anchor or anchor == "__top" or target not in pages or anchor in pages[target].anchors, (
                f"{path} leads to {link}"
            )
            inside += bool(address)
    assert inside > 1_000


def test_the_site_loads_nothing_from_another_host(pages):
    for path, page in pages.items():
        for address in page.loaded:
            assert address.startswith("data:") or (path.parent / unquote(address.partition("?")[0])).is_file(), (
                f"{path} loads {address}"
            )


def test_files_that_the_documentation_links_to_are_on_the_site(site):
    assert "random_transitions" in (site / "repository/configs/smoke.yaml.html").read_text(encoding="utf-8")
    assert "mkdocs build" in re.sub("<[^>]*>", "", (site / "repository/ci/run.html").read_text(encoding="utf-8"))
    assert (site / "repository/benchmarks/results/learning/batch.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png" in (site / "repository/notebooks/dyna_cartpole.ipynb.html").read_text(encoding="utf-8")


def test_the_api_reference_has_a_page_for_every_room(site):
    rooms = [path for path in Path(mbrl_jax.__file__).parent.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len(rooms) > 10
    for path in rooms:
        if not path.name.startswith("_"):
            page = (site / "api" / f"{path.stem}.html").read_text(encoding="utf-8")
            assert f'id="mbrl_jax.{path.stem}"' in page, path.name


def test_the_api_reference_documents_every_public_name(pages, site):
    documented = pages[site / "api" / "mbrl_jax.html"]
    algorithms = pages[site / "api" / "algorithms.html"]
    for name in mbrl_jax.__all__:
        value = getattr(mbrl_jax, name)
        if inspect.ismodule(value):
            assert value.__doc__
            assert f"algorithms.html#{value.__name__}" in documented.links, name
            assert value.__name__ in algorithms.anchors, name
        else:
            assert f"mbrl_jax.{name}" in documented.anchors, name  # there is none where there is no docstring


def test_the_comments_of_fields_are_in_the_api_reference(site):
    page = (site / "api" / "mbrl_jax.html").read_text(encoding="utf-8")
    assert "whether the lane ends here" in page  # Decision.stop
    assert ":func:" not in page


@pytest.fixture
def small(tmp_path):
    """A repository with a site of two pages."""
    shutil.copytree(EXTENSIONS, tmp_path / "docs" / "site", ignore=shutil.ignore_patterns("__pycache__"))
    files = {
        "mkdocs.yml": "site_name: small\nexclude_docs: site/*.py\nhooks: [docs/site/hooks.py]\nnav: [index.md, guides.md]\n",
        "README.md": "# Small\n\n[guides](docs/README.md) and [settings](configs/a.yaml)\n",
        "docs/README.md": "# Guides\n\n[home](../README.md#small), [here](#guides)\n\n```md\n[code](../README.md)\n```\n",
        "configs/a.yaml": "lanes: 4\n",
        "mbrl_jax/__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_links_out_of_docs_are_moved_and_code_is_left_alone(small):
    assert (done := build(small, small / "site")).returncode == 0, done.stderr
    page = (small / "site" / "guides" / "index.html").read_text(encoding="utf-8")
    assert "[code](../README.md)" in page
    assert "lanes" in (small / "site" / "repository/configs/a.yaml/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("link", ["../configs/none.yaml", "none.md", "../README.md#none"])
def test_a_link_that_leads_nowhere_fails_the_build(small, link):
    with (small / "docs" / "README.md").open("a", encoding="utf-8") as page:
        page.write(f"\n[wrong]({link})\n")
    with (small / "mkdocs.yml").open("a", encoding="utf-8") as settings:
        settings.write("validation: {anchors: warn}\n")
    done = build(small, small / "site")
    assert done.returncode == 1
    assert "none" in done.stderr


def test_docstrings_become_markdown():
    docstrings = load("docstrings")
    told = "Sum, as :func:`add`.\n\n>>> add(\n...     1)\n2\n\nAnd so on."
    assert docstrings.to_markdown(told) == "Sum, as `add`.\n\n```pycon\n>>> add(\n...     1)\n2\n```\n\nAnd so on."
    source = 'x: int  # [] seeds\ny: str = "# no"\n# a line of its own\nz: int  # noqa: E501\n'
    assert docstrings.comments_of(source) == {1: "[] seeds"}
