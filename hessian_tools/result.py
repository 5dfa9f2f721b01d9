"""What all results have in common: a short ``repr`` without tensors, HTML for notebooks, and a file without pickle.

``Result`` is the base of the dataclasses that the library's functions return. ``save`` writes one as a safetensors
file: its tensors by the names of their fields, and everything else as JSON in the file's header. ``load`` reads it, and
no code that a file names is ever run.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hessian_tools.validation import did_you_mean

FORMAT = "hessian-tools result 1"
# The length above which a ``repr`` shows only the first and the last entry of a list of names or numbers.
MAX_WORDS = 6
# The length above which a line of a ``repr`` is broken.
MAX_LINE = 110


class Result:
    """The base of every result, which is a frozen dataclass of tensors, numbers, words and further results."""

    _kinds: ClassVar[dict[str, type["Result"]]] = {}  # all results by the names of their classes, for ``load``

    def __init_subclass__(cls) -> None:
        Result._kinds[cls.__name__] = cls

    def __repr__(self) -> str:
        parts = (f"{field.name}={_words(getattr(self, field.name))}" for field in fields(self))  # type: ignore[arg-type]
        lines, line = [], f"{type(self).__name__}("
        for part in parts:
            if len(line) + len(part) > MAX_LINE and line.strip():
                lines.append(line.rstrip())
                line = "    "
            line += part + ", "
        return "\n".join([*lines, line.removesuffix(", ") + ")"])

    def _repr_html_(self) -> str:
        """The HTML of a result without a picture of its own."""
        return f"<pre>{escape(repr(self))}</pre>"

    def save(self, path: str | Path) -> Path:
        """Write the result as a safetensors file, which ``hessian_tools.load`` reads; returns the path.

        A file that exists is replaced, and none is left half-written. Tensors are stored in their own precision, from
        whatever device.
        """
        path = Path(path)
        tensors: dict[str, Tensor] = {}
        content = json.dumps(_encoded(self, "", tensors))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            save_file(tensors, partial, metadata={"format": FORMAT, "result": content})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Any:
    """The result that ``result.save(path)`` wrote, with its tensors on ``device``.

    Raises ValueError for a file that is not a result, is damaged, or holds a kind of result that this version does not
    know.

    >>> import tempfile
    >>> from hessian_tools.curvature import Spectrum
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load(Spectrum(torch.tensor([4.0, -3.0]), torch.tensor(1e-6)).save(f"{folder}/spectrum.safetensors"))
    Spectrum(values=2 in [-3, 4], error=1e-06, vectors=None, dense=None, num_matvecs=None)
    """
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe or a device might never end
        raise ValueError(f"{path} is a folder, a pipe or a device; give the file that result.save(path) wrote")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as e:
        raise ValueError(f"{path} is damaged, or is no safetensors file ({e}); save it again") from None
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result of hessian-tools; result.save(path) writes one")
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    try:
        result = _decoded(json.loads(header["result"]), tensors)
        if isinstance(result, Result):
            return result
        problem = f"it holds {_words(result)}"
    except Exception as e:  # whatever a changed file may lead to
        problem = str(e)
    raise ValueError(f"{path} is damaged, or was written by another version ({problem}); save it again")


def _encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value of a result as JSON. Its tensors are put into ``tensors``, under ``name`` or names that begin with it."""
    if isinstance(value, Tensor):
        # A copy, because a file cannot hold two tensors that share memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    prefix = f"{name}." if name else ""
    if isinstance(value, Result):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
        content = {key: _encoded(part, prefix + key, tensors) for key, part in parts.items()}
        return {"result": type(value).__name__, "fields": content}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_encoded(part, f"{prefix}{i}", tensors) for i, part in enumerate(value)]}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _encoded(part, f"{prefix}{key}", tensors) for key, part in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"the part {name or 'of the result'} is a {type(value).__name__}, which cannot be saved")


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value that :func:`_encoded` has written."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "result" in value:
        kind = value["result"]
        if kind not in Result._kinds:
            raise ValueError(f"a result of the kind {kind} is not known{did_you_mean(str(kind), Result._kinds)}")
        return Result._kinds[kind](**{name: _decoded(part, tensors) for name, part in value["fields"].items()})
    (container, content), *_ = value.items()
    if container == "dict":
        return {name: _decoded(part, tensors) for name, part in content.items()}
    return {"tuple": tuple, "list": list}[container](_decoded(part, tensors) for part in content)


def _words(value: Any) -> str:
    """A value in a few words: the shape and range of a tensor, or how many of its entries are true for booleans."""
    if isinstance(value, tuple | list) and any(isinstance(part, Tensor | Result) for part in value):
        return f"({', '.join(map(_words, value))})"
    if isinstance(value, tuple | list) and len(value) > MAX_WORDS:
        return f"{len(value)} from {value[0]!r} to {value[-1]!r}"
    if not isinstance(value, Tensor):
        return f"{value:.4g}" if isinstance(value, float) else repr(value)
    value = value.detach()
    shape = "x".join(map(str, value.shape))
    if value.ndim == 0:
        return f"{value.item():.4g}" if value.is_floating_point() else str(value.item())
    if value.dtype == torch.bool:
        return f"{int(value.sum())} of {value.numel()} true"
    finite = value[torch.isfinite(value)] if value.is_floating_point() else value
    if finite.numel() == 0:
        return f"{shape}, none finite" if value.numel() else f"{shape} (empty)"
    low, high = (float(end) for end in (finite.min(), finite.max()))
    lost = value.numel() - finite.numel()
    span = f"{low:.4g}" if low == high else f"[{low:.4g}, {high:.4g}]"
    return f"{shape} in {span}" + (f" ({lost} not finite)" if lost else "")
