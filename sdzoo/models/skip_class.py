"""A module that takes on a subclass of its own class: same name, same weights, another forward.

Nothing wraps the module and nothing is added to it, so its state dict, its hooks and its repr stay as they were. The
subclass is made once per class; pickles and copies name the class it was made from.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

Enter = Callable[..., Any]


class Adapted(nn.Module):
    """What every adapted module can do besides its own: be pickled, copied, scripted and restored."""

    enters: Mapping[str, Enter] = {}
    """Methods that training replaces: name -> ``enter(module, original method, args, kwargs)``."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle by the original class and the roles it was given."""
        return _revive, _roles(type(self)), self.__dict__

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the original with the same weights: torch.jit.script knows evaluation mode only."""
        if self.training:
            raise RuntimeError("torch.jit.script works in evaluation mode only here: call .eval() first")
        tensors = [*self.parameters(), *self.buffers()]
        original = copy.deepcopy(self, {id(tensor): tensor for tensor in tensors})
        for module in original.modules():
            restore(module)
        return original


def adapt(module: nn.Module, role: type[Adapted]) -> None:
    """Give a module the subclass of its class that plays the role."""
    module.__class__ = _subclass(type(module), role)


def restore(module: nn.Module) -> None:
    """Give an adapted module its own class back; leave any other as it is."""
    if isinstance(module, Adapted):
        module.__class__, *_ = _roles(type(module))


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class a module had before it was adapted."""
    original: type[nn.Module] = _roles(type(module))[0]
    return original


_subclasses: dict[tuple[type, type], type[Adapted]] = {}


def _subclass(original: type[nn.Module], role: type[Adapted]) -> type[Adapted]:
    if (original, role) not in _subclasses:
        _subclasses[original, role] = _make_subclass(original, role)
    return _subclasses[original, role]


def _make_subclass(original: type[nn.Module], role: type[Adapted]) -> type[Adapted]:
    names = ("__module__", "__qualname__", "__doc__")
    namespace = {name: getattr(original, name) for name in names}
    methods = {
        name: _method(getattr(original, name), enter) for name, enter in role.enters.items() if hasattr(original, name)
    }
    return type(original.__name__, (role, original), {**namespace, **methods})


def _method(original: Callable[..., Any], enter: Enter) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            return enter(self, original, args, kwargs)
        return original(self, *args, **kwargs)

    return method


def _roles(adapted: type[nn.Module]) -> tuple[Any, ...]:
    """Return the original class and the roles it was given, first to last."""
    if not issubclass(adapted, Adapted):
        return (adapted,)
    role, original = adapted.__bases__
    return (*_roles(original), role)


def _revive(original: type[nn.Module], *roles: type[Adapted]) -> nn.Module:
    for role in roles:
        original = _subclass(original, role)
    return original.__new__(original)
