"""One call on a GPU, rehearsed on a CPU: each phase leaves its result, whatever happens to
others.
"""

import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import call, environment, record, summary, tables
from benchmarks.gpu import tests as tests_phase
from benchmarks.gpu.__main__ import parse
from benchmarks.gpu.call import FILES, PHASES, USUAL, Call
from benchmarks.gpu.processes import Runner, Step

ROOT = Path(__file__).parents[1]
MACHINE = {
    "card": "NVIDIA H100 80GB HBM3",
    "driver": "580.1",
    "torch": "2.13.0",
    "triton": "3.7.1",
    "commit": "abc1234",
    "slug": "nvidia-h100-80gb-hbm3",
}


@pytest.fixture
def out(tmp_path, monkeypatch):
    """The environment of a call; restored afterwards."""
    before = dict(os.environ)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("DRY", "1")
    (tmp_path / "out").mkdir()
    yield tmp_path / "out"
    os.environ.clear()
    os.environ.update(before)


def lines_of(out: Path) -> list[dict]:
    return record.read(out / record.LINES)


# The whole call


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    out = tmp_path_factory.mktemp("rehearsal") / "out"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "FASTSEQ_"))}
    env |= {"DRY": "1", "OUT": str(out), "BUDGET_S": "420", "FASTSEQ_BUILD": "none"}
    tests = Path(__file__).parent
    env["PYTHONPATH"] = os.pathsep.join([str(tests / "rehearsal"), str(tests)])
    before = _committed_results()
    command = [sys.executable, "-m", "benchmarks.gpu", "--phases", "all"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert _committed_results() == before
    return out, done


def _committed_results() -> dict[str, int]:
    folder = ROOT / "benchmarks" / "results"
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.process
@pytest.mark.timeout(600)
def test_a_rehearsal_of_all_phases_leaves_every_result(rehearsal):
    out, done = rehearsal
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    lines = lines_of(out)
    bad = [line for line in lines if line.get("ok") is False]
    assert not bad
    for phase in ("machine", "compile", *PHASES):
        assert any(line.get("ok") for line in tables.of(lines, phase)), phase
    checked = {line["name"].split()[0] for line in tables.of(lines, "smoke") if "same_bits" in line}
    assert checked == {"scl", "contrastive_idm", "tcc", "queue_nce", "soft_dtw"}
    assert len(tables.bench(lines).rows) == 3
    assert len(tables.sweep(lines).rows) == 4
    assert [series.title for series in tables.training(lines)] == [
        "bf16, the whole card",
        "fp32, a card of 24 GB",
    ]
    report = tests_phase.report(out)
    assert report.whole
    assert report.counts["passed"] > 0
    assert report.counts["skipped"] > 0


@pytest.mark.process
def test_a_rehearsal_leaves_at_most_eight_flat_files(rehearsal):
    out, _ = rehearsal
    found = sorted(path.name for path in out.iterdir())
    assert found == sorted(FILES)
    assert len(found) <= 8
    with tarfile.open(out / "results.tar.gz") as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"scl.csv", "queue_nce.csv", "sweep.csv", "training_step.json"} <= names
    assert "first_contact.md" in names


@pytest.mark.process
def test_every_page_names_the_machine(rehearsal):
    out, _ = rehearsal
    machine = tables.of(lines_of(out), "machine")[0]
    named = ", ".join(f"{key} {machine[key] or '-'}" for key in environment.NAMED)
    for name in ("first_contact.md", "training_step.md", "summary.txt"):
        assert named in (out / name).read_text(), name
        assert summary.REHEARSAL in (out / name).read_text(), name
    with tarfile.open(out / "results.tar.gz") as archive:
        sweep = archive.extractfile(f"{machine['slug']}/sweep.csv").read().decode()
    assert sweep.splitlines()[0].endswith("card,driver,torch,triton,commit")


# Phases that fail

WROTE = "from benchmarks.gpu import record; record.say('{phase}', 'first', value=1); "
SCRIPTS = {
    "machine": "from benchmarks.gpu import record; "
    "record.say('machine', 'environment', **{machine!r})",
    "smoke": WROTE + "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(600)",
    "bench": WROTE + "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "sweep": WROTE + "raise SystemExit('the tiles are gone')",
    "train": WROTE + "record.say('train', 'second', value=2)",
    "compile": "pass",
}


