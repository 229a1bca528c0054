"""Triton's interpreter patches triton.language again at every call of a device function, which is
near half of its time. Here it does so once per launch."""

import functools
import inspect

original = []  # Triton's own function, once it is replaced


@functools.cache
def patch_once_per_launch() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):  # other versions keep no record to restore
        return
    patch = interpreter._patch_lang
    original.append(patch)
    patched: set[str] = set()  # modules, while a launch runs

    @functools.cache
    def visible(fn) -> set[str]:
        modules = (m for m in fn.__globals__.values() if inspect.ismodule(m))
        return {m.__name__ for m in modules if m in (tl, tl.core)}

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

    interpreter._patch_lang = patch_once
