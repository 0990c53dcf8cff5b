"""Hooks of the documentation site: the README as its first page, files outside docs/ that pages link to, and the API reference.

A link that leaves docs/ leads to a page of the site that shows the file, or to a copy of it: the site is whole by itself and
names no host. A link to what does not exist stays as it is, so `mkdocs build --strict` fails at it.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
# Where files of the repository stand on the site. All others that pages link to stand under `repository/`.
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "guides.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md")
PACKAGE = "mbrl_jax"
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml", ".sh": "sh", ".cff": "yaml"}
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
LONGEST_PAGE = 100_000  # bytes; longer files are copied, not shown


def place_of(path: str) -> str:
    """Return the address in the site's sources of a file or folder of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    target = ROOT / path
    shown = "/".join(part.lstrip(".") for part in path.split("/"))  # mkdocs leaves hidden files out
    if target.is_dir():
        return f"repository/{shown}/index.md"
    if target.suffix in (".md", ".ipynb") or (language_of(target) and target.stat().st_size <= LONGEST_PAGE):
        return f"repository/{shown.removesuffix('.md')}.md"
    return f"repository/{shown}"


def language_of(file: Path) -> str | None:
    """Return the language that a file's code is highlighted as; None for all other files."""
    if not file.suffix and file.read_bytes()[:2] == b"#!":
        return "sh"
    return LANGUAGES.get(file.suffix)


def linked(text: str, path: str) -> list[str]:
    """Return the files and folders of the repository that a Markdown page at ``path`` links to."""
    return [found for _, link, _ in LINK.findall(FENCE.sub("", text)) if (found := target_of(link, path))]


def target_of(link: str, path: str) -> str | None:
    """Return the path in the repository that a relative link of the page at ``path`` leads to; None for all other links."""
    address = link.partition("#")[0]
    if not address or "://" in link or link.startswith(("mailto:", "/")):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), address))
    return target if (ROOT / target).exists() else None


def moved(text: str, path: str) -> str:
    """Return a Markdown page with its relative links made for the place that it has on the site; code is left alone."""
    here = posixpath.dirname(place_of(path))

    def move(found: re.Match[str]) -> str:
        target = target_of(found[2], path)
        if target is None:
            return found[0]
        _, hash_, anchor = found[2].partition("#")
        return f"{found[1]}{posixpath.relpath(place_of(target), here or '.')}{hash_}{anchor}{found[3]}"

    return "".join(piece if i % 2 else LINK.sub(move, piece) for i, piece in enumerate(FENCE.split(text)))


def content_of(path: str) -> str:
    """Return the Markdown that shows a file of the repository or lists a folder."""
    target = ROOT / path
    if target.is_dir():
        inside = sorted(each for each in target.rglob("*") if each.is_file() and "__pycache__" not in each.parts)
        names = [each.relative_to(target).as_posix() for each in inside]
        return (
            f"{UNSEARCHED}# {path}\n\n" + "\n".join(f"* [`{name}`]({posixpath.basename(path)}/{name})" for name in names) + "\n"
        )
    text = target.read_text(encoding="utf-8")
    if target.suffix == ".ipynb":
        return "\n\n".join(cell_of(cell) for cell in json.loads(text)["cells"])
    return text if target.suffix == ".md" else f"{UNSEARCHED}# {path}\n\n`````{language_of(target)}\n{text}\n`````\n"


def cell_of(cell: dict[str, Any]) -> str:
    """Return the Markdown of a notebook's cell: prose, or code with what it printed and drew."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    shown = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            shown.append(f"![]({'data:image/png;base64,' + ''.join(data['image/png']).replace(chr(10), '')})")
        elif text := output.get("text") or data.get("text/plain"):
            shown.append(f"```text\n{''.join(text).rstrip()}\n```")
    return "\n\n".join(shown)


def api_pages() -> dict[str, str]:
    """Return the pages of the API reference by title: the public names, then one page for each room and its modules."""
    public = re.findall(r'^    "(\w+)",$', (ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    algorithms = [name for name in public if (ROOT / PACKAGE / "algorithms" / f"{name}.py").exists()]
    links = ", ".join(f"[`{PACKAGE}.{name}`](algorithms.md#{PACKAGE}.algorithms.{name})" for name in algorithms)
    options = f"options: {{members: [{', '.join(public)}], heading_level: 1}}"
    pages = {PACKAGE: f"::: {PACKAGE}\n    {options}\n\nThe algorithms are modules: {links}.\n"}
    for room in sorted((ROOT / PACKAGE).iterdir()):
        if room.name.startswith("_") or not (room.suffix == ".py" or (room / "__init__.py").exists()):
            continue
        files = (
            [room]
            if room.suffix
            else sorted(room.rglob("*.py"), key=lambda file: (file.parent, file.name != "__init__.py", file.name))
        )
        modules = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
        first, *others = [f"::: {module}\n" for module in modules if "._" not in module]
        pages[room.stem] = "\n".join([f"{first}    options: {{heading_level: 1}}\n", *others])
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the API reference and the pages about the project to the navigation."""
    config.nav = [*(config.nav or []), {"API": [{title: f"api/{title}.md"} for title in api_pages()]}]
    config.nav.append({"Project": [page for path, page in PAGES.items() if path in PROJECT and (ROOT / path).exists()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, over any number of links, and the API reference."""
    if (index := files.get_file_from_path("README.md")) is not None:
        files.remove(index)
    pending = [
        *(path for path in PAGES if (ROOT / path).exists()),
        *(f"docs/{file.src_uri}" for file in files.documentation_pages()),
    ]
    seen = set(pending)
    while pending:
        path = pending.pop()
        place = place_of(path)
        if place.endswith(".md"):
            text = content_of(path)
            if path.endswith(".md") or (ROOT / path).is_dir():
                new = set(linked(text, path)) - seen
                seen |= new
                pending += new
                text = moved(text, path)
            known = files.get_file_from_path(place)
            if known is not None:
                files.remove(known)
            level = InclusionLevel.NOT_IN_NAV if place.startswith("repository/") else InclusionLevel.UNDEFINED
            files.append(File.generated(config, place, content=text, inclusion=level))
        elif files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    for title, text in api_pages().items():
        files.append(File.generated(config, f"api/{title}.md", content=text))
    return files
