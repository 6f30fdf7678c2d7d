"""Studio: what the page lets hear, to whom it answers, and the whole of it in a real browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
import soundfile
import whispers

pytest.importorskip("gradio", reason="gradio is not installed: it comes with the extra studio")

from test_transcribe import RATE, train

from peft_whisper import merge, studio, transcribe
from peft_whisper.errors import DataError, RecipeError, StateError
from peft_whisper.files import write_text
from peft_whisper.systems import BASE, find_systems
from peft_whisper.trying import page as studio_page
from peft_whisper.trying import recording
from peft_whisper.trying.bench import Bench
from peft_whisper.trying.shown import report, side_by_side

REPOSITORY = Path(__file__).resolve().parent.parent
REPORT = "<!doctype html><title>r</title><h1>Report of one</h1><script>parent.gone = 1</script>"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base, two runs on it of which one has a report, and recordings."""
    folder = tmp_path_factory.mktemp("studio")
    whispers.save_base(folder / "base", ".en", 80)
    before = Path.cwd()
    os.chdir(folder)
    try:
        train(Path(), "one", 1)
        train(Path(), "two", 2)
    finally:
        os.chdir(before)
    write_text(folder / "outputs" / "one" / "report.html", REPORT)
    noise = np.random.default_rng(1).standard_normal(3 * RATE) * 0.1
    soundfile.write(folder / "noise.wav", noise, RATE)
    (folder / "no_sound.wav").write_text("no sound at all")
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch) -> None:
    """In that folder; and a model that knows nothing is not let talk for long."""
    monkeypatch.chdir(place)
    whispers.say_little(monkeypatch)


@pytest.fixture(scope="module")
def bench(place: Path) -> Bench:
    before = Path.cwd()
    os.chdir(place)
    try:
        return Bench(find_systems("outputs/one", [Path("outputs/two")], True, None))
    finally:
        os.chdir(before)


@pytest.fixture
def address(bench: Bench) -> Iterator[str]:
    """The page, served on a free port while the test runs; it asks no other host for anything."""
    went_to.clear()
    page = studio_page.built(bench)
    try:
        yield studio_page.serve(page, None)
    finally:
        page.close(verbose=False)
    assert [host for host in went_to if host not in LOOPBACK] == []


LOOPBACK = ("127.0.0.1", "::1", "localhost", None)
went_to: list[object] = []  # every host that this process has looked up or gone to


def listen(event: str, arguments: tuple) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        went_to.append(arguments[1][0])
    elif event == "socket.getaddrinfo":
        went_to.append(arguments[0])


sys.addaudithook(listen)


def words(bench: Bench, name: str, strength: float = 1.0, sound: str = "noise.wav") -> str:
    found = bench.hear(name, strength, Path(sound), None, lambda share: None)
    return " ".join(one.text for one in found)


def test_each_says_here_what_it_says_on_the_command_line(bench: Bench, tmp_path: Path) -> None:
    for name, model in ((BASE, "base"), ("one", "outputs/one"), ("two", "outputs/two")):
        transcribe.main([model, "noise.wav", "--to", str(tmp_path / name)])
        told = (tmp_path / name / "noise.txt").read_text(encoding="utf-8")
        assert words(bench, name) == " ".join(told.split("\n")).strip()
    assert len({words(bench, name) for name in (BASE, "one", "two")}) == 3


def test_strength_goes_from_the_base_to_the_adapter_and_back(bench: Bench) -> None:
    full = words(bench, "one")
    assert words(bench, "one", 0.0) == words(bench, BASE)
    assert words(bench, "one", 0.5) not in (full, words(bench, BASE))
    assert words(bench, "one") == full


def test_a_merged_model_stands_beside_its_base(bench: Bench, tmp_path: Path) -> None:
    merge.main(["outputs/one/adapter", "--into", str(tmp_path / "one")])
    alone = Bench(find_systems(str(tmp_path / "one"), [], True, None))
    assert alone.names == ["one"]
    assert not alone.has_strength("one")
    for name in (BASE, "one"):
        assert words(alone, name) == words(bench, name)


def test_what_can_not_be_heard_is_a_sentence(bench: Bench, monkeypatch) -> None:
    with pytest.raises(DataError, match="can't be used: unreadable"):
        words(bench, "one", sound="no_sound.wav")
    monkeypatch.setattr(recording, "MOST_S", 2.0)
    with pytest.raises(DataError, match="this page takes"):
        words(bench, "one", sound="noise.wav")
    with pytest.raises(StateError, match="nothing here is called three"):
        words(bench, "three")


def test_text_of_a_model_is_shown_as_text() -> None:
    from peft_whisper.scoring.longform import Segment
    from peft_whisper.scoring.side_by_side import rows

    left, right = ([Segment(0, 1, text)] for text in ("a <b>x</b>", "a <script>y</script>"))
    shown = side_by_side(rows(left, right, None), ("base", "<i>"))
    assert "<script" not in shown
    assert "<b>x" not in shown
    assert "<i>" not in shown
    assert '<mark class="left">&lt;b&gt;x&lt;/b&gt;</mark>' in shown


