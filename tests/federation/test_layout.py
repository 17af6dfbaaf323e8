from __future__ import annotations

import numpy as np
import pytest

from flwr_afuic.errors import LayoutError
from flwr_afuic.federation.layout import ArraySpec, Layout, infer_kind

NAMES = ["conv.weight", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked", "bias"]


def model() -> list[np.ndarray]:
    return [
        np.ones((2, 3), np.float32),
        np.zeros(3, np.float32),
        np.ones(3, np.float32),
        np.asarray(7, np.int64),
        np.zeros((), np.float32),
    ]


def layout() -> Layout:
    return Layout.of(NAMES, model())


@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        ("layer.weight", np.float32, "trained"),
        ("layer.weight", np.float64, "trained"),
        ("layer.weight", np.float16, "trained"),
        ("running_mean", np.float32, "statistic"),
        ("a.b.running_var", np.float32, "statistic"),
        ("running_mean_of_mine", np.float32, "trained"),
        ("a.running_mean.weight", np.float32, "trained"),
        ("bn.num_batches_tracked", np.int64, "counter"),
        ("bn.num_batches_tracked", np.float32, "counter"),
        ("table", np.int32, "counter"),
        ("mask", np.bool_, "counter"),
    ],
)
def test_kind_from_name_and_dtype(name: str, dtype: type, kind: str) -> None:
    assert infer_kind(name, np.zeros(2, dtype)) == kind


def test_reads_names_shapes_and_dtypes() -> None:
    specs = layout().specs
    assert [spec.kind for spec in specs] == [
        "trained",
        "statistic",
        "statistic",
        "counter",
        "trained",
    ]
    assert specs[0] == ArraySpec("conv.weight", (2, 3), "float32", "trained")
    assert specs[3].shape == ()
    assert specs[3].size == 1
    assert layout().trained_size == 7
    assert layout().names == NAMES


def test_overrides() -> None:
    kinds = {"bias": "statistic"}
    assert Layout.of(NAMES, model(), kinds).specs[4].kind == "statistic"
    with pytest.raises(LayoutError, match=r"lacks: \['head'\]"):
        Layout.of(NAMES, model(), {"head": "trained"})
    with pytest.raises(LayoutError, match="'bias' 'frozen'; use one of trained"):
        Layout.of(NAMES, model(), {"bias": "frozen"})


def test_refuses_what_is_no_model() -> None:
    with pytest.raises(LayoutError, match="none of the 0 arrays is trained"):
        Layout.of([], [])
    with pytest.raises(LayoutError, match="none of the 1 arrays is trained"):
        Layout.of(["n"], [np.zeros(3, np.int64)])
    with pytest.raises(LayoutError, match="unique"):
        Layout.of(["a", "a"], [np.zeros(1), np.zeros(1)])


def test_a_sound_model_has_no_problems() -> None:
    assert layout().problems(model()) == []
    layout().check(model(), "update")


def test_lists_every_problem() -> None:
    wrong = model()
    wrong[0] = np.ones((3, 2), np.float32)
    wrong[1] = np.zeros(3, np.float64)
    wrong[2] = np.float32([1, np.nan, 1])
    wrong[3] = np.asarray([7], np.int64)
    wrong[4] = np.asarray(np.inf, np.float32)
    assert layout().problems(wrong) == [
        "'conv.weight' has shape (3, 2), not (2, 3)",
        "'bn.running_mean' has dtype float64, not float32",
        "'bn.running_var' holds NaN or infinity",
        "'bn.num_batches_tracked' has shape (1,), not ()",
        "'bias' holds NaN or infinity",
    ]
    with pytest.raises(LayoutError, match=r"^site-2: .*\(and 2 more\)$"):
        layout().check(wrong, "site-2")


def test_counts_arrays_first() -> None:
    assert layout().problems(model()[:-1]) == ["4 arrays where the model has 5"]
    assert layout().problems([]) == ["0 arrays where the model has 5"]


def test_a_floating_counter_may_not_be_nan() -> None:
    # Flower's own averaging makes float64 of num_batches_tracked.
    arrays = [np.ones(1), np.asarray(np.nan)]
    own = Layout.of(["w", "num_batches_tracked"], [np.ones(1), np.asarray(3.0)])
    assert own.problems(arrays) == ["'num_batches_tracked' holds NaN or infinity"]


def test_flatten_keeps_trained_arrays_only_and_with_trained_is_its_inverse() -> None:
    arrays = model()
    arrays[0] = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays[4] = np.asarray(9, np.float32)
    vector = layout().flatten(arrays)
    np.testing.assert_array_equal(vector, [0, 1, 2, 3, 4, 5, 9])
    assert vector.dtype == np.float64
    back = layout().with_trained(vector * 2, arrays)
    np.testing.assert_array_equal(back[0], arrays[0] * 2)
    assert back[4] == 18
    assert back[4].shape == ()
    assert [a.dtype for a in back] == [a.dtype for a in arrays]
    back[1][0] = 5
    assert arrays[1][0] == 0, "statistics must be copies"


def test_update_between_subtracts_trained_arrays_and_keeps_the_rest() -> None:
    after = [a + a.dtype.type(2) for a in model()]
    update = layout().update_between(after, model())
    np.testing.assert_array_equal(update[0], np.full((2, 3), 2, np.float32))
    np.testing.assert_array_equal(update[1], [2, 2, 2])
    np.testing.assert_array_equal(update[2], [3, 3, 3])
    assert update[3] == 9
    assert update[3].dtype == np.int64
    assert update[4] == 2
    assert update[4].shape == ()
    assert layout().problems(update) == []
