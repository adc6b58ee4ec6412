"""A sha256 of live objects: of what a computation with them depends on, on every machine alike.

Tensors count by dtype, shape and bytes; modules by class, weights, buffers and settings; functions
and classes of the user by their bytecode, defaults, closures and the globals that they read, so
that an edited function is another one; what comes from an installed package or from Python counts
by its name. Bytecode differs between versions of Python, and so do the fingerprints of functions.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metabench.core.errors import SettingError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis))
_TORCH = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
_CODE = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"})
"""Of a class: what changes nothing that it computes."""
_BUILT_IN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
)
_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_INSTALLED = ("site-packages", "dist-packages")


def fingerprint(**parts: Any) -> str:
    """The sha256 of named objects, in hexadecimal.

    Raises SettingError, with the way to it, for an object that cannot be told from others of its
    class: an open file, a generator of random numbers.
    """
    return _Walk().of(parts, "").hex()


class _Walk:
    """One walk through objects; each is looked at once, and cycles are cut."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[Any, bytes]] = {}
        """Keeps what it has seen alive: an id is an object's only while it lives."""
        self.open: list[int] = []

    def of(self, value: Any, where: str) -> bytes:
        """The digest of a value; ``where`` says how it was reached, for errors."""
        if isinstance(value, _PLAIN):
            return _sum(type(value).__name__, repr(value))
        if isinstance(value, _TORCH):
            return _sum("torch", repr(value))
        if id(value) in self.known:
            return self.known[id(value)][1]
        if id(value) in self.open:
            return _sum("again", str(len(self.open) - self.open.index(id(value))))
        self.open.append(id(value))
        try:
            found = self.inside(value, where)
        finally:
            self.open.pop()
        self.known[id(value)] = value, found
        return found

    def inside(self, value: Any, where: str) -> bytes:
        """The digest of a value that is made of others."""
        if isinstance(value, Tensor):
            return _tensor(value, where)
        if isinstance(value, np.ndarray) and value.dtype != object:
            data = np.ascontiguousarray(value)
            return _sum("array", str(data.dtype), repr(data.shape), data.tobytes())
        if isinstance(value, np.generic):
            return _sum("number", str(value.dtype), value.tobytes())
        if isinstance(value, enum.Enum):
            return _sum("enum", self.of(type(value), where), value.name)
        if isinstance(value, nn.Module):
            return self.module(value, where)
        if isinstance(value, types.ModuleType):
            return self.imported(value, where)
        if isinstance(value, type):
            return self.type(value, where)
        if code := self.code(value, where):
            return code
        if isinstance(value, Mapping):
            return _sum(type(value).__name__, *self.items(value, where))
        if isinstance(value, set | frozenset):
            return _sum("set", *sorted(self.of(v, where) for v in value))
        if isinstance(value, weakref.ReferenceType):  # recurrent modules have some of their weights
            return _sum("reference", self.of(value(), where))
        if isinstance(value, list | tuple):
            each = (self.of(v, f"{where}[{i}]") for i, v in enumerate(value))
            return _sum(type(value).__name__, *each)
        return self.instance(value, where)

    def items(self, value: Mapping[Any, Any], where: str) -> Iterable[bytes]:
        """Of keys and values in their order."""
        for key, item in value.items():
            at = f"{where}.{key}" if where else str(key)
            yield self.of(key, at)
            yield self.of(item, at)

    def module(self, value: nn.Module, where: str) -> bytes:
        """A network: what nn.Module itself keeps counts by its meaning, the rest as it is."""
        ordinary = vars(nn.Module())
        own = {k: v for k, v in vars(value).items() if k not in ordinary}
        hooks = {
            k: list(v.values())
            for k, v in vars(value).items()
            if k in ordinary and k.endswith("_hooks") and v
        }
        state = {
            "training": value.training,
            "parameters": {k: (v, _moves(v)) for k, v in value._parameters.items()},
            "buffers": dict(value._buffers),
            "modules": dict(value._modules),
            "own": dict(sorted(own.items())),
            "hooks": dict(sorted(hooks.items())),
        }
        return _sum("module", self.of(type(value), where), *self.items(state, where))

    def imported(self, value: types.ModuleType, where: str) -> bytes:
        """A Python module: by name where it is installed, else its file, and the files of what it
        imports of that kind."""
        if _is_installed(value.__name__):
            return _sum("import", value.__name__)
        file = getattr(value, "__file__", None)
        if file is None or not Path(file).is_file():
            raise SettingError(f"{where}: module {value.__name__!r} has no file to know it by")
        names = {getattr(v, "__module__", None) for v in vars(value).values()}
        names |= {v.__name__ for v in vars(value).values() if isinstance(v, types.ModuleType)}
        used = [sys.modules.get(name) for name in sorted(n for n in names if isinstance(n, str))]
        more = [m for m in used if m not in (None, value) and not _is_installed(m.__name__)]
        return _sum("file", Path(file).read_bytes(), *(self.of(m, where) for m in more))

    def type(self, value: type, where: str) -> bytes:
        """A class: by name where it is installed, else by what it defines."""
        if _is_installed(value.__module__):
            return _sum("class", value.__module__, value.__qualname__)
        own = {k: v for k, v in vars(value).items() if k not in _CODE and not _is_made(k, v)}
        bases = [self.of(base, where) for base in value.__bases__]
        inside = self.items(dict(sorted(own.items())), value.__qualname__)
        return _sum("class", value.__qualname__, *bases, *inside)

    def code(self, value: Any, where: str) -> bytes | None:
        """Anything that is called: functions, methods, what wraps them; None for other objects."""
        if isinstance(value, types.FunctionType):
            return self.function(value, where)
        if isinstance(value, types.CodeType):
            return self.bytecode(value, {}, where)
        if isinstance(value, types.MethodType):
            return _sum("method", self.of(value.__func__, where), self.of(value.__self__, where))
        if isinstance(value, types.CellType):
            return self.of(value.cell_contents, where)
        if isinstance(value, functools.partial):
            made = (value.func, value.args, value.keywords)
            return _sum("partial", *(self.of(part, where) for part in made))
        if isinstance(value, staticmethod | classmethod):
            return _sum(type(value).__name__, self.of(value.__func__, where))
        if isinstance(value, property):
            parts = (value.fget, value.fset, value.fdel)
            return _sum("property", *(self.of(part, where) for part in parts))
        if isinstance(value, _BUILT_IN):
            owner = getattr(value, "__self__", None)
            bound = owner is not None and not isinstance(owner, types.ModuleType | type)
            named = _sum("builtin", str(getattr(value, "__module__", "")), value.__qualname__)
            return _sum(named, self.of(owner, where)) if bound else named
        return None

    def function(self, value: types.FunctionType, where: str) -> bytes:
        """By name where it is installed, else by what it does."""
        if _is_installed(value.__module__ or ""):
            name = f"{value.__module__}.{value.__qualname__}"
            closed = self.of(value.__closure__, where) if value.__closure__ else b""
            return _sum("function", name, closed)
        at = f"{where} (function {value.__qualname__})"
        return _sum(
            "function",
            self.bytecode(value.__code__, value.__globals__, at),
            self.of(value.__defaults__, at),
            self.of(value.__kwdefaults__, at),
            self.of(value.__closure__, at),
        )

    def bytecode(self, code: types.CodeType, names: Mapping[str, Any], where: str) -> bytes:
        """Instructions, constants, and the values of the globals that are read."""
        read = {i.argval for i in dis.get_instructions(code) if i.opname in _LOADS}
        seen = {n: self.of(names[n], f"{where}, global {n}") for n in sorted(read) if n in names}
        consts = [
            self.bytecode(c, names, where) if isinstance(c, types.CodeType) else self.of(c, where)
            for c in code.co_consts
        ]
        plain = (code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags)
        words = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        return _sum(
            "code", code.co_code, code.co_exceptiontable, repr(plain), repr(words), *consts,
            *(part for name, digest in seen.items() for part in (name, digest)),
        )  # fmt: skip

    def instance(self, value: Any, where: str) -> bytes:
        """Another object: its class, and what it would be built from again."""
        try:
            made = value.__reduce_ex__(4)
        except Exception as error:
            raise SettingError(
                f"{where}: nothing tells this {type(value).__name__} from another one ({error}); "
                "give tensors, numbers, functions or modules"
            ) from None
        if isinstance(made, str):
            return _sum("named", self.of(type(value), where), made)
        build, args, *rest = made
        state, *several = [*rest, None, None, None][:3]
        each = [list(x) if x is not None else None for x in several]
        parts = (build, args, state, *each)
        return _sum("object", *(self.of(part, where) for part in parts))


