"""What ``sparsenn info FILE`` prints."""

from __future__ import annotations

from sparsenn.runtime.container import Contents


def describe(contents: Contents) -> str:
    """A file's tensors, how each is stored and in how many bytes, and the operations.

    Args:
        contents: what :func:`sparsenn.runtime.container.read` gave.
    """
    tensors = contents.tensors
    rows = [("tensor", "shape", "type", "non-zero", "zeros", "stored as", "bytes", "dense bytes")]
    for name, t in tensors.items():
        zeros = f"{100 * (1 - t.nonzeros / t.numel):.2f} %" if t.numel else "–"
        how = t.how if t.dtype == t.values.dtype else f"{t.how}, {t.values.dtype}"
        shape = "x".join(map(str, t.shape)) or "scalar"
        rows.append((name, shape, t.dtype, f"{t.nonzeros:,}", zeros, how, f"{t.nbytes:,}", f"{t.dense_bytes:,}"))
    dense, entries, left = (sum(getattr(t, x) for t in tensors.values()) for x in ("dense_bytes", "numel", "nonzeros"))
    zeros = f"{100 * (1 - left / entries):.2f} %" if entries else "–"
    rows.append(("file", f"{entries:,}", "", f"{left:,}", zeros, "", f"{contents.size:,}", f"{dense:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (False, False, False, True, True, False, True, True)
    lines = [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    ops = contents.architecture
    calls = "tensors alone, no architecture" if ops is None else " → ".join(_call(op.kind, op.module) for op in ops)
    about = ", ".join(f"{key} {value}" for key, value in contents.about.items())
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], "", f"network: {calls}", f"written by: {about or '–'}"])


def _call(kind: str, module: str) -> str:
    return f"{module} {kind}" if module else kind
