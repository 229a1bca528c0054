"""Triton's interpreter in a quarter of its time, with the same bits.

It spends its time on what surrounds NumPy: patches of triton.language at every call of a device
function, types and shapes of every tensor made anew, a check for overflow that is switched off in
the end. Here the patches are made once per launch, what repeats is cached, and nothing is checked.
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

    if triton.__version__.startswith(KNOWN):  # others are left as they are
        patch_once_per_launch(interpreter)
        cache_types(interpreter)
        leave_equal_shapes(interpreter)
        leave_overflow_alone(interpreter)


def replace(owner: object, name: str, new: object) -> None:
    replaced.append((owner, name, getattr(owner, name)))
    setattr(owner, name, new)


def patch_once_per_launch(interpreter) -> None:
    import triton.language as tl

    patch = interpreter._patch_lang
    patched: set[str] = set()  # modules, while a launch runs

    @functools.cache
    def visible(fn) -> set[str]:
        modules = (m for m in fn.__globals__.values() if inspect.ismodule(m))
        return {m.__name__ for m in modules if m in (tl, tl.core)}

    def member_with_semantic(obj, name, member, builder, scope) -> None:
        def call(*args, **kwargs):
            kwargs["_semantic"] = interpreter.interpreter_semantic
            return member(*args, **kwargs)

        scope.set_attr(obj, name, call)

    def patch_once(fn):
        if patched and visible(fn) <= patched:
            return None  # a device function, whose patches nobody restores
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
        self.shape, self.numel = shape_of(tuple(type.shape) if type.is_block() else ())

    own = core.block_type.__init__

    @functools.cache
    def block_of(numbers):
        block = object.__new__(core.block_type)
        own(block, core.int1, list(numbers))
        return block.shape, block.numel

    def block_type(self, element_ty, shape) -> None:
        self.element_ty = element_ty
        numbers = [n if type(n) is int else core._unwrap_if_constexpr(n) for n in shape]
        self.shape, self.numel = block_of(tuple(numbers))
        self.name = f"<{self.shape}, {element_ty}>"

    replace(interpreter, "_get_np_dtype", dtype_of)
    replace(core.tensor, "__init__", tensor)
    replace(core.block_type, "__init__", block_type)


def leave_equal_shapes(interpreter) -> None:
    semantic = type(interpreter.interpreter_semantic)
    own = semantic.broadcast_impl_value

    def broadcast(self, lhs, rhs):
        a, b = lhs.type, rhs.type
        same = a.is_block() and b.is_block() and a.shape is b.shape  # as cached
        return (lhs, rhs) if same else own(self, lhs, rhs)

    replace(semantic, "broadcast_impl_value", broadcast)


def leave_overflow_alone(interpreter) -> None:
    """Ten operations for an assertion that without ``debug`` asserts nothing."""
    assert not interpreter.interpreter_builder.options.debug
    semantic = type(interpreter.interpreter_semantic)
    replace(semantic, "binary_op_sanitize_overflow_impl", lambda *arguments: None)
