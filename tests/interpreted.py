"""Triton's interpreter in an eighth of the time, with the same bits.

It spends most of its time on work around NumPy: it patches triton.language at every call of a
device function, creates types, shapes and constants anew for every operation, and checks for
overflow although the result of the check is discarded. Here a launch is patched once, repeated work
is cached, and the check is left out.
"""

import functools
import inspect
import math

import numpy as np

KNOWN = "3.7."
replaced: list[tuple[object, str, object]] = []  # owner, name, Triton's own


@functools.cache
def speed_up() -> None:
    import triton
    from triton.runtime import interpreter

    if triton.__version__.startswith(KNOWN):  # other versions are not patched
        patch_once_per_launch(interpreter)
        cache_types(interpreter)
        go_straight(interpreter)
        keep_constants(interpreter)
        leave_overflow_alone(interpreter)


def replace(owner: object, name: str, new: object) -> None:
    replaced.append((owner, name, getattr(owner, name)))
    setattr(owner, name, new)


# Of triton.language.tensor: TritonSemantic's method, whether operands are swapped, further
# arguments.
OPERATORS = {
    "__add__": ("add", False, True),
    "__radd__": ("add", True, True),
    "__sub__": ("sub", False, True),
    "__rsub__": ("sub", True, True),
    "__mul__": ("mul", False, True),
    "__rmul__": ("mul", True, True),
    "__truediv__": ("truediv", False),
    "__rtruediv__": ("truediv", True),
    "__and__": ("and_", False),
    "__or__": ("or_", False),
}


def patch_once_per_launch(interpreter) -> None:
    import triton.language as tl

    patch = interpreter._patch_lang
    patched: set[str] = set()  # modules patched during a launch

    @functools.cache
    def visible(fn) -> set[str]:
        modules = (m for m in fn.__globals__.values() if inspect.ismodule(m))
        return {m.__name__ for m in modules if m in (tl, tl.core)}

    semantic = interpreter.interpreter_semantic

    def operator(words):
        method, swapped, more = getattr(type(semantic), words[0]), words[1], words[2:]

        def call(self, other):
            other = tl.core._unwrap_if_constexpr(other)
            both = (other, self) if swapped else (self, other)
            return method(semantic, *both, *more)

        return call

    operators = {name: operator(words) for name, words in OPERATORS.items()}

    def member_with_semantic(obj, name, member, builder, scope) -> None:
        inner = getattr(member, "__wrapped__", member)  # a wrapper that only checks for _semantic

        def call(*args, **kwargs):
            kwargs["_semantic"] = semantic
            return inner(*args, **kwargs)

        straight = operators.get(name) if obj is tl.tensor else None
        scope.set_attr(obj, name, straight or call)

    def patch_once(fn):
        if patched and visible(fn) <= patched:
            return None  # a device function; no caller restores its patches
        scope, launch = patch(fn), not patched
        patched.update(visible(fn))
        if launch:
            restore = scope.restore

            def end() -> None:
                patched.clear()
                restore()

            scope.restore = end
        return scope

    replace(interpreter, "_patch_attr", member_with_semantic)
    replace(interpreter, "_patch_lang", patch_once)


