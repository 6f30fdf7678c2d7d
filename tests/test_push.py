"""Push: by the real client to a Hub on loopback; whole or not at all, and nothing secret in it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hub as local
import huggingface_hub
import pytest
import test_report
import torch
import whispers
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import http_backoff

from peft_whisper import merge, push
from peft_whisper.errors import PublishError, RecipeError, StateError
from peft_whisper.files import seal
from peft_whisper.model.adapters import Adapter, attach, trainable
from peft_whisper.model.find import find_base
from peft_whisper.publishing import hub as publishing_hub
from peft_whisper.scoring.report import write_report
from peft_whisper.training import checkpoint
from peft_whisper.training.optim import Masters

REPOSITORY = Path(__file__).resolve().parent.parent
NAME = f"{local.OWNER}/trial"
WAYS = [
    (500, False),
    (429, False),
    ("timeout", False),
    ("timeout", True),
    ("reset", False),
    ("reset", True),
    ("truncated", True),
]
VERSIONS = ("old", "new")
PLANTED = "hf_" + "PlantedInAFile0123456789abcdefgh"


def finished_run(folder: Path, seed: int, clips: int) -> Path:
    """A finished run with a random adapter, `clips` scored clips and the licence to share them."""
    (folder / "outputs" / "trial").mkdir(parents=True)
    run = test_report.record(folder / "outputs" / "trial")
    rows = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "predictions.jsonl").write_text("".join(rows[:clips]), encoding="utf-8")
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    recipe = recipe.replace("base: {", "base: {license: mit, ")
    said = "  license: cc-by-sa-3.0\n  attribution: read by A. Reader\n"
    (run / "recipe.yaml").write_text(
        recipe.replace("  language: en\n", f"  language: en\n{said}"), encoding="utf-8"
    )
    base = find_base(str(folder / "base"))
    torch.manual_seed(seed)
    model = attach(base.load("float32"), Adapter(4, 8, 0.0, range(2), range(2), ("q", "v")))
    weights = checkpoint.folder_of(folder / "checkpoints", 1)
    checkpoint.save_weights(weights, model, Masters(trainable(model), torch.float32))
    seal(weights, {})
    found = replace(base, name="openai/whisper-tiny.en", revision="abc")
    checkpoint.publish(folder / "checkpoints", 1, run / "adapter", found, {"method": "lora"})
    # Most of the bytes, and sent in each of some hundred pushes: a small one tells as much.
    (run / "adapter" / "tokenizer.json").write_text("{}\n", encoding="utf-8")
    facts = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    facts["base"]["fingerprint"] = base.fingerprint
    (run / "environment.json").write_text(json.dumps(facts), encoding="utf-8")
    write_report(run, test_report.sound, "english")
    test_report.write_card(run)
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two versions of one run, `old` and `new`, and their base."""
    folder = tmp_path_factory.mktemp("place")
    whispers.save_base(folder / "base", ".en", 80)
    for seed, (name, clips) in enumerate(zip(VERSIONS, (4, 1), strict=True)):
        (folder / name).mkdir()
        (folder / name / "base").symlink_to(folder / "base")
        finished_run(folder / name, seed, clips)
    return folder


@pytest.fixture
def run_copy(place: Path, tmp_path: Path) -> Path:
    """A run that a test may spoil."""
    return Path(shutil.copytree(place / "old" / "outputs" / "trial", tmp_path / "trial"))


@pytest.fixture
def hub(monkeypatch) -> Iterator[local.Hub]:
    """A local Hub that the real client talks to, logged in, and quick to lose patience."""
    with local.running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)  # as HF_ENDPOINT at the start
        files = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", local.TOKEN)
        # The client's own retries, as many as ever, with shorter waits between them.
        monkeypatch.setitem(http_backoff.__kwdefaults__, "base_wait_time", 0.01)
        monkeypatch.setitem(http_backoff.__kwdefaults__, "max_wait_time", 0.02)
        yield running
    huggingface_hub.close_session()


