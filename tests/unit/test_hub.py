"""Models from a hub that is really served: which files are fetched, when, and when not.

Each test talks through processes of their own, for huggingface_hub reads its settings when it is
imported.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers import CONFIG, base_state, save
from tests.hub_server import Hub, serve

pytestmark = pytest.mark.slow  # every client is a process that imports everything

# Opens every source it is given and says what it found; touches no socket where it may not.
CHILD = """
import json, sys
asked = json.loads(sys.argv[1])
if asked["no_network"]:
    def refuse(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo"):
            raise RuntimeError(f"a call to the network: {event} {arguments}")
    sys.addaudithook(refuse)
import awd_core as awd
found = []
for source in asked["sources"]:
    try:
        one = awd.open_checkpoint(source, allow_pickle=asked["allow_pickle"])
        found.append({"kind": one.kind, "source": one.source, "label": one.label,
                      "path": str(one.path), "tensors": sorted(one.stored),
                      "fingerprint": one.fingerprint})
    except awd.AwdError as error:
        found.append(str(error))
print(json.dumps(found))
"""


class Client:
    """A process with a cache of its own."""

    def __init__(self, cache: Path, url: str) -> None:
        self.cache, self.url = cache, url

    def open(
        self, *sources: str, offline: bool = False, no_network: bool = False, pickle: bool = False
    ) -> list:
        environment = os.environ | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.cache),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        asked = {"sources": sources, "no_network": no_network, "allow_pickle": pickle}
        run = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(asked)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    sharded = save(root / "sharded", base_state(), shards=2)
    for name in ("tokenizer.json", "vocab.txt", "chat_template.jinja", "README.md"):
        (sharded / name).write_text(json.dumps({"of": name}))
    unneeded = [
        "pytorch_model.bin",
        "original/model.safetensors",
        "onnx/model.onnx",
        "flax.msgpack",
    ]
    for name in (*unneeded, "stray.safetensors", "optimizer.pt"):
        (sharded / name).parent.mkdir(exist_ok=True)
        (sharded / name).write_bytes(b"not needed")
    save(root / "branch", base_state(seed=9))
    pickled = root / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text(json.dumps(CONFIG))
    torch.save(base_state(), pickled / "pytorch_model.bin")
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 2}')
    (adapter / "adapter_model.bin").write_bytes(b"not needed")
    factors = {"A": torch.ones(2, 12), "B": torch.ones(5, 2)}
    named = {f"base_model.model.x.lora_{side}.weight": t for side, t in factors.items()}
    save_file(named, adapter / "adapter_model.safetensors")
    return root


@pytest.fixture
def hub(models: Path) -> Iterator[Hub]:
    with serve(
        {
            ("owner/sharded", "main"): models / "sharded",
            ("owner/sharded", "v2"): models / "branch",
            ("owner/pickled", "main"): models / "pickled",
            ("owner/adapter", "main"): models / "adapter",
        }
    ) as hub:
        yield hub


def test_a_model_is_fetched_once_with_the_files_it_needs_and_then_opens_offline(
    hub: Hub, tmp_path: Path
) -> None:
    client = Client(tmp_path, hub.url)
    (first,) = client.open("owner/sharded")
    assert first["tensors"] == sorted(base_state())
    assert first["source"] == first["label"] == "owner/sharded"
    assert Path(first["path"]).is_relative_to(tmp_path)
    assert hub.fetched == {
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "tokenizer.json",
        "vocab.txt",
        "chat_template.jinja",
        "README.md",
    }
    hub.requests.clear()
    assert client.open("owner/sharded") == [first]
    assert not hub.fetched
    hub.requests.clear()
    assert client.open("owner/sharded", offline=True, no_network=True) == [first]
    assert not hub.requests
    nowhere = Client(tmp_path, "http://127.0.0.1:9")
    assert nowhere.open("owner/sharded") == [first]  # the hub does not answer


def test_a_revision_is_another_model(hub: Hub, tmp_path: Path) -> None:
    main, branch, missing, unknown = Client(tmp_path, hub.url).open(
        "owner/sharded", "owner/sharded@v2", "owner/sharded@v3", "owner/nothing"
    )
    assert branch["tensors"] == main["tensors"]
    assert branch["fingerprint"] != main["fingerprint"]
    assert branch["source"] == "owner/sharded@v2"
    for refused in (missing, unknown):
        assert "neither a folder here nor a model that could be fetched" in refused
        assert "404" in refused


def test_pickled_weights_are_fetched_only_when_allowed(hub: Hub, tmp_path: Path) -> None:
    client = Client(tmp_path, hub.url)
    adapter, refused = client.open("owner/adapter", "owner/pickled")
    assert adapter["kind"] == "lora"
    assert "only pickled ones" in refused
    assert "--allow-pickle" in refused
    assert not any(name.endswith(".bin") for name in hub.fetched)
    (opened,) = client.open("owner/pickled", pickle=True)
    assert opened["tensors"] == sorted(base_state())


def test_a_local_path_never_causes_a_call_to_the_network(
    hub: Hub, tmp_path: Path, models: Path
) -> None:
    sources = [str(models / "branch"), str(models / "branch" / "model.safetensors")]
    sources += [str(models / "adapter"), "zoo:base", "/no/such/path", "./owner/sharded"]
    found = Client(tmp_path, hub.url).open(*sources, no_network=True)
    assert [type(one) for one in found] == [dict, dict, dict, dict, str, str]
    assert all("no such folder" in refused for refused in found[4:])
    assert not hub.requests


def test_nothing_is_found_offline_that_was_never_fetched(hub: Hub, tmp_path: Path) -> None:
    (refused,) = Client(tmp_path, hub.url).open("owner/sharded", offline=True, no_network=True)
    assert "neither a folder here nor a model that could be fetched" in refused
    assert not hub.requests
