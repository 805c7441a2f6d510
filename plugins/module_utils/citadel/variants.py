"""Which variants of a model a processor can run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .catalogue import VARIANTS

ZEN4_SIGN = "avx512_bf16"  # what tells Zen 4 and later from earlier AMD processors


@dataclass(frozen=True)
class Processor:
    """The abilities that decide, however they were found out."""

    avx2: bool = True
    avx512: bool = False
    amx: bool = False
    zentorch: bool = False

    @classmethod
    def of_cpuinfo(cls, text: str, zentorch: bool = False) -> Processor:
        flags: set[str] = set()
        vendor = ""
        for line in text.splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "flags" and not flags:
                flags = set(value.split())
            elif key.strip() == "vendor_id" and not vendor:
                vendor = value.strip()
        return cls(
            avx2="avx2" in flags,
            avx512={"avx512f", "avx512bw", "avx512vl"} <= flags,
            amx={"amx_tile", "amx_int8"} <= flags,
            zentorch=zentorch and vendor == "AuthenticAMD" and ZEN4_SIGN in flags,
        )

    @classmethod
    def named(cls, isa: str) -> Processor:
        """From a word on a command line: avx2, avx512, amx; each includes those before it."""
        steps = ("none", "avx2", "avx512", "amx")
        if isa not in steps:
            raise ValueError(f"isa={isa}: choose one of {', '.join(steps)}")
        rank = steps.index(isa)
        return cls(avx2=rank >= 1, avx512=rank >= 2, amx=rank >= 3)

    def __str__(self) -> str:
        names = [name for name, has in (("AVX2", self.avx2), ("AVX512", self.avx512), ("AMX", self.amx)) if has]
        return ", ".join([*names, *(["zentorch"] if self.zentorch else [])]) or "none of AVX2, AVX512, AMX"


def obstacle(variant: str, moe: bool, processor: Processor) -> str:
    """What keeps this processor from running the variant; empty if nothing does."""
    if not processor.avx2:
        return "vLLM needs AVX2"
    if variant == "bf16":
        return ""
    if moe:
        if processor.amx or processor.zentorch:
            return ""
        return f"a quantised mixture of experts ({variant}) needs AMX, or Zen 4 and later with zentorch"
    if variant == "int4" and not processor.avx512:
        return "int4 needs AVX512"
    return ""


def runnable(variants: Collection[str], moe: bool, processor: Processor) -> list[str]:
    """Of these variants the ones that run, the most faithful first."""
    return [variant for variant in VARIANTS if variant in variants and not obstacle(variant, moe, processor)]
