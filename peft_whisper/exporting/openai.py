"""The file that openai-whisper's load_model reads: its ModelDimensions and a state dict.

That program reads nothing else than torch's own format, a zip of raw tensors with a pickled index.
It is written here for it, and never read by this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peft_whisper.exporting.names import dimensions, tensors

if TYPE_CHECKING:
    from peft_whisper.model.base import Base

FILE = "model.pt"


def write_openai(model: Base, folder: Path, kind: str) -> None:
    """Write model.pt into `folder`, its tensors as `kind`: "float16" or "float32"."""
    import torch

    dtype = getattr(torch, kind)
    state = {name: tensor.to(dtype) for name, tensor in tensors(model)}
    torch.save({"dims": dimensions(model), "model_state_dict": state}, folder / FILE)
