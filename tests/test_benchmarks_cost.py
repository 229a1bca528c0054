"""benchmarks.cost without its long run: the parser on code that was counted by hand, occupancy and
time model on cases computed by hand, errors. test_benchmarks_host.py runs one Triton kernel from
end to end.
"""

import re
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks import plot, results
from benchmarks.case import Case
from benchmarks.cost import __main__ as command
from benchmarks.cost import loops, model, page, predict, sass, table, tools
from benchmarks.cost.compile import Job, run
from benchmarks.cost.machine import CARDS, VALUE, Card, blocks_per_sm, named
from benchmarks.cost.report import kernel_report

ROOT = Path(__file__).resolve().parent.parent
TINY = (ROOT / "tests/data/cost_tiny.sass").read_text()
FOLDER = results.FOLDER / "offline-sm_90"


def instruction(text: str) -> sass.Instruction:
    op, _, operands = text.partition(" ")
    return sass.Instruction(op, operands, "", None)


def code(*lines: str) -> list[sass.Instruction]:
    return [instruction(line) for line in lines]


@pytest.fixture
def tiny():
    return sass.functions(TINY)["tiny"]


def test_loops_of_a_kernel_counted_by_hand(tiny):
    """Two nested loops; one block of the outer loop is out of line. Code after EXIT is in no
    loop.
    """
    (outer,) = sass.loops(tiny)
    (inner,) = outer.inner
    assert outer.line == ("/somewhere/kernel.py", 5)
    assert inner.line == ("/somewhere/kernel.py", 7)
    assert [one.name for one in inner.body(tiny.code)] == ["FFMA", "ISETP", "BRA"]
    body = outer.body(tiny.code)
    assert len(body) == 12
    assert sass.classes(body) == {
        "barrier": 4,
        "tensor": 2,
        "mufu": 1,
        "branch": 3,
        "global": 1,
        "conversion": 1,
    }
    assert sass.tensor_shapes(body) == {"HGMMA.64x32x16.F32.BF16": 2}
    assert sass.tensor_waits(body) == 1
    assert sass.tiles_in_flight(body) == 1
    assert body[-3].guard == "!P0"


def test_waits_for_everything_leave_nothing_in_flight(tiny):
    text = TINY.replace("SB0, 0x1", "SB0, 0x0")
    function = sass.functions(text)["tiny"]
    assert sass.tiles_in_flight(sass.loops(function)[0].body(function.code)) == 0
    assert sass.tiles_in_flight(code("FFMA R1, R1, R1, R1")) is None


def test_every_class_is_told_apart():
    lines = {
        "HMMA.16816.F32.BF16 R4, R8, R12, R4": "tensor",
        "MUFU.RCP R1, R2": "mufu",
        "FADD R1, R2, R3": "fp32",
        "DADD R2, R4, R6": "fp64",
        "F2F.F64.F32 R2, R1": "conversion",
        "SHFL.BFLY PT, R14, R19, 0x1, 0x1f": "shuffle",
        "LDS.128 R4, [R8]": "shared",
        "LDG.E.64 R4, desc[UR4][R2.64]": "global",
        "STL [R1+0x10], R2": "local",
        "BAR.SYNC.DEFER_BLOCKING 0x0": "barrier",
        "FSEL R1, R2, R3, P0": "predicate",
        "BRA `(.L_x_1)": "branch",
        "IADD3 R1, R2, R3, RZ": "integer",
        "PRMT R1, R2, 0x5410, R3": "integer",
    }
    assert {line: instruction(line).kind for line in lines} == lines
    assert sass.spills(code(*lines)) == 1


def test_text_that_is_no_disassembly():
    with pytest.raises(ValueError, match="nvdisasm -c -g"):
        sass.functions("Fatbin elf code:\n")


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "blocks"),
    [
        (90, 168, 24832, 4, 3),  # registers: 21 units per warp, 3 warps per scheduler
        (90, 169, 24832, 4, 2),
        (90, 255, 0, 8, 1),
        (90, 32, 0, 8, 8),  # 64 warps
        (90, 16, 0, 1, 32),  # thread blocks
        (90, 32, 100 * 1024, 4, 2),  # 228 KiB of shared memory, 1 KiB more per block
        (86, 32, 48 * 1024, 4, 2),  # 100 KiB
        (86, 32, 0, 8, 6),  # 48 warps
        (80, 80, 49820, 11, 2),  # soft_dtw's backward
    ],
)
def test_occupancy_by_the_rules_of_cuda(arch, registers, shared, warps, blocks):
    assert blocks_per_sm(arch, registers, shared, warps) == blocks