@pytest.fixture
def scripted(out, monkeypatch, tmp_path):
    """A call whose phases hang, crash, fail and succeed, in this order."""

    def child(self, phase, name, limit_s, module, *argv):
        code = SCRIPTS[phase].format(phase=phase, machine=MACHINE)
        log = self.work / f"{phase}_{name.replace(' ', '_')}.log"
        return Step(phase, name, [sys.executable, "-c", code], limit_s, log)

    monkeypatch.setattr(Call, "child", child)
    monkeypatch.setattr(Call, "per_process", lambda self, names: [(name,) for name in names])
    monkeypatch.setattr(call, "DRY_SLACK", 1)
    monkeypatch.setattr(call, "SMOKE_S", 3.5)
    monkeypatch.setattr(call, "SMOKE_SOFT_DTW_S", 3.5)
    monkeypatch.setattr("benchmarks.gpu.processes.GRACE_S", 0.5)

    def run(*phases):
        mine = Call(phases, 120, True, out)
        monkeypatch.setattr(mine, "results", tmp_path / "results")
        return mine, call.run(mine)

    return run


def test_one_that_hangs_crashes_or_fails_does_not_stop_the_others(scripted, out, capsys):
    _, status = scripted("smoke", "bench", "sweep", "train")
    assert status == 1
    lines = lines_of(out)
    ends = {
        line["name"]: line for line in lines if line["name"].startswith("process") and "rc" in line
    }
    assert ends["process scl"]["rc"] == -9
    assert "did not end within" in ends["process scl"]["error"]
    assert ends["process first"]["error"] == "ended by SIGSEGV"
    assert ends["process tiles"]["error"] == "the tiles are gone"
    assert ends["process bf16"]["ok"] is True
    # Results that were known before the end are on disk.
    for phase in ("smoke", "bench", "sweep"):
        assert any(line.get("value") == 1 for line in tables.of(lines, phase)), phase
    assert any(line.get("value") == 2 for line in tables.of(lines, "train"))
    text = (out / "summary.txt").read_text()
    assert text in capsys.readouterr().out
    assert "bench: process first: ended by SIGSEGV" in text
    assert "sweep: process tiles: the tiles are gone" in text
    assert "NVIDIA H100 80GB HBM3, driver 580.1" in text
    assert set(os.listdir(out)) <= set(FILES)


def test_on_a_gpu_what_may_hang_has_a_process_of_its_own(tmp_path, monkeypatch):
    """Not covered by a rehearsal, in which all groups of a phase share one process."""
    ran = []
    monkeypatch.setattr(Runner, "run", lambda self, step: ran.append(step))
    mine = Call(PHASES, 420, False, tmp_path, work=tmp_path)
    ran += call.smoke_steps(mine, call.TRITON_OPS, 75)
    call._bench(mine, 100)
    call._train(mine, 100)
    assert [tuple(step.command[2:]) for step in ran] == [
        *(("benchmarks.gpu.smoke", op) for op in ("scl", "contrastive_idm", "tcc", "queue_nce")),
        *(("benchmarks.gpu.bench", group) for group in ("first", "soft_dtw", "rest")),
        *(("benchmarks.gpu.train", card) for card in ("bf16", "bf16,24", "fp32", "fp32,24")),
    ]
    assert [step.limit_s for step in ran[:4]] == [75] * 4
    assert ran[4].limit_s > 90 > 45 == ran[5].limit_s  # not the group of an op that may hang
    assert len({step.log for step in ran}) == len(ran)


def test_soft_dtw_s_tests_are_left_out_where_its_smoke_hung(scripted, out, monkeypatch):
    seen = {}

    def step(python, **given):
        seen.update(given)
        return Step("tests", "pytest", [sys.executable, "-c", ""], 5, out / "tests.log")

    monkeypatch.setattr(tests_phase, "step", step)
    scripted("smoke", "tests")
    assert seen["soft_dtw"] is False


