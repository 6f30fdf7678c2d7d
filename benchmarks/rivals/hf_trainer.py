"""The common stack, fair: Seq2SeqTrainer and PEFT as the documentation of both teaches.

    python benchmarks/rivals/hf_trainer.py recipes/demo_cpu.yaml [--precision bf16] [--updates 69]

It learns what a recipe of ours learns: the same weights, clips, adapters, clips per update,
schedule and number of updates. Log-mels are padded to 30 s and made once, up front, as
`dataset.map(prepare_dataset)` does. Two known faults of such scripts are repaired, since they cost
it words, not time: the doubled start-of-transcript (transformers#29973), by explicit decoder
inputs, and the loss under accumulation, by `compute_loss_func`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import RecipeError, run
from peft_whisper.model.base import quiet_transformers
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.session import Session, open_session
from peft_whisper.terminal import Terminal
from peft_whisper.training.optim import scale_at

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import Seq2SeqTrainer, WhisperProcessor

    from peft_whisper.data.audit import Clip

PRECISIONS = ("fp32", "bf16")
MICRO = 4
EVALUATED = 32
MASKED = -100  # a label that carries no loss
Example = dict[str, Any]  # input_features (mels, 3000) float32; labels, a list of tokens


def main(argv: list[str] | None = None) -> int:
    """Train as the recipe says, decode its test split, print the word error rate."""
    made = argparse.ArgumentParser(prog="benchmarks/rivals/hf_trainer.py", description=__doc__)
    made.add_argument("recipe", nargs="?", default="recipes/demo_cpu.yaml")
    made.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of its arithmetic")
    made.add_argument("--updates", type=int, help="as many as the recipe says, if left out")
    made.add_argument("--micro", type=int, default=MICRO, help="clips that pass at once")
    made.add_argument("--into", type=Path, help="a folder for the adapter")
    args = made.parse_args(argv)
    console = Terminal()
    session = open_session(load_recipe(args.recipe), console)
    from peft_whisper.scoring.metrics import word_errors_metric

    with quiet_transformers():
        processor = make_processor(session)
        model = make_model(session)
        updates = args.updates or planned_updates(session)
        train = prepare(session.splits.train, processor, session.recipe.data.channel)
        trainer = make_trainer(session, model, train, args.precision, updates, args.micro)
        trainer.train()
        if args.into:
            model.save_pretrained(args.into)
        test = prepare(session.splits.test, processor, session.recipe.data.channel)
        texts = transcribe(trainer, processor, test, session.recipe.evaluation.max_tokens)
    said = [clip.text for clip in session.splits.test]
    score = word_errors_metric().compute(predictions=texts, references=said)
    console.print(f"WER {100 * score['wer']:.1f} % after {updates} updates in {args.precision}")
    return 0


def planned_updates(session: Session) -> int:
    """Updates of the recipe's whole run."""
    from peft_whisper.training.loop import updates_of

    return updates_of(session.recipe.training, session.layout(1), len(session.splits.train))


def make_processor(session: Session) -> WhisperProcessor:
    """Feature extractor and tokenizer, told the language where the model knows several."""
    from transformers import WhisperProcessor

    chosen = session.recipe.data
    spoken = {"language": chosen.language, "task": chosen.task}
    return WhisperProcessor.from_pretrained(
        session.base.folder, **(spoken if session.labels.multilingual else {})
    )


def make_model(session: Session) -> PeftModel:
    """The base with LoRA on the recipe's layers; its random matrices are those of our run."""
    import torch
    from peft import LoraConfig, get_peft_model

    adapter = session.adapter()
    if adapter is None:
        raise RecipeError("adapter.method: none: this benchmark compares adapters; write lora")
    whisper = session.base.load(session.recipe.base.dtype)
    if session.labels.multilingual:
        whisper.generation_config.language = session.recipe.data.language
        whisper.generation_config.task = session.recipe.data.task
    torch.manual_seed(session.recipe.seed)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.pattern(),
    )
    return get_peft_model(whisper, config)


def prepare(clips: Sequence[Clip], processor: WhisperProcessor, channel: str) -> list[Example]:
    """Each clip's log-mel, padded to 30 s, and its labels, from start-of-transcript to the end."""
    from peft_whisper.data.audio import load_wave

    examples = []
    for clip in clips:
        wave = load_wave(clip.audio, channel)
        heard = processor.feature_extractor(wave, sampling_rate=16_000, return_tensors="np")
        labels = processor.tokenizer(" " + clip.text.strip()).input_ids
        examples.append({"input_features": heard.input_features[0], "labels": labels})
    return examples


def collate(examples: Sequence[Example], pad: int) -> dict[str, torch.Tensor]:
    """Stack log-mels; feed all tokens but the last, ask for all but the first.

    Returns input_features (b, mels, 3000), decoder_input_ids and labels (b, t).
    """
    import numpy as np
    import torch

    longest = max(len(example["labels"]) for example in examples) - 1
    fed = torch.full((len(examples), longest), pad)
    labels = torch.full((len(examples), longest), MASKED)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example["labels"])
        fed[row, : len(tokens) - 1] = tokens[:-1]
        labels[row, : len(tokens) - 1] = tokens[1:]
    heard = torch.from_numpy(np.stack([example["input_features"] for example in examples]))
    return {"input_features": heard, "decoder_input_ids": fed, "labels": labels}


def collate_sound(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Log-mels alone (b, mels, 3000): without labels `predict` computes no loss besides."""
    import numpy as np
    import torch

    return {
        "input_features": torch.from_numpy(np.stack([one["input_features"] for one in examples]))
    }


def token_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross-entropy summed over tokens, divided by their number in the whole effective batch."""
    from torch.nn import functional as F

    logits = outputs.logits.flatten(0, 1)
    return F.cross_entropy(logits, labels.flatten(), reduction="sum") / num_items_in_batch


def make_trainer(
    session: Session,
    model: PeftModel,
    train: list[Example],
    precision: str,
    updates: int,
    micro: int,
    callbacks: Sequence[Any] = (),
) -> Seq2SeqTrainer:
    """A Seq2SeqTrainer of the recipe's schedule; `micro` clips pass at once."""
    import torch
    from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments

    rules = session.recipe.training
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, rules.learning_rate, weight_decay=rules.weight_decay, fused=True
    )
    share = partial(scale_at, updates=updates, training=rules)
    arguments = Seq2SeqTrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=-(-session.layout(1).clips_per_update // micro),
        per_device_eval_batch_size=EVALUATED,
        max_steps=updates,
        max_grad_norm=rules.max_grad_norm,
        bf16=precision == "bf16",
        predict_with_generate=True,
        remove_unused_columns=False,  # PEFT's wrapper hides the names of forward's arguments
        label_names=["labels"],
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
        seed=session.recipe.seed,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        data_collator=partial(collate, pad=session.labels.end),
        compute_loss_func=token_loss,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # what it would print is measured by who calls
    return trainer


def transcribe(
    trainer: Seq2SeqTrainer,
    processor: WhisperProcessor,
    examples: list[Example],
    max_tokens: int | None,
) -> list[str]:
    """Texts by `predict_with_generate`, in the order of `examples`."""
    trainer.data_collator = collate_sound
    limit = {} if max_tokens is None else {"max_new_tokens": max_tokens}
    ids = trainer.predict(examples, **limit).predictions
    return processor.batch_decode(ids, skip_special_tokens=True)


if __name__ == "__main__":
    run(main)
