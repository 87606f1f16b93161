"""A CUDA device without a GPU: tensors that say `cuda:0`, compute on the CPU, and refuse what a real device refuses.

    with fake_cuda():
        model.to("cuda")                       # parameters and buffers say cuda:0
        signal = lambda rollouts, scores: Rewards.sequence(on_cuda(values), rollouts)
        system(rollouts)                       # MixedDevices where a real device would raise

Code that was never run on a GPU goes wrong in few ways: a tensor made on the CPU meets one of the model's, a CUDA index meets
a CPU tensor, `.numpy()` is called on what lies on the device, a generator belongs to another device. Each of these raises
`MixedDevices` (or the `TypeError` torch raises) here. What a real device allows is allowed: a CPU number without dimensions
beside CUDA tensors, CPU indices into a CUDA tensor, `.item()`, `.tolist()`, `copy_` and assignment of slices across devices.

How: `FakeCudaTensor` wraps a CPU tensor and a `TorchFunctionMode` runs every public torch call on what is wrapped, so
autograd, modules, optimisers and transformers models work as they do on the CPU, with the same numbers.

Left out: streams, memory, kernels without a CPU twin, a second device (all are `cuda:0`), dtypes that differ by device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")

# Calls that take no CPU number without dimensions beside CUDA tensors: they are no elementwise arithmetic.
_STRICT = frozenset((
    "cat", "concat", "stack", "hstack", "vstack", "gather", "scatter", "scatter_", "scatter_add", "scatter_add_",
    "scatter_reduce", "scatter_reduce_", "index_add", "index_add_", "index_copy", "index_copy_", "index_select", "index_fill",
    "index_fill_", "bucketize", "searchsorted", "isin", "mm", "bmm", "matmul", "linear", "embedding", "addmm", "baddbmm",
    "einsum", "equal", "allclose", "take_along_dim", "masked_scatter", "masked_scatter_", "scaled_dot_product_attention",
))  # fmt: skip
_READS = frozenset((  # answers are Python values, the same wherever the tensor lies
    "__len__", "dim", "ndimension", "size", "numel", "nelement", "is_floating_point", "is_complex", "is_signed",
    "is_contiguous", "stride", "storage_offset", "tolist", "item", "element_size", "__float__", "__int__", "__bool__",
    "__index__", "__complex__", "__contains__", "__format__", "__hash__", "data_ptr", "register_hook", "is_inference",
    "is_nonzero", "has_names", "is_same_size", "_is_view",
))  # fmt: skip
_NO_NUMPY = (
    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
)


class MixedDevices(RuntimeError):
    """Tensors of two devices met where a real device does not allow it."""


class FakeCudaTensor(Tensor):
    """A tensor that says it is on `cuda:0`. Made by `on_cuda`, by `.to("cuda")`, or by a call with `device="cuda"`.

    Attributes:
        held: the CPU tensor that computes.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> FakeCudaTensor:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
            requires_grad=False,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FakeCudaTensor({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeCudaTensor:
        copied = _wrapped(copy.deepcopy(self.held, memo))
        if getattr(self, "_is_param", False):
            copied._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = copied
        return copied

    def __iter__(self) -> Iterator[Any]:
        return iter([_wrapped(row) for row in self.held])

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(_NO_NUMPY)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotImplementedError(f"{func} went around the fake device; run it inside `with fake_cuda():`")


def on_cuda(value: Any) -> Any:
    """The value with every tensor in it (nested lists, tuples and dictionaries too) on the fake device; modules in place."""
    if isinstance(value, nn.Module):
        with fake_cuda():
            return value.to(CUDA)
    return tree_map(lambda leaf: _wrapped(leaf) if isinstance(leaf, Tensor) else leaf, value)


def on_cpu(value: Any) -> Any:
    """The same tensors as plain CPU ones."""
    return tree_map(_plain, value)


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """A block in which a device `cuda:0` exists; yields it.

    `torch.cuda.is_available()` stays False: code that asks for a device by itself behaves as on this machine. Random draws
    on the device come from the CPU's generator.
    """

    def rng_state(device: Any = "cuda") -> Tensor:
        return torch.default_generator.get_state()

    def set_rng_state(state: Tensor, device: Any = "cuda") -> None:
        torch.default_generator.set_state(_plain(state))

    with (
        mock.patch.object(torch.cuda, "_lazy_init", lambda: None),
        mock.patch.object(torch.cuda, "get_rng_state", rng_state),
        mock.patch.object(torch.cuda, "set_rng_state", set_rng_state),
        mock.patch.object(nn.Module, "_apply", _apply),
        _Everywhere(),
    ):
        yield CUDA


def _apply(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """`Module._apply` for tensors that cannot change their device in place; a weight used twice stays one weight."""
    moved: dict[int, tuple[Tensor, Tensor]] = fn.__dict__.setdefault(
        "moved", {}
    )  # one `.to` has one fn for all modules
    for child in self.children() if recurse else ():
        child._apply(fn)
    for key, parameter in self._parameters.items():
        if parameter is None:
            continue
        if id(parameter) not in moved:
            with torch.no_grad():
                applied = fn(parameter)
            if isinstance(parameter, FakeCudaTensor) or isinstance(applied, FakeCudaTensor):
                new = parameter if applied is parameter else nn.Parameter(applied, parameter.requires_grad)
            else:
                new = parameter
                new.data = applied
            if parameter.grad is not None:
                with torch.no_grad():
                    new.grad = fn(parameter.grad)
            moved[id(parameter)] = (parameter, new)
        self._parameters[key] = moved[id(parameter)][1]  # type: ignore[assignment]
    for key, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[key] = fn(buffer)
    return self


class _Everywhere(TorchFunctionMode):
    """Catches calls that name the device without holding a tensor of it: `torch.zeros(3, device="cuda")`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


# -- one call --------------------------------------------------------------------------------------------------------------


def _call(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run a torch function on what its arguments hold, with the result on the device where a real one would have it."""
    name = getattr(func, "__name__", str(func))
    if name in _SPECIAL:
        return _SPECIAL[name](func, args, kwargs)
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    fakes = [leaf for leaf in tensors if isinstance(leaf, FakeCudaTensor)]
    named = kwargs.get("device")
    if not fakes and not _is_cuda(named):
        return func(*args, **kwargs)
    if name in _READS:
        return func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
    if name != "copy_" and not name.startswith(("new_", "__get__", "__set__")):
        _refuse_mixed(name, [leaf for leaf in tensors if not isinstance(leaf, FakeCudaTensor)], fakes)
    _check_generator(name, kwargs.get("generator"), bool(fakes) or _is_cuda(named))
    plain = tree_map(_plain, kwargs)
    if named is not None:
        plain["device"] = CPU
    plain.pop("pin_memory", None)
    result = func(*tree_map(_plain, args), **plain)
    if name.endswith("_") and not name.endswith("__") and isinstance(args[0], Tensor):
        return args[0]
    if "out" in kwargs and kwargs["out"] is not None:
        return kwargs["out"]
    there = _is_cuda(named) if named is not None else bool(fakes)
    return tree_map(lambda leaf: _wrapped(leaf) if isinstance(leaf, Tensor) else leaf, result) if there else result


def _refuse_mixed(name: str, cpu: list[Tensor], fakes: list[FakeCudaTensor]) -> None:
    if not fakes or not cpu:
        return
    met = cpu if name in _STRICT else [tensor for tensor in cpu if tensor.dim()]
    if met:
        shapes = [tuple(tensor.shape) for tensor in met], [tuple(fake.held.shape) for fake in fakes]
        raise MixedDevices(
            f"{name}: expected all tensors to be on the same device, but found cpu {shapes[0]} and cuda:0 {shapes[1]}"
        )


def _check_generator(name: str, generator: torch.Generator | None, there: bool) -> None:
    if there and generator is not None and generator.device.type == "cpu":
        raise MixedDevices(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")


def _wrapped(tensor: Tensor) -> FakeCudaTensor:
    return tensor if isinstance(tensor, FakeCudaTensor) else FakeCudaTensor(tensor)


def _plain(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, FakeCudaTensor) else leaf


def _is_cuda(device: Any) -> bool:
    if device is None or isinstance(device, bool):
        return False
    return isinstance(device, int) or torch.device(device).type == "cuda"


# -- calls with rules of their own ---------------------------------------------------------------------------------------------


def _to(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Tensor.to(device | dtype | other, ...), which moves between the devices."""
    tensor, device, dtype = args[0], kwargs.get("device"), kwargs.get("dtype")
    other = kwargs.get("other")
    for given in args[1:]:
        if isinstance(given, Tensor):
            other = given
        elif isinstance(given, torch.dtype):
            dtype = given
        elif isinstance(given, str | torch.device) or (isinstance(given, int) and not isinstance(given, bool)):
            device = given
    if isinstance(other, Tensor):
        device, dtype = (CUDA if isinstance(other, FakeCudaTensor) else CPU), other.dtype
    here = isinstance(tensor, FakeCudaTensor)
    there = here if device is None else _is_cuda(device)
    if not here and not there:
        return func(*args, **kwargs)
    held = _plain(tensor)
    rest = [a for a in args[1:] if isinstance(a, bool)]
    if device is not None and torch.device(device).type == "meta":
        return func(held, *args[1:], **kwargs)
    options = {k: v for k, v in kwargs.items() if k in ("copy", "memory_format")}
    moved = held.to(dtype or held.dtype, *rest[:2], **options)
    if moved is held and here == there:
        return tensor
    if moved is held:
        moved = held.clone()  # on another device it is another tensor
    return _wrapped(moved) if there else moved


def _cpu(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return args[0].held.clone() if isinstance(args[0], FakeCudaTensor) else args[0]


def _cuda(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return args[0] if isinstance(args[0], FakeCudaTensor) else _wrapped(args[0].clone())


def _make(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """torch.tensor, torch.as_tensor and torch.asarray: from numbers, or from a tensor that stays where it is."""
    kwargs = dict(kwargs)
    device = kwargs.pop("device", None)
    source = args[0] if args else kwargs.get("data", kwargs.get("obj"))
    there = isinstance(source, FakeCudaTensor) if device is None else _is_cuda(device)
    if not there and not isinstance(source, FakeCudaTensor) and device is not None:
        kwargs["device"] = device
    made = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
    if isinstance(source, FakeCudaTensor) and made is source.held:
        return source if there else made.clone()
    return _wrapped(made) if there else made


def _index(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """tensor[index] and tensor[index] = value."""
    tensor, index = args[0], args[1]
    indices = [leaf for leaf in tree_flatten(index)[0] if isinstance(leaf, Tensor)]
    far = [
        leaf for leaf in indices if isinstance(leaf, FakeCudaTensor) and (leaf.held.dim() or leaf.dtype == torch.bool)
    ]
    if far and not isinstance(tensor, FakeCudaTensor):
        raise MixedDevices("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    if len(args) < 3:
        result = _plain(tensor)[tree_map(_plain, index)]
        return _wrapped(result) if isinstance(tensor, FakeCudaTensor) else result
    value = args[2]
    listed = any(isinstance(part, list) for part in (index if isinstance(index, tuple) else (index,)))
    scattered = bool(indices) or listed
    differ = isinstance(value, Tensor) and isinstance(value, FakeCudaTensor) != isinstance(tensor, FakeCudaTensor)
    if scattered and differ and value.dim():
        raise MixedDevices("index_put_: the values are on another device than the tensor they are put into")
    _plain(tensor)[tree_map(_plain, index)] = _plain(value)
    return None


def _index_put(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """index_put(tensor, indices, values): CPU indices are allowed, values of another device are not."""
    tensor = args[0]
    indices = args[1] if len(args) > 1 else kwargs["indices"]
    values = args[2] if len(args) > 2 else kwargs["values"]
    _index(func, (tensor, tuple(indices)), {})
    if isinstance(values, FakeCudaTensor) != isinstance(tensor, FakeCudaTensor) and values.dim():
        raise MixedDevices("index_put: the values are on another device than the tensor they are put into")
    result = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
    if getattr(func, "__name__", "").endswith("_"):
        return tensor
    return _wrapped(result) if isinstance(tensor, FakeCudaTensor) else result


def _get(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A property of a tensor."""
    tensor = args[0]
    if not isinstance(tensor, FakeCudaTensor):
        return func(*args, **kwargs)
    name = getattr(getattr(func, "__self__", None), "__name__", "")
    fixed = {"device": CUDA, "is_cuda": True, "is_cpu": False}
    if name in fixed:
        return fixed[name]
    found = func(tensor.held, *args[1:], **kwargs)
    return _wrapped(found) if isinstance(found, Tensor) else found


def _set(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensor, value = args[0], args[1]
    name = getattr(getattr(func, "__self__", None), "__name__", "")
    if isinstance(value, Tensor) and isinstance(value, FakeCudaTensor) != isinstance(tensor, FakeCudaTensor):
        raise MixedDevices(f"a tensor's {name} is set to one on another device")
    return func(_plain(tensor), _plain(value))


def _no_numpy(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], FakeCudaTensor):
        raise TypeError(_NO_NUMPY)
    return func(*args, **kwargs)


def _requires_grad(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    func(*tree_map(_plain, args), **kwargs)
    return args[0]


def _cast(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """.float() and its like: the tensor itself where nothing changes."""
    if not isinstance(args[0], FakeCudaTensor):
        return func(*args, **kwargs)
    cast = func(args[0].held, **kwargs)
    return args[0] if cast is args[0].held else _wrapped(cast)


_SPECIAL: dict[str, Callable[[Any, Sequence[Any], dict[str, Any]], Any]] = {
    "to": _to,
    "cpu": _cpu,
    "cuda": _cuda,
    "tensor": _make,
    "as_tensor": _make,
    "asarray": _make,
    "__getitem__": _index,
    "__setitem__": _index,
    "index_put": _index_put,
    "index_put_": _index_put,
    "__get__": _get,
    "__set__": _set,
    "numpy": _no_numpy,
    "__array__": _no_numpy,
    "requires_grad_": _requires_grad,
    **dict.fromkeys(("float", "double", "half", "bfloat16", "long", "int", "bool", "type_as"), _cast),
    "_parse_to": lambda func, args, kwargs: func(*args, **kwargs),  # reads arguments of Module.to, makes nothing
    "__deepcopy__": lambda func, args, kwargs: (
        FakeCudaTensor.__deepcopy__(args[0], args[1]) if isinstance(args[0], FakeCudaTensor) else func(*args)
    ),
    "get_device": lambda func, args, kwargs: 0 if isinstance(args[0], FakeCudaTensor) else func(*args, **kwargs),
    "__repr__": lambda func, args, kwargs: repr(args[0]) if not isinstance(args[0], FakeCudaTensor) else f"FakeCudaTensor({args[0].held!r})",
}  # fmt: skip