def test_alone_waits_for_operands():
    """Two dependent additions: 5 clocks each. A load: its latency, then the addition."""
    assert model.alone(code("FADD R1, R1, R2", "FADD R1, R1, R2"), 4) == 10
    apart = code("FADD R1, R1, R2", "FADD R3, R3, R2")  # issue: 1.25 clocks each
    assert model.alone(apart, 4) == pytest.approx(VALUE["alu_clocks"])
    loaded = code("LDG.E R4, desc[UR4][R2.64]", "FADD R5, R4, R4")
    assert model.alone(loaded, 4) == VALUE["load_clocks"] + 1 / VALUE["busy"]
    assert model.alone(code("FADD R1, R2, R3"), 16) == 4 / VALUE["busy"]  # 4 warps a scheduler
    assert model.alone([*code("FADD R1, R2, R3"), 1000.0], 4) == 1001.25


def test_alone_waits_for_copies_unless_a_tile_is_in_flight():
    step = 1 / VALUE["busy"]
    trip = code("DEPBAR.LE SB0, 0x0", "LDGSTS.E.128 [R8], desc[UR4][R2.64]", "LDGDEPBAR ")
    assert model.alone(trip, 4) == VALUE["copy_clocks"] + 2 * step
    work = [*trip, 400.0]
    assert model.alone(work, 4) == VALUE["copy_clocks"] + 2 * step  # hides 400 clocks
    ahead = [instruction("DEPBAR.LE SB0, 0x1"), *work[1:]]
    assert model.alone(ahead, 4) == 3 * step + 400


def test_load_is_that_of_the_busiest_unit():
    body = code("MUFU.EX2 R1, R2", "LDS.128 R4, [R8]", "FADD R1, R1, R2")
    units = model.units(body)
    assert units["instructions"] == 3
    assert (units["xu"], units["shared"]) == (1, 4)
    assert model.load(units, 4) == 16  # shared memory: 4 wavefronts of 4 warps
    products = model.units(code("HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR8], R24"))
    assert model.load(products, 4) == 64
    both_in_shared = code("HGMMA.64x32x16.F32.BF16 R24, gdesc[UR8], R24")
    assert model.load(model.units(both_in_shared), 8) == 48  # operands: 24 clocks per warp group


def test_time_of_a_launch_worked_out_by_hand():
    """Four multiprocessors with two blocks each: a wave of eight, then four blocks alone."""
    card = Card(90, 4, 1e9)
    parts = [model.Part(10, load=400, alone=500)]
    start = VALUE["launch_us"]
    assert model.launch_us(parts, 8, 2, card) == pytest.approx(8.0 + start)
    assert model.launch_us(parts, 12, 2, card) == pytest.approx(8.0 + 5.0 + start)
    assert model.launch_us(parts, 13, 2, card) == pytest.approx(8.0 + 8.0 + start)
    last = [model.Part(1, load=10, alone=2000)]
    assert model.launch_us(parts, 8, 2, card, last) == pytest.approx(10.0 + start)


def test_time_of_a_wavefront_worked_out_by_hand():
    card = Card(90, 4, 1e9)
    tasks = [model.Task(load=100, alone=1000), model.Task(load=50, alone=400)]
    shape = {"strips": 3, "phases": 4, "lag": 1.5, "blocks_per_sm": 2, "card": card}
    hand_over = VALUE["strip_us"]
    waiting = 2 * (1.5 + hand_over) + 4.0
    start = VALUE["launch_us"]
    assert model.wavefront_us(tasks, batch=1, **shape) == pytest.approx(waiting + start)
    # 300 strips: all 1200 phases have to pass through four multiprocessors, two at a time.
    busy = 300 * 4 * 1.0 / 2 / 4
    assert model.wavefront_us(tasks, batch=100, **shape) == pytest.approx(busy + start)


def report(monkeypatch, text=TINY):
    """The loops of the tiny kernel, declared as tiles of 64 x 32 with an inner loop over
    channels.
    """
    source = {5: "for k in range(0, careful if CAREFUL else plain):", 7: "range(BK, D, BK)"}
    monkeypatch.setattr(loops, "source_line", lambda path, line: (source[line], ""))
    return kernel_report(
        "scl",
        "bf16 D=128 shift",
        sass.functions(text)["tiny"],
        name="scl_stats_kernel",
        constants={"D": 128, "BM": 64, "BN": 32, "BK": 32},
        warps=4,
        stages=3,
        usage={"REG": 168, "STACK": 0},
        shared=24832,
        arch=90,
        digest="",
    )


