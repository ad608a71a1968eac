"""Files that are whole or not there: any layout of memory, crashes, full disks, strangers' files."""

import errno
import json
import os
import pickle

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import checkpoint


def test_arrays_of_any_layout_come_back_as_they_were(tmp_path, rng):
    base = rng.standard_normal((4, 6))
    arrays = {
        "plain": base, "transposed": base.T, "fortran": np.asfortranarray(base), "strided": base[::2, ::3],
        "reversed": base[::-1], "scalar": np.array(2.5), "empty": np.zeros((0, 3)), "ints": np.arange(5),
        "half": base.astype("float16"), "mask": base > 0, "tensor": mt.tensor(base.T),
    }  # fmt: skip
    mt.save(tmp_path / "x.safetensors", arrays)
    loaded = mt.load(tmp_path / "x.safetensors")
    assert set(loaded) == set(arrays)
    for name, value in arrays.items():
        expected = np.asarray(value)
        np.testing.assert_array_equal(loaded[name], expected)
        assert loaded[name].dtype == expected.dtype and loaded[name].shape == expected.shape


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x00" * 100, pickle.dumps({"a": 1}), (10**18).to_bytes(8, "little") + b"{}"],
    ids=["empty", "text", "zeros", "pickle", "huge header"],
)
def test_a_foreign_file_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a safetensors file; .* is cut short or of another format") as caught:
        mt.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path, rng):
    path = tmp_path / "x.safetensors"
    mt.save(path, {"a": rng.standard_normal((7, 5)), "b": np.arange(3)})
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="expected a safetensors file"):
            mt.load(path)


def test_missing_files_and_wrong_values_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        mt.load(tmp_path / "none.safetensors")
    with pytest.raises(TypeError, match="'a': list"):
        mt.save(tmp_path / "x.safetensors", {"a": [1, 2]})
    with pytest.raises(ValueError, match="damaged"):
        (tmp_path / "x.json").write_text('{"a": ')
        checkpoint.read_json(tmp_path / "x.json")
    assert not (tmp_path / "x.safetensors").exists()


def full_disk(monkeypatch, after):
    """Make the disk full after so many bytes are synced."""
    real = os.fsync
    calls = iter(range(after))

    def fsync(handle):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    checkpoint.write_json(path, {"a": 1})
    full_disk(monkeypatch, after=0)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("after", range(4))
def test_a_checkpoint_is_there_whole_or_not_at_all(after, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    arrays = {"w": np.ones(3, "float32")}
    checkpoint.save_checkpoint(folder, 1, arrays, {}, {"loss": 1.0})
    full_disk(monkeypatch, after)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_checkpoint(folder, 2, {"w": np.zeros(3, "float32")}, {}, {"loss": 0.5})
    assert os.listdir(folder) == ["step-00000001"]
    np.testing.assert_array_equal(checkpoint.load_checkpoint(folder)[0]["w"], 1)


def test_the_newest_is_loaded_the_last_two_are_kept_and_leavings_are_cleared(tmp_path):
    (tmp_path / ".step-00000001.123.tmp").mkdir()
    for step in (5, 10, 15):
        checkpoint.save_checkpoint(tmp_path, step, {"w": np.full(2, step)}, {"0.m": np.zeros(2)}, {"x": 1})
    assert sorted(os.listdir(tmp_path)) == ["step-00000010", "step-00000015"]
    model, moments, state = checkpoint.load_checkpoint(tmp_path)
    assert model["w"][0] == 15 and list(moments) == ["0.m"] and state == {"step": 15, "x": 1}


def test_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds none; train first"):
        checkpoint.load_checkpoint(tmp_path)


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        checkpoint.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not os.listdir(tmp_path)
