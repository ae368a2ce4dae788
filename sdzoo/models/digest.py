"""The digest: what was loaded is what was published.

Neither timm nor huggingface_hub notices weights of the right size with other bytes. So published weights
carry one more tensor, ``digest``, the config beside them names the same number, and every load compares.
Training changes weights without telling anyone, so a running model and its checkpoints carry no digest:
publishing writes it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DIGEST_KEY = "digest"
NOTE = "sha256 of the weights: "  # begins the note of timm's pretrained_cfg that names the digest
UNCOUNTED = (DIGEST_KEY, "gate_step", "num_batches_tracked")  # last parts of names


def digest(state_dict: Mapping[str, Tensor]) -> str:
    """Return the sha256, in 64 hexadecimal digits, of everything an evaluation depends on.

    It covers names, dtypes, shapes and bytes of the parameters, of the BN running statistics and of the
    survival probabilities: in evaluation block l counts p_l times (paper, section 3), so the same parameters
    with another schedule are another network. Counters of training (``gate_step``, ``num_batches_tracked``)
    are left out, and so is the digest itself. Device, memory format and order of the names do not matter.
    """
    hasher = hashlib.sha256()
    for name in sorted(state_dict):
        if name.rpartition(".")[2] not in UNCOUNTED:
            tensor = state_dict[name].detach().cpu().contiguous()
            hasher.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
            hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def with_digest(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as they are published: dense, with their digest as one more tensor, uint8 [32]."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    return tensors | {DIGEST_KEY: torch.tensor(list(bytes.fromhex(digest(tensors))), dtype=torch.uint8)}


def take_digest(state_dict: dict[str, Tensor], remedy: str, noted: str | None = None, prefix: str = "") -> None:
    """Remove the digest from tensors just read and compare; without one there is nothing to compare.

    Args:
        state_dict: Tensors as read.
        remedy: What to do about a mismatch, for the error.
        noted: The digest that the config beside the weights names.
        prefix: Begins the names that belong to the network.

    Raises:
        RuntimeError: The tensors are not those that were published.
    """
    carried = state_dict.pop(prefix + DIGEST_KEY, None)
    published = {noted, None if carried is None else bytes(carried.to(torch.uint8).tolist()).hex()} - {None}
    if not published:
        return
    ours = {name.removeprefix(prefix): state_dict[name] for name in state_dict if name.startswith(prefix)}
    if published != {found := digest(ours)}:
        expected = ", ".join(sorted(str(number) for number in published - {found}))
        raise RuntimeError(f"these weights have digest {found}, published was {expected}: {remedy}")


def check_published(state_dict: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Check the tensors of a pretrained source before timm adapts stem and head (its filter function)."""
    cfg = model.pretrained_cfg
    if cfg.get("file"):
        remedy = f"replace {cfg['file']} by an undamaged copy"
    else:
        remedy = f"fetch them again with `sdzoo pull {cfg.get('hf_hub_id')} --force`"
    take_digest(state_dict, remedy, noted_digest(cfg))
    return state_dict


def noted_digest(cfg: Mapping[str, Any]) -> str | None:
    """Return the digest that the notes of timm's pretrained_cfg name, None where they name none."""
    return next((note.removeprefix(NOTE) for note in cfg.get("notes") or () if note.startswith(NOTE)), None)


def forget_digest(model: Any) -> None:
    """Take the digest out of a network's notes: it is that of the weights loaded, and training will change them."""
    cfg = model.pretrained_cfg
    notes = tuple(note for note in cfg.pop("notes", None) or () if not note.startswith(NOTE))
    if notes:
        cfg["notes"] = notes
