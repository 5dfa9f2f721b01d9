"""Finds an object by its import path or in a file; finding it runs the code of its module."""

import os
import sys
from collections.abc import Iterable
from hashlib import sha256
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from types import FunctionType, ModuleType
from typing import Any

from hessian_tools.validation import did_you_mean


def import_object(target: str) -> Any:
    """The object that ``"package.module:name"`` or ``"path/to/file.py:name"`` names; its module is run.

    A module is looked for on Python's path and then in the working folder. The path of a file is relative to the
    working folder, too.

    Raises ValueError if there is no such module, file or name, or if the module raises an error.

    >>> import_object("math:floor")(1.5)
    1
    """
    path, _, name = target.rpartition(":")
    if not (path and name.isidentifier()):
        raise ValueError(f"{target!r} is not an import path; write package.module:name or path/to/file.py:name")
    module = import_module_of(target)
    if not hasattr(module, name):
        # The message names what the user may have meant: a similar name or, without one, the classes and functions that
        # the module defines itself. Private names, imported modules and, in the second case, all imports are left out.
        named = {n: v for n, v in vars(module).items() if not n.startswith("_") and not isinstance(v, ModuleType)}
        own = [n for n, v in named.items() if isinstance(v, type | FunctionType) and v.__module__ == module.__name__]
        hint = did_you_mean(name, named) or f"; it has {', '.join(own[:8]) or 'no class and no function of its own'}"
        raise ValueError(f"{target}: module {path} has no {name!r}{hint}")
    return getattr(module, name)


def import_module_of(target: str) -> ModuleType:
    """The module of the object that ``target`` names; its errors are those of :func:`import_object`."""
    path = target.rpartition(":")[0]
    return _from_file(path, target) if path.endswith(".py") else _from_path(path, target)


def source_digest(target: str) -> str:
    """SHA-256 (hex) of the file in which an object is defined; equal digests mean equal code.

    It does not cover other files that this file imports. It is empty if the module has no file.
    """
    file = import_module_of(target).__file__
    return sha256(Path(file).read_bytes()).hexdigest() if file else ""


def one_line(error: BaseException) -> str:
    """The type of an error and the first line of its message, cut to 300 characters."""
    parts: Iterable[str] = (type(error).__name__, *str(error).strip().splitlines()[:1])
    text = ": ".join(parts)
    return text if len(text) <= 300 else f"{text[:297]}..."


def place_in_file_of(function: object, error: BaseException) -> str:
    """The words of a message for the last line in a function's file that is in an error's traceback; "" if none is."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == file]
    return f" in line {lines[-1]} of {file}" if lines else ""


def _from_file(path: str, target: str) -> ModuleType:
    """The module in a file, which is run unless it has been imported before."""
    # Path.expanduser and Path.resolve raise errors for a path such as ~nobody/file.py, where there is no such user, and
    # for a symbolic link to itself. The functions of os.path do not, and the path is then refused as one of no file.
    file = Path(os.path.realpath(os.path.expanduser(path)))
    if not file.is_file():
        raise ValueError(f"{target}: there is no file {file}; put it there, or correct its path in the study")
    # The name is that of the file's path, so that two files of one name are two modules, and each is run once.
    name = f"{file.stem}_{sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # a name that ends with .py always has a loader
    module = sys.modules[name] = module_from_spec(spec)  # pickling and dataclasses look a module up here
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[name]
        raise ValueError(f"{target}: running {file} failed: {one_line(e)}") from e
    return module


def _from_path(path: str, target: str) -> ModuleType:
    """Import a module from Python's path or from the working folder, which is not on the path of a console script."""
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.append(folder)  # at the end, so that no file in this folder hides an installed package
    try:
        return import_module(path)
    except ModuleNotFoundError as e:
        # e.name is the module that was not found. It is ``path`` itself or a package that should hold it, or else
        # another module, which the code of ``path`` imports.
        if e.name is None or not f"{path}.".startswith(f"{e.name}."):
            raise ValueError(f"{target}: importing {path} failed: {e}") from e
        raise ValueError(
            f"{target}: there is no module {e.name!r} in {folder} or on Python's path; start from the folder"
            " that holds it, or add that folder to PYTHONPATH"
        ) from e
    except Exception as e:
        raise ValueError(f"{target}: importing {path} failed: {one_line(e)}") from e
    finally:
        if added:
            sys.path.remove(folder)
