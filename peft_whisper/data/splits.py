"""Train, validation and test: opened, audited, cut from each other, and checked for leaks."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_whisper.data.audit import DURATION_SLACK_S, Clip, CountTokens, Rejected, audit
from peft_whisper.data.corpus import read_rows
from peft_whisper.errors import DataError
from peft_whisper.recipe_speech import Data, Source

SPLITS = ("train", "validation", "test")
NAMED = 10  # clips or pairs named in an error; the rest is counted
APOSTROPHES = str.maketrans("", "", "'\u2019\u02bc")  # with or without one, it is the same word


@dataclass(frozen=True)
class Shared:
    """What several splits have in common: `what` it is, and the ids of its clips in each split."""

    what: str
    ids: dict[str, tuple[str, ...]]

    def __str__(self) -> str:
        sides = (f"{split} {', '.join(ids[:3])}" for split, ids in self.ids.items())
        return f"{' = '.join(sides)} ({self.what})"


@dataclass(frozen=True)
class Splits:
    """The clips of each split, and what a person should know before trusting them.

    `rejected` has an entry per source; clips of a source that is cut are listed under train.
    """

    train: tuple[Clip, ...]
    validation: tuple[Clip, ...]
    test: tuple[Clip, ...]
    rejected: dict[str, tuple[Rejected, ...]]
    shared_audio: tuple[Shared, ...]
    shared_transcripts: tuple[Shared, ...]

    def items(self) -> tuple[tuple[str, tuple[Clip, ...]], ...]:
        """Pairs of a split's name and its clips."""
        return (("train", self.train), ("validation", self.validation), ("test", self.test))

    def notes(self) -> list[str]:
        """Sentences about transcripts that a held-out split shares with train: no leak, but said.

        A model can know such a sentence by heart, so its score there is too good.
        """
        said = []
        for name, clips in self.items()[1:]:
            common = [s for s in self.shared_transcripts if {"train", name} <= set(s.ids)]
            if common:
                heard = sum(len(s.ids[name]) for s in common)
                first = "; ".join(f'"{s.what}"' for s in common[:3])
                said.append(
                    f"{heard} of {len(clips)} {name} clips have a transcript that train has too "
                    f"({first}{', ...' if len(common) > 3 else ''})"
                )
        return said


def open_splits(
    data: Data,
    count_tokens: CountTokens,
    base_dir: str | Path | None = None,
    quiet: bool = False,
) -> Splits:
    """Read and audit every source once, and cut from train what is to be cut from it.

    Writes nothing and judges nothing (DataError only where reading can't go on): write `rejected`
    down first, then call `refuse_leaks_and_rejects`. Relative paths begin at `base_dir`.
    """
    from rich.console import Console

    _refuse_same_source(data)
    console = Console(stderr=True, quiet=quiet)
    kept: dict[str, tuple[Clip, ...]] = {}
    rejected: dict[str, tuple[Rejected, ...]] = {}
    for name, source in _sources(data):
        if source.from_train is None:
            rows = read_rows(source, data.language, base_dir)
            title = f"audit of {name}"
            found = audit(
                rows, count_tokens, data.channel, console=console, title=title, most=rows.most
            )
            kept[name], rejected[name] = found.clips, found.rejected
    clips = _cut(data, kept)
    same_samples = shared(clips, lambda clip: clip.sha256, lambda clip: "the same samples")
    same_words = shared(clips, lambda clip: transcript_key(clip.text), lambda clip: clip.text)
    return Splits(
        **clips,
        rejected=rejected,
        shared_audio=(*same_samples, *overlapping(clips)),
        shared_transcripts=tuple(same_words),
    )


def _sources(data: Data) -> tuple[tuple[str, Source], ...]:
    return (("train", data.train), ("validation", data.validation), ("test", data.test))


def _refuse_same_source(data: Data) -> None:
    for name, source in _sources(data)[1:]:
        if source == data.train:
            raise DataError(
                f"data.{name} is the same source as data.train: the scores would be those of "
                f"speech heard in training. Write data.{name}: {{from_train: 0.1}} to hold out a "
                "tenth of its transcripts, or name another source"
            )


# Cutting: a clip's place depends on its transcript alone, so that all clips of one sentence go
# together, whatever the order of the rows, and stay where they are when rows are added.


