"""The digest: what was loaded is what was published.

Neither timm nor huggingface_hub notices weights of the right size with other bytes. So published weights carry one
more tensor, ``digest``, and the config beside them names the same number; every load compares. Training changes
weights without telling anyone, so a running model and its checkpoints carry no digest: publishing writes it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DIGEST_KEY = "digest"
NOTE = "sha256 of the weights: "  # the note of timm's pretrained_cfg that names the digest
UNCOUNTED = (DIGEST_KEY, "gate_step", "num_batches_tracked")  # last parts of names


def digest(state_dict: Mapping[str, Tensor]) -> str:
    """Return the sha256, in 64 hexadecimal digits, of everything an evaluation depends on.

    It covers names, dtypes, shapes and bytes of the parameters, of the BN running statistics and of the survival
    probabilities: in evaluation block l counts p_l times (paper, section 3), so the same parameters with another
    schedule are another network. Counters of training (``gate_step``, ``num_batches_tracked``) are left out, and so
    is the digest itself. Device, memory format and the order of the names do not matter.
    """
    hasher = hashlib.sha256()
    for name in sorted(state_dict):
        if name.rpartition(".")[2] not in UNCOUNTED:
            tensor = state_dict[name].detach().cpu().contiguous()
            hasher.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
            hasher.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def with_digest(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as they are published: dense, and with their digest as one more tensor, uint8 [32]."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    return tensors | {DIGEST_KEY: torch.tensor(list(bytes.fromhex(digest(tensors))), dtype=torch.uint8)}


def take_digest(state_dict: dict[str, Tensor], remedy: str, noted: str | None = None) -> None:
    """Remove the digest from tensors just read and compare it; without one there is nothing to compare.

    Args:
        state_dict: Tensors of one network, as read.
        remedy: What to do about a mismatch, for the error.
        noted: The digest that the config beside the weights names.

    Raises:
        RuntimeError: The tensors are not those that were published.
    """
    carried = state_dict.pop(DIGEST_KEY, None)
    published = [noted] if noted else []
    if carried is not None:
        published.append(bytes(carried.tolist()).hex())
    if not published:
        return
    found = digest(state_dict)
    for expected in published:
        if found != expected:
            raise RuntimeError(f"these weights have digest {found}, published was {expected}; {remedy}")


def check_published(state_dict: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Check the raw tensors of a pretrained source, before timm adapts head and stem (its filter function)."""
    cfg = model.pretrained_cfg
    repository = cfg.get("hf_hub_id")
    if cfg.get("file"):
        remedy = f"replace {cfg['file']} by an undamaged copy"
    else:
        remedy = f"fetch them again with `sdzoo pull {repository} --force`"
    take_digest(state_dict, remedy, noted_digest(cfg))
    return state_dict


def noted_digest(cfg: Mapping[str, Any]) -> str | None:
    """Return the digest among the notes of timm's pretrained_cfg."""
    return next((note.removeprefix(NOTE) for note in cfg.get("notes") or () if note.startswith(NOTE)), None)


def forget_digest(cfg: dict[str, Any]) -> None:
    """Take the digest out of the notes: it was that of the weights loaded, training will change them."""
    notes = tuple(note for note in cfg.pop("notes", None) or () if not note.startswith(NOTE))
    if notes:
        cfg["notes"] = notes
