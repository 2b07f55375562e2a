"""The findings of sa3d doctor on machines that lack packages, libraries or weights."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

from sa3d_nerfstudio.commands import doctor, main
from sa3d_nerfstudio.segmenters.pretrained import OLDEST

VERSIONS = dict.fromkeys(doctor.REPORTED, "99") | {"torch": "2.6.0+cu124", "viser": "0.2.7"}


def report(**changed: str | None) -> dict[str, doctor.Finding]:
    """Findings on packages in these versions; None for a package that is not installed."""

    def installed(name: str) -> str:
        version = (VERSIONS | changed)[name]
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    return {item.what: item for item in doctor.versions(installed)}


def test_versions_are_reported_and_only_viser_is_judged():
    assert report().keys() == {"python", "packages"}
    assert "torch 2.6.0+cu124" in report()["packages"].value
    assert "open3d" not in report(open3d=None)["packages"].value
    assert report(viser="1.0.3").keys() == {"python", "packages"}
    assert report(viser="0.1.9")["viser"].state == "note"
    assert report(viser=None)["viser"].value == "not installed"


def extras(**versions: str) -> dict[str, doctor.Finding]:
    def installed(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    return {item.what: item for item in doctor.extras(installed)}


def test_extras_are_no_must_and_come_with_what_to_type(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "EXTRAS", (doctor.EXTRAS[0], dataclasses.replace(doctor.EXTRAS[1], module="json")))
    for missing in extras(), extras(transformers="4.40.2"), extras(transformers="6.0.0"):
        assert missing["transformers"].state == "note"
        assert "text prompts, sam2, sam3 (from 5.0 on) and sam-hq" in missing["transformers"].remedy
        assert "pip install 'sa3d-nerfstudio[text]'" in missing["transformers"].remedy
        assert (missing["json"].state, missing["json"].value) == ("note", "not installed")
        assert "pip install 'sa3d-nerfstudio[mobile-sam]'" in missing["json"].remedy
    # Installed under the mirror's name, or under that of its authors' repository.
    for findings in extras(**{"mobilesam-mirror": "1.0.0"}), extras(mobile_sam="1.0"):
        assert findings["json"].state == "ok"
        assert "for mobile-sam" in findings["json"].value


def test_an_extra_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mobile_sam", None)
    broken = extras(mobile_sam="1.0")["import mobile_sam"]
    assert broken.state == "note"
    assert "[mobile-sam]" in broken.remedy


def test_what_the_extras_ask_for_is_what_the_checks_ask_for():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    requirements = dict(re.findall(r"^(text|mobile-sam) = \[(.*)\]", text, re.MULTILINE))
    for extra in doctor.EXTRAS:
        assert requirements[extra.extra].startswith(f'"{extra.packages[0]}')
    lowest = re.search(r">=([\d.]+),<(\d+)", requirements["text"])
    assert lowest
    assert doctor.numbers(lowest[1]) == OLDEST
    fits = doctor.EXTRAS[0].fits
    assert fits(OLDEST)
    assert not fits((OLDEST[0], OLDEST[1] - 1))
    assert not fits((int(lowest[2]),))


def test_versions_are_read_as_numbers():
    assert doctor.numbers("2.15.0+cu132") == (2, 15, 0)
    assert doctor.numbers("2.6.0rc1") == (2, 6, 0)
    assert doctor.numbers("10.1.dev3") == (10, 1)


def test_missing_system_libraries_come_with_the_packages_that_have_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.platform", "linux")

    def load(name: str) -> None:
        if name != "libgomp.so.1":
            raise OSError("cannot open shared object file")

    first = next(doctor.system_libraries(load))
    assert first.state == "fail"
    assert first.remedy == "apt-get install libusb-1.0-0 libgl1"


def test_weights_are_found_where_they_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SA3D_SAM_CHECKPOINT", str(tmp_path / "gone.pth"))
    (absent,) = doctor.sam_weights()
    assert absent.state == "fail"
    assert "gone.pth" in absent.value
    (tmp_path / "gone.pth").write_bytes(b"weights")
    (named,) = doctor.sam_weights()
    assert named.state == "ok"
    monkeypatch.delenv("SA3D_SAM_CHECKPOINT")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    (missing,) = doctor.sam_weights()
    assert missing.state == "note"
    assert str(tmp_path / "hub") in missing.value
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "sam_vit_b_01ec64.pth").write_bytes(b"weights")
    (weights,) = doctor.sam_weights()
    assert (weights.state, weights.value) == ("ok", str(folder / "sam_vit_b_01ec64.pth"))


def test_a_module_that_cannot_be_imported_fails_the_check(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(doctor, "MODULES", ("json", "no_such_module_here"))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert "No module named 'no_such_module_here'" in captured.out
    assert "need mending" in captured.err
    # The report fits on one screen.
    assert len(captured.out.splitlines()) <= 30