def _sum(*parts: str | bytes) -> bytes:
    """The sha256 of parts whose lengths count."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        h.update(len(data).to_bytes(8, "big"))
        h.update(data)
    return h.digest()


def _tensor(value: Tensor, where: str) -> bytes:
    try:
        flat = value.detach().cpu().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise SettingError(f"{where}: this tensor has no plain bytes ({error})") from None
    return _sum("tensor", str(value.dtype), repr(tuple(value.shape)), data.tobytes())


def _moves(value: Tensor | None) -> bool:
    return value is not None and value.requires_grad


def _is_made(name: str, value: Any) -> bool:
    """Whether Python makes a class's attribute by itself."""
    made = ("__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl")
    return name in made or isinstance(value, types.GetSetDescriptorType)


@functools.cache
def _stdlib() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib")
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in names)


def _is_installed(module: str) -> bool:
    """Whether a module belongs to Python, to an installed package or to metabench itself."""
    if module.partition(".")[0] in ("metabench", *sys.builtin_module_names):
        return True
    there = sys.modules.get(module)
    if module in ("__main__", "__mp_main__"):
        return False
    file = getattr(there, "__file__", None)
    if file is None:  # a part of a compiled library is of its package
        package = module.rpartition(".")[0]
        return module in sys.stdlib_module_names or (bool(package) and _is_installed(package))
    path = Path(file).resolve()
    if any(part in _INSTALLED for part in path.parts):
        return True
    return any(path.is_relative_to(folder) for folder in _stdlib())
