"""Walks source that uses an SDK, and holds every name and call in it against the SDK's bindings.

Run as a program where the bindings can be imported: ``MODULE FILE...``; prints JSON.

Types follow from ``trt.Class(...)`` calls, from the results that the bindings' docstrings state,
from annotations such as ``config: trt.IBuilderConfig``, and from the base of a class.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from dataclasses import dataclass, field
from typing import Any

SIGNATURE = re.compile(r"(\w+)\(self: [^,)]*(?:, )?(.*?)\) -> (.+)$", re.M)
FREE = re.compile(r"^(?:\d+\. )?(\w+)\((?!self)(.*?)\) -> (.+)$", re.M)


@dataclass
class Walk:
    """One file's walk: what was used and what is wrong."""

    sdk: Any
    used: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def class_of(self, text: str) -> type | None:
        """The SDK's class that a docstring or an annotation names."""
        found = getattr(self.sdk, text.strip().split("|")[0].strip().rpartition(".")[2], None)
        return found if isinstance(found, type) else None

    def walk(self, source: str) -> None:
        """All functions of a file, each with the types its class declares."""
        tree = ast.parse(source)
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                self._class(node, {})
            elif isinstance(node, ast.FunctionDef):
                self._function(node, {})

    def _class(self, node: ast.ClassDef, outer: dict[str, type]) -> None:
        own = dict(outer)
        bases = [self._type(base, outer) for base in node.bases]
        base = next((b for b in bases if b is not None), None)
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                kind = self._annotated(item.annotation)
                if kind is not None:
                    own[f"self.{item.target.id}"] = kind
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                if base is not None and not item.name.startswith("_"):
                    self._override(item, base)
                self._function(item, own)

    def _override(self, item: ast.FunctionDef, base: type) -> None:
        """A method that the SDK calls has to exist there, with arguments of the same names."""
        self.used.append(f"{base.__name__}.{item.name}")
        method = getattr(base, item.name, None)
        if method is None:
            self.wrong.append(f"line {item.lineno}: {base.__name__} calls no {item.name}")
            return
        names = [argument.arg for argument in item.args.args[1:]]
        known = [parameters(text) for text, _ in signatures(method)]
        if known and names not in [[name for name, _ in found] for found in known]:
            self.wrong.append(
                f"line {item.lineno}: {base.__name__}.{item.name} is called with {known}, "
                f"not {names}"
            )

    def _annotated(self, annotation: ast.expr | None) -> type | None:
        text = "" if annotation is None else ast.unparse(annotation).strip("'\"")
        return self.class_of(text) if text.startswith("trt.") else None

    def _function(self, node: ast.FunctionDef, outer: dict[str, type]) -> None:
        known = dict(outer)
        for argument in (*node.args.args, *node.args.kwonlyargs):
            kind = self._annotated(argument.annotation)
            if kind is not None:
                known[argument.arg] = kind
        for statement in node.body:
            self._statement(statement, known)

    def _statement(self, node: ast.stmt, known: dict[str, type]) -> None:
        if isinstance(node, ast.FunctionDef):
            self._function(node, known)
            return
        if isinstance(node, ast.ClassDef):
            self._class(node, known)
            return
        nested: list[ast.stmt] = []
        for _, value in ast.iter_fields(node):
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, ast.stmt):
                    nested.append(item)
                elif isinstance(item, ast.ExceptHandler):
                    nested += item.body
                elif isinstance(item, ast.AST):
                    self._expression(item, known)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            kind = self._type(node.value, known)
            if isinstance(node, ast.AnnAssign):
                kind = self._annotated(node.annotation) or kind
            if len(targets) == 1 and isinstance(targets[0], ast.Tuple):
                values = getattr(node.value, "elts", [])
                for target, value in zip(targets[0].elts, values, strict=False):
                    self._note(target, self._type(value, known), known)
            else:
                for target in targets:
                    self._note(target, kind, known)
        for statement in nested:
            self._statement(statement, known)

    def _note(self, target: ast.expr, kind: type | None, known: dict[str, type]) -> None:
        name = ast.unparse(target)
        if kind is not None:
            known.setdefault(name, kind)

    def _type(self, node: ast.expr, known: dict[str, type]) -> type | None:
        text = ast.unparse(node)
        if text in known:
            return known[text]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "trt":
            found = getattr(self.sdk, node.attr, None)
            return found if isinstance(found, type) else None
        if isinstance(node, ast.Call):
            made = node.func
            if isinstance(made, ast.Attribute) and ast.unparse(made.value) == "trt":
                return self._type(made, known)
            owner = self._type(made.value, known) if isinstance(made, ast.Attribute) else None
            if owner is not None:
                for _, result in signatures(getattr(owner, made.attr, None)):
                    return self.class_of(result)
        return None

    def _expression(self, node: ast.AST, known: dict[str, type]) -> None:
        for item in ast.walk(node):
            if isinstance(item, ast.Attribute):
                self._attribute(item, known)
            elif isinstance(item, ast.Call):
                self._call(item, known)

    def _attribute(self, node: ast.Attribute, known: dict[str, type]) -> None:
        if ast.unparse(node.value) == "trt":
            self.used.append(f"trt.{node.attr}")
            if not hasattr(self.sdk, node.attr):
                self.wrong.append(f"line {node.lineno}: there is no trt.{node.attr}")
            return
        owner = self._type(node.value, known)
        if owner is not None:
            self.used.append(f"{owner.__name__}.{node.attr}")
            if not hasattr(owner, node.attr):
                self.wrong.append(f"line {node.lineno}: {owner.__name__} has no {node.attr}")

    def _call(self, node: ast.Call, known: dict[str, type]) -> None:
        made = node.func
        if not isinstance(made, ast.Attribute):
            return
        where = f"line {node.lineno}: {ast.unparse(made)}"
        if ast.unparse(made.value) == "trt":
            found = getattr(self.sdk, made.attr, None)
            if isinstance(found, type):
                if "__members__" not in vars(found):
                    self._fits(node, signatures(found.__init__), where)
            elif found is not None:
                text = found.__doc__ or ""
                free = [(m[2], m[3]) for m in FREE.finditer(text)]
                if inspect.isfunction(found):
                    free = [(str(inspect.signature(found))[1:-1], "")]
                self._fits(node, free, where)
            return
        owner = self._type(made.value, known)
        method = getattr(owner, made.attr, None) if owner is not None else None
        if method is not None:
            unbound = ast.unparse(made.value) == f"trt.{owner.__name__}"
            self._fits(node, signatures(method), where, skip=int(unbound))

    def _fits(
        self, node: ast.Call, known: list[tuple[str, str]], where: str, skip: int = 0
    ) -> None:
        """Whether some overload takes so many arguments (but ``skip``), with these names."""
        if not known:
            return
        given = len(node.args) - skip
        names = {keyword.arg for keyword in node.keywords}
        for text, _ in known:
            found = parameters(text)
            left = found[given:]
            fits = given <= len(found) and names <= {name for name, _ in left}
            if fits and all(optional or name in names for name, optional in left):
                return
        self.wrong.append(f"{where} takes {[text for text, _ in known]}, not what it is given")


def signatures(method: Any) -> list[tuple[str, str]]:
    """(parameters, result) of every overload that a docstring states, without self."""
    return [(m[2], m[3]) for m in SIGNATURE.finditer(getattr(method, "__doc__", None) or "")]


def parameters(text: str) -> list[tuple[str, bool]]:
    """Name, and whether it may be left out, of every parameter."""
    found, depth, part = [], 0, ""
    for letter in text + ",":
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            if part.strip():
                found.append((part.strip().split(":")[0].split("=")[0].strip(), "=" in part))
            part = ""
        else:
            part += letter
    return found


def main(module: str, *files: str) -> None:
    """Walk the files and print what was used and what is wrong."""
    walk = Walk(importlib.import_module(module))
    for name in files:
        with open(name) as file:
            before = len(walk.wrong)
            walk.walk(file.read())
            walk.wrong[before:] = [f"{name}: {text}" for text in walk.wrong[before:]]
    version = str(walk.sdk.__version__)
    sys.stdout.write(
        json.dumps({"version": version, "used": sorted(set(walk.used)), "wrong": walk.wrong})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