def test_the_report_is_shut_off_from_the_page(place: Path) -> None:
    shown = report(place / "outputs" / "one" / "adapter")
    assert shown.startswith('<iframe class="pw-report" title="report" sandbox srcdoc="')
    assert shown.count("<") == 2  # the frame's own: all else is inside its attribute
    assert "has no report.html" in report(place / "outputs" / "two" / "adapter")


def test_it_answers_on_loopback_to_loopback_names_alone(address: str, monkeypatch) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    for host in others - {"127.0.0.1", "127.0.1.1", "::1"}:
        with pytest.raises(OSError, match=r"refused|unreachable"):
            socket.create_connection((host, port), timeout=5).close()
    assert set(went_to) - {*LOOPBACK} == {socket.gethostname(), *others} - {*LOOPBACK}
    went_to.clear()
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    asked = urllib.request.Request(address, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=30)
    assert refused.value.code == 400


def test_an_upload_that_is_too_large_is_refused(bench: Bench, monkeypatch) -> None:
    monkeypatch.setattr(studio_page, "MOST_BYTES", 100_000)
    page = studio_page.built(bench)
    try:
        address = studio_page.serve(page, None)
        for size, expected in ((50_000, 200), (200_000, 413)):
            assert uploaded(address, b"\0" * size) == expected
    finally:
        page.close(verbose=False)


def uploaded(address: str, content: bytes) -> int:
    """The status that answers an upload, as the page makes it."""
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    body = head + content + b"\r\n--edge--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    asked = urllib.request.Request(f"{address}gradio_api/upload", body, kind)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_taken_port_is_a_sentence(address: str) -> None:
    with pytest.raises(RecipeError, match=r"--port: \d+ can't be opened"):
        studio.main(["outputs/one", "--port", address.rstrip("/").rpartition(":")[2]])


def test_what_was_recorded_is_gone_when_it_ends(tmp_path: Path) -> None:
    page = started("7999", tmp_path)
    assert page.stdout is not None
    assert "open http://127.0.0.1:7999/" in page.stdout.readline()
    assert uploaded("http://127.0.0.1:7999/", b"\0" * 1000) == 200
    (kept,) = tmp_path.glob("peft_whisper-studio-*")
    assert [path for path in kept.rglob("*") if path.is_file()]
    page.terminate()
    assert page.wait(30) == 143
    assert not kept.exists()
    assert page.stdout.read() == "\nstopped by SIGTERM; recordings are deleted\n"


def started(port: str, temporary: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "peft_whisper.studio", "outputs/one", "--port", port],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["base"], "base is neither a run nor an adapter"),
        (["outputs/one", "--port", "0"], "--port: 0 is no port"),
    ],
)
def test_clumsy_arguments_get_a_sentence(arguments, said) -> None:
    with pytest.raises(RecipeError, match=said):
        studio.main(arguments)


@pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
def test_in_a_browser(bench: Bench, address: str, tmp_path: Path) -> None:
    """Upload, both transcripts, what differs, another adapter, the report; nobody else is asked."""
    with browser.browser(tmp_path / "profile") as tab:
        tab.open(address)
        tab.until(lambda: "Transcribe" in tab.text("#go"))
        tab.click("#go")
        tab.until(lambda: "Record something" in tab.text("#texts"))
        tab.give_file("#sound input[type=file]", Path("noise.wav").resolve())
        tab.until(lambda: tab.run("return !!document.querySelector('#picture svg')"))
        seen = {}
        for name in ("one", "two"):
            tab.run(PICK, name)
            tab.until(lambda name=name: tab.run(PICKED) == name)
            tab.click("#go")
            tab.until(lambda name=name: f"{BASE} and {name} differ in" in tab.text("#texts"))
            seen[name] = [" ".join(column.split()) for column in tab.run(COLUMNS)]
            assert seen[name] == [" ".join(words(bench, one).split()) for one in (BASE, name)]
            assert tab.run("return document.querySelectorAll('#texts mark').length") > 1
        assert seen["one"][1] != seen["two"][1]
        tab.run(OPEN, "Report")
        tab.until(lambda: "has no report.html" in tab.run(FRAME))
        tab.run(OPEN, "Listen")
        tab.run(PICK, "one")
        tab.run(OPEN, "Report")
        tab.until(lambda: "Report of one" in tab.run(FRAME))
        assert tab.run("return document.querySelector('#report iframe').offsetHeight") > 300
        assert tab.run("return window.gone") is None
        seen_by_tab = tab.addresses()
        own = (address, address.replace("http", "ws", 1), "data:", f"blob:{address}", "chrome:")
        assert [one for one in seen_by_tab if not one.startswith((*own, "about:"))] == []
        assert any(one.startswith(address) for one in seen_by_tab)
    print(f"studio: {len(seen_by_tab)} addresses asked for, 0 of them elsewhere")


OPEN = """[...document.querySelectorAll('button[role=tab]')]
    .find(one => one.innerText.trim() == arguments[0]).click()"""
PICK = """[...document.querySelectorAll('#tuned input')]
    .find(one => one.value == arguments[0]).click()"""
PICKED = "return document.querySelector('#tuned input:checked').value"
COLUMNS = """return [1, 2].map(at => [...document.querySelectorAll('#texts tbody tr')]
    .map(row => row.children[at].innerText).join(' '))"""
FRAME = """const held = document.querySelector('#report');
    return held?.querySelector('iframe')?.srcdoc ?? held?.textContent ?? ''"""
