"""The READMEs' Python examples run as they stand and print what they say; links lead somewhere."""

import re
import runpy
from pathlib import Path

import pytest
import torch

import fastseq

ROOT = Path(__file__).resolve().parents[1]


def _blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)


def test_first_snippet_prints_its_number(capsys):
    (code,) = _blocks("README.md", "python")
    exec(code, {"__name__": "__main__"})
    out = capsys.readouterr().out
    promised = re.search(r"print\(.*# (\S+)$", code, re.MULTILINE)[1]
    assert float(out) == pytest.approx(float(promised), abs=2e-4)


def test_infonce_diff_gives_the_same_loss():
    import torch.nn.functional as F

    diff = next(b for b in _blocks("docs/index.md", "diff") if "cross_entropy" in b)
    z1, z2 = torch.randn(2, 3, 20, 8, generator=torch.Generator().manual_seed(0)).unbind()
    losses = []
    for sign in "-+":
        lines = [line[1:] for line in diff.splitlines() if line.startswith(sign)]
        scope = {"torch": torch, "F": F, "fastseq": fastseq, "z1": z1, "z2": z2}
        exec("\n".join(lines), scope)
        losses.append(scope["loss"])
    torch.testing.assert_close(*losses)


def test_soft_dtw_example(tmp_path, monkeypatch):
    pytest.importorskip("tslearn", reason='needs tslearn: pip install "fastseq[bench]"')
    plt = pytest.importorskip("matplotlib.pyplot", reason="needs matplotlib")
    code = next(b for b in _blocks("fastseq/ops/soft_dtw/README.md", "python") if "Trace" in b)
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("Agg")
    scope = {}
    exec(code, scope)
    plt.close("all")
    assert (tmp_path / "trace.png").stat().st_size > 10_000
    # The average keeps the spike of 4 that the mean of frames levels.
    assert scope["average"].max() > 3 > 2 > scope["few"].mean(0).max()
    assert scope["path"][-1].tolist() == [274, 274]


def test_soft_dtw_search_example(capsys):
    code = next(b for b in _blocks("fastseq/ops/soft_dtw/README.md", "python") if "template" in b)
    scope = {}
    exec(code, scope)
    frames, inside = capsys.readouterr().out.splitlines()
    assert frames == code.split("# ")[2].splitlines()[0]
    assert inside.startswith("1.00 ")
    assert scope["path"][:, 0].unique().tolist() == list(range(30))


@pytest.mark.process
def test_video_example(tmp_path, monkeypatch, capsys):
    pytest.importorskip("av")
    (code,) = _blocks("fastseq/video/README.md", "python")
    # As a file that is __main__: worker processes are forked, but elsewhere they would be spawned.
    (tmp_path / "example.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py", run_name="__main__")
    out = capsys.readouterr().out
    assert out == "torch.Size([2, 2, 32, 3, 48, 48]) torch.Size([2, 2, 32])\n"


def test_links_lead_somewhere():
    for file in ROOT.rglob("*.md"):
        parts = file.relative_to(ROOT).parts
        if parts[0] in ("build", "dist") or any(part.startswith(".") for part in parts):
            continue  # not ours: copies that a wheel build leaves, environments
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            if not link.startswith("http"):
                assert (file.parent / link).exists(), f"{file.name}: {link}"
