"""A recipe's model made ready to train: base, adapter, recomputation, optimizer.

The one way from a recipe to an Updater: training runs it, and the memory tracer runs it too, on
tensors without storage, so what is planned is what will be trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft_whisper.session import Session

if TYPE_CHECKING:
    from accelerate import Accelerator

    from peft_whisper.training.updater import Updater


def make_updater(session: Session, accelerator: Accelerator) -> tuple[Updater, Any]:
    """Load the base, attach what is trained, and build the optimizer around it."""
    import torch

    from peft_whisper.model.adapters import FirstBackwardCheck, attach, train_everything
    from peft_whisper.model.attention import join_attention
    from peft_whisper.model.compiled import compile_layers
    from peft_whisper.model.recompute import recompute
    from peft_whisper.training.updater import Updater

    recipe, adapter = session.recipe, session.adapter()
    compiled = recipe.training.compile
    held = recipe.base
    whisper: Any = session.base.load(held.dtype, held.quantize, accelerator.device)
    torch.manual_seed(recipe.seed)  # LoRA's A matrices are random
    if adapter is None:
        model: Any = train_everything(whisper)
    else:
        model = attach(whisper, adapter, own=not compiled)
    recompute(whisper, recipe.training.recompute)
    if compiled:
        compile_layers(whisper)
    else:
        join_attention(whisper, recipe.training.attention == "tiled")
    check = FirstBackwardCheck(whisper, adapter)
    return Updater(accelerator, model, recipe.training, check, session.first_layer()), model
