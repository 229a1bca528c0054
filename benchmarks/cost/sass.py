"""SASS as nvdisasm prints it: instructions, control flow, loops, and the instructions of a loop.

Loops are natural loops of the control-flow graph (a branch back to a block that dominates it), so
code that the compiler has moved out of line still belongs to its loop. Each loop is named by the
source line of its ``for``, which the line information of its branch names (on in Triton, -lineinfo
in nvcc).
"""

import re
from collections import Counter
from typing import NamedTuple

CLASSES = {
    "tensor": "HMMA HGMMA IMMA IGMMA DMMA QMMA QGMMA UTCHMMA UTCQMMA OMMA",
    "mufu": "MUFU",
    "fp32": "FADD FMUL FFMA FMNMX FMNMX3 FADD2 FMUL2 FFMA2 FSWZADD HADD2 HMUL2 HFMA2 HMNMX2",
    "fp64": "DADD DMUL DFMA",
    "conversion": "F2F F2FP F2I F2IP I2F I2FP I2I FRND",
    "shuffle": "SHFL REDUX CREDUX MOVM",
    "shared": "LDS STS LDSM STSM ATOMS LDTM STTM",
    "global": "LDG STG LD ST LDGSTS ATOM ATOMG RED REDG UBLKCP UTMALDG UTMASTG UTMAPF",
    "local": "LDL STL",
    "barrier": "BAR DEPBAR LDGDEPBAR WARPGROUP WARPSYNC MEMBAR FENCE ERRBAR CCTL SYNCS ARRIVES "
    "NANOSLEEP ACQBULK UTCBAR WARPGROUPSET",
    "predicate": "FSETP ISETP DSETP HSETP2 UISETP PSETP PLOP3 UPLOP3 FSEL SEL USEL FSET P2R R2P "
    "VOTE VOTEU FCHK UP2UR UR2UP",
    "branch": "BRA BRX BRXU JMP JMX EXIT CALL RET BSSY BSYNC BREAK BMOV YIELD NOP KILL BPT",
}
INTEGER = "integer"  # addresses, moves, permutes, constants: everything that is none of the above
CLASS_OF = {op: name for name, ops in CLASSES.items() for op in ops.split()}

_INSTRUCTION = re.compile(
    r"^\s+/\*(?P<at>[0-9a-f]+)\*/\s+\{?\s*(?:@(?P<guard>!?U?P\w+)\s+)?(?P<op>[A-Z][A-Za-z0-9_.]*)"
    r"\s*(?P<operands>[^;]*);"
)
_LABEL = re.compile(r"^(\.L_\w+|\.text\.(\S+)):")
_LINE = re.compile(r'^\s*//## File "([^"]*)", line (\d+)')
_TARGET = re.compile(r"`\((\.L_\w+)\)")


class Instruction(NamedTuple):
    op: str  # with its modifiers, such as LDGSTS.E.BYPASS.128
    operands: str
    guard: str  # the predicate that controls it; "" if none
    line: tuple[str, int] | None  # of the source

    @property
    def name(self) -> str:
        return self.op.partition(".")[0]

    @property
    def kind(self) -> str:
        return CLASS_OF.get(self.name, INTEGER)


class Function(NamedTuple):
    name: str
    code: list[Instruction]
    labels: dict[str, int]  # index of the instruction that follows


class Loop(NamedTuple):
    """Blocks of code are (first, last + 1) indices; ``own`` are the blocks outside inner loops."""

    header: int
    own: tuple[tuple[int, int], ...]
    inner: tuple["Loop", ...]
    line: tuple[str, int] | None  # of the branch back

    def body(self, code: list[Instruction]) -> list[Instruction]:
        """Its own instructions, without inner loops, ordered by address."""
        return [code[i] for first, stop in self.own for i in range(first, stop)]


def functions(text: str) -> dict[str, Function]:
    """The functions in the output of ``nvdisasm -c -g``, by name."""
    found: dict[str, Function] = {}
    current, line = None, None
    for row in text.splitlines():
        if label := _LABEL.match(row):
            if label[2]:
                current, line = Function(label[2], [], {}), None
                found[label[2]] = current
            elif current is not None:
                current.labels[label[1]] = len(current.code)
        elif place := _LINE.match(row):
            line = place[1], int(place[2])
        elif current is not None and (got := _INSTRUCTION.match(row)):
            current.code.append(
                Instruction(got["op"], got["operands"].strip(), got["guard"] or "", line)
            )
    if not any(f.code for f in found.values()):
        raise ValueError("no instructions: expected the output of nvdisasm -c -g")
    return found


class _Block(NamedTuple):
    first: int
    stop: int
    successors: tuple[int, ...]


