"""Attention that was reparameterised against merging is told from attention that was trained."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import awd_core as awd
from awd_core.__main__ import app
from awd_core.locks import LockSign, lock_signs
from tests.helpers import State, save

WIDTH, HEADS = 24, 4
ATTENTION = "model.layers.{}.self_attn.{}_proj.weight"
CONFIG = {"model_type": "tiny", "num_attention_heads": HEADS, "hidden_size": WIDTH}


def attention(kv_heads: int = HEADS, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    narrow = kv_heads * WIDTH // HEADS
    rows = {"q": WIDTH, "k": narrow, "v": narrow, "o": WIDTH}
    return {
        ATTENTION.format(layer, kind): torch.randn(rows[kind], WIDTH, generator=generator)
        for layer in range(2)
        for kind in rows
    } | {"model.norm.weight": torch.ones(WIDTH)}


def trained(base: State, size: float = 0.02) -> State:
    generator = torch.Generator().manual_seed(1)
    return {n: t + size * torch.randn(t.shape, generator=generator) for n, t in base.items()}


def locked(state: State, kv_heads: int = HEADS) -> State:
    """Queries times A and keys times A^-T, values times B and outputs times B^-1, head by head."""
    generator = torch.Generator().manual_seed(2)
    dim, group, result = WIDTH // HEADS, HEADS // kv_heads, dict(state)
    for layer in range(2):
        q, k, v, o = (result[ATTENTION.format(layer, kind)].clone() for kind in "qkvo")
        for head in range(kv_heads):
            a, b = torch.randn(2, dim, dim, generator=generator)
            own = slice(head * dim, (head + 1) * dim)
            k[own], v[own] = a.inverse().T @ k[own], b @ v[own]
            for query in range(head * group, (head + 1) * group):
                rows = slice(query * dim, (query + 1) * dim)
                q[rows], o[:, rows] = a @ q[rows], o[:, rows] @ b.inverse()
        for kind, value in zip("qkvo", (q, k, v, o), strict=True):
            result[ATTENTION.format(layer, kind)] = value
    return result


def signs(folder: Path, base: State, expert: State, **config: int) -> tuple[LockSign, ...]:
    paths = [
        save(folder / name, state, CONFIG | config)
        for name, state in (("base", base), ("expert", expert))
    ]
    opened = [awd.open_checkpoint(path) for path in paths]
    return lock_signs(opened[0], opened[1:])


@pytest.mark.parametrize("kv_heads", [HEADS, 2, 1])
def test_a_locked_expert_is_found_in_every_layer(tmp_path: Path, kv_heads: int) -> None:
    base = attention(kv_heads)
    found = signs(tmp_path, base, locked(trained(base), kv_heads), num_key_value_heads=kv_heads)
    assert [(s.block, s.pair) for s in found] == [
        ("block 0", "query and key"),
        ("block 0", "value and output"),
        ("block 1", "query and key"),
        ("block 1", "value and output"),
    ]
    assert all(s.looks_locked for s in found)
    assert all(s.moved > 0.5 and s.changed < 0.1 for s in found)
    assert "merging will fail" in found[0].verdict


@pytest.mark.parametrize("size", [0.0, 0.02, 0.3])
def test_a_trained_expert_is_not(tmp_path: Path, size: float) -> None:
    base = attention()
    found = signs(tmp_path, base, trained(base, size))
    assert len(found) == 4
    assert not any(s.looks_locked for s in found)


def test_another_model_is_not(tmp_path: Path) -> None:
    found = signs(tmp_path, attention(), attention(seed=9))
    assert not any(s.looks_locked for s in found)
    assert all(s.moved > 1 and s.changed > 1 for s in found)


def test_the_product_of_a_lock_without_training_is_unchanged(tmp_path: Path) -> None:
    base = {name: tensor.double() for name, tensor in attention().items()}
    for sign in signs(tmp_path, base, locked_double(base)):
        assert sign.changed < 1e-7 * sign.moved


def locked_double(base: State) -> State:
    torch.set_default_dtype(torch.float64)
    try:
        return locked(base)
    finally:
        torch.set_default_dtype(torch.float32)


def test_shared_heads_that_nothing_tells_are_left_out(tmp_path: Path) -> None:
    base = attention(kv_heads=2)
    assert signs(tmp_path, base, trained(base)) == ()


@pytest.mark.parametrize("is_locked", [True, False])
def test_the_command_names_what_is_locked_and_ends_with_one(
    tmp_path: Path, is_locked: bool
) -> None:
    base = attention()
    expert = locked(trained(base)) if is_locked else trained(base)
    paths = [
        str(save(tmp_path / name, state, CONFIG)) for name, state in (("a", base), ("b", expert))
    ]
    said = CliRunner().invoke(app, ["locks", *paths])
    assert said.exit_code == int(is_locked)
    assert f"{4 if is_locked else 0} look locked" in said.output
    assert ("merging will fail" in said.output) == is_locked
    found = json.loads(CliRunner().invoke(app, ["locks", *paths, "--json"]).output)
    assert found["ok"] is not is_locked
    assert [sign["looks_locked"] for sign in found["signs"]] == [is_locked] * 4


def test_looking_can_be_stopped_and_says_how_far_it_is(tmp_path: Path) -> None:
    base = attention()
    paths = [save(tmp_path / name, base, CONFIG) for name in ("a", "b")]
    opened = [awd.open_checkpoint(path) for path in paths]
    told: list[float] = []
    lock_signs(opened[0], opened[1:], progress=lambda step: told.append(step.fraction))
    assert told == [0.25, 0.5, 0.75, 1.0]
    with pytest.raises(awd.Cancelled):
        lock_signs(opened[0], opened[1:], cancel=lambda: True)
