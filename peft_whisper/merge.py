"""Fold an adapter into its base: one plain Whisper that needs no peft.

python -m peft_whisper.merge outputs/demo_cpu/adapter --into merged/
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import StateError, run
from peft_whisper.files import check_new_folder, staged_folder, write_json
from peft_whisper.terminal import Terminal

if TYPE_CHECKING:
    import torch

    from peft_whisper.model.base import Base

# Folding reorders fp32 sums; beyond this the merged model is not the adapter's.
LARGEST_DIFFERENCE = 1e-2


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="peft_whisper.merge",
        description="Fold a LoRA adapter into the base it was trained on, in fp32 and from the "
        "base's own unquantised weights. The logits of adapter and merged model are compared "
        "before anything is kept.",
        epilog="The result loads with WhisperForConditionalGeneration.from_pretrained(INTO).",
    )
    made.add_argument("adapter", type=Path, help="the adapter/ folder of a run")
    made.add_argument("--into", type=Path, required=True, help="folder to write; must be new")
    made.add_argument(
        "--base",
        metavar="MODEL",
        help="Hub id or folder of the base where it has moved; its fingerprint must be the same",
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from peft_whisper.model.find import base_of
    from peft_whisper.model.trained import read_facts

    args = parser().parse_args(argv)
    facts = read_facts(args.adapter)
    if facts["method"] == "none":
        raise StateError(f"{args.adapter} holds a full model: there is no adapter to merge.")
    if facts["method"] == "merged":
        raise StateError(f"{args.adapter} is already merged: it loads as a plain Whisper.")
    check_new_folder(args.into)
    base = base_of(facts, args.base)
    difference = merge(args.adapter, base, args.into)
    Terminal().print(
        f"merged into {args.into} (fp32): logits differ from the adapter's by at most "
        f"{difference:.2e}, base fingerprint {base.fingerprint[:19]}... as trained on"
    )
    return 0


def merge(adapter: Path, base: Base, target: Path) -> float:
    """Write the merged model to `target`; returns the largest difference of its logits.

    Raises StateError where the base is another one, where weights are not finite, or where the
    saved model's logits are not the adapter's; `target` is then not written.
    """
    from transformers import WhisperForConditionalGeneration

    from peft_whisper.model.base import quiet_transformers
    from peft_whisper.model.trained import check_trained, load_tuned, read_facts
    from peft_whisper.training.checkpoint import copy_processor

    check_trained(adapter, read_facts(adapter), base.fingerprint)
    tuned = load_tuned(base.load("float32"), base.fingerprint, adapter).eval()
    before = probe(tuned, base)
    whole = tuned.merge_and_unload()
    broken = [name for name, p in whole.named_parameters() if not p.isfinite().all()]
    if broken:
        raise StateError(f"{adapter}: weights are not finite after merging: {broken[:5]}")
    with staged_folder(target) as staging, quiet_transformers():
        whole.save_pretrained(staging)
        copy_processor(base, staging)
        write_json(staging / "peft_whisper.json", read_facts(adapter) | {"method": "merged"})
        read: Any = WhisperForConditionalGeneration.from_pretrained(
            staging, use_safetensors=True, trust_remote_code=False
        )
        saved = read.eval()
        difference = float((probe(saved, base) - before).abs().max())
        if not difference <= LARGEST_DIFFERENCE:
            raise StateError(
                f"logits of the merged model differ from the adapter's by {difference:.3g}, more "
                f"than {LARGEST_DIFFERENCE}; nothing was written"
            )
    return difference


def probe(model: Any, base: Base) -> torch.Tensor:
    """Logits (2, 8, vocabulary) on two seconds-long noises, the same for every model."""
    import torch

    config = base.config()
    noise = torch.Generator().manual_seed(1)
    frames = 2 * config.max_source_positions
    mel = torch.randn(2, config.num_mel_bins, frames, generator=noise)
    tokens = torch.randint(config.vocab_size, (2, 8), generator=noise)
    with torch.inference_mode():
        return model(input_features=mel, decoder_input_ids=tokens).logits


if __name__ == "__main__":
    run(main)
