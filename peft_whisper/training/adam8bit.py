"""bitsandbytes' AdamW8bit, without its wait for the card after each tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch


class AdamW8bit(bnb.optim.AdamW8bit):
    """The same steps and the same state.

    Kernels run one after another, so nothing has to wait for them, except where the state is paged
    and moves between host and card beside them.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every parameter that has a gradient."""
        if self.is_paged or closure is not None:
            return super().step(closure)
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()  # where a loaded state belongs
            self.initialized = True
        for number, group in enumerate(self.param_groups):
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.init_state(group, parameter, number, place)
                self.update_step(group, parameter, number, place)
        return None
