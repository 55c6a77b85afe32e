"""What MkDocs does beside rendering: the command reference, and links that leave `docs/`.

`commands.md` is made of the commands themselves each time the site is built, so it cannot be stale.
"""

from __future__ import annotations

import re
from typing import Any

import typer
from mkdocs.structure.files import File
from typer.cli import get_docs_for_click

from mate_edge.cli import app
from mate_edge.cli.groups import GROUPS

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")
"""A link to a file of the checkout, which the site does not hold."""

HEAD = """# Command reference

Made from the commands themselves: `mate-edge COMMAND --help` prints the same.

{commands}

`mate-edge --install-completion` teaches your shell the commands, their options, and the names of
architectures, data sets, methods, targets, engines and policies. `mate-edge --version` prints the
version.

| exit code | |
|---|---|
| 0 | done |
| 1 | the answer is no (`verify` refused, `doctor` lacks a piece, an image could not be read), \
or a bug, with its traceback |
| 2 | a mistake in what was typed, or in a file: one line on stderr says which, and what to do |
| 130, 143 | stopped by Ctrl-C or SIGTERM |
"""


def command_reference() -> str:
    """Return the page: every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    rows = ["| command | |", "|---|---|"]
    made = []
    with typer.Context(group, info_name="mate-edge") as context:
        for title, names in GROUPS.items():
            rows.append(f"| **{title}** | |")
            for name in names:
                rows.append(f"| [`{name}`](#mate-edge-{name}) | {group.summary(name)} |")
                made.append(
                    get_docs_for_click(
                        obj=group.commands[name],
                        ctx=context,
                        indent=1,
                        name=name,
                        call_prefix="mate-edge",
                        title=f"mate-edge {name}",
                    )
                )
    # an example in a help text is a line of its own; a page shows it as code
    text = re.sub(r"^Example: (.+)$", r"Example: `\1`", "\n".join(made), flags=re.MULTILINE)
    return HEAD.format(commands="\n".join(rows)) + "\n" + text


def on_files(files: Any, config: Any) -> Any:
    """Add the page that no file holds."""
    files.append(File.generated(config, "commands.md", content=command_reference()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show a file of the checkout by its name: the site has no copy of it to link to."""
    return OUTSIDE.sub(r"\1", markdown)