def test_report_counts_inner_loops_into_the_tile(monkeypatch):
    kernel = report(monkeypatch)
    (near,) = kernel.loops()
    assert near.name == "near"
    assert near.made_of == "12 + 3 x 3"
    assert near.instructions == 21
    assert near.per_element == 21 * 4 * 32 / (64 * 32)
    assert (near.classes["fp32"], near.classes["predicate"]) == (3, 3)
    assert kernel.blocks_per_sm == 3
    assert kernel.outside.instructions == 6  # 3, EXIT, and 2 unreachable ones
    every, last = kernel.parts(loops.Values(kernel.constants, 1, 4096, 128))
    assert not last
    assert [part.trips for part in every] == [1, pytest.approx((64 + 2 * 45.4 / 1.25) / 32 + 1)]
    (row, outside) = table._rows(kernel, "triton")
    assert (row["tile_rows"], row["instructions"], row["per_element"]) == ("64", "21", "1.3")
    assert (row["tensor_shapes"], row["tiles_in_flight"]) == ("2 HGMMA.64x32x16.F32.BF16", "1")
    assert not table.serialised(row)
    assert outside["loop"] == "outside loops"


def test_serialised_products_are_found(monkeypatch):
    lines = TINY.splitlines(keepends=True)
    wait = next(line for line in lines if "WARPGROUP.DEPBAR" in line)
    first = next(k for k, line in enumerate(lines) if "HGMMA" in line)
    kernel = report(monkeypatch, "".join([*lines[: first + 1], wait, *lines[first + 1 :]]))
    row, _ = table._rows(kernel, "triton")
    assert row["tensor_waits"] == "2"
    assert table.serialised(row)


@pytest.mark.parametrize("role", loops.ROLES, ids=lambda role: f"{role.kernels}{role.names}")
def test_every_loop_that_is_known_exists(role):
    """After a change to a kernel, its loops have to be named anew, only in loops.py."""
    cuda = role.kernels.startswith("soft_dtw")
    files = (
        (ROOT / "csrc/soft_dtw").glob("*.cuh") if cuda else ROOT.glob("fastseq/ops/*/triton*.py")
    )
    assert any(re.search(role.line, line) for f in files for line in f.read_text().splitlines())


def test_names_of_loops_and_how_far_they_are_unrolled():
    path = ROOT / "csrc/soft_dtw/frames.cuh"
    lines = path.read_text().splitlines()
    line = next(k for k, text in enumerate(lines, 1) if "row = 0; row < count" in text)
    got = loops.Namer("soft_dtw")((f"/elsewhere/csrc/soft_dtw/{path.name}", line))
    assert (got.name, got.unrolled, got.place) == ("centre", 8, f"frames.cuh:{line}")
    path = ROOT / "csrc/soft_dtw/costs.cuh"
    lines = path.read_text().splitlines()
    line = next(k for k, text in enumerate(lines, 1) if "group = half;" in text)
    namer = loops.Namer("soft_dtw")
    groups = [namer((f"/elsewhere/csrc/soft_dtw/{path.name}", line)) for _ in range(2)]
    assert [group.trips(loops.Values({"D": 128})) for group in groups] == [4, 0]
    unknown = loops.Namer("scl_stats_kernel")(("/elsewhere/standard.py", 3))
    assert (unknown.name, unknown.role, unknown.trips(loops.Values({}))) == (
        "standard.py:3",
        None,
        1,
    )
    namer = loops.Namer("scl_grad_kernel")
    path = ROOT / "fastseq/ops/scl/triton_kernels.py"
    line = next(
        k for k, s in enumerate(path.read_text().splitlines(), 1) if "if CAREFUL else plain" in s
    )
    assert [namer((str(path), line)).name for _ in range(2)] == ["near", "far"]


def test_unknown_names():
    for what, key in (("card", "NVIDIA H1000"), ("architecture", 70)):
        with pytest.raises(ValueError, match=f"{what} .* is not known: expected one of"):
            named(what, CARDS, key)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--op sccl", "invalid choice: 'sccl'"),
        ("--kernel grad", "which op"),
        ("--op scl --dtype bf17", "invalid choice: 'bf17'"),
        ("--op scl --set row=128", "tile value of scl 'row' is not known: expected one of rows"),
        ("--op scl --set rows", "expected name=number"),
        ("--op scl --mode sideways", "mode of scl 'sideways' is not known: expected one of shift"),
        ("--op scl --channels -3", "positive number of channels, got -3"),
        ("--op soft_dtw --set rows=64", "tiles are fixed in its CUDA source"),
        ("--op soft_dtw --dtype bf16", "fp32 only"),
        ("--card H1000", "card 'H1000' is not known: expected one of NVIDIA H100"),
        ("--arch 70", "architecture 70 is not known"),
    ],
)
def test_errors_of_the_command(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_no_disassembler(monkeypatch, tmp_path):
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="nvdisasm is missing: it comes with triton"):
        tools.find("nvdisasm")


