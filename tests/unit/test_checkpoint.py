"""Checkpoints: what is saved is read back, from any cut of the files, and what does not fit is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer

from tolbuild.checkpoint import load_model, open_checkpoint, save_checkpoint
from tolbuild.config import ModelConfig
from tolbuild.model import MemoryLLM
from tolbuild.rows import ffn_rows
from tolbuild.table.errors import FormatError, ObjectNotFoundError, StoreError
from tolbuild.train.data import END_OF_TEXT, train_tokenizer

SHAPES: list[dict[str, Any]] = [
    {"kind": "base"},
    {"kind": "memory"},
    {"kind": "memory", "tie_word_embeddings": False, "num_key_value_heads": 2},
    {"kind": "flex", "beta": 2},
]
PINNED = "95fa455623e2308bac64a8cea981c33d74971e7547543e118a893d5616d47745"
"""Fingerprint of the tensors of `test_is_pinned`: tables name their checkpoint by it, so it must never change."""
Model = tuple[ModelConfig, MemoryLLM]


def make_model(**changes: Any) -> Model:
    shape = {
        "kind": "memory", "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 40, **changes,
    }  # fmt: skip
    config = ModelConfig(**shape)
    model = MemoryLLM(config)
    model.reset_parameters(3)
    return config, model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    config, model = make_model()
    save_checkpoint(tmp_path / "c", config, model.state_dict())
    return tmp_path / "c"


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace tensors of a saved checkpoint, or drop them (None), with the library's own writer."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path) | change
    safetensors.torch.save_file({name: t for name, t in tensors.items() if t is not None}, path)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 3000, 1])
def test_a_saved_model_gives_the_same_logits(tmp_path: Path, shape: dict[str, Any], max_shard_bytes: int) -> None:
    config, model = make_model(**shape)
    save_checkpoint(tmp_path, config, model.state_dict(), max_shard_bytes=max_shard_bytes)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == config
    ids_BS = torch.randint(0, 100, (2, 11), generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_model(checkpoint)(ids_BS), model(ids_BS))
    assert sorted(checkpoint.names) == sorted(model.state_dict())


def test_pieces_are_those_of_the_model(saved: Path) -> None:
    config, model = make_model()
    checkpoint = open_checkpoint(saved.as_uri())
    embedding_VD = model.model.embed_tokens.weight.detach()
    assert torch.equal(checkpoint.embedding_rows(17, 40), embedding_VD[17:40])
    assert torch.equal(checkpoint.tensor_rows("model.layers.1.self_attn.q_proj.weight", 3, 3), torch.empty(0, 16))
    for layer in range(config.num_hidden_layers):
        expected_ND = model.model.layers[layer].rows(embedding_VD[:64])
        torch.testing.assert_close(ffn_rows(embedding_VD[:64], checkpoint.memory_ffn(layer)), expected_ND)


def test_stored_types_are_kept_and_pieces_come_in_fp32(tmp_path: Path) -> None:
    config, model = make_model()
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    save_checkpoint(tmp_path, config, state)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == replace(config, torch_dtype="bfloat16")
    name = "model.layers.0.memory_mlp.down_proj.weight"
    assert torch.equal(checkpoint.tensor(name), state[name])
    assert torch.equal(checkpoint.memory_ffn(0).down_DK, state[name].float())
    assert checkpoint.embedding_rows(0, 5).dtype == torch.float32
    assert load_model(checkpoint, dtype=torch.float64).head_VD.dtype == torch.float64


def test_saving_again_leaves_no_file_of_the_older_checkpoint(tmp_path: Path) -> None:
    config, model = make_model()
    for max_shard_bytes, count in ((1 << 30, 2), (5000, 10), (1 << 30, 2)):
        save_checkpoint(tmp_path, config, model.state_dict(), max_shard_bytes=max_shard_bytes)
        names = sorted(path.name for path in tmp_path.rglob("*"))
        assert len(names) == count, names
        open_checkpoint(tmp_path).close()


class TestFingerprint:
    def test_does_not_know_how_the_files_are_cut_or_ordered(self, saved: Path, tmp_path: Path) -> None:
        config, model = make_model()
        backwards = dict(reversed(model.state_dict().items()))
        for url, max_shard_bytes in ((tmp_path / "d", 4000), (f"memory://{tmp_path.name}", 1 << 30)):
            save_checkpoint(url, config, backwards, max_shard_bytes=max_shard_bytes)
            assert open_checkpoint(url).fingerprint == open_checkpoint(saved).fingerprint

    def test_is_pinned(self, tmp_path: Path) -> None:
        config, model = make_model()
        state = {name: torch.arange(t.numel()).view(t.shape).float() for name, t in model.state_dict().items()}
        save_checkpoint(tmp_path, config, state)
        assert open_checkpoint(tmp_path).fingerprint == PINNED

    def test_changes_with_any_byte(self, saved: Path) -> None:
        before = open_checkpoint(saved).fingerprint
        path = saved / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        assert open_checkpoint(saved).fingerprint != before

    @pytest.mark.parametrize(
        ("key", "value", "changes"),
        [
            ("layer_norm_eps", 1e-6, True), ("rope_theta", 5e5, True), ("num_attention_heads", 2, True),
            ("eos_token_id", 3, False), ("max_position_embeddings", 64, False), ("torch_dtype", "bfloat16", False),
        ],
    )  # fmt: skip
    def test_knows_the_config_that_matters(self, saved: Path, key: str, value: Any, changes: bool) -> None:
        before = open_checkpoint(saved).fingerprint
        path = saved / "config.json"
        values = json.loads(path.read_text()) | {key: value}
        if key == "num_attention_heads":
            values["num_key_value_heads"] = value
        path.write_text(json.dumps(values))
        if key == "num_attention_heads":  # the same shapes in two heads: another model
            assert open_checkpoint(saved).config.head_dim == 8
        assert (open_checkpoint(saved).fingerprint != before) is changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, r"missing: model.norm.weight \[16\]"),
        ({"model.norm.weight": torch.ones(15)}, r"wrong shape: model.norm.weight is \[15\], the config asks for"),
        ({"lm_head.weight": torch.ones(100, 16)}, r"unexpected: lm_head.weight \[100, 16\]"),
        ({"model.norm.weight": torch.ones(16, dtype=torch.int32)}, "model.norm.weight is int32; expected one of"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(saved: Path, change: dict[str, Any], message: str) -> None:
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_refused_by_name(saved: Path, value: float) -> None:
    embedding, down = "model.embed_tokens.weight", "model.layers.1.memory_mlp.down_proj.weight"
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    tensors[embedding][50, 3] = tensors[down][2, 7] = value
    rewrite(saved, tensors)
    checkpoint = open_checkpoint(saved)
    checkpoint.embedding_rows(0, 50)
    with pytest.raises(
        ValueError, match=rf"{embedding} holds 1 values that are no numbers, the first -?(nan|inf) at \[50, 3\]"
    ):
        checkpoint.embedding_rows(49, 52)
    checkpoint.memory_ffn(0)
    with pytest.raises(ValueError, match=rf"{down} holds 1 values .* at \[2, 7\]"):
        checkpoint.memory_ffn(1)
    with pytest.raises(ValueError, match=embedding):
        load_model(checkpoint)
    with pytest.raises(ValueError, match=embedding):
        save_checkpoint(saved / "copy", checkpoint.config, tensors)


def test_configs_that_do_not_fit_are_refused(saved: Path) -> None:
    path = saved / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"num_experts": 4}))
    with pytest.raises(ValueError, match=r"config.json: unknown config keys: num_experts"):
        open_checkpoint(saved)
    path.write_text(json.dumps(values | {"torch_dtype": "float3"}))
    with pytest.raises(ValueError, match="torch_dtype is 'float3'"):
        open_checkpoint(saved)
    path.write_text("[]")
    with pytest.raises(FormatError, match="expected an object"):
        open_checkpoint(saved)
    path.write_text("{")
    with pytest.raises(FormatError, match="no JSON"):
        open_checkpoint(saved)


def test_places_without_a_checkpoint_say_so(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFoundError, match=r"no checkpoint at .*nowhere: it has no config.json"):
        open_checkpoint(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(ObjectNotFoundError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        open_checkpoint(saved)
    with pytest.raises(ValueError, match="'builtin:tny' does not come with this package"):
        open_checkpoint("builtin:tny")
    with pytest.raises(ValueError, match="the URL is empty"):
        open_checkpoint("")


def test_truncated_files_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for kept in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(FormatError, match="truncated"):
            open_checkpoint(saved)
    path.write_bytes(whole)
    checkpoint = open_checkpoint(saved)
    path.write_bytes(whole[:-1000])
    with pytest.raises(StoreError):
        load_model(checkpoint)


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path: Path) -> None:
    config, model = make_model()
    save_checkpoint(tmp_path, config, model.state_dict(), max_shard_bytes=5000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    weight_map = dict(index["weight_map"])
    one, other = "model.embed_tokens.weight", "model.norm.weight"
    for change, message in (
        ({one: weight_map[other]}, one),
        ({"more": weight_map[one]}, "tensor more of .* is in the index, not in the file"),
        ({one: "../secret.safetensors"}, "expected a .safetensors file beside the index"),
        ({one: 3}, "expected a .safetensors file beside the index"),
    ):
        path.write_text(json.dumps({"weight_map": weight_map | change}))
        with pytest.raises(FormatError, match=message):
            open_checkpoint(tmp_path)
    del weight_map[other]
    path.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FormatError, match=f"tensor {other} of .* is in the file, not in the index"):
        open_checkpoint(tmp_path)
    path.write_text("{}")
    with pytest.raises(FormatError, match="no index of weight files"):
        open_checkpoint(tmp_path)
    path.write_text(json.dumps(index))
    (tmp_path / index["weight_map"][one]).unlink()
    with pytest.raises(ObjectNotFoundError, match="model-0000"):
        open_checkpoint(tmp_path)


def test_wrong_asks_name_what_there_is(saved: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved)
    with pytest.raises(ValueError, match=r"has no tensor lm_head.weight"):
        checkpoint.tensor("lm_head.weight")
    with pytest.raises(ValueError, match=r"rows 90 to 101 of model.embed_tokens.weight were asked for; it has 100"):
        checkpoint.embedding_rows(90, 101)
    with pytest.raises(ValueError, match=r"layer 2 was asked for; .* has 2"):
        checkpoint.memory_ffn(2)
    config, model = make_model(kind="base")
    save_checkpoint(tmp_path / "base", config, model.state_dict())
    with pytest.raises(ValueError, match="is a base model"):
        open_checkpoint(tmp_path / "base").memory_ffn(0)
    with pytest.raises(ValueError, match="max_shard_bytes is 0"):
        save_checkpoint(tmp_path, config, model.state_dict(), max_shard_bytes=0)


def test_the_tokenizer_comes_back_and_hugging_face_reads_it(tmp_path: Path) -> None:
    tokenizer: Tokenizer = train_tokenizer(iter(["the whale and the sea " * 20]), 280)
    config, model = make_model(vocab_size=280, eos_token_id=0)
    save_checkpoint(tmp_path, config, model.state_dict(), tokenizer_json=tokenizer.to_str())
    ids = open_checkpoint(tmp_path).tokenizer().encode("the sea").ids
    assert ids == tokenizer.encode("the sea").ids
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (theirs.encode("the sea"), theirs.eos_token) == (ids, END_OF_TEXT)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match="no tokenizer"):
        open_checkpoint(tmp_path).tokenizer()
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ObjectNotFoundError, match=r"has no tokenizer.json"):
        open_checkpoint(tmp_path).tokenizer()
