"""How to use what a card describes, in the programs that people use."""

from __future__ import annotations

from dataclasses import dataclass

ADAPTER, MODEL = "adapter", "model"
CTRANSLATE2, WHISPER_CPP, OPENAI = "ctranslate2 model", "whisper.cpp model", "openai-whisper model"

USE_ADAPTER = """import soundfile
from peft import PeftModel
from transformers import WhisperForConditionalGeneration, WhisperProcessor

base = WhisperForConditionalGeneration.from_pretrained({base!r}, dtype="float32")
model = PeftModel.from_pretrained(base, {where!r})
processor = WhisperProcessor.from_pretrained({where!r})
wave, rate = soundfile.read("clip.wav")  # mono, 16 kHz
features = processor(wave, sampling_rate=rate, return_tensors="pt").input_features
print(processor.batch_decode(model.generate({call}), skip_special_tokens=True)[0])
"""
USE_MODEL = """import soundfile
from transformers import WhisperForConditionalGeneration, WhisperProcessor

model = WhisperForConditionalGeneration.from_pretrained({where!r})
processor = WhisperProcessor.from_pretrained({where!r})
wave, rate = soundfile.read("clip.wav")  # mono, 16 kHz
features = processor(wave, sampling_rate=rate, return_tensors="pt").input_features
print(processor.batch_decode(model.generate({call}), skip_special_tokens=True)[0])
"""
# Both fill what a recording lacks of 30 s with zeros in its features; training heard silence there.
FASTER = """import numpy
from faster_whisper import WhisperModel, decode_audio

wave = decode_audio("talk.mp3")
wave = numpy.pad(wave, (0, -len(wave) % 480_000))  # silence up to 30 s, as in training
segments, _ = WhisperModel("faster").transcribe(wave{spoken})
print("".join(segment.text for segment in segments))
"""
OPENAI_WHISPER = """import numpy
import whisper

wave = whisper.load_audio("talk.mp3")
wave = numpy.pad(wave, (0, -len(wave) % 480_000))  # silence up to 30 s, as in training
print(whisper.load_model("openai/model.pt").transcribe(wave{spoken})["text"])
"""


@dataclass(frozen=True)
class Shown:
    """What a card describes: its kind, where it is found, and the base as others find it.

    `where` is a Hub id, or on this machine the folder beside the card.
    """

    kind: str
    where: str
    base: str
    language: str | None  # of the speech; None where a base hears it by itself, or knows English
    task: str
    on_hub: bool

    @property
    def here(self) -> str:
        """The folder that holds it, once what the Hub holds is downloaded."""
        return self.where.rpartition("/")[2] if self.on_hub else self.where


def use(shown: Shown) -> list[str]:
    """The card's section on use: transformers (and peft), this project, and three programs.

    Of an exported model only how to fetch it: its own page says the rest.
    """
    fetch = f"hf download {shown.where} --local-dir {shown.here}\n" if shown.on_hub else ""
    if shown.kind in (CTRANSLATE2, WHISPER_CPP, OPENAI):
        return ["## Use\n", _block("bash", fetch)]
    peft = shown.kind == ADAPTER
    call = "input_features=features"
    if shown.language:
        call += f", language={shown.language!r}, task={shown.task!r}"
    code = USE_ADAPTER if peft else USE_MODEL
    code = code.replace("{base!r}", repr(shown.base)).replace("{call}", call)
    return [
        "## Use\n",
        f"With transformers{' and peft' if peft else ''}:\n",
        _block("python", code.replace("{where!r}", repr(shown.where))),
        "With peft_whisper, recordings of any length, as text, subtitles or JSON:\n",
        _block("bash", f"{fetch}peft-whisper transcribe {shown.here} talk.mp3"),
        *_exported(shown),
    ]


def _exported(shown: Shown) -> list[str]:
    """The programs that read a format of their own."""
    # Each export is tried before it is kept; the run's own test clips are not with the model.
    tried = " --clips my_speech/" if shown.on_hub else ""
    export = "\n".join(
        f"python -m peft_whisper.export {shown.here} --to {to} --into {into}{tried}"
        for to, into in (("ctranslate2", "faster"), ("whispercpp", "cpp"), ("openai", "openai"))
    )
    spoken = f", language={shown.language!r}, task={shown.task!r}" if shown.language else ""
    cpp = f"whisper-cli -m cpp/ggml-model.bin{f' -l {shown.language}' if shown.language else ''}"
    cpp += " -tr" if spoken and shown.task == "translate" else ""
    return [
        "Other programs need it in their own format first:\n",
        _block("bash", export),
        "Then with faster-whisper:\n",
        _block("python", FASTER.replace("{spoken}", spoken)),
        "With whisper.cpp (16 kHz WAV):\n",
        _block("bash", f"{cpp} -f talk.wav"),
        "With openai-whisper:\n",
        _block("python", OPENAI_WHISPER.replace("{spoken}", spoken)),
    ]


def _block(language: str, code: str) -> str:
    return f"```{language}\n{code.rstrip()}\n```\n"
