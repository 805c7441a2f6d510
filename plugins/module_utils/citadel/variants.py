"""Which variants of a model a processor can run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .architecture import Architecture
from .catalogue import VARIANTS, Model
from .recipes import FAMILIES

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


def hindrance(model: Model, variant: str, architecture: Architecture, processor: Processor) -> str:
    """What keeps a model from being served in a variant here, also that nobody can make it; empty if nothing does."""
    if variant not in model.weights:
        return f"citadel_models.{model.name}.variants has no {variant}"
    problem = obstacle(variant, architecture.moe, processor)
    if problem or not model.weights[variant].made_from:
        return problem
    elsewhere = f"name a repository in citadel_models.{model.name}.variants.{variant}"
    if architecture.name not in FAMILIES:
        return f"{variant} is made here of {', '.join(sorted(FAMILIES))}, and this is {architecture.name}; {elsewhere}"
    if variant == "int4" and not architecture.fits_int4():
        return f"int4 has groups of 128 weights, and the matrices of this model do not divide so; {elsewhere}"
    return ""


def servable(model: Model, variants: Collection[str], architecture: Architecture, processor: Processor) -> list[str]:
    """Of these variants the ones that can be served, the most faithful first."""
    return [
        variant
        for variant in VARIANTS
        if variant in variants and not hindrance(model, variant, architecture, processor)
    ]
