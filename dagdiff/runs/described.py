"""What can be told to a part or a run, for help and documentation: options with their meaning, and no import of torch.

Of dagdiff's own parts this is read from their source (:mod:`ast`), for importing them takes seconds; anybody else's are
imported. That both say the same is held by a test.
"""

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from docstring_parser import parse

from dagdiff.runs.parts import EXECUTORS, GIVEN, PARTS, path_of, resolve


class Option(NamedTuple):
    """An option: its name, its usual value, its type as it is written, and what it means."""

    name: str
    value: Any
    type: str
    meaning: str


class Described(NamedTuple):
    """A class or function whose arguments are options, in a sentence, and these options."""

    summary: str
    options: list[Option]


REQUIRED = inspect.Parameter.empty
"""The usual value of an option that has none."""


def describe_part(part: str, name: str) -> Described:
    """Return what the part of that name is and takes, apart from what the loop gives it; reject an unknown name."""
    path = path_of(part, name)
    own = EXECUTORS if part == "executor" else PARTS.get(part, {})
    found = describe_source(path) if path in own.values() else describe(resolve(part, name))
    given = ("task", *GIVEN.get(part, ()))
    return Described(found.summary, [option for option in found.options if option.name not in given])


def describe(kind: Callable[..., Any]) -> Described:
    """Describe an imported class or function."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    fresh = {each.name: each.default_factory() for each in fields if callable(each.default_factory)}
    found = [
        (each.name, fresh.get(each.name, _path(each.default)), _type(each.annotation))
        for each in inspect.signature(kind).parameters.values()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    texts = [inspect.getdoc(kind), inspect.getdoc(kind.__init__) if inspect.isclass(kind) else None]
    return _described([text for text in texts if text], found)


def describe_source(path: str) -> Described:
    """Describe a class or function of dagdiff's own by its import path, without importing it."""
    owner, node = _find(path)
    texts = [ast.get_docstring(node)]
    if isinstance(node, ast.FunctionDef):
        found = _of_function(node, owner)
    else:
        made = next((each for each in _methods(node) if each.name == "__init__"), None)
        if made is not None:
            texts.append(ast.get_docstring(made))
            found = _of_function(made, owner)
        elif any("dataclass" in ast.unparse(each) for each in node.decorator_list):
            found = _of_fields(node, owner)
        else:
            bases = [f"{owner}.{base.id}" for base in node.bases if isinstance(base, ast.Name)]
            found = [option[:3] for base in bases[:1] for option in describe_source(base).options]
    return _described([text for text in texts if text], found)


def _described(texts: list[str], found: list[tuple[str, Any, str]]) -> Described:
    docs = [parse(text) for text in texts]
    meanings = {each.arg_name: " ".join((each.description or "").split()) for doc in docs for each in doc.params}
    summary = " ".join((docs[0].short_description or "").split()) if docs else ""
    return Described(summary, [Option(*each, meanings.get(each[0], "")) for each in found])


def _path(value: Any) -> Any:
    """The import path of a function or class, which is how words name it; any other value as it is."""
    return f"{value.__module__}.{value.__qualname__}" if inspect.isroutine(value) or _is_class(value) else value


def _is_class(value: Any) -> bool:
    return inspect.isclass(value) and value is not REQUIRED


def _type(annotation: Any) -> str:
    return "" if annotation is REQUIRED else inspect.formatannotation(annotation)


def _of_function(node: ast.FunctionDef, owner: str) -> list[tuple[str, Any, str]]:
    told = [*node.args.posonlyargs, *node.args.args]
    defaults = [REQUIRED] * (len(told) - len(node.args.defaults)) + [_value(each, owner) for each in node.args.defaults]
    bound = any(ast.unparse(each) == "classmethod" for each in node.decorator_list) or node.name == "__init__"
    alone = [REQUIRED if each is None else _value(each, owner) for each in node.args.kw_defaults]
    pairs = [*zip(told[bound:], defaults[bound:], strict=True), *zip(node.args.kwonlyargs, alone, strict=True)]
    return [(each.arg, value, ast.unparse(each.annotation) if each.annotation else "") for each, value in pairs]


def _of_fields(node: ast.ClassDef, owner: str) -> list[tuple[str, Any, str]]:
    return [
        (each.target.id, REQUIRED if each.value is None else _value(each.value, owner), ast.unparse(each.annotation))
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        if "ClassVar" not in ast.unparse(each.annotation)
    ]


def _value(node: ast.expr, owner: str) -> Any:
    """A literal as its value; a function or class of the module ``owner`` by its import path."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return f"{owner}.{node.id}" if isinstance(node, ast.Name) else ast.unparse(node)


def _find(path: str) -> tuple[str, ast.ClassDef | ast.FunctionDef]:
    """Return the module that defines what an import path names, and its definition there."""
    names = path.split(".")
    for cut in range(len(names) - 1, 0, -1):
        file = _file(tuple(names[:cut]))
        if file is not None:
            return _within(".".join(names[:cut]), _source(file), names[cut:])
    raise LookupError(f"no source of {path}")


def _within(owner: str, tree: ast.Module | ast.ClassDef, names: list[str]) -> tuple[str, Any]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == names[0]:
            return _within(owner, node, names[1:]) if isinstance(node, ast.ClassDef) and names[1:] else (owner, node)
        if isinstance(node, ast.ImportFrom) and node.module and names[0] in {each.name for each in node.names}:
            return _find(".".join([node.module, *names]))
    raise LookupError(f"{owner} defines no {names[0]}")


def _methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    return (each for each in node.body if isinstance(each, ast.FunctionDef))


def _file(names: tuple[str, ...]) -> Path | None:
    """The source file of a module of dagdiff's, without importing what is above it."""
    home = find_spec(names[0])
    for folder in map(Path, (home and home.submodule_search_locations) or ()):
        stem = folder.joinpath(*names[1:])
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if len(names) > 1 and file.is_file():
                return file
    return None


@cache
def _source(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))
