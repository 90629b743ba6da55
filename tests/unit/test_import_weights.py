"""Own state dicts under this project's names, and everything that does not match, named on both sides."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tolbuild.checkpoint import Theirs, import_weights, load_model, open_checkpoint
from tolbuild.checkpoint.convert import main
from tolbuild.config import ModelConfig
from tolbuild.model import MemoryLLM
from tolbuild.table.errors import FormatError

CONFIG = ModelConfig(
    kind="memory", vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24
)
NAME_MAP = {
    "model.embed_tokens.weight": "tok.weight",
    "model.layers.{layer}.memory_mlp.down_proj.weight": Theirs(name="blocks.{layer}.w2", transpose=True),
    "model.layers.{layer}.self_attn.q_proj.weight": "blocks.{layer}.q",
}
IGNORE = ["*.rotary.inv_freq"]


@pytest.fixture
def model() -> MemoryLLM:
    model = MemoryLLM(CONFIG)
    model.reset_parameters(0)
    return model


@pytest.fixture
def theirs(model: MemoryLLM) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    state["tok.weight"] = state.pop("model.embed_tokens.weight")
    for i in range(3):
        state[f"blocks.{i}.w2"] = state.pop(f"model.layers.{i}.memory_mlp.down_proj.weight").t().contiguous()
        state[f"blocks.{i}.q"] = state.pop(f"model.layers.{i}.self_attn.q_proj.weight")
        state[f"blocks.{i}.rotary.inv_freq"] = torch.ones(4)
    return state


def save(theirs: dict[str, Tensor], folder: Path, form: str) -> Path:
    folder.mkdir(exist_ok=True)
    if form.endswith(".safetensors"):
        safetensors.torch.save_file(theirs, folder / form)
    else:
        torch.save(theirs, folder / form)
    return folder if form == "model.safetensors" else folder / form


@pytest.mark.parametrize("form", ["dict", "own.safetensors", "model.safetensors", "own.pt"])
def test_names_are_mapped_and_matrices_turned(
    model: MemoryLLM, theirs: dict[str, Tensor], tmp_path: Path, form: str
) -> None:
    weights = theirs if form == "dict" else save(theirs, tmp_path, form)
    state = import_weights(weights, CONFIG, NAME_MAP, ignore=IGNORE)
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_what_does_not_match_is_named_on_both_sides(theirs: dict[str, Tensor]) -> None:
    del theirs["blocks.1.q"]
    theirs["extra"] = torch.ones(1)
    wrong = {**NAME_MAP, "model.layers.{layer}.mlp.up_proj.weight": "x"}
    with pytest.raises(ValueError, match="nothing asks for") as caught:
        import_weights(theirs, CONFIG, wrong, ignore=IGNORE)
    message = str(caught.value)
    assert "the name map has model.layers.{layer}.mlp.up_proj.weight, which a memory model" in message
    assert "lacks model.layers.1.self_attn.q_proj.weight (as blocks.1.q)" in message
    assert "nothing asks for extra of" in message


def test_wrong_shapes_types_and_values_are_refused(theirs: dict[str, Tensor]) -> None:
    straight = {**NAME_MAP, "model.layers.{layer}.memory_mlp.down_proj.weight": "blocks.{layer}.w2"}
    with pytest.raises(ValueError, match=r"down_proj.weight is \[24, 16\], the config asks for \[16, 24\]"):
        import_weights(theirs, CONFIG, straight, ignore=IGNORE)
    turned = {**NAME_MAP, "model.norm.weight": Theirs(name="model.norm.weight", transpose=True)}
    with pytest.raises(ValueError, match=r"model.norm.weight cannot be transposed: its shape is \[16\]"):
        import_weights(theirs, CONFIG, turned, ignore=IGNORE)
    with pytest.raises(ValueError, match=r"blocks.2.q is int64; expected one of float64"):
        import_weights(theirs | {"blocks.2.q": torch.ones(16, 16, dtype=torch.int64)}, CONFIG, NAME_MAP, ignore=IGNORE)
    with pytest.raises(ValueError, match=r"tensor blocks.2.q holds 256 values that are no numbers"):
        import_weights(theirs | {"blocks.2.q": torch.full((16, 16), torch.nan)}, CONFIG, NAME_MAP, ignore=IGNORE)


def test_pickles_of_anything_else_are_refused(tmp_path: Path) -> None:
    for value, message in (
        ({"model": {"a": torch.ones(1)}, "step": 3}, "'model' is no tensor"),
        ([1], "holds a list"),
    ):
        torch.save(value, tmp_path / "own.pt")
        with pytest.raises(FormatError, match=message):
            import_weights(tmp_path / "own.pt", CONFIG, NAME_MAP)
    (tmp_path / "own.pt").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(FormatError, match="no file of plain tensors"):
        import_weights(tmp_path / "own.pt", CONFIG, NAME_MAP)


def test_the_command_line_writes_a_checkpoint(
    model: MemoryLLM, theirs: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save(theirs, tmp_path, "own.pt")
    turned = {name: vars(to) if isinstance(to, Theirs) else to for name, to in NAME_MAP.items()}
    (tmp_path / "names.json").write_text(json.dumps(turned))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    given = [f"--weights={weights}", f"--config={tmp_path}/config.json", f"--name-map={tmp_path}/names.json"]
    out = tmp_path / "out"
    assert main([*given, f"--out={out}", "--ignore", "*.rotary.inv_freq"]) == 0
    checkpoint = open_checkpoint(out)
    assert f"fingerprint: {checkpoint.fingerprint}" in capsys.readouterr().out
    ids_BS = torch.arange(20).view(2, 10)
    assert torch.equal(load_model(checkpoint)(ids_BS), model(ids_BS))
    assert main([*given, f"--out={tmp_path}/other"]) == 1
    assert "nothing asks for blocks.0.rotary.inv_freq" in capsys.readouterr().err
    for text, message in (("{", "no JSON"), ("[]", "expected an object"), ('{"a": {"nam": 1}}', "a maps to")):
        (tmp_path / "names.json").write_text(text)
        assert main([*given, f"--out={tmp_path}/other"]) == 1
        assert message in capsys.readouterr().err
    assert main([*given[:2], "--name-map=/no/such.json", f"--out={tmp_path}/other"]) == 1
    assert not (tmp_path / "other").exists()
