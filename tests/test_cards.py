"""A card is found by the names people write, or by its size; anything else is refused with help."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from peft_whisper.errors import RecipeError
from peft_whisper.memory.cards import CARDS, GIB, available_memory, find_card, this_card


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a10", "a10"),
        ("A10G", "a10"),
        ("NVIDIA A10", "a10"),
        (" a10-24GB ", "a10"),
        ("Tesla T4", "t4"),
        ("T4 16 GB", "t4"),
        ("NVIDIA L4", "l4"),
        ("3090", "rtx3090"),
        ("RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("rtx_4090", "rtx4090"),
        ("a100-40gb", "a100-40"),
        ("A100 40G", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("A100 80GB PCIe", "a100-80"),
        ("H100", "h100"),
        ("h100-80", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)
def test_a_card_is_found_by_the_names_people_write(text, name):
    assert find_card(text) is CARDS[name]


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_found_by_its_own_name_and_title(name):
    assert find_card(name) is find_card(CARDS[name].title) is CARDS[name]
    assert CARDS[name].name == name


@pytest.mark.parametrize(
    ("text", "gib"),
    [("24", 24), ("23.5", 23.5), ("24GiB", 24), ("24 GB", 24), ("24g", 24), (" 80 gib", 80)],
)
def test_a_bare_size_is_a_card_of_that_many_gib(text, gib):
    card = find_card(text)
    assert (card.visible, card.usable) == (gib * GIB, (gib - 0.5) * GIB)
    assert card.flash and card.bf16
    assert find_card(card.name) == card


def test_what_a_plan_relies_on():
    assert find_card("a10").usable == 21.5 * GIB
    assert not CARDS["t4"].flash and not CARDS["t4"].bf16
    assert all(card.flash and card.bf16 for name, card in CARDS.items() if name != "t4")
    assert all(
        0.9 < card.visible / GIB / size < 1
        for card, size in zip(CARDS.values(), (16, 24, 24, 24, 24, 40, 80, 80), strict=True)
    )


NAMES = "t4, a10, l4, rtx3090, rtx4090, a100-40, a100-80, h100"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a100", "; did you mean a100-40 or a100-80?"),
        ("h10", "; did you mean h100?"),
        ("rtx 309", "; did you mean rtx3090?"),
        ("rtx4099", "; did you mean rtx4090?"),
        ("banana", ""),
        ("", ""),
        ("RTX 4090 Laptop", ""),
        ("H100 NVL 94GB", ""),
        ("24 MiB", ""),
        ("\x1b[31m", ""),
    ],
)
def test_an_unknown_card_is_refused_with_the_known_ones(text, meant):
    with pytest.raises(RecipeError) as refusal:
        find_card(text)
    found = f"--card: found {text!r}, expected one of {NAMES}, or a size in GiB"
    assert str(refusal.value) == found + meant


@pytest.mark.parametrize(
    "text", ["0", "-24", "0.5", "nan", "inf", "-inf", "2001", "1e300", "24000MB"]
)
def test_a_size_that_no_card_has_is_refused(text):
    with pytest.raises(
        RecipeError, match=rf"^--card: found '{text}', expected one of {NAMES}, or a"
    ):
        find_card(text)


def test_a_long_text_is_quoted_in_part():
    with pytest.raises(RecipeError) as refusal:
        find_card("x" * 10_000)
    assert len(str(refusal.value)) < 200


def test_a_card_is_found_without_torch():
    code = "import sys, peft_whisper.memory.cards, peft_whisper.memory.allocator as a; "
    code += "a.replay([0], [1]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_card_at_hand_is_what_torch_shows():
    card = this_card()
    if not torch.cuda.is_available():  # this computer's own memory, then
        assert card.device == "cpu" and 0 < card.visible == pytest.approx(
            available_memory(), rel=0.2
        )
        return
    here = torch.cuda.get_device_properties(0)
    assert (card.title, card.visible) == (here.name, here.total_memory)
    assert card.flash == card.bf16 == (here.major >= 8)