def cache_types(interpreter) -> None:
    from triton.language import core

    numpy_dtype = functools.cache(interpreter._get_np_dtype)

    def dtype_of(given):
        scalar = given.element_ty if isinstance(given, core.block_type) else given
        return np.dtype(np.uint64) if scalar.is_ptr() else numpy_dtype(scalar)

    @functools.cache
    def shape_of(numbers):
        return core.tuple(map(core.constexpr, numbers)), core.constexpr(math.prod(numbers))

    def tensor(self, handle, type) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shape_of(type.numbers if type.is_block() else ())

    own = core.block_type.__init__

    @functools.cache
    def block_of(numbers):
        block = object.__new__(core.block_type)
        own(block, core.int1, list(numbers))
        block.shape.numbers = numbers
        return block.shape, block.numel

    @functools.cache
    def name_of(numbers, element):
        return f"<{block_of(numbers)[0]}, {element}>"

    def block_type(self, element_ty, shape) -> None:
        self.element_ty = element_ty
        self.numbers = vars(shape).get("numbers") if type(shape) is core.tuple else None
        if self.numbers is None:
            unwrap = core._unwrap_if_constexpr
            self.numbers = tuple(n if type(n) is int else unwrap(n) for n in shape)
        self.shape, self.numel = block_of(self.numbers)
        self.name = name_of(self.numbers, element_ty.name)

    def handle(self, data, dtype, attr=None) -> None:
        self.data, self.dtype, self.attr = data, dtype, attr or {}

    own_equal = core.dtype.__eq__

    def equal(self, other):
        return self is other or own_equal(self, other)

    own_unwrap = core._unwrap_if_constexpr

    plain = {core.tensor, bool, int, float}

    def unwrap(o):
        kind = type(o)
        if kind is core.constexpr:
            return o.value
        return o if kind in plain else own_unwrap(o)

    replace(interpreter, "_get_np_dtype", dtype_of)
    replace(interpreter.TensorHandle, "__init__", handle)
    replace(core, "_unwrap_if_constexpr", unwrap)
    replace(core.tensor, "__init__", tensor)
    replace(core.block_type, "__init__", block_type)
    replace(core.dtype, "__eq__", equal)


def go_straight(interpreter) -> None:
    """Convert to NumPy directly where the type of the result is clear: equal types, or a cast or a
    broadcast of a scalar.
    """
    from triton.language import core

    semantic = type(interpreter.interpreter_semantic)
    own_cast, own_broadcast = semantic.cast, semantic.broadcast_impl_value
    handle = interpreter.TensorHandle
    numbers = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    numbers |= {"fp32", "fp64"}
    direct = {(a, b) for a in numbers | {"int1"} for b in numbers}
    direct |= {("fp16", "fp32"), ("fp32", "fp16"), ("bf16", "fp32"), ("fp32", "bf16")}

    def cast(self, input, dst_ty, fp_downcast_rounding=None):
        source, target = input.dtype, dst_ty.scalar
        if source is target:
            return input
        if fp_downcast_rounding is None and (source.name, target.name) in direct:
            new = self.builder.cast_impl(input.handle, target)
            block = input.type.is_block()
            return core.tensor(new, core.block_type(target, input.type.shape) if block else target)
        return own_cast(self, input, dst_ty, fp_downcast_rounding)

    def splat(scalar, block):
        dtype = scalar.handle.dtype
        data = np.full(block.numbers, scalar.handle.data, interpreter._get_np_dtype(dtype))
        return core.tensor(handle(data, dtype), core.block_type(scalar.type, block.shape))

    @functools.cache
    def stretched(a, b):
        if len(a) == len(b) and all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True)):
            return tuple(map(max, a, b))
        return None

    def stretch(block, shape):
        if block.type.numbers == shape:
            return block
        new = handle(np.broadcast_to(block.handle.data, shape), block.handle.dtype.scalar)
        return core.tensor(new, core.block_type(block.type.scalar, shape))

    def broadcast(self, lhs, rhs):
        a, b = lhs.type, rhs.type
        if a.is_block() and b.is_block():
            if a.shape is b.shape:  # the same cached shape
                return lhs, rhs
            shape = stretched(a.numbers, b.numbers)
            if shape:
                return stretch(lhs, shape), stretch(rhs, shape)
        elif a.is_block() and type(rhs.handle.dtype) is core.dtype:
            return lhs, splat(rhs, a)
        elif b.is_block() and type(lhs.handle.dtype) is core.dtype:
            return splat(lhs, b), rhs
        return own_broadcast(self, lhs, rhs)

    def binary(self, lhs, rhs, op):
        data, dtype = op(lhs.data, rhs.data), lhs.dtype.scalar
        if type(dtype) is core.dtype and data.itemsize * 8 > max(dtype.primitive_bitwidth, 8):
            data = data.astype(interpreter._get_np_dtype(dtype))
        return handle(data, dtype)

    own_convert = interpreter._convert_float

    def convert(input, source, target, rounding):
        """Between bf16 and float32, which have the same exponents; exact for all but subnormal
        numbers.
        """
        if rounding is None and (source.name, target.name) == ("fp32", "bf16"):
            bits = np.ascontiguousarray(input).view(np.uint32)
            if not np.any((bits & 0x7FFFFFFF) - np.uint32(1) < 0x7FFFFF):
                return (bits >> 16).astype(np.uint16)
        if rounding is None and (source.name, target.name) == ("bf16", "fp32"):
            bits = np.ascontiguousarray(input).view(np.uint16)
            if not np.any((bits & 0x7FFF) - np.uint16(1) < 0x7F):
                return bits.astype(np.uint32) << 16
        return own_convert(input, source, target, rounding)

    replace(semantic, "cast", cast)
    replace(semantic, "broadcast_impl_value", broadcast)
    replace(interpreter, "_convert_float", convert)
    replace(interpreter.InterpreterBuilder, "binary_op", binary)


