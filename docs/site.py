"""What MkDocs does beside rendering: pages made of the code, and links that leave `docs/`.

The command reference and the list of messages are made each time the site is built, so they cannot
be stale.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File
from typer.cli import get_docs_for_click

from mate_edge import errors
from mate_edge.cli import app
from mate_edge.cli.groups import GROUPS

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")
"""A link to a file of the checkout, which the site does not hold."""

CHECKOUT = Path(__file__).parents[1]
PARTS = {
    "Files, images and the command line": ("mate_edge",),
    "Training": ("train",),
    "Export": ("export",),
    "Running": ("runtime",),
}
ERRORS = {name for name in dir(errors) if name.endswith("Error")} | {
    "EngineNotBuilt",
    "error",  # the class is the caller's choice
}

MESSAGES = """# Every message

The errors that mate-edge raises for its users, read off the code when this page was built; `…`
stands for what is filled in. Each says what to do. [Troubleshooting](troubleshooting.md) says more
about those that need it.
"""

HEAD = """# Command reference

Made from the commands themselves: `mate-edge COMMAND --help` prints the same.

{commands}

`mate-edge --install-completion` teaches your shell the commands, their options, and the names of
architectures, data sets, methods, targets, engines and policies. `mate-edge --version` prints the
version.

| exit code | |
|---|---|
| 0 | done |
| 1 | the answer is no (`verify` refused, `doctor` lacks a piece, an image could not be read, \
a camera vanished or a stream ended), \
or a bug, with its traceback |
| 2 | a mistake in what was typed, or in a file: one line on stderr says which, and what to do |
| 130, 143, 141 | stopped by Ctrl-C, by SIGTERM, or because nobody reads stdout any longer |
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


def message_list() -> str:
    """Return the page of every error that the code raises for users."""
    parts = [MESSAGES]
    for title, folders in PARTS.items():
        found = {said for folder in folders for said in messages(CHECKOUT / folder)}
        listed = sorted(found, key=lambda said: said.lstrip("… ").lower())
        parts.append(f"## {title}\n\n" + "\n".join(f"* `{said}`" for said in listed))
    return "\n\n".join(parts) + "\n"


def messages(folder: Path) -> Iterator[str]:
    """Yield the messages of the errors for users under a folder, with … for what is filled in."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            raised = node.exc if isinstance(node, ast.Raise) else None
            if not (isinstance(raised, ast.Call) and isinstance(raised.func, ast.Name)):
                continue
            if raised.func.id in ERRORS and raised.args:
                said = _as_shown(raised.args[0])
                if said.strip(" …:"):
                    yield said


def _as_shown(message: ast.expr) -> str:
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        values = message.values
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in values)
    return "…"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that no file holds."""
    for name, content in MADE.items():
        files.append(File.generated(config, name, content=content()))
    return files


MADE = {"commands.md": command_reference, "messages.md": message_list}
"""The pages that are made of the code."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show a file of the checkout by its name: the site has no copy of it to link to."""
    return OUTSIDE.sub(r"\1", markdown)