def test_shipped_covers_precisions_channels_and_modes():
    jobs = command.shipped(("scl", "soft_dtw"), 90)
    found = {(j.op, j.precision, j.channels, j.mode) for j in jobs}
    assert len(found) == len(jobs) == 18
    assert ("scl", "fp16", 64, "shift") in found
    assert ("scl", "tf32", 128, "online") in found
    (bf16,) = (j for j in jobs if j == Job("scl", "bf16", 128, "shift", 90, shapes=j.shapes))
    assert bf16.shapes == predict.SHAPES["scl"]


def test_measurements_are_found_by_card_and_judge_the_model(tmp_path):
    case, card = Case(8, 480, 128, "bf16"), "NVIDIA H200"
    row = dict.fromkeys(results.COLUMNS, "") | {
        "op": "scl",
        "device": card,
        **{"n": "8", "t": "480", "d": "128", "precision": "bf16", "mode": "both"},
        "provider": "fastseq triton",
        "median_ms": "0.05",
    }
    results.merge(tmp_path / "nvidia-h200" / "scl.csv", [row, row | {"mode": "forward"}])
    assert predict.measured_us("scl", case, "both", card, tmp_path) == 50
    assert predict.measured_us("scl", case, "both", "NVIDIA A100-SXM4-80GB", tmp_path) is None
    assert predict.measured_us("scl", case._replace(t=240), "both", card, tmp_path) is None
    rows = [{"measured_us": m, "predicted_us": "40"} for m in ("50", "20", "44", "")]
    assert predict.error(rows) == (
        "3 cases measured: measured over predicted 1.10 in the median, 0.50 at worst."
    )
    assert predict.error(rows[3:]) == ""


def test_page_is_as_the_command_writes_it(tmp_path):
    """The page equals what the CSV files beside it generate: no manual edits, no stale text."""
    copy = tmp_path / FOLDER.name
    shutil.copytree(FOLDER, copy)
    page.write(copy, 90)
    assert (copy / "README.md").read_text() == (FOLDER / "README.md").read_text()
    assert {path.stem for path in FOLDER.glob("*.csv")} == {*predict.SHAPES, "predicted"}


@pytest.mark.parametrize("op", predict.SHAPES)
def test_quotes_in_readmes_are_of_the_tables(op):
    """The command also writes this text: run it after a change to a kernel."""
    rows, predicted = (predict.read(FOLDER / f"{name}.csv") for name in (op, "predicted"))
    text = (ROOT / "fastseq/ops" / op / "README.md").read_text()
    assert page.quote(op, rows, predicted) in page.QUOTE.search(text)[0]


# Known defects, to be removed: products of warp groups that wait for each other one by one.
KNOWN_SERIALISED = {
    ("cidm_grad_kernel", "fp16 D=128 squared"),
    ("cidm_grad_kernel", "fp16 D=64 squared"),
}


def test_no_other_kernel_serialises_its_products():
    rows = [row for op in predict.SHAPES for row in predict.read(FOLDER / f"{op}.csv")]
    found = {(row["kernel"], row["configuration"]) for row in rows if table.serialised(row)}
    assert found <= KNOWN_SERIALISED


def test_plot_leaves_the_offline_tables_alone(tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / FOLDER.name)
    monkeypatch.setattr(sys, "argv", ["plot", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="no CSV below"):
        plot.main()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_tasks_of_soft_dtw():
    """soft_dtw's loops are recognised and assigned to the warps that run them."""
    forward, backward = run(Job("soft_dtw", "fp32", 64, "", 90)).kernels
    loops_of = {loop.name: loop for loop in forward.loops()}
    assert (loops_of["costs"].warps, loops_of["recursion"].warps) == (4, 1)
    assert loops_of["costs"].made_of.startswith("2 x ")  # groups of 16 channels for each half
    assert loops_of["recursion"].classes["shuffle"] >= 32
    gradients = next(loop for loop in backward.loops() if loop.name == "gradients")
    assert gradients.warps == 4  # dx or dy of 32 channels each
    assert len(predict.tasks(forward)) == 2
    assert len(predict.tasks(backward)) == 5
    assert (forward.spills, forward.stack) == (0, 0)