def test_the_tests_command(out):
    step = tests_phase.step("py", dry=False, workers=5, soft_dtw=False, limit_s=9, out=out)
    text = " ".join(step.command)
    assert "--ignore tests/gpu/test_soft_dtw_gpu.py" in text
    assert "-n 5 --dist worksteal" in text
    assert "--timeout-method thread" in text
    assert "--continue-on-collection-errors" in text
    assert [line["name"] for line in lines_of(out)] == ["soft_dtw"]


def test_missing_plugins_are_said_and_done_without(out, monkeypatch):
    monkeypatch.setattr(environment, "version", lambda package: "-")
    step = tests_phase.step("py", dry=False, workers=5, soft_dtw=True, limit_s=9, out=out)
    assert "-n" not in step.command
    assert "--timeout" not in step.command
    assert [line["name"] for line in lines_of(out)] == ["pytest-xdist", "pytest-timeout"]


@pytest.mark.process
def test_an_interrupted_call_kills_its_processes_and_writes_the_summary(out):
    code = "import signal, time; signal.signal(2, signal.SIG_IGN); print('up'); time.sleep(600)"
    script = f"""
import sys
from pathlib import Path
from benchmarks.gpu import call
from benchmarks.gpu.processes import Step
def child(self, phase, name, limit_s, module, *argv):
    command = [sys.executable, "-u", "-c", {code!r}]
    return Step(phase, name, command, limit_s, Path({str(out)!r}) / "child.log")
call.Call.child = child
sys.exit(call.run(call.Call(("bench",), 100, True, Path({str(out)!r}))))
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    deadline = time.time() + 60
    while not (out / "child.log").exists() or "up" not in (out / "child.log").read_text():
        assert time.time() < deadline
        time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted after" in (out / "summary.txt").read_text()


def test_nothing_is_left_of_a_group(out, tmp_path):
    """A process that ends while its child still runs, as a killed pytest does."""
    code = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(p.pid, flush=True)"
    )
    runner = Runner(ROOT, time.time() + 60)
    log = tmp_path / "log"
    assert runner.run(Step("build", "x", [sys.executable, "-c", code], 30, log)) == 0
    pid = int(log.read_text())
    deadline = time.time() + 20
    while _alive(pid):
        assert time.time() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_past_the_budget_nothing_is_started(out, tmp_path):
    runner = Runner(ROOT, time.time() + 1)
    assert runner.run(Step("bench", "x", ["false"], 30, tmp_path / "log")) is None
    assert lines_of(out)[0]["error"] == "no time left"


# Arguments


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--phases", "smoke speed"], "unknown: speed; expected some of build smoke"),
        (["--phases", ""], "nothing given"),
        (["--budget", "soon"], "expected at least 10 seconds, as 420, got 'soon'"),
        (["--budget", "3"], "expected at least 10 seconds"),
    ],
)
def test_wrong_requests_are_refused(argv, words, capsys):
    with pytest.raises(SystemExit) as error:
        parse(argv)
    assert error.value.code == 2
    assert words in capsys.readouterr().err


def test_options_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("DRY", raising=False)
    assert parse([]).phases == USUAL
    monkeypatch.setenv("DRY", "1")
    assert parse([]).phases == PHASES
    for name, value in (("BUDGET_S", "150"), ("PHASES", "tests,build"), ("OUT", "/tmp/x")):
        monkeypatch.setenv(name, value)
    options = parse([])
    assert (options.budget, options.phases, options.out) == (
        150,
        ("build", "tests"),
        Path("/tmp/x"),
    )
    monkeypatch.setenv("PHASES", "speed")
    with pytest.raises(SystemExit):
        parse([])


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_rehearsal_is_named(tmp_path):
    """Also where torch is broken: a process of the call has to find that out."""
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    env = {k: v for k, v in os.environ.items() if k not in ("DRY", "PHASES", "BUDGET_S")}
    env |= {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert "DRY=1" in done.stderr


def test_phases_share_what_is_left(tmp_path):
    mine = Call(("tests", "bench", "sweep"), 420, True, tmp_path, work=tmp_path)
    assert mine.share("sweep") == pytest.approx(0.97 * 420, abs=2)
    assert mine.share("bench") == pytest.approx(0.97 * 420 * 28 / 45, abs=2)
    assert mine.share("tests") == pytest.approx(0.97 * 420 * 40 / 85, abs=2)
