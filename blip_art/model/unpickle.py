"""Reads a PyTorch .pth without letting it run code: tensors and plain containers, nothing else.

    checkpoint = load_pth("checkpoint_best_art.pth")
"""

from __future__ import annotations

import collections
import pickle
import struct
import types
import zipfile
from pathlib import Path
from typing import Any

import torch

from blip_art.errors import UserError
from blip_art.files import PathLike

# What a checkpoint may name besides storages, which torch.load resolves by itself.
_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    # How pickle protocol 2 makes an instance; harmless when every class it can be given is.
    ("copyreg", "_reconstructor"): lambda cls, base, state: cls() if base is object else cls(state),
    # `__builtin__` is what pickle protocol 2 calls it.
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__")
       for kind in (object, set, frozenset, dict, list, tuple, int, float, str, bool)},
}


class _Stateless:
    """Takes the state a pickle hands it and forgets it."""

    def __setstate__(self, state: Any) -> None:
        """Line numbers, comments and quoting styles of the YAML the configuration came from."""


class _Inert(_Stateless):
    def __init__(self, *args: Any) -> None:
        """Stands for anything of ruamel.yaml that is no value."""


class _Map(_Stateless, collections.OrderedDict):
    pass


class _Seq(_Stateless, list):
    pass


class _Float(_Stateless, float):
    pass


class _Int(_Stateless, int):
    pass


class _Text(_Stateless, str):
    pass


# ruamel.yaml keeps the layout of a file in subclasses of plain types; by what their names end in.
_RUAMEL = {"Map": _Map, "Seq": _Seq, "Float": _Float, "Int": _Int, "Boolean": _Int,
           "String": _Text, "ordereddict": _Map}


class _Refused(pickle.UnpicklingError):
    """The file names something that is neither tensor nor container."""


class _Bounded:
    """A file that is not asked for more than it has: Python makes room before it reads."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._size = file, size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > self._size:
            raise pickle.UnpicklingError(f"{count} bytes in a file of {self._size}")
        content: bytes = self._file.read(count)
        return content


class RestrictedUnpickler(pickle._Unpickler):
    """Builds tensors, plain containers, and plain stand-ins for ruamel.yaml's containers.

    pickle's Python class, as torch's own weights_only reader: the one in C gives memory to whatever
    a file says, 2 GB for ten bytes. A checkpoint has some thousand instructions, so it is fast.
    """

    sizes: dict[str, int]  # bytes in the file by storage key
    file_size: int  # no storage has more, where sizes are not known (before torch 1.6)

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(_Bounded(file, self.file_size), **options)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.split(".")[0] in ("ruamel", "ruamel_yaml"):
            return next((kind for end, kind in _RUAMEL.items() if name.endswith(end)), _Inert)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise _Refused(f"{module}.{name}")

    @property
    def persistent_load(self) -> Any:
        """How the unpickler gets a storage."""
        return self._load_storage

    @persistent_load.setter
    def persistent_load(self, load: Any) -> None:
        self._load = load  # torch sets its own

    def _load_storage(self, pid: Any) -> Any:
        """torch believes the number of elements, and would read behind the end of the record."""
        _, kind, key, _, count, *_ = pid
        room = self.sizes.get(str(key), 0) if self.sizes else self.file_size
        if not 0 <= count * torch._utils._element_size(kind.dtype) <= room:
            raise pickle.UnpicklingError(f"{count} elements in a storage of {room} bytes")
        return self._load(pid)


# What torch, zipfile and pickle raise for bytes that make no sense.
_DAMAGED = (pickle.UnpicklingError, zipfile.BadZipFile, struct.error, RuntimeError, EOFError,
            ValueError, LookupError, AttributeError, TypeError, ArithmeticError, AssertionError,
            MemoryError, OSError)


def load_pth(path: PathLike, device: torch.device | str = "cpu", verified: bool = False) -> Any:
    """The content of a .pth on `device`.

    Args:
        verified: the bytes were compared with a digest, so checksums need not be.

    Raises:
        UserError: absent, not a PyTorch file, cut short, damaged, or it names code.
    """
    if not Path(path).exists():
        raise UserError(f"no weights at {path}")
    if not Path(path).is_file():  # a pipe would be waited for
        raise UserError(f"{path} is no file; give the weights' own path")
    try:
        module = _pickle_module(_storage_sizes(path, verified), Path(path).stat().st_size)
        return torch.load(path, map_location=device, weights_only=False, pickle_module=module)
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except _Refused as error:
        raise UserError(f"{path} is refused: it wants to run {error}, and weights are only "
                        "tensors; save it again as a state dict or .safetensors") from error
    except torch.OutOfMemoryError:
        raise  # a GPU too small does not make the file wrong
    except _DAMAGED as error:
        reason = (str(error) or type(error).__name__).split("\n")[0]
        raise UserError(f"{path} is no PyTorch checkpoint or is cut short ({reason}); "
                        "fetch it again") from error


def _storage_sizes(path: PathLike, verified: bool) -> dict[str, int]:
    """Bytes of each storage by key; {} for the format before torch 1.6, which is no zip."""
    with open(path, "rb") as file:
        begin = file.read(4)
    if begin[:1] == b"\x80":
        return {}
    if begin != b"PK\x03\x04":  # torch would also unpack a tar
        raise pickle.UnpicklingError("neither zip nor pickle")
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise zipfile.BadZipFile("two records of one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise zipfile.BadZipFile("compressed records")
        if any(name.endswith("/constants.pkl") for name in members):
            raise zipfile.BadZipFile("TorchScript, which is a program")
        bad = None if verified else archive.testzip()
        if bad:
            raise zipfile.BadZipFile(f"the checksum of {bad} is wrong")
    return {name.rpartition("/data/")[2]: member.file_size for name, member in members.items()
            if "/data/" in name} or {"": 0}


def _pickle_module(sizes: dict[str, int], file_size: int) -> Any:
    """What torch.load needs of a pickle module."""
    unpickler = type("Unpickler", (RestrictedUnpickler,),
                     {"sizes": sizes, "file_size": file_size})
    return types.SimpleNamespace(
        __name__=__name__, Unpickler=unpickler, UnpicklingError=pickle.UnpicklingError,
        load=lambda file, **options: unpickler(file, **options).load())