def _blocks(function: Function) -> list[_Block]:
    """Basic blocks. A call falls through: the called function is not part of the loops around the
    call.
    """
    code = function.code
    starts = {0, *function.labels.values()}
    ends = {"BRA", "EXIT", "RET", "BRX", "BRXU", "JMP", "JMX", "KILL"}
    starts |= {i + 1 for i, one in enumerate(code) if one.name in ends}
    order = sorted(i for i in starts if i < len(code))
    index = {first: k for k, first in enumerate(order)}
    blocks = []
    for k, first in enumerate(order):
        stop = order[k + 1] if k + 1 < len(order) else len(code)
        last, after = code[stop - 1], []
        # BRA.DIV leads to a copy of the code for a warp that has diverged; it is left out.
        leaves = last.name in ("BRA", "JMP") and ".DIV" not in last.op
        target = _TARGET.search(last.operands) if leaves else None
        if target:
            place = index.get(function.labels[target[1]])
            after += [] if place is None else [place]
        # A predicate among the operands (BRA P0, label; BRA.U UP0) also makes it conditional.
        sure = not last.guard and not re.match(r"!?U?P\d", last.operands)
        if not (last.name in ends and sure and ".DIV" not in last.op) and k + 1 < len(order):
            after.append(k + 1)
        blocks.append(_Block(first, stop, tuple(dict.fromkeys(after))))
    return blocks


def _dominators(blocks: list[_Block]) -> list[set[int]]:
    """Dominators of each block; empty for unreachable blocks."""
    reached, stack = {0}, [0]
    while stack:
        for k in blocks[stack.pop()].successors:
            if k not in reached:
                reached.add(k)
                stack.append(k)
    before: dict[int, list[int]] = {k: [] for k in reached}
    for k in reached:
        for after in blocks[k].successors:
            before[after].append(k)
    doms = {k: set(reached) for k in reached} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for k in sorted(reached - {0}):
            new = set.intersection(*(doms[p] for p in before[k])) | {k}
            if new != doms[k]:
                doms[k], changed = new, True
    return [doms.get(k, set()) for k in range(len(blocks))]


def loops(function: Function) -> list[Loop]:
    """The outermost loops in the order of their code, each with the loops that it encloses."""
    blocks, code = _blocks(function), function.code
    doms = _dominators(blocks)
    members: dict[int, set[int]] = {}
    latch: dict[int, int] = {}
    before: list[list[int]] = [[] for _ in blocks]
    for k, block in enumerate(blocks):
        for after in block.successors:
            if doms[k]:
                before[after].append(k)
    for k, block in enumerate(blocks):
        for header in block.successors:
            if header not in doms[k]:
                continue
            inside, stack = {header, k}, [k]
            while stack:
                place = stack.pop()
                if place == header:
                    continue
                for p in before[place]:
                    if p not in inside:
                        inside.add(p)
                        stack.append(p)
            members.setdefault(header, set()).update(inside)
            latch[header] = max(latch.get(header, 0), k)

    def build(header: int, below: list[int]) -> Loop:
        # Directly inside: in this loop and in none of its other inner loops.
        children = [h for h in below if not any(h != o and h in members[o] for o in below)]
        inner = tuple(
            build(h, [o for o in below if o != h and o in members[h]]) for h in sorted(children)
        )
        own = members[header] - set().union(*(members[h] for h in children))
        spans = tuple((blocks[k].first, blocks[k].stop) for k in sorted(own))
        line = code[blocks[latch[header]].stop - 1].line
        return Loop(blocks[header].first, spans, inner, line)

    every = sorted(members)
    top = [h for h in every if not any(h != o and h in members[o] for o in every)]
    return [build(h, [o for o in every if o != h and o in members[h]]) for h in top]


def classes(code: list[Instruction]) -> Counter:
    return Counter(one.kind for one in code)


def tensor_shapes(code: list[Instruction]) -> Counter:
    """Number of each tensor-core instruction, such as "HGMMA.64x32x16.F32.BF16": 8."""
    return Counter(one.op for one in code if one.kind == "tensor")


def spills(code: list[Instruction]) -> int:
    return sum(one.kind == "local" for one in code)


def tensor_waits(code: list[Instruction]) -> int:
    """How often a warp group waits for its products. If as often as it starts one, they run one
    after another; ptxas calls this serialised.
    """
    return sum(one.op.startswith("WARPGROUP.DEPBAR") for one in code)


def tiles_in_flight(code: list[Instruction]) -> float | None:
    """Tiles in flight while one is processed: the commit groups that the loop's wait leaves open,
    divided by those that a trip commits. None without asynchronous copies.
    """
    commits = sum(one.name == "LDGDEPBAR" for one in code)
    open_groups = [wait for one in code if (wait := copy_wait(one)) is not None]
    if not commits or not open_groups:
        return None
    return min(open_groups) / commits


def copy_wait(one: Instruction) -> int | None:
    """Number of groups of asynchronous copies that may stay open after this wait (DEPBAR.LE SB0,
    0x1).
    """
    found = re.match(r"SB0, (0x[0-9a-f]+)", one.operands) if one.op == "DEPBAR.LE" else None
    return int(found[1], 16) if found else None


def product_wait(one: Instruction) -> int | None:
    """Number of groups of products that may stay open after this wait."""
    if not one.op.startswith("WARPGROUP.DEPBAR"):
        return None
    return int(one.operands.split(",")[1], 16)
