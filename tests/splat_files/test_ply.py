"""3DGS PLY files: read as they were written, and refused in a sentence where they are damaged or something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import plyfile
import pytest
import trimesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.splat_files.gaussians import Gaussians
from sa3d_nerfstudio.splat_files.ply import is_compressed, is_z_up, read_ply, write_ply


def some(count: int = 7, degree: int = 3, seed: int = 0) -> Gaussians:
    rng = np.random.default_rng(seed)
    shapes = [(count, 3), (count, 3), (count, 4), (count,), (count, 3), (count, (degree + 1) ** 2 - 1, 3)]
    return Gaussians(*(rng.normal(0, 3, shape).astype(np.float32) for shape in shapes))


def assert_equal(gaussians: Gaussians, other: Gaussians) -> None:
    for name in Gaussians.__dataclass_fields__:
        assert np.array_equal(getattr(gaussians, name), getattr(other, name)), name
        assert getattr(other, name).dtype == np.float32


def with_vertices(path: Path, change: Callable[[dict[str, np.ndarray]], None], **written: object) -> Path:
    """A PLY whose properties have been changed; they are written in the order of the dictionary."""
    write_ply(path, some())
    data = plyfile.PlyData.read(str(path))["vertex"].data
    columns = {name: np.array(data[name]) for name in data.dtype.names}
    change(columns)
    table = np.empty(len(columns["x"]), dtype=[(name, values.dtype.str) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")], **written).write(str(path))  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("degree", range(5))
def test_what_is_written_is_read_again(degree: int, tmp_path: Path):
    path, gaussians = tmp_path / "s.ply", some(degree=degree)
    write_ply(path, gaussians, comments=["Vertical Axis: z"])
    read, left_out = read_ply(path)
    assert_equal(gaussians, read)
    assert (read.sh_degree, left_out) == (degree, 0)
    assert is_z_up(path)
    assert not is_compressed(path)


def test_properties_have_the_names_and_the_order_of_inrias(tmp_path: Path):
    gaussians = some()
    write_ply(tmp_path / "s.ply", gaussians, {"object_id": np.arange(7)})
    data = plyfile.PlyData.read(str(tmp_path / "s.ply"))["vertex"]
    rest = [f"f_rest_{index}" for index in range(45)]
    assert [item.name for item in data.properties] == [
        "x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity",
        "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3", "object_id",
    ]  # fmt: skip
    # All coefficients of red, then those of green: basis 4 of green is number 15 + 4.
    assert np.array_equal(data["f_rest_19"], gaussians.features_rest[:, 4, 1])
    assert data["object_id"].dtype.kind == "i"


@pytest.mark.parametrize("written", [{"text": True}, {"byte_order": ">"}, {}])
def test_text_and_either_byte_order_doubles_and_other_orders_are_read(written: dict, tmp_path: Path):
    def change(columns: dict[str, np.ndarray]) -> None:
        columns["x"] = columns["x"].astype(np.float64)
        columns["segment"] = np.arange(7, dtype=np.int32)
        for name in ("nx", "ny", "nz"):
            del columns[name]
        for name in sorted(columns, reverse=True):
            columns[name] = columns.pop(name)

    path = with_vertices(tmp_path / "s.ply", change, **written)
    read, _ = read_ply(path)
    for name in Gaussians.__dataclass_fields__:
        assert np.allclose(getattr(read, name), getattr(some(), name), rtol=1e-6), name


def test_opacities_that_are_no_logits(tmp_path: Path):
    def linear(columns: dict[str, np.ndarray]) -> None:
        columns["opacity"] = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0], np.float32)

    path = with_vertices(tmp_path / "s.ply", linear)
    with pytest.raises(SA3DError, match=r"all lie in 0 to 1.*--opacity linear"):
        read_ply(path)
    assert np.allclose(read_ply(path, "linear")[0].alphas, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], atol=1e-6)
    assert read_ply(path, "logit")[0].opacities[5] == np.float32(0.9)
    write_ply(path, some())
    with pytest.raises(SA3DError, match="do not lie in 0 to 1"):
        read_ply(path, "linear")


def test_infinite_logits_are_no_and_full_opacity(tmp_path: Path):
    gaussians = some()
    gaussians.opacities[:2] = [np.inf, -np.inf]
    write_ply(tmp_path / "s.ply", gaussians)
    read, left_out = read_ply(tmp_path / "s.ply")
    assert left_out == 0
    assert read.alphas[:2].tolist() == [1, pytest.approx(0, abs=1e-12)]


@pytest.mark.parametrize(
    ("name", "value"), [("scale_1", np.nan), ("x", np.inf), ("f_rest_7", np.nan), ("opacity", np.nan)]
)
def test_values_that_are_no_numbers(name: str, value: float, tmp_path: Path):
    def change(columns: dict[str, np.ndarray]) -> None:
        columns[name][2] = value
        columns["rot_0"][4] = columns["rot_1"][4] = columns["rot_2"][4] = columns["rot_3"][4] = 0

    path = with_vertices(tmp_path / "s.ply", change)
    with pytest.raises(SA3DError, match=r"2 of 7 splats .*quats.*--skip-invalid"):
        read_ply(path)
    read, left_out = read_ply(path, skip_invalid=True)
    assert left_out == 2
    assert_equal(some()[np.array([0, 1, 3, 5, 6])], read)


def _no_floats(columns: dict[str, np.ndarray]) -> None:
    columns["opacity"] = np.arange(7, dtype=np.uint8)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda columns: [columns.pop(name) for name in ("opacity", "rot_2")], "no opacity, rot_2: export Gaussians"),
        (lambda columns: columns.pop("f_rest_44"), "has 44 properties f_rest_N"),
        (lambda columns: columns.update(f_rest_99=columns.pop("f_rest_3")), "counted from 0"),
        (_no_floats, "its opacity is no property of type float"),
    ],
)
def test_properties_that_are_missing_or_wrong(change: Callable, sentence: str, tmp_path: Path):
    path = with_vertices(tmp_path / "s.ply", change)
    with pytest.raises(SA3DError, match=sentence) as error:
        read_ply(path)
    assert "\n" not in str(error.value)


def test_what_is_no_splat_file(tmp_path: Path):
    mesh, path = tmp_path / "mesh.ply", tmp_path / "s.ply"
    trimesh.creation.box().export(mesh)
    write_ply(path, some())
    whole = path.read_bytes()
    header = whole[: whole.index(b"end_header")]
    cases: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "is empty"),
        "text": (b"hello", "no PLY"),
        "none": (whole[: whole.index(b"end_header") + 11].replace(b"vertex 7", b"vertex 0"), "holds no splats"),
        "no element": (b"ply\nformat binary_little_endian 1.0\nend_header\n", "holds no splats"),
        "short": (whole[:-1], "is cut short"),
        "shorter": (whole[: len(header) + 30], "is cut short"),
        "short header": (header[:200], "is cut short in its header"),
        "much more": (whole.replace(b"vertex 7", b"vertex 70000000000000"), "announces 70000000000000 rows"),
        "long header": (header + b"comment of many lines\n" * 1_000_000 + whole[len(header) :], "header is longer"),
        "no format": (whole.replace(b"format binary_little_endian 1.0\n", b""), "cannot be read as a PLY"),
    }
    for content, sentence in cases.values():
        path.write_bytes(content)
        with pytest.raises(SA3DError, match=sentence):
            read_ply(path)
    with pytest.raises(SA3DError, match="is a mesh of 12 faces and holds no splats"):
        read_ply(mesh)
    with pytest.raises(SA3DError, match="cannot be read"):
        read_ply(tmp_path / "absent.ply")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_end_in_a_sentence_or_in_splats(data: st.DataObject, tmp_path: Path):
    """Bytes of a whole file are changed, dropped and doubled anywhere, most of all in the header."""
    path = tmp_path / "fuzz.ply"
    write_ply(path, some(3, 1))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, data.draw(st.sampled_from([len(content), 300, 60]))))
        length = data.draw(st.integers(0, 12))
        content[at : at + length] = data.draw(st.binary(max_size=12)) * data.draw(st.sampled_from([1, 1, 3]))
    path.write_bytes(bytes(content))
    try:
        read, _ = read_ply(path)
    except SA3DError as error:
        assert "\n" not in str(error)
        assert str(error).endswith(".")
    else:
        assert len(read) > 0
        assert all(np.isfinite(getattr(read, name)).all() for name in Gaussians.__dataclass_fields__)