def merged(adapter: Path, place: Path, into: Path) -> None:
    assert merge.main([str(adapter), "--base", str(place / "base"), "--into", str(into)]) == 0


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_dry_run_shows_all_of_it_and_sends_nothing(place: Path, hub: local.Hub, capsys) -> None:
    run = place / "old" / "outputs" / "trial"
    table = "https://example.org/compare/index.html"
    assert push.main([str(run), "--to", NAME, "--table", table]) == 0
    said = capsys.readouterr().out
    assert hub.requests == []
    assert f"<{table}>" in said
    for name in ("adapter_model.safetensors", "tokenizer.json", "README.md", "samples/1.flac"):
        assert name in said
    assert f"{(run / 'adapter' / 'tokenizer.json').stat().st_size:,}" in said
    assert "model-index" in said
    assert "Nothing was sent" in said
    assert "predictions" not in said.partition("README.md:")[0]


def test_a_run_goes_out_as_one_commit_and_is_what_it_was(
    place: Path, hub: local.Hub, capsys, tmp_path: Path
) -> None:
    run = place / "old" / "outputs" / "trial"
    assert push.main([str(run), "--to", NAME, "--yes"]) == 0
    assert "read back, every hash is that of the file here" in capsys.readouterr().out
    repo = hub.repos[NAME]
    assert repo.private
    assert len(repo.commits) == 2  # the Hub's own first one, and ours
    tree = repo.head[1]
    own = files(run / "adapter") | {"README.md", "recipe.yaml", "metrics.json", "environment.json"}
    assert set(tree) == own | {f"samples/{n}.flac" for n in (1, 2, 3)} | {".gitattributes"}
    for path in (run / "adapter").iterdir():
        assert tree[path.name] == path.read_bytes()
    got = Path(huggingface_hub.snapshot_download(NAME, local_dir=tmp_path / "got"))
    merged(got, place, tmp_path / "merged")  # it loads, and gives what it gave
    before = len(hub.requests)
    assert push.main([str(run / "adapter"), "--to", NAME, "--yes"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert len(repo.commits) == 2
    assert all(asked.startswith("GET") for asked, _ in hub.requests[before:])


def test_another_version_takes_the_place_of_the_whole_old_one(place: Path, hub: local.Hub) -> None:
    for name in ("old", "new"):
        push.main([str(place / name / "outputs" / "trial"), "--to", NAME, "--yes"])
        hub.repos[NAME].head[1]["NOTES.md"] = b"written by its owner on the Hub"
    tree = hub.repos[NAME].head[1]
    assert {path for path in tree if path.startswith("samples/")} == {"samples/1.flac"}
    assert "NOTES.md" in tree
    assert len(hub.repos[NAME].commits) == 3


def attempt(arguments: list[str]) -> int:
    try:
        return push.main(arguments)
    except PublishError as error:
        return error.exit_code


class Start:
    """What the Hub holds before a push: to be brought back after each."""

    def __init__(self, hub: local.Hub):
        self.hub = hub
        self.repos = {name: list(repo.commits) for name, repo in hub.repos.items()}
        self.large = dict(hub.large)

    def restore(self, fault: local.Fault | None = None) -> None:
        self.hub.repos = {n: local.Repo(True, list(kept)) for n, kept in self.repos.items()}
        self.hub.large = dict(self.large)
        self.hub.requests, self.hub.fault = [], fault

    def state(self, new: local.Tree) -> str:
        """Old, new, or a mix of both; an empty repository is as good as none."""
        before = self.repos.get(NAME, [])
        repo = self.hub.repos.get(NAME)
        if repo is None:
            return "mixed" if before else "old"
        if not before and len(repo.commits) == 1:
            return "old" if set(repo.head[1]) == {".gitattributes"} else "mixed"
        if repo.head[1] == new and len(repo.commits) == (len(before) or 1) + 1:
            return "new"
        return "old" if repo.commits == before else "mixed"


def faults(requests: int) -> list[local.Fault]:
    """Each request failing in each way: once, and (where that is quick) from there on."""
    return [
        local.Fault(at, how, after, lasting)
        for at in range(requests)
        for how, after in WAYS
        for lasting in ([False, True] if how in (500, "reset") else [False])
    ]


@pytest.mark.parametrize("first", [True, False], ids=["new repository", "second version"])
def test_whatever_request_fails_there_is_the_old_or_the_new(
    place: Path, hub: local.Hub, monkeypatch, capsys, first: bool
) -> None:
    monkeypatch.setattr(publishing_hub, "TIMEOUT_S", 0.3)
    hub.patience_s = 0.5
    old, command = ([str(place / n / "outputs/trial"), "--to", NAME, "--yes"] for n in VERSIONS)
    if not first:
        push.main(old)
    start = Start(hub)
    start.restore()
    push.main(command)
    new, total = hub.repos[NAME].head[1], len(hub.requests)
    ends: Counter[str] = Counter()
    for fault in faults(total):
        start.restore(fault)
        code, state = attempt(command), start.state(new)
        ends[state] += 1
        assert code == 5 or (code, state) == (0, "new"), fault
        hub.fault = None
        ends["completed"] += (attempt(command), start.state(new)) == (0, "new")
    tried = len(faults(total))
    with capsys.disabled():
        print(
            f"\npush: every one of {total} requests failed in {len(WAYS)} ways, two of them also "
            f"for good: old {ends['old']}, new {ends['new']}, mixed {ends['mixed']}; "
            f"{ends['completed']}/{tried} completed on repeat"
        )
    assert (ends["mixed"], ends["completed"]) == (0, tried)
    assert min(ends["old"], ends["new"]) > 0


def test_somebody_elses_commit_is_not_overwritten(place: Path, hub: local.Hub, monkeypatch) -> None:
    """It comes between the look and the commit, where only the parent guard can tell."""
    command = [str(place / "old" / "outputs" / "trial"), "--to", NAME, "--yes"]
    push.main(command)
    look = publishing_hub.look

    def slow(*given: object) -> object:
        found = look(*given)
        if len(hub.repos[NAME].commits) == 2:
            hub.repos[NAME].commit(hub.repos[NAME].head[1] | {"NOTES.md": b"theirs"})
        return found

    monkeypatch.setattr(publishing_hub, "look", slow)
    with pytest.raises(PublishError, match=r"has changed since .*Somebody else changed"):
        push.main([str(place / "new" / "outputs" / "trial"), *command[1:]])
    assert hub.repos[NAME].head[1]["NOTES.md"] == b"theirs"
    assert len(hub.repos[NAME].commits) == 3


def spelt(secret: str) -> list[bytes]:
    """As it is, and inside base64 at each of the three places that it may have."""
    raw = secret.encode()
    coded = [base64.b64encode(b" " * at + raw)[4:-4] for at in range(3)]
    return [raw, raw[4:], *coded]


def seen(hub: local.Hub, said: str) -> bytes:
    """All that was sent, base64 undone, and all that was printed."""
    sent = [asked.encode() + body for asked, body in hub.requests]
    whole = b"\n".join([*sent, *hub.large.values(), said.encode()])
    trees = [
        data for repo in hub.repos.values() for _, tree in repo.commits for data in tree.values()
    ]
    return b"\n".join([whole, *trees])


PLANTS = {
    "adapter/adapter_config.json": f'{{"peft_type": "LORA", "note": "{PLANTED}"}}',
    "recipe.yaml": f"# {PLANTED}\n",
    "metrics.json": f'{{"api_key": "{PLANTED}"}}',
    "environment.json": f'{{"from": "https://me:{PLANTED}@somewhere.org/x"}}',
    "README.md": PLANTED,
    "adapter/tokenizer.json": f'{{"{PLANTED}": 3}}',
    "adapter/notes.txt": PLANTED,
    "log.jsonl": f'{{"event": "start", "note": "{PLANTED}"}}\n',
    "checkpoints/update-000001/state.json": PLANTED,
    "adapter/adapter_model.safetensors": PLANTED,
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_token_leaves_in_no_byte(run_copy: Path, hub: local.Hub, capsys, name) -> None:
    """It is refused, or its file does not belong; nothing sent, stored or printed holds it."""
    path = run_copy / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        plant_in_weights(path)
    elif name.endswith(".json") and path.exists() and "tokenizer" not in name:
        known = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(known | json.loads(PLANTS[name])), encoding="utf-8")
    else:
        held = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(held + PLANTS[name], encoding="utf-8")
    said = ""
    for option in ([], ["--yes"]):
        try:
            push.main([str(run_copy), "--to", NAME, *option])
            refused = False
        except PublishError as error:
            said += str(error)
            refused = True
    printed = capsys.readouterr()
    whole = seen(hub, said + printed.out + printed.err)
    assert [text for text in spelt(PLANTED) if text in whole] == []
    print(f"push: a token in {name}: 0 hits in {len(whole):,} bytes sent, stored and printed")
    assert refused == (name not in NOT_SENT)
    if refused:
        assert hub.requests == []
        assert Path(name).name in said


NOT_SENT = (
    *("README.md", "adapter/notes.txt", "log.jsonl"),  # the card is made anew
    "checkpoints/update-000001/state.json",
)


def plant_in_weights(path: Path) -> None:
    """In the header's own text, where transformers and others put what they like."""
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path, {"format": "pt", "made_by": PLANTED})


@pytest.mark.parametrize("way", ["raw", "base64", "percent"])
def test_the_token_of_the_session_is_found_however_it_is_spelt(
    run_copy: Path, hub: local.Hub, monkeypatch, way: str
) -> None:
    secret = "no+known/shape/of/a-token=0123"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    text = {
        "raw": secret,
        "base64": base64.b64encode(f"user:{secret}".encode()).decode(),
        "percent": "no%2Bknown%2Fshape%2Fof%2Fa-token%3D0123",
    }[way]
    (run_copy / "recipe.yaml").open("a").write(f"# x{text}\n")
    with pytest.raises(PublishError, match=r"recipe.yaml:\d+: a secret of this session") as told:
        push.main([str(run_copy), "--to", NAME, "--yes"])
    assert secret not in str(told.value)


def test_paths_of_this_machine_are_refused_and_the_base_gets_its_public_name(
    run_copy: Path, hub: local.Hub, place: Path
) -> None:
    path = run_copy / "adapter" / "peft_whisper.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["base"] |= {"model": str(place / "base"), "revision": None}
    path.write_text(json.dumps(facts), encoding="utf-8")
    command = [str(run_copy), "--to", NAME, "--yes"]
    with pytest.raises(PublishError, match=r"an absolute path(.|\n)*--base OWNER/NAME"):
        push.main(command)
    assert push.main([*command, "--base", "openai/whisper-tiny.en"]) == 0
    tree = hub.repos[NAME].head[1]
    sent = json.loads(tree["peft_whisper.json"])
    assert sent["base"] | {"model": "openai/whisper-tiny.en", "revision": None} == sent["base"]
    assert b"openai/whisper-tiny.en" in tree["README.md"]
    assert str(place).encode() not in seen(hub, "")
    assert json.loads(path.read_text(encoding="utf-8")) == facts  # the run itself is as it was


def test_real_vocabularies_and_cards_hold_nothing_that_looks_secret(place: Path) -> None:
    from peft_whisper.publishing.scan import findings

    for kind in whispers.VOCABULARIES:
        whispers.tokenizer(kind).save_pretrained(place / kind)
        for path in (place / kind).iterdir():
            assert list(findings(path.name, path)) == []
    for path in (REPOSITORY / "docs").glob("*.md"):
        assert list(findings(path.name, path)) == []


def test_the_card_is_read_by_the_hubs_own_classes(place: Path, hub: local.Hub) -> None:
    run = place / "old" / "outputs" / "trial"
    push.main([str(run), "--to", NAME, "--yes"])
    card = ModelCard(hub.repos[NAME].head[1]["README.md"].decode())
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    results = {
        (one.metric_type, one.metric_args["heard"][:12]): one for one in card.data.eval_results
    }
    wer = results["wer", "clips at the"]
    assert wer.metric_value == round(100 * metrics["tuned"]["wer"], 2)
    ends = [round(100 * end, 2) for end in metrics["tuned"]["wer_interval"]]
    assert wer.metric_args["interval_95"] == ends
    assert (wer.metric_args["base"], wer.metric_args["base_revision"]) == (
        "openai/whisper-tiny.en",
        "abc",
    )
    assert wer.dataset_args["fingerprint"] == "f"
    assert results["wer", "clips padded"].metric_value == round(
        100 * metrics["tuned_full_context"]["wer"], 2
    )
    assert (card.data.license, card.data.base_model) == ("cc-by-sa-3.0", "openai/whisper-tiny.en")
    for said in ("read by A. Reader", "hf download", "faster_whisper", "whisper-cli", "Forgetting"):
        assert said in card.content
    for number in (1, 2, 3):
        assert f'src="{hub.url}/{NAME}/resolve/main/samples/{number}.flac"' in card.content


def test_without_a_licence_no_sound_is_sent(run_copy: Path, hub: local.Hub) -> None:
    recipe = (run_copy / "recipe.yaml").read_text(encoding="utf-8")
    (run_copy / "recipe.yaml").write_text(recipe.replace("  license: cc-by-sa-3.0\n", ""))
    push.main([str(run_copy), "--to", NAME, "--yes"])
    assert not [path for path in hub.repos[NAME].head[1] if path.endswith(".flac")]


def test_an_adapter_that_was_passed_on_keeps_its_card(
    run_copy: Path, hub: local.Hub, tmp_path: Path
) -> None:
    """As it lies in a repository, one flat folder without the run's log."""
    push.main([str(run_copy), "--to", NAME, "--yes"])
    got = huggingface_hub.snapshot_download(NAME, local_dir=tmp_path / "got")
    other = f"{local.OWNER}/other"
    push.main([got, "--to", other, "--yes"])
    first, second = (dict(hub.repos[name].head[1]) for name in (NAME, other))
    assert second.pop("README.md") == first.pop("README.md")
    assert {path: first[path] for path in second} == second


def test_it_is_public_where_that_is_said(run_copy: Path, hub: local.Hub, capsys) -> None:
    command = [str(run_copy), "--yes", "--public", "--to"]
    push.main([*command, NAME])
    assert not hub.repos[NAME].private
    hub.repos[NAME].private = True
    push.main([*command, NAME])
    assert "was private and stays so" in capsys.readouterr().out


def test_a_merged_model_has_a_repository_of_its_own(
    place: Path, hub: local.Hub, tmp_path: Path
) -> None:
    run = place / "old" / "outputs" / "trial"
    merged(run / "adapter", place, tmp_path / "merged")
    push.main([str(run), "--to", NAME, "--yes"])
    with pytest.raises(PublishError, match=r"holds an adapter already.*its own repository"):
        push.main([str(tmp_path / "merged"), "--to", NAME, "--yes"])
    other = f"{local.OWNER}/merged"
    push.main([str(tmp_path / "merged"), "--to", other, "--yes", "--run", str(run)])
    assert set(hub.repos[other].head[1]) == files(tmp_path / "merged") | {
        *("README.md", ".gitattributes"),
    }
    assert ModelCard(hub.repos[other].head[1]["README.md"].decode()).data.eval_results


def test_an_exported_model_brings_its_own_page(place: Path, hub: local.Hub, tmp_path: Path) -> None:
    """Of push alone: what other programs read of it is the export's own test."""
    run = place / "old" / "outputs" / "trial"
    folder = tmp_path / "faster"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"\0weights" * 99)
    for name in ("config.json", "vocabulary.json", "tokenizer.json", "preprocessor_config.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    trained_on = json.loads((run / "adapter" / "peft_whisper.json").read_text(encoding="utf-8"))
    facts = {"method": "lora", "base": str(tmp_path), "revision": None, "name": "trial"}
    facts["fingerprint"] = trained_on["base"]["fingerprint"]
    (folder / "peft_whisper_export.json").write_text(json.dumps(facts), encoding="utf-8")
    page = '---\ntags: [a]\n---\n# trial for X\n\n## Measured\n\nequal\n\nWhisperModel("FOLDER")\n'
    (folder / "README.md").write_text(page, encoding="utf-8")
    command = [str(folder), "--to", NAME, "--yes", "--run", str(run)]
    with pytest.raises(PublishError, match="an absolute path"):
        push.main(command)
    push.main([*command, "--base", "openai/whisper-tiny.en"])
    tree = hub.repos[NAME].head[1]
    assert set(tree) == files(folder) | {".gitattributes"}
    card = ModelCard(tree["README.md"].decode())
    assert "### Measured\n\nequal" in card.content
    assert 'WhisperModel("trial")' in card.content
    assert (card.data.library_name, len(card.data.eval_results)) == ("ctranslate2", 4)


def logged_out(hub: local.Hub, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))


