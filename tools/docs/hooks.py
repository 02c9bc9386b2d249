"""What the site has beside the pages in docs/: files of the repository as pages, and the flags.

Links between files work both on a disk and in the site: a link out of docs/ to one of the files
below is turned into one to its page.
"""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's command line, whatever is installed

LINK = re.compile(r"(?P<before>\]\()(?P<to>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
EXAMPLE = re.compile(r"<!-- example: (?P<name>\w+\.py) -->\n[^\n]+\n")
SHELL = re.compile(r'<div class="language-bash.+?</div>', re.DOTALL)
FLAG = re.compile(r"(\s|</span>)(--?\w[\w-]*)")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>|<a )")
INLINE = re.compile(r"<code>(--?\w[\w-]*)")
PATHS = re.compile(r"<code>[\w/]+\.py</code>")
COMMANDS = "<!-- generated: commands -->"


def _pages() -> dict[str, str]:
    """Files of the repository -> where they are in the site."""
    found = {
        "CONTRIBUTING.md": "contributing.md",
        "CHANGELOG.md": "changelog.md",
        "latency_tables/README.md": "latency-tables.md",
        "benchmarks/README.md": "benchmarks/index.md",
    }
    for path in sorted((ROOT / "tools/decisions").glob("*.md")):
        found[f"tools/decisions/{path.name}"] = f"decisions/{path.name}"
    for path in sorted((ROOT / "benchmarks/results").iterdir()):
        if path.suffix in (".md", ".svg"):
            found[f"benchmarks/results/{path.name}"] = f"benchmarks/results/{path.name}"
    for path in sorted((ROOT / "examples").glob("*.py")):
        found[f"examples/{path.name}"] = f"examples/{path.stem}.md"
    return found


PAGES = _pages()
SOURCES = {page: source for source, page in PAGES.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for source, page in PAGES.items():
        if source.endswith(".py"):
            files.append(File.generated(config, page, content=_example_page(ROOT / source)))
        else:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put in what is generated, and turn links out of docs/ into links to pages."""
    here = page.file.src_uri
    if here.startswith("benchmarks/"):
        page.meta["hide"] = ["toc"]  # room for wide tables
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    markdown = EXAMPLE.sub(lambda match: _code(ROOT / "examples" / match["name"]), markdown)
    folder = posixpath.dirname(SOURCES.get(here, f"docs/{here}"))

    def linked(match: re.Match[str]) -> str:
        to, anchor = match["to"], match["anchor"] or ""
        if "://" in to or to.startswith("mailto:"):
            return match[0]
        source = posixpath.normpath(posixpath.join(folder, to))
        target = PAGES.get(source) or source.removeprefix("docs/")
        if source not in PAGES and not source.startswith("docs/"):
            return match[0]  # nothing that the site has; strict mode says so
        return "](" + posixpath.relpath(target, posixpath.dirname(here) or ".") + f"{anchor})"

    return LINK.sub(linked, markdown)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Flags do not break at the end of a line, and paths break at their slashes.

    API pages show functions and classes; a module there is a name that means two things.
    """
    if page.file.src_uri.startswith("api/") and "doc-symbol-module" in html:
        log.warning("%s shows a module; name what is in it in full", page.file.src_uri)
    if page.file.src_uri.startswith("api/"):  # as Sphinx would have it, which docstrings follow
        html = ROLE.sub("", html).replace("::</p>", ":</p>")
    html = SHELL.sub(lambda block: FLAG.sub(r'\1<span class="whole">\2</span>', block[0]), html)
    html = INLINE.sub(r'<code><span class="whole">\1</span>', html)
    return PATHS.sub(lambda path: path[0].replace("/", "/<wbr>").replace("</<wbr>", "</"), html)


def _code(path: Path) -> str:
    return f'```python title="{path.parent.name}/{path.name}"\n{path.read_text()}```\n'


def _example_page(path: Path) -> str:
    first = path.read_text().splitlines()[0].strip('"')
    return f"# {path.name}\n\n{first}\n\n[All examples](../examples.md)\n\n{_code(path)}"


# --- the flags ----------------------------------------------------------------------------------


def commands() -> str:
    """All commands with their flags, from the command line."""
    import typer

    from prunekit.cli.main import app

    return "\n".join(_commands(typer.main.get_command(app), "prunekit"))


def _commands(group: Any, path: str) -> list[str]:
    lines = []
    above = group.make_context(path, [], resilient_parsing=True)
    for name in group.list_commands(above):
        command, whole = group.get_command(above, name), f"{path} {name}"
        if hasattr(command, "commands"):
            lines += _commands(command, whole)
            continue
        lines += [f"## {whole}", "", (command.help or "").strip(), ""]
        context = command.make_context(whole, [], resilient_parsing=True)
        usage = command.get_usage(context).removeprefix("Usage: ").split("\n")
        lines += ["```text", " ".join(" ".join(usage).split()), "```", ""]
        for heading, rows in _sections(command, context).items():
            title = {"Options": "flag", "Arguments": "argument"}.get(heading, heading)
            lines += [f"| {title} | |", "| --- | --- |"]
            lines += [f"| {_names(names)} | {_plain(text)} |" for names, text in rows]
            lines += [""]
    return lines


def _sections(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """The rows of the help, by its headings; `prunekit.cli.common.Sectioned` writes them."""

    class Collector:
        def __init__(self) -> None:
            self.rows: dict[str, list[tuple[str, str]]] = {}
            self.heading = ""

        def section(self, name: str) -> Collector:
            self.heading = name
            return self

        def __enter__(self) -> Collector:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write_dl(self, rows: Any, *_: Any, **__: Any) -> None:
            self.rows.setdefault(self.heading, []).extend(rows)

    collector = Collector()
    command.format_options(context, collector)
    return collector.rows


def _names(text: str) -> str:
    """``-o, --output <path>`` -> the flags as code, which does not break, and what they take."""
    flags, _, kind = text.partition(" <")
    parts = re.split(r"(, | / )", flags)
    code = "".join(
        part if i % 2 else f"<code>{_escaped(part)}</code>" for i, part in enumerate(parts)
    )
    kind = kind.rstrip(">").removesuffix(" range")
    return f'<span class="flag">{code}</span>' + (f" <small>{kind}</small>" if kind else "")


def _escaped(text: str) -> str:
    return text.replace("|", "&#124;").replace("<", "&lt;")


def _plain(text: str) -> str:
    """As text, whatever Markdown would make of it."""
    return re.sub(r"([|*_\[\]`])", r"\\\1", text).replace("<", "&lt;")
