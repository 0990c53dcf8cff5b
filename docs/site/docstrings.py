"""Makes Markdown of docstrings for the API reference: Sphinx roles, doctest sessions, and comments beside fields."""

import io
import re
import tokenize
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|data|meth|mod|attr):(?=`)")
SESSION = re.compile(r"(?:^>>> .*\n?(?:^(?!>>> |\s*$).*\n?)*)+", re.MULTILINE)


def to_markdown(text: str) -> str:
    """Return a docstring without the roles before its names, and with its interpreter sessions fenced."""
    return SESSION.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", ROLE.sub("", text))


def comments_of(source: str) -> dict[int, str]:
    """Return the comments of a file that stand behind code, by line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    behind = {line: token.string for line, token in found.items() if token.line[: token.start[1]].strip()}
    return {line: text.removeprefix("#").strip() for line, text in behind.items() if not re.match(r"#\s*(noqa|type:)", text)}


def rewrite(where: griffe.Object, comments: dict[int, str]) -> None:
    """Rewrite the docstring of an object and of all that it contains.

    Args:
      where: the object.
      comments: of its file, by line; those of a class's fields become the section Attributes of the class's docstring.

    """
    if where.is_module and not isinstance(where.filepath, list):
        comments = comments_of(where.filepath.read_text(encoding="utf-8"))
    members = [member for member in where.members.values() if not isinstance(member, griffe.Alias)]
    if where.docstring is not None:
        where.docstring.value = to_markdown(where.docstring.value)
        fields = [member for member in members if member.is_attribute and member.docstring is None] if where.is_class else []
        told = [f"\n  {field.name}: {comments[field.lineno]}" for field in fields if field.lineno in comments]
        if told and "\nAttributes:\n" not in where.docstring.value:
            where.docstring.value += "\n\nAttributes:" + "".join(told) + "\n"
    for member in members:
        rewrite(member, comments)


class Markdown(griffe.Extension):
    """The extension that mkdocs.yml names."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a whole package."""
        rewrite(pkg, {})
