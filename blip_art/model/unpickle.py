"""Reads a PyTorch .pth without letting it run code: tensors and plain containers, nothing else.

    checkpoint = load_pth("checkpoint_best_art.pth")
"""

from __future__ import annotations

import collections
import pickle
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


class RestrictedUnpickler(pickle.Unpickler):
    """Builds tensors, plain containers, and plain stand-ins for ruamel.yaml's containers."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.split(".")[0] in ("ruamel", "ruamel_yaml"):
            return next((kind for end, kind in _RUAMEL.items() if name.endswith(end)), _Inert)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise _Refused(f"{module}.{name}")


class _PickleModule:
    """What torch.load needs of a pickle module."""

    __name__ = __name__
    Unpickler = RestrictedUnpickler
    UnpicklingError = pickle.UnpicklingError

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return RestrictedUnpickler(file, **options).load()


def load_pth(path: PathLike) -> Any:
    """The content of a .pth on the CPU.

    Raises:
        UserError: absent, not a PyTorch file, cut short, or it names code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PickleModule)
    except FileNotFoundError as error:
        raise UserError(f"no weights at {path}") from error
    except _Refused as error:
        raise UserError(f"{path} is refused: it wants to run {error}, and weights are only "
                        "tensors; save it again as a state dict or .safetensors") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError,
            AttributeError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is no PyTorch checkpoint or is cut short ({reason}); "
                        "fetch it again") from error
