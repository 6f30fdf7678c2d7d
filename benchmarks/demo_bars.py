"""What `make demo` must have reached: each promise with its figure; exit code 1 if one is broken.

    python benchmarks/demo_bars.py outputs/demo_cpu

The adapter is also loaded by plain peft and transformers, as its card says, and decodes the test
clips padded to 30 s with `generate`: its WER must be the program's own within one point.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from peft_whisper.environment import cores
from peft_whisper.errors import run
from peft_whisper.model.base import quiet_transformers
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.terminal import Terminal, progress

CLIPS, SHARE, POINTS = 80, 1 / 3, 0.01
BATCH = 16


def main(argv: list[str] | None = None) -> int:
    """Check one finished demo run."""
    made = argparse.ArgumentParser(prog="benchmarks/demo_bars.py", description=__doc__)
    made.add_argument("run", type=Path, nargs="?", default=Path("outputs/demo_cpu"))
    args = made.parse_args(argv)
    console = Terminal()
    metrics = json.loads((args.run / "metrics.json").read_text(encoding="utf-8"))
    with quiet_transformers():
        plain = plain_wer(args.run, console)
    checks = [*bars(metrics), same_elsewhere(metrics, plain)]
    for met, said in checks:
        console.print(f"{'ok    ' if met else 'BROKEN'}  {said}")
    return 0 if all(met for met, _ in checks) else 1


def bars(metrics: dict[str, Any]) -> list[tuple[bool, str]]:
    """Enough clips, and a third of the base's errors at both contexts."""
    found = [(metrics["tuned"]["clips"] >= CLIPS, f"{metrics['tuned']['clips']} held-out prompts")]
    for suffix, context in (("", "trimmed"), ("_full_context", "full 30 s")):
        base, tuned = (metrics[f"{system}{suffix}"] for system in ("base", "tuned"))
        said = ", ".join(
            f"{name} WER {100 * score['wer']:.2f} % ({ends(score)})"
            for name, score in (("base", base), ("tuned", tuned))
        )
        ratio = tuned["wer"] / base["wer"]
        found.append((ratio <= SHARE, f"{context}: {said}: {ratio:.2f} of the base's"))
    return found


def ends(score: dict[str, Any]) -> str:
    low, high = score["wer_interval"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def same_elsewhere(metrics: dict[str, Any], plain: float) -> tuple[bool, str]:
    """Whether plain peft and transformers give the program's WER."""
    own = metrics["tuned_full_context"]["wer"]
    said = f"plain peft + transformers, generate at 30 s: WER {100 * plain:.2f} %, ours"
    return abs(plain - own) <= POINTS, f"{said} {100 * own:.2f} %"


def plain_wer(folder: Path, console: Console) -> float:
    """WER of the adapter on the run's test clips, with nothing of this package but the counting."""
    import soundfile
    import torch
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from peft_whisper.scoring.metrics import word_errors_metric

    torch.set_num_threads(cores())
    recipe = load_recipe(folder / "recipe.yaml")
    manifest = Path(str(recipe.data.test.manifest))
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    base = WhisperForConditionalGeneration.from_pretrained(recipe.base.model, dtype="float32")
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    processor = WhisperProcessor.from_pretrained(folder / "adapter")
    texts: list[str] = []
    with progress(console, "decoding with plain peft and transformers", len(rows)) as task:
        for at in range(0, len(rows), BATCH):
            part = rows[at : at + BATCH]
            waves = [soundfile.read(manifest.parent / row["audio"])[0] for row in part]
            heard = processor(waves, sampling_rate=16_000, return_tensors="pt").input_features
            with torch.inference_mode():
                ids = model.generate(input_features=heard, max_new_tokens=64)
            texts += processor.batch_decode(ids, skip_special_tokens=True)
            task.advance(len(part))
    said = [row["text"] for row in rows]
    scored = word_errors_metric().compute(predictions=texts, references=said)
    return float(scored["wer"])


if __name__ == "__main__":
    run(main)