def transcript_key(text: str) -> str:
    """Reduce a transcript to what makes it the same sentence: letters, marks, digits, no case."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(APOSTROPHES)
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split()
    return " ".join(words) or text.strip()


def place(text: str) -> float:
    """A transcript's place in [0, 1), spread evenly by SHA-256 of its key."""
    digest = hashlib.sha256(transcript_key(text).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _cut(data: Data, kept: Mapping[str, tuple[Clip, ...]]) -> dict[str, tuple[Clip, ...]]:
    """Validation takes the lowest places of train, test the highest: neither moves the other."""
    low, high = data.validation.from_train or 0.0, 1.0 - (data.test.from_train or 0.0)
    if low >= high:
        raise DataError("data: validation and test take all of train; lower their from_train")
    parts: dict[str, list[Clip]] = {name: [] for name in SPLITS}
    for clip in kept["train"]:
        at = place(clip.text)
        parts["validation" if at < low else "test" if at >= high else "train"].append(clip)
    out = {"train": tuple(parts["train"])}
    for name, source in _sources(data)[1:]:
        own = source.from_train is None
        out[name] = kept[name] if own else tuple(parts[name][: source.limit])
    return out


def shared(
    clips: Mapping[str, Sequence[Clip]],
    key: Callable[[Clip], str],
    what: Callable[[Clip], str],
) -> Iterator[Shared]:
    """Yield every group of clips with the same key that lies in more than one split."""
    groups: defaultdict[str, defaultdict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    for split, members in clips.items():
        for clip in members:
            groups[key(clip)][split].append(clip)
    for group in groups.values():
        if len(group) > 1:
            first = next(iter(group.values()))[0]
            ids = {split: tuple(clip.id for clip in found) for split, found in group.items()}
            yield Shared(what(first), ids)


def overlapping(clips: Mapping[str, Sequence[Clip]]) -> Iterator[Shared]:
    """Yield pairs of segments of one file that overlap and lie in different splits."""
    files: defaultdict[str, list[tuple[float, str, Clip]]] = defaultdict(list)
    for split, members in clips.items():
        for clip in members:
            if clip.audio.path is not None:
                files[clip.audio.path].append((clip.audio.start_s or 0.0, split, clip))
    for segments in files.values():
        segments.sort(key=lambda segment: segment[:2])
        for number, (start_s, split, clip) in enumerate(segments):
            end_s = start_s + clip.duration_s - DURATION_SLACK_S
            for later_s, other, second in segments[number + 1 :]:
                if later_s >= end_s:
                    break
                if other != split and second.sha256 != clip.sha256:
                    what = "overlapping segments of one file"
                    yield Shared(what, {split: (clip.id,), other: (second.id,)})


def refuse_leaks_and_rejects(
    splits: Splits, data: Data, rejected_file: str = "rejected.jsonl"
) -> None:
    """Raise DataError, with every reason, where the run must not start.

    More rejected clips than `data.max_rejected` (unset: any from a Hub, none from local sources),
    a split without clips, sound that two splits share. `rejected_file` is named as where to look.
    """
    reasons = _too_many_rejects(splits, data, rejected_file)
    reasons += [_empty(name, data, splits) for name, clips in splits.items() if not clips]
    if splits.shared_audio:
        reasons.append(_leak(splits))
    if reasons:
        raise DataError("\n".join(reasons))


def _too_many_rejects(splits: Splits, data: Data, rejected_file: str) -> list[str]:
    hub = {name for name, source in _sources(data) if source.hub is not None}
    counted = [
        (name, clip)
        for name, listed in splits.rejected.items()
        if data.max_rejected is not None or name not in hub
        for clip in listed
    ]
    allowed = data.max_rejected or 0
    if len(counted) <= allowed:
        return []
    causes = Counter(clip.cause for _, clip in counted).most_common()
    found = ", ".join(f"{number} {cause}" for cause, number in causes)
    return [
        f"{_counted(counted, 'clip')} can't be used ({found}); "
        f"data.max_rejected allows {allowed}:\n"
        + _first(f"{clip.where} ({clip.id}): {clip.cause}: {clip.detail}" for _, clip in counted)
        + f"All are in {rejected_file}. Repair or remove them, or raise data.max_rejected."
    ]


def _empty(name: str, data: Data, splits: Splits) -> str:
    share = {split: source.from_train for split, source in _sources(data)}[name]
    if share is not None:
        transcripts = {transcript_key(clip.text) for _, clips in splits.items() for clip in clips}
        return (
            f"data.{name}: no transcript of train fell into its share of {share:g}, out of about "
            f"{len(transcripts)}; raise data.{name}.from_train"
        )
    causes = Counter(clip.cause for clip in splits.rejected.get(name, ())).most_common()
    if causes:
        found = ", ".join(f"{number} {cause}" for cause, number in causes)
        return f"data.{name}: no clip is left; all were rejected: {found}"
    return f"data.{name}: the source has no row"


def _leak(splits: Splits) -> str:
    leaks = splits.shared_audio
    hint = "Remove them from one side."
    train = sum(len(leak.ids.get("train", ())) for leak in leaks)
    if train == len(splits.train):
        hint = "All of train is in there: are two splits the same source? Then use from_train."
    return (
        f"{_counted(leaks, 'recording')} in more than one split: the scores would be too good.\n"
        + _first(str(leak) for leak in leaks)
        + hint
    )


def _counted(things: Sequence, noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"


def _first(lines: Iterable[str]) -> str:
    """The first ten lines, indented, and how many more there are."""
    listed = list(lines)
    more = [f"... and {len(listed) - NAMED} more"] if len(listed) > NAMED else []
    return "".join(f"  {line}\n" for line in [*listed[:NAMED], *more])
