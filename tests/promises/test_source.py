"""P11 in the source: nothing that executes what a file holds is called anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_train import REPOSITORY

IMPORTS = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy"}
BUILT_IN = {"eval", "exec", "__import__"}
CALLS = {
    "torch.load",
    "np.load",
    "numpy.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
}
WITHOUT_WEIGHTS = {  # they read JSON and text; the folder of a PeftModel is checked before
    "WhisperConfig",
    "WhisperTokenizer",
    "GenerationConfig",
    "PeftModel",
}


def complaints(source: str) -> Iterator[str]:
    """What of a module could run code that is not its own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [one.name.partition(".")[0] for one in node.names]
            yield from (f"imports {one}" for one in names if one in IMPORTS)
        if isinstance(node, ast.ImportFrom) and node.module in IMPORTS:
            yield f"imports {node.module}"
        if isinstance(node, ast.Call):
            yield from _of_a_call(node)


def _of_a_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    given = {one.arg: ast.unparse(one.value) for one in node.keywords}
    if called in CALLS | BUILT_IN:
        yield f"calls {called}"
    if given.get("shell") == "True":
        yield f"{called} starts a shell"
    if given.get("trust_remote_code", "False") != "False":
        yield f"{called} trusts remote code"
    owner, _, name = called.rpartition(".")
    if name == "from_pretrained" and owner not in WITHOUT_WEIGHTS:
        if given.get("use_safetensors") != "True":
            yield f"{called} without use_safetensors=True"
        if given.get("trust_remote_code") != "False":
            yield f"{called} without trust_remote_code=False"


def test_no_line_executes_what_a_file_holds() -> None:
    files = sorted((REPOSITORY / "peft_whisper").rglob("*.py"))
    assert len(files) > 80
    found = [f"{path}: {one}" for path in files for one in complaints(path.read_text("utf-8"))]
    assert found == []
    recipes = list(Path(REPOSITORY / "recipes").rglob("*.yaml"))
    assert recipes and not any("trust_remote_code" in path.read_text() for path in recipes)
    print(f"\n{len(files)} files: no pickle, eval, exec, yaml.load or torch.load, no remote code")


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal as harmless",
        "eval('1')",
        "yaml.load(text, yaml.Loader)",
        "torch.load(path, weights_only=True)",
        "subprocess.run(text, shell=True)",
        "Model.from_pretrained(folder)",
        "Model.from_pretrained(folder, use_safetensors=True)",
        "Model.from_pretrained(folder, use_safetensors=True, trust_remote_code=flag)",
        "WhisperTokenizer.from_pretrained(folder, trust_remote_code=True)",
    ],
)
def test_each_of_them_would_be_seen(source: str) -> None:
    assert list(complaints(source))