def wrong_token(hub: local.Hub, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)


def offline(hub: local.Hub, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def nobody_there(hub: local.Hub, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def taken(hub: local.Hub, monkeypatch, tmp_path: Path) -> None:
    hub.repos[NAME] = local.Repo(True)
    hub.repos[NAME].commit({".gitattributes": b"", "train.py": b""})


def public(hub: local.Hub, monkeypatch, tmp_path: Path) -> None:
    hub.repos[NAME] = local.Repo(False)
    hub.repos[NAME].commit({".gitattributes": b""})


def nothing(hub: local.Hub, monkeypatch, tmp_path: Path) -> None: ...


@pytest.mark.parametrize(
    ("happened", "to", "said"),
    [
        (logged_out, NAME, "no token for the Hub: log in once with `hf auth login`"),
        (wrong_token, NAME, "does not know this token"),
        (offline, NAME, "HF_HUB_OFFLINE is set"),
        (nobody_there, NAME, "could not be reached.*Nothing was sent"),
        (nothing, "another/trial", "may not write to another/trial: .*another to be you"),
        (taken, NAME, "holds other files already .train.py.*its own repository"),
        (public, NAME, "is public, .*add --public"),
    ],
)
def test_what_is_in_the_way_is_a_sentence(
    place: Path, hub: local.Hub, monkeypatch, tmp_path: Path, happened, to: str, said: str
) -> None:
    happened(hub, monkeypatch, tmp_path)
    with pytest.raises(PublishError, match=said) as told:
        push.main([str(place / "old" / "outputs" / "trial"), "--to", to, "--yes"])
    assert local.TOKEN not in str(told.value)
    assert not [asked for asked, _ in hub.requests if "/commit/" in asked]


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["nowhere", "--to", NAME], StateError, "is not a folder"),
        (["base", "--to", NAME], StateError, "peft_whisper.json"),
        (["old", "--to", NAME], StateError, "holds no model"),
        (["old/outputs/trial", "--to", "trial"], RecipeError, "--to: trial is no name"),
        (["old/outputs/trial", "--to", NAME, "--table", "x y"], RecipeError, "x y is no address"),
        (["old/outputs/trial", "--to", NAME, "--run", "old"], StateError, "--run: old is not a"),
    ],
)
def test_clumsy_arguments_get_a_sentence(place: Path, monkeypatch, arguments, kind, said) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(kind, match=said):
        push.main(arguments)


def test_as_a_process_that_is_told_where_the_hub_is(place: Path) -> None:
    with local.running() as hub:
        done = subprocess.run(
            [sys.executable, "-m", "peft_whisper.push", "old/outputs/trial", "--to", NAME, "--yes"],
            cwd=place,
            env=os.environ
            | {"PYTHONPATH": str(REPOSITORY), "HF_ENDPOINT": hub.url, "HF_TOKEN": local.TOKEN}
            | {"HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert local.TOKEN not in done.stdout + done.stderr
        assert len(hub.repos[NAME].commits) == 2
