"""Quantises tensors: a process that takes one line of JSON for each, and answers with one.

The only module that needs more than the standard library: numpy, of the environment of vLLM. Its Python runs this as a
program, and nothing else imports it. It holds a few MiB at a time, whatever the size of a tensor, and ends when whoever
started it is gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

import numpy as np

BLOCK = 1 << 20  # weights at once: what fits into a core's own cache, and any tensor into memory
# How much of a group's largest weight its scale reaches to. Less cuts off the largest and draws all others better.
REACHES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


IOPRIO_SET, PROCESS, IDLE = 251, 1, 3 << 13  # a call of the kernel that no library has; its number on x86_64


def step_back() -> None:
    """Whatever serves goes first, at the processor and at the disk."""
    os.nice(19)
    ctypes.CDLL(None).syscall(IOPRIO_SET, PROCESS, 0, IDLE)


def work(task: dict[str, Any]) -> dict[str, Any]:
    source = os.open(task["source"], os.O_RDONLY)
    target = os.open(task["target"], os.O_WRONLY)
    try:
        if task["bits"] == 16:
            copy(source, target, task)
            error = 0.0
        else:
            error = quantise(source, target, task)
        os.fdatasync(target)  # what is called done is on the disk, also after a power cut
    finally:
        os.close(source)
        os.close(target)
    return {"name": task["name"], "error": error}


def whole(source: int, count: int, offset: int) -> bytes:
    data = os.pread(source, count, offset)
    if len(data) != count:
        raise ValueError("the source ended in the middle of a tensor")
    return data


def write(target: int, data: Any, offset: int) -> None:
    left = memoryview(data).cast("B")
    while left:
        count = os.pwrite(target, left, offset)
        left, offset = left[count:], offset + count


def copy(source: int, target: int, task: dict[str, Any]) -> None:
    for start in range(0, task["length"], 4 * BLOCK):
        count = min(4 * BLOCK, task["length"] - start)
        write(target, whole(source, count, task["offset"] + start), task["at"][0] + start)


def quantise(source: int, target: int, task: dict[str, Any]) -> float:
    """The relative error: the length of what is lost by the length of what was there."""
    rows, columns = task["shape"]
    wide = task["length"] // (rows * columns)
    step = max(1, BLOCK // columns)
    lost = there = 0.0
    weights_at, scales_at, *shape_at = task["at"]
    for start in range(0, rows, step):
        count = min(step, rows - start)
        raw = whole(source, count * columns * wide, task["offset"] + start * columns * wide)
        block = floats(raw, task["dtype"]).reshape(count, -1, task["group"] or columns)
        if not np.isfinite(block).all():
            raise ValueError(f"{task['name']} has weights that are no numbers; the source is damaged, fetch it again")
        numbers, scales = eight_bits(block) if task["bits"] == 8 else four_bits(block)
        difference = (block - numbers * scales).ravel()
        lost += float(difference @ difference)
        there += float(block.ravel() @ block.ravel())
        packed = numbers.astype(np.int8) if task["bits"] == 8 else pack(numbers.reshape(count, columns))
        write(target, packed.ravel(), weights_at + start * columns * task["bits"] // 8)
        stored = scales.ravel() if task["bits"] == 8 else (scales.ravel().view(np.uint32) >> 16).astype(np.uint16)
        write(target, stored, scales_at + start * stored.nbytes // count)
    for offset in shape_at:
        write(target, np.array([rows, columns], dtype=np.int64), offset)
    return float((lost / there) ** 0.5) if there else 0.0


def floats(raw: bytes, dtype: str) -> Any:
    if dtype == "BF16":  # numpy has no such type: it is the upper half of a float
        return (np.frombuffer(raw, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, dtype={"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


def eight_bits(block: Any) -> tuple[Any, Any]:
    largest = np.abs(block).max(axis=-1, keepdims=True)
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    return np.rint(block / scales), scales


def four_bits(block: Any) -> tuple[Any, Any]:
    """For each group the reach that loses least."""
    largest = np.abs(block).max(axis=-1, keepdims=True)
    best = scales = numbers = None
    for reach in REACHES:
        wide = bfloat16(np.where(largest > 0, largest * np.float32(reach / 7), np.float32(1)))
        tried = np.clip(np.rint(block / wide), -8, 7)
        lost = np.square(block - tried * wide).sum(axis=-1, keepdims=True)
        if best is None:
            best, scales, numbers = lost, wide, tried
            continue
        better = lost < best
        best, scales = np.where(better, lost, best), np.where(better, wide, scales)
        numbers = np.where(better, tried, numbers)
    return numbers, scales


def bfloat16(values: Any) -> Any:
    """Rounded to what the scale will be when it is read again, so that the weights are drawn with that one."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def pack(numbers: Any) -> Any:
    """Eight weights in 32 bits, the first in the lowest four, each 8 more than it is."""
    nibbles = (numbers + 8).astype(np.uint8)
    pairs = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return np.ascontiguousarray(pairs)


def main() -> int:
    step_back()
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer = work(task)
        except (OSError, ValueError) as error:
            answer = {"name": task["name"], "fault": str(error)}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