def keep_constants(interpreter) -> None:
    """Operands of binary operations. Two tensors of one type are unchanged; a Python number becomes
    a tensor of the other operand's shape, once.
    """
    from triton.language import core

    semantic = type(interpreter.interpreter_semantic)
    own = semantic.binary_op_type_checking_impl
    # A shift of unsigned numbers changes the operand's handle, so those are never cached.
    signed = {"int1", "int8", "int16", "int32", "int64", "fp32", "fp64"}
    same = signed | {"uint8", "uint16", "uint32", "uint64"}  # halves are divided in float32
    offsets = {"int32", "int64"}
    known: dict[tuple, core.tensor] = {}

    def operands(self, lhs, rhs, lhs_ptr=False, rhs_ptr=False, check=True, div_or_mod=False):
        left, right = type(lhs), type(rhs)
        if left is right:
            if left is core.tensor and (
                (lhs.dtype is rhs.dtype and lhs.dtype.name in same)
                or (lhs_ptr and lhs.dtype.is_ptr() and rhs.dtype.name in offsets)
            ):
                return self.broadcast_impl_value(lhs, rhs)
        elif left is core.tensor and right in (int, float):
            kept = keep(self, lhs, rhs, (right, rhs, check, div_or_mod, 1), lhs, rhs)
            if kept is not None:
                return self.cast(lhs, kept.dtype) if check else lhs, kept
        elif right is core.tensor and left in (int, float):
            kept = keep(self, rhs, lhs, (left, lhs, check, div_or_mod, 0), lhs, rhs)
            if kept is not None:
                return kept, self.cast(rhs, kept.dtype) if check else rhs
        return own(self, lhs, rhs, lhs_ptr, rhs_ptr, check, div_or_mod)

    def keep(self, tensor, number, words, lhs, rhs):
        if tensor.dtype.name not in signed:
            return None
        key = *words, tensor.dtype.name, getattr(tensor.type, "numbers", None)
        if key not in known:
            if len(known) > 2000:
                known.clear()
            known[key] = own(self, lhs, rhs, False, False, *words[2:4])[words[4]]
        return known[key]

    replace(semantic, "binary_op_type_checking_impl", operands)


def leave_overflow_alone(interpreter) -> None:
    """Without ``debug`` an assertion checks nothing; this avoids its ten operations."""
    assert not interpreter.interpreter_builder.options.debug
    semantic = type(interpreter.interpreter_semantic)
    replace(semantic, "binary_op_sanitize_overflow_impl", lambda *arguments: None)
