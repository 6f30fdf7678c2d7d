"""peft's LoRA layer, with the adapter computed before the base's product."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor


class Linear(PeftLinear):
    """LoRA beside a frozen linear layer; files, merging and all else are peft's.

    With the adapter first, a layer that is computed again in backward can stop before its last
    and widest product (fc2), whose output nothing asks for. The sum is one kernel, not two.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        active = self.active_adapters
        usual = len(active) == 1 and active[0] in self.lora_A and not (args or kwargs)
        if not usual or self.merged or self.disable_adapters or active[0] in self.lora_variant:
            return super().forward(x, *args, **kwargs)
        (name,) = active
        down, up = self.lora_A[name], self.lora_B[name]
        dtype: Any = down.weight.dtype
        seen = self.lora_dropout[name](self._cast_input_dtype(x, dtype))
        change = up(down(seen))
        base = self.base_layer(x)
        return base.add(change.to(base.dtype), alpha=self.scaling[name])
