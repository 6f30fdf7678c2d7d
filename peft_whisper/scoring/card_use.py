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
FASTER = """from faster_whisper import WhisperModel

segments, _ = WhisperModel({where!r}).transcribe("talk.mp3"{spoken})
print(" ".join(segment.text for segment in segments))
"""
OPENAI_WHISPER = """import whisper

print(whisper.load_model({where!r}).transcribe("talk.mp3"{spoken})["text"])
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
    """The card's section on use: transformers (and peft), this project, and three runtimes."""
    fetch = f"hf download {shown.where} --local-dir {shown.here}\n" if shown.on_hub else ""
    if shown.kind in (CTRANSLATE2, WHISPER_CPP, OPENAI):
        made = {
            CTRANSLATE2: _python("faster-whisper", FASTER, shown.where, shown),
            WHISPER_CPP: _whisper_cpp(shown.here, shown),
            OPENAI: _python("openai-whisper", OPENAI_WHISPER, f"{shown.here}/model.pt", shown),
        }[shown.kind]
        return ["## Use\n", *([_block("bash", fetch)] if fetch else []), *made]
    peft = shown.kind == ADAPTER
    call = "input_features=features"
    if shown.language:
        call += f", language={shown.language!r}, task={shown.task!r}"
    code = USE_ADAPTER if peft else USE_MODEL
    code = code.replace("{base!r}", repr(shown.base)).replace("{call}", call)
    merge = f"python -m peft_whisper.merge {shown.here} --into merged\n" if peft else ""
    merged = "merged" if peft else shown.here
    export = f"python -m peft_whisper.export {merged} --to"
    return [
        "## Use\n",
        f"With transformers{' and peft' if peft else ''}:\n",
        _block("python", code.replace("{where!r}", repr(shown.where))),
        "With peft_whisper, recordings of any length, as text, subtitles or JSON:\n",
        _block("bash", f"{fetch}peft-whisper transcribe {shown.here} talk.mp3"),
        f"The others read {'the merged model, ' if peft else ''}a model in their own format:\n",
        _block("bash", f"{merge}{export} ctranslate2 --into faster  # whispercpp and openai alike"),
        *_python("faster-whisper", FASTER, "faster", shown),
        *_whisper_cpp("cpp", shown),
        *_python("openai-whisper", OPENAI_WHISPER, "openai/model.pt", shown),
    ]


def _python(name: str, code: str, where: str, shown: Shown) -> list[str]:
    spoken = f", language={shown.language!r}, task={shown.task!r}" if shown.language else ""
    made = code.replace("{where!r}", repr(where)).replace("{spoken}", spoken)
    return [f"With {name}:\n", _block("python", made)]


def _whisper_cpp(folder: str, shown: Shown) -> list[str]:
    spoken = f" -l {shown.language}" if shown.language else ""
    translate = " --translate" if shown.language and shown.task == "translate" else ""
    call = f"whisper-cli -m {folder}/ggml-model.bin{spoken}{translate} -f talk.wav"
    return ["With whisper.cpp (16 kHz WAV):\n", _block("bash", call)]


def _block(language: str, code: str) -> str:
    return f"```{language}\n{code.rstrip()}\n```\n"
