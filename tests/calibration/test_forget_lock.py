"""The forget lock on both sides: pinned subspaces at the server, a proximal step at the client."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.calibration.blocks import BlockBasis, Blocks, block_of
from flwr_afuic.calibration.forget_lock import ForgetLock
from flwr_afuic.calibration.lock import RelearningLock
from flwr_afuic.calibration.pinned import PinnedSubspaces
from flwr_afuic.calibration.subspaces import orthonormal
from flwr_afuic.errors import ConfigError, LayoutError, WireError

NAMES = [
    "vision_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight",
    "text_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight",
    "vision_model.encoder.layers.0.self_attn.q_proj.lora_B.default.weight",
    "logit_scale",
]
SIZES = [6, 5, 4, 1]
P = sum(SIZES)


def basis_of(seed: int = 0, **ranks: int) -> BlockBasis:
    rng, blocks = np.random.default_rng(seed), Blocks(NAMES, SIZES)
    ranks = {"vision/0": 2, "text/0": 1} | {k.replace("_", "/"): v for k, v in ranks.items()}
    rows = {b: orthonormal(rng.normal(size=(r, blocks.size_of(b)))) for b, r in ranks.items() if r}
    return BlockBasis(blocks, rows)


def dense(basis: BlockBasis) -> np.ndarray:
    """``B`` as one matrix, shape (p, rank), the slow way."""
    return np.stack([basis.coordinates(e) for e in np.eye(P)])


# ---- blocks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "block"),
    [
        (NAMES[0], "vision/0"),
        ("base_model.model.text_model.encoder.layers.11.self_attn.v_proj.lora_B.weight", "text/11"),
        ("visual.transformer.resblocks.2.attn.in_proj_weight", "vision/2"),
        ("text_projection.weight", "text"),
        ("visual_projection.weight", "vision"),
        ("logit_scale", "shared"),
        ("classifier.layers.3.weight", "shared/3"),
        ("context.weight", "shared"),
    ],
)
def test_blocks_are_read_off_names(name, block):
    assert block_of(name) == block


def test_a_block_may_lie_in_pieces():
    blocks = Blocks(NAMES, SIZES)
    assert list(blocks) == ["shared", "text/0", "vision/0"]
    x = np.arange(P, dtype=float)
    assert blocks.take(x, "vision/0").tolist() == [0, 1, 2, 3, 4, 5, 11, 12, 13, 14]
    blocks.add(x, "vision/0", np.full(10, 100.0))
    assert x.tolist() == [*range(100, 106), *range(6, 11), *range(111, 115), 15]
    again = Blocks.of_segments({b: blocks.segments(b) for b in blocks}, P)
    np.testing.assert_array_equal(again.take(x, "text/0"), blocks.take(x, "text/0"))


@pytest.mark.parametrize("parts", [[[0, 9]], [[3, 3]], [[-1, 2]], [[0, 3], [2, 4]]])
def test_pieces_that_are_none(parts):
    with pytest.raises(LayoutError, match="blocks overlap or leave"):
        Blocks.of_segments({"vision/0": parts}, 8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16))
def test_the_block_projection_is_the_dense_one(seed):
    basis, x = basis_of(seed), np.random.default_rng(seed).normal(size=P)
    b, y = dense(basis), x.copy()
    np.testing.assert_allclose(b.T @ b, np.eye(3), atol=1e-12)
    basis.project_out(y)
    np.testing.assert_allclose(y, x - b @ (b.T @ x), atol=1e-12)
    np.testing.assert_allclose(basis.coordinates(y), 0, atol=1e-12)


# ---- at the server -------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 5))
def test_the_pin_is_the_projected_mean_step(seed, clients):
    rng, basis = np.random.default_rng(seed), basis_of(seed)
    theta, b = rng.normal(size=P), dense(basis)
    lock = RelearningLock()
    lock.pin("request", basis, theta)
    deltas = rng.normal(size=(clients, P))
    merged = lock.project(theta + deltas.mean(axis=0))
    expected = theta + (np.eye(P) - b @ b.T) @ deltas.mean(axis=0)
    np.testing.assert_allclose(merged, expected, atol=1e-12)
    # It commutes with averaging.
    each = np.mean([lock.project(theta + delta) for delta in deltas], axis=0)
    np.testing.assert_allclose(merged, each, atol=1e-12)
    assert lock.project(merged) is merged


def test_rounding_does_not_pile_up():
    basis, rng = basis_of(), np.random.default_rng(1)
    theta = rng.normal(size=P).astype(np.float32)
    lock = RelearningLock()
    lock.pin("request", basis, theta)
    model = theta
    for _ in range(2000):
        model = lock.project((model + rng.normal(size=P)).astype(np.float32))
    assert lock.pinned.drift(model)["request"] < 1e-4
    assert np.linalg.norm(model - theta) > 10


def test_two_erasures_whose_bases_overlap():
    first, second = basis_of(0), basis_of(1, text_0=0)
    theta, rng = np.zeros(P), np.random.default_rng(0)
    lock = RelearningLock()
    lock.pin("a", first, theta)
    moved = lock.project(rng.normal(size=P))
    lock.pin("b", second, moved)
    after = lock.project(moved + rng.normal(size=P))
    drift = lock.pinned.drift(after)
    assert max(drift.values()) < 1e-10
    both = np.linalg.qr(np.concatenate([dense(first), dense(second)], axis=1))[0]
    assert np.linalg.matrix_rank(both) == 5


def test_a_half_space_is_met_inside_the_pinned_subspace():
    basis, rng = basis_of(), np.random.default_rng(0)
    origin, direction = rng.normal(size=P), rng.normal(size=P)
    lock = RelearningLock()
    lock.add("half", direction, origin)
    lock.pin("pin", basis, origin)
    outside = origin - direction + rng.normal(size=P)
    found = lock.project(outside)
    assert lock.pinned.drift(found)["pin"] < 1e-10
    assert lock.margins(found)["half"] == pytest.approx(0.0, abs=1e-10)
    free = np.eye(P) - dense(basis) @ dense(basis).T
    inward = free @ direction
    wanted = origin + free @ (outside - origin)
    wanted += (direction @ (origin - wanted)) / (inward @ inward) * inward
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_a_half_space_that_a_pin_forbids_is_a_contradiction():
    basis = basis_of()
    along = dense(basis)[:, 0]
    lock = RelearningLock()
    lock.pin("pin", basis, np.zeros(P))
    lock.add("half", along, along)
    with pytest.raises(ConfigError, match="contradict"):
        lock.project(np.zeros(P))


def test_a_pin_is_replaced_restored_and_dropped():
    pins, basis = PinnedSubspaces(), basis_of()
    pins.add("a", basis, np.zeros(P))
    pins.add("a", basis, np.ones(P))
    again = PinnedSubspaces()
    again.restore("a", *pins.held("a"))
    assert again.drift(np.ones(P))["a"] == 0.0
    pins.remove("a")
    assert len(pins) == 0
    for bad in (lambda: pins.remove("a"), lambda: pins.held("a")):
        with pytest.raises(ConfigError, match="nothing is pinned"):
            bad()
    with pytest.raises(LayoutError, match="to pin at"):
        pins.add("a", basis, np.full(P, np.nan))


# ---- at the client -------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("steps", [1, 7, 2000])
def test_the_drift_under_a_constant_pull_is_bounded_by_g_over_lam(strength, steps):
    """No projection at the server here: it would leave nothing to drift."""
    basis, rng = basis_of(), np.random.default_rng(0)
    theta, b = rng.normal(size=P), dense(basis)
    pull, lr = b @ np.array([3.0, 0.0, 4.0]), 0.5 / strength
    lock = ForgetLock([(basis, basis.coordinates(theta))], strength)
    model = torch.tensor(theta)
    for _ in range(steps):
        model += lr * torch.from_numpy(pull)
        lock.step_([model], lr)
    drift = float(np.linalg.norm(b.T @ (model.numpy() - theta)))
    bound = 5.0 / strength
    assert drift <= bound * (1 - (1 - lr * strength) ** steps) * (1 + 1e-9)
    if steps > 1000:
        assert drift == pytest.approx(bound, rel=1e-9)


def test_the_bound_survives_averaging():
    basis, rng = basis_of(), np.random.default_rng(0)
    b, lr, lam = dense(basis), 0.05, 10.0
    lock = ForgetLock([(basis, basis.coordinates(np.zeros(P)))], lam)
    pulls = [b @ (v / np.linalg.norm(v)) for v in rng.normal(size=(4, 3))]
    model = np.zeros(P)
    for _ in range(30):
        trained = []
        for pull in pulls:
            own = torch.from_numpy(model.copy())
            for _ in range(20):
                own += lr * torch.from_numpy(pull)
                lock.step_([own], lr)
            trained.append(own.numpy())
        model = np.mean(trained, axis=0)
        assert np.linalg.norm(b.T @ model) <= 1.0 / lam


def test_other_directions_are_free_and_strength_zero_does_nothing():
    basis, rng = basis_of(), np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=P), dtype=torch.float32)
    before, free = x.clone(), np.eye(P) - dense(basis) @ dense(basis).T
    parts = [part.clone().requires_grad_() for part in torch.split(x, SIZES)]
    ForgetLock([(basis, np.zeros(3))], 0.0).step_(parts, 0.1)
    assert torch.equal(torch.cat(parts), before)
    ForgetLock([], 5.0).step_(parts, 0.1)
    assert torch.equal(torch.cat(parts), before)
    ForgetLock([(basis, np.zeros(3))], 5.0).step_(parts, 0.1)
    after = torch.cat(parts).detach().double().numpy()
    np.testing.assert_allclose(free @ after, free @ before.double().numpy(), atol=1e-6)
    np.testing.assert_allclose(
        basis.coordinates(after), basis.coordinates(before.numpy()) / 1.5, atol=1e-6
    )


def test_the_lock_crosses_the_wire():
    locks = ForgetLock([(basis_of(0), np.arange(3.0)), (basis_of(1), -np.arange(3.0))], 7.5)
    arrays, text = locks.pack()
    again = ForgetLock.unpack(arrays, text)
    assert again.strength == 7.5
    x = np.random.default_rng(0).normal(size=P)
    one, other = torch.tensor(x), torch.tensor(x)
    locks.step_([one], 0.1)
    again.step_([other], 0.1)
    np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6)
    empty, text = ForgetLock([], 1.0).pack()
    assert not ForgetLock.unpack(empty, text).pins


def spoilt(change):
    arrays, text = ForgetLock([(basis_of(0), np.arange(3.0))], 1.0).pack()
    row = json.loads(text)
    return change(arrays, row) or (arrays, json.dumps(row))


@pytest.mark.parametrize(
    "change",
    [
        lambda a, r: (a[:-1], json.dumps(r)),
        lambda a, r: ([*a, a[0]], json.dumps(r)),
        lambda a, r: (a, None),
        lambda a, r: (a, "[]"),
        lambda a, r: r.update(lam="much"),
        lambda a, r: r.update(lam=float("inf")),
        lambda a, r: r.update(pins=[{}] * 100),
        lambda a, r: r.update(size=3),
        lambda a, r: ([2 * a[0], *a[1:]], json.dumps(r)),
        lambda a, r: ([a[0] * np.nan, *a[1:]], json.dumps(r)),
        lambda a, r: ([*a[:-1], a[-1] * np.nan], json.dumps(r)),
        lambda a, r: r["pins"][0].update({"vision/0": [["x", 2]]}),
    ],
)
def test_a_malformed_lock_is_refused(change):
    with pytest.raises((WireError, LayoutError, ConfigError)):
        ForgetLock.unpack(*spoilt(change))


def test_a_model_of_another_size():
    lock = ForgetLock([(basis_of(), np.zeros(3))], 1.0)
    with pytest.raises(LayoutError, match="16 trained entries"):
        lock.step_([torch.zeros(4)], 0.1)
