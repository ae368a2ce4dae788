"""DropPaths of our own in a network: with the paper's test rule, or where a schedule needs one and timm has none."""

from collections.abc import Collection, Iterator

from timm.layers import DropPath, drop_path
from torch import Tensor, nn


class OwnDropPath(DropPath):
    """A DropPath that stands in for timm's, for an Identity or for none at all.

    In training it is timm's, per sample, for blocks that call it there. In evaluation it multiplies by p_l where the
    paper's rule holds (paper, section 3, equation 5).
    """

    def __init__(self, original: nn.Module | None, paper: bool) -> None:
        super().__init__(getattr(original, "drop_prob", 0.0), scale_by_keep=not paper)
        self.paper = paper
        # In a tuple the original is no child of this module: the state dict and the repr do not show it.
        self.original = (original,)

    def forward(self, x: Tensor) -> Tensor:
        """Drop rows in training; keep them, or keep p_l of them, in evaluation."""
        if self.paper and not self.training and self.drop_prob > 0.0:
            p_l: float = 1.0 - self.drop_prob
            return x * p_l
        dropped: Tensor = drop_path(x, self.drop_prob, self.training, self.scale_by_keep)
        return dropped

    def _get_name(self) -> str:
        return "DropPath"


def place(model: nn.Module, paper: bool, everywhere: bool) -> None:
    """Put an own DropPath in the place of each of timm's, and, if asked, where blocks could have one but have none."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, DropPath)}
    own: dict[nn.Module, OwnDropPath] = {}
    for module, name, child in list(_children(model, names)):
        if isinstance(child, DropPath):
            setattr(module, name, own.setdefault(child, OwnDropPath(child, paper)))
        elif everywhere:
            setattr(module, name, OwnDropPath(child, paper))


def take_back(model: nn.Module, but: Collection[nn.Module] = ()) -> None:
    """Put back what own DropPaths stand in for, except those in ``but``."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, OwnDropPath) and child not in but:
                _put_back(module, name, child)


def has_places(model: nn.Module) -> bool:
    """Whether timm would have put DropPaths somewhere in this network at a higher rate."""
    return any("drop_path" in name for module in model.modules() for name in _names(module))


def _children(model: nn.Module, names: set[str]) -> Iterator[tuple[nn.Module, str, nn.Module | None]]:
    for module in model.modules():
        for name in [name for name in _names(module) if name in names]:
            child = getattr(module, name)
            if child is None or isinstance(child, DropPath) or type(child) is nn.Identity:
                yield module, name, child


def _names(module: nn.Module) -> list[str]:
    return [*module._modules, *(name for name, value in vars(module).items() if value is None)]


def _put_back(module: nn.Module, name: str, own: OwnDropPath) -> None:
    (original,) = own.original
    if original is None:
        delattr(module, name)
    setattr(module, name, original)
