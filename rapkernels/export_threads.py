"""Makes ``torch.export`` safe to call from threads that end."""

from __future__ import annotations

import threading

import torch

_prepared = False


def prepare_export() -> None:
    """Call before each export, from one thread at a time.

    Without a GPU, a CUDA build of torch puts a substitute for the CUDA device guard in a table of
    the process at the first trace, and the substitute dies with the thread that made that trace:
    the next trace, in any thread, crashes. Let a thread make it that lives as long as the process.
    """
    global _prepared
    ensure = getattr(torch._C, "_ensureCUDADeviceGuardSet", None)
    if _prepared or ensure is None:
        return
    if threading.current_thread() is threading.main_thread():
        ensure()
    else:
        done = threading.Event()

        def hold() -> None:
            ensure()
            done.set()
            threading.Event().wait()

        threading.Thread(target=hold, name="rapkernels-device-guard", daemon=True).start()
        done.wait()
    _prepared = True
