"""ResNets with stochastic depth for small images (paper, sections 3 and 4).

Conv3x3-BN-ReLU, three stages of n residual blocks with 16, 32 and 64 channels, global average pooling, Linear:
depth 6n + 2. Every block may close, those that halve the resolution too.
"""

import math
import warnings
from typing import Any

import torch
from timm.layers import create_classifier
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from sdzoo.models.blocks import ResidualBlock, parameters_of
from sdzoo.models.checkpointing import checkpoint_block
from sdzoo.models.digest import take_digest
from sdzoo.models.gates import Gates
from sdzoo.models.survival import Survival, describe, survival_probabilities
from sdzoo.models.tie import tie_zero_gradients

WIDTHS = (16, 32, 64)
DEFAULT_DROP_PATH_RATE = 0.5
MIN_SIZE = 8

SURVIVAL_KEY = "survival"


class SdResNet(nn.Module):
    """ResNet of the given depth whose residual blocks survive a training step with probability p_l.

    Input [N, in_chans, H, W] with H and W at least 8, output [N, num_classes]. In training mode one draw for the
    mini-batch decides which blocks are computed at all; in evaluation mode block l counts p_l times.

    Args:
        depth: 6n + 2 for n residual blocks a stage, at least 8.
        num_classes: Classes of the head; 0 leaves it out.
        in_chans: Channels of the images.
        global_pool: timm's pooling type, ``""`` for none.
        drop_rate: Dropout before the classifier, in [0, 1). The paper uses none.
        drop_path_rate: 1 - p_L, in [0, 1); 0 is constant depth. Default: that of the weights loaded, else 0.5.
        survival: ``"linear"`` decay (paper), ``"uniform"``, or one probability in (0, 1] for each of the L blocks.
        sampling: ``"bernoulli"`` (paper) or ``"systematic"`` (the number of open blocks is steady).
        gate_seed: Key of the gate sequence, in [0, 2**64).

    Raises:
        ValueError: An argument is outside its range.
        TypeError: An argument is unknown.
    """

    __jit_unused_properties__ = ("survival",)

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        survival: Survival = "linear",
        sampling: str = "bernoulli",
        gate_seed: int = 0,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth is {depth}, must be 6n + 2 with n at least 1: 8, 14, 20, ...")
        if num_classes < 0 or in_chans < 1:
            raise ValueError(f"num_classes is {num_classes}, must be at least 0; in_chans is {in_chans}, at least 1")
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate is {drop_rate}, must be in [0, 1)")
        self.blocks_per_stage = (depth - 2) // 6
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self._schedule_given = drop_path_rate is not None or survival != "linear"
        schedule = _schedule(3 * self.blocks_per_stage, drop_path_rate, survival)
        self.gates = Gates(schedule, sampling, gate_seed)

        self.conv1 = nn.Conv2d(in_chans, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = self._stage(0)
        self.layer2 = self._stage(1)
        self.layer3 = self._stage(2)
        self.feature_info = [
            {"num_chs": WIDTHS[0], "reduction": 1, "module": "act1"},
            {"num_chs": WIDTHS[0], "reduction": 1, "module": "layer1"},
            {"num_chs": WIDTHS[1], "reduction": 2, "module": "layer2"},
            {"num_chs": WIDTHS[2], "reduction": 4, "module": "layer3"},
        ]
        self.num_features = WIDTHS[-1]
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.init_weights()

    def _stage(self, stage: int) -> nn.Sequential:
        n = self.blocks_per_stage
        widths = [WIDTHS[max(stage - 1, 0)]] + [WIDTHS[stage]] * n
        strides = [1 if stage == 0 else 2] + [1] * (n - 1)
        survival = self.gates.survival[stage * n : (stage + 1) * n]
        return nn.Sequential(*map(ResidualBlock, widths[:-1], widths[1:], strides, survival))

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialise as the authors: Kaiming normal convolutions, BN weights uniform in (0, 1).

        PyTorch's BN weight of 1 makes an untrained ResNet-1202 overflow in evaluation mode.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight)
                nn.init.zeros_(module.bias)

    @property
    def survival(self) -> tuple[float, ...]:
        """Survival probabilities p_1..p_L in float64."""
        return self.gates.survival

    @torch.jit.ignore
    def set_survival(self, survival: tuple[float, ...]) -> None:
        """Replace the survival probabilities p_1..p_L, each in (0, 1]."""
        self.gates.survival = survival_probabilities(len(self.gates.survival), 1.0, survival)
        n = self.blocks_per_stage
        for index, stage in enumerate(self._stages()):
            for block, p_l in zip(stage, self.gates.survival[index * n :], strict=False):
                block.p_l.fill_(p_l)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's patterns for grouping parameters by stage (coarse) or block."""
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the open blocks in the backward instead of keeping their activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """Return the head, or its name."""
        head: nn.Module = self.fc
        return "fc" if name_only else head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one; ``num_classes=0`` leaves it out."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool_type)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.fc.to(self.conv1.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, in_chans, H, W] to logits [N, num_classes]."""
        logits: Tensor = self.forward_head(self.forward_features(x))
        return logits

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images [N, in_chans, H, W] to features [N, 64, ceil(ceil(H / 2) / 2), ceil(ceil(W / 2) / 2)]."""
        x = self.act1(self.bn1(self.conv1(x)))
        if self.training:
            if torch.jit.is_scripting():  # type: ignore[attr-defined]
                raise RuntimeError("stochastic depth cannot train under TorchScript: use --torchcompile")
            trained: Tensor = self._train_stages(x)[-1]
            return trained
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, drop out and classify; ``pre_logits`` stops before the classifier."""
        x = self.global_pool(x)
        x = F.dropout(x, p=self.drop_rate, training=self.training)
        logits: Tensor = x if pre_logits else self.fc(x)
        return logits

    def _stages(self) -> list[Any]:
        """Return the three stages, each an ``nn.Sequential`` of ``ResidualBlock``."""
        return [self.layer1, self.layer2, self.layer3]

    @torch.jit.unused
    @torch.compiler.disable(recursive=False)
    def _train_stages(self, x: Tensor, last: int = 3) -> list[Tensor]:
        """Run the open blocks of one draw up to a stage, 1 to 3; return the output of every stage.

        The pattern is data here, never code: torch.compile leaves this loop alone and compiles the blocks it calls.
        """
        gates = iter(self.gates.draw())
        outputs = []
        for stage in self._stages()[:last]:
            closed = []
            for block in stage:
                if not next(gates):
                    closed.append(block)
                    # ReLU(s(x)) is s(x): x comes from a ReLU and both shortcuts keep it non-negative.
                    x = block.shortcut(x)
                elif self.grad_checkpointing:
                    x = checkpoint_block(block, x)
                else:
                    x = block(x)
            x = tie_zero_gradients(x, parameters_of(closed))
            outputs.append(x)
        return outputs

    def _eval_stages(self, x: Tensor, last: int = 3) -> list[Tensor]:
        outputs = []
        for stage in self._stages()[:last]:
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return features and intermediates: stem (0) and the three stages (1, 2, 3), as timm's own models do."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}, must be 'NCHW'")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        stem = self.act1(self.bn1(self.conv1(x)))
        run_stages = self._train_stages if self.training else self._eval_stages
        outputs = [stem, *run_stages(stem, last if stop_early else 3)]
        intermediates = [outputs[index] for index in taken]
        if intermediates_only:
            return intermediates
        return outputs[-1], intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last index and, if asked, the head; the gate sequence stays the same."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        for name in ("layer1", "layer2", "layer3")[last:]:
            setattr(self, name, nn.Sequential())
        self.num_features = int(self.feature_info[last]["num_chs"])
        if prune_head or last < len(self.feature_info) - 1:
            self.reset_classifier(0, "")
        return list(taken)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Write the survival probabilities and the gate step beside the weights."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + SURVIVAL_KEY] = torch.tensor(self.survival, dtype=torch.float64)
        self.gates.save(destination, prefix)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the gate step and, unless the caller chose one, the schedule from the weights."""
        if prefix + "linear.weight" in state_dict:
            raise RuntimeError(
                "this checkpoint has a head named 'linear', so its shortcuts are not this network's "
                "(option A here pads after the channels and averages): it would compute something else"
            )
        take_digest(state_dict, "replace the file by an undamaged copy", prefix=prefix)
        survival = state_dict.pop(prefix + SURVIVAL_KEY, None)
        self.gates.load(state_dict, prefix)
        if survival is not None:
            self._take_schedule(tuple(survival.double().tolist()))
        elif any(key.startswith(prefix + "layer") for key in state_dict):
            warnings.warn(
                f"these weights carry no survival probabilities; keeping p_L = {self.survival[-1]:g}", stacklevel=2
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _take_schedule(self, survival: tuple[float, ...]) -> None:
        if len(survival) != len(self.survival):
            raise RuntimeError(
                f"these weights have {len(survival)} residual blocks, this network has {len(self.survival)}"
            )
        if not self._schedule_given or all(map(math.isclose, self.survival, survival)):
            self.set_survival(survival)
        else:
            warnings.warn(
                f"these weights were trained with {describe(survival)}; "
                f"using {describe(self.survival)} as the arguments say",
                stacklevel=2,
            )


def _schedule(L: int, drop_path_rate: float | None, survival: Survival) -> tuple[float, ...]:
    rate = DEFAULT_DROP_PATH_RATE if drop_path_rate is None else drop_path_rate
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate is {rate}, must be in [0, 1): it is 1 - p_L")
    schedule = survival_probabilities(L, 1 - rate, survival)
    if drop_path_rate is not None and not math.isclose(schedule[-1], 1 - rate):
        raise ValueError(f"drop_path_rate is {rate}, but survival ends with p_L = {schedule[-1]}; give one of them")
    return schedule
