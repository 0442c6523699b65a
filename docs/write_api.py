"""Write docs/api.md from the docstrings of the public names. `--check` writes nothing and fails if it is stale."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from typing import Any

from generated import write_or_check

import esper_analytics
import esper_recorder
import esper_recorder.instruments
import esper_recorder.sb3

HEAD = """\
# API reference

Generated from docstrings by `make docs`; do not edit it here. What is not listed here is internal and may change.

- [In the trainer](#in-the-trainer): `esper_recorder`, `esper_recorder.sb3`, `esper_recorder.instruments`
- [Analytics](#analytics): `esper_analytics`, imported as `ea`
"""

SECTIONS: dict[str, tuple[tuple[str, Any, tuple[str, ...]], ...]] = {
    "In the trainer": (
        ("esper_recorder", esper_recorder, tuple(esper_recorder.__all__)),
        ("esper_recorder.sb3", esper_recorder.sb3, ("RecorderCallback",)),
        ("esper_recorder.instruments", esper_recorder.instruments, tuple(esper_recorder.instruments.__all__)),
    ),
    "Analytics": (("esper_analytics", esper_analytics, tuple(esper_analytics.__all__)),),
}
WITH_METHODS = {"Recorder", "Sink", "Runs", "Result"}
"""Classes whose methods are called by users; of the others the class is described alone."""


def page() -> str:
    """The whole page as Markdown."""
    lines = [HEAD]
    for title, modules in SECTIONS.items():
        lines += [f"## {title}", ""]
        for module_name, module, names in modules:
            for name in names:
                lines += entry(f"{module_name}.{name}", getattr(module, name))
    return "\n".join(lines).rstrip() + "\n"


def entry(name: str, value: Any) -> Iterator[str]:
    """A heading with the signature, and the docstring below it."""
    if not callable(value):
        return
    yield from (f"### {name}", "", "```python", signature(name.rpartition(".")[2], value), "```", "", prose(value), "")
    if inspect.isclass(value) and value.__name__ in WITH_METHODS:
        for method_name, method in inspect.getmembers(value):
            if method_name.startswith("_") or not inspect.getdoc(method) or not defined_here(value, method_name):
                continue
            shown = f"{value.__name__}.{method_name}"
            code = shown if isinstance(method, property) else signature(shown, method)
            yield from (f"#### {shown}", "", "```python", code, "```", "", prose(method), "")


def defined_here(cls: type, name: str) -> bool:
    """Whether a class, or a base of ours, defines a name."""
    return any(name in vars(base) for base in cls.__mro__ if base.__module__.startswith("esper_"))


def signature(name: str, value: Any) -> str:
    """A call as it is declared, one argument per line if it is long; of an enumeration its members."""
    if inspect.isclass(value) and issubclass(value, enum.Enum):
        return f"{name}: {', '.join(member.name for member in value)}"
    try:
        declared = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    shown = {p.name: p.replace(annotation=Annotation(p.annotation)) for p in declared.parameters.values()}
    shown.pop("self", None)
    returns = declared.return_annotation
    returns = "" if inspect.isclass(value) or returns is inspect.Signature.empty else f" -> {Annotation(returns)!r}"
    arguments = [re.sub("<[^>]*>", "...", str(p)) if p.annotation.known else p.name for p in shown.values()]
    keyword_only = [place for place, p in enumerate(shown.values()) if p.kind is p.KEYWORD_ONLY]
    if keyword_only and not any(p.kind is p.VAR_POSITIONAL for p in shown.values()):
        arguments.insert(keyword_only[0], "*")
    line = f"{name}({', '.join(arguments)}){returns}"
    if len(line) <= 100 or not arguments:
        return line
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){returns}"


class Annotation:
    """An annotation that prints as it is written in the source."""

    def __init__(self, annotation: Any) -> None:
        self.known = annotation is not inspect.Parameter.empty
        self._text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)

    def __repr__(self) -> str:
        return self._text


def prose(value: Any) -> str:
    """A docstring as Markdown: its sections of arguments, returns and errors become lists."""
    out: list[str] = []
    section = False
    for line in (inspect.getdoc(value) or "").splitlines():
        item = re.fullmatch(r"    (\S[^:]*): (.*)", line) if section else None
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line):
            section = True
            out += [f"**{line[:-1]}**", ""]
        elif item:
            out.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("    "):
            out.append(f"  {line.strip()}" if out[-1] else line.strip())
        else:
            section = section and not line.strip()
            out.append(line)
    return "\n".join(out)


if __name__ == "__main__":
    write_or_check({"api.md": page()}, "the docstrings")
