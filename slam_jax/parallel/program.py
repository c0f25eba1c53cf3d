"""What XLA made of a program: memory, FLOPs, traffic between devices.

Traffic is read in the text of the optimised program. What a loop repeats is there, and counted,
once; so XLA counts FLOPs, too, and nothing of kernels that it did not write. The dtypes of products
are those that the program asks for; a TPU converts as it likes.
"""

import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter"),
    *("all-to-all", "collective-permute", "ragged-all-to-all"),
)
INSTRUCTION = re.compile(r"^ *(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$", re.MULTILINE)
# A TPU that computes meanwhile has a collective in each piece of a chain of fusions.
CHAIN = re.compile(r'\bchain_id="(\w+)"')
# Groups of one device: nothing is sent.
ALONE = re.compile(r"\breplica_groups=(\{\{\d+\}[,}]|\[\d+,1\])")
ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")


class Traffic(NamedTuple):
    """Collectives of one kind.

    Attributes:
      kind: a name in COLLECTIVES.
      dtype: of what is sent.
      count: of the operations.
      size: bytes of the arrays in one piece: what is gathered, or what is summed.
    """

    kind: str
    dtype: str
    count: int
    size: int


@dataclass(frozen=True)
class Program:
    """A compiled program, on each device.

    Attributes:
      arguments: bytes, padded as the devices do it.
      results: bytes, without those that take the place of arguments.
      temporary: bytes of what comes and goes.
      code: bytes.
      flops: as XLA counts them, each loop once; 0 where it does not.
      traffic: between devices.
      whole: most bytes of gathered arrays that there are at a time; None: not known.
      products: dtypes of the factors of convolutions and matrix products -> how many there are.
    """

    arguments: int
    results: int
    temporary: int
    code: int
    flops: float
    traffic: tuple[Traffic, ...]
    whole: int | None
    products: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes on each device."""
        return self.arguments + self.results + self.temporary + self.code

    @classmethod
    def of(cls, lowered: jax.stages.Lowered) -> "Program":
        """Compiles a program and says what there is to say of it.

        `peak_memory_in_bytes` is not in it: on TPUs that counts arrays in the memory on the chip,
        too, and no gaps between others.
        """
        compiled = lowered.compile()
        memory: Any = compiled.memory_analysis()
        cost: Any = compiled.cost_analysis() or {}
        text = compiled.as_text() or ""
        return cls(
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes - memory.alias_size_in_bytes,
            memory.temp_size_in_bytes,
            memory.generated_code_size_in_bytes,
            cost.get("flops", 0.0),
            traffic_of(text),
            whole_at_once(text),
            products_of(lowered.as_text()),
        )


class _Instruction(NamedTuple):
    """A line of a program: what it makes, and of what; "" is no chain; `alone`, a collective that
    is none; `index`, in a tuple."""

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    chain: str
    alone: bool
    index: int


def _instructions(text: str) -> list[_Instruction]:
    found = []
    for name, kind, operation, rest in INSTRUCTION.findall(text):
        operands = tuple(re.findall(r"%([\w.-]+)", rest.split("), ")[0]))
        chain = CHAIN.search(rest)
        alone = ALONE.search(rest) is not None
        label = chain[1] if chain else ""
        index = re.search(r"\bindex=(\d+)", rest)
        element = int(index[1]) if index else 0
        found.append(_Instruction(name, kind, operation, operands, label, alone, element))
    return found


def _arrays(kind: str) -> list[tuple[str, int]]:
    """Dtype and bytes of the arrays in a type such as (bf16[4,8]{1,0}, f32[])."""
    return [
        (dtype, math.prod(int(n) for n in shape.split(",") if n) * _itemsize(dtype))
        for dtype, shape in ARRAY.findall(kind)
    ]


def _itemsize(dtype: str) -> int:
    """Bytes, such as 2 of bf16 and 1 of f8e4m3fn, pred and s4."""
    bits = re.search(r"\d+", dtype)
    return max(int(bits[0]) // 8, 1) if bits else 1


def traffic_of(text: str) -> tuple[Traffic, ...]:
    """Collectives in the text of a program, those of a kind and dtype together."""
    instructions = _instructions(text)
    types = {found.name: found.type for found in instructions}
    counts: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    chains: set[tuple[str, str]] = set()
    for found in instructions:
        kind = found.operation.removesuffix("-start")
        if kind not in COLLECTIVES or found.alone or (kind, found.chain) in chains:
            continue
        if found.chain:
            chains.add((kind, found.chain))
        sent = [array for name in found.operands for array in _arrays(types[name])]
        made = _arrays(found.type)
        if found.operation == "all-gather-start":  # starts from what is in its type, too
            made = made[len(sent) : 2 * len(sent)]
        whole = made if kind == "all-gather" else sent
        for dtype, size in whole:
            sizes[kind, dtype] += size
        counts[kind, whole[0][0]] += 1
    return tuple(Traffic(*key, counts[key], size) for key, size in sorted(sizes.items()))


# What stands for an array that there is already, or is it in another order.
PASSED_ON = ("bitcast", "copy", "get-tuple-element", "optimization-barrier", "all-gather-done")


def whole_at_once(text: str) -> int | None:
    """Most bytes of gathered arrays that there are at a time, in the text of a program: from where
    one is gathered to where it is read last. None where loops gather or have what is gathered, or a
    TPU gathers while it computes, in pieces of fusions."""
    inner, _, text = text.rpartition("\nENTRY ")
    if " all-gather" in inner:
        return None
    ends: dict[int, int] = {}  # where one is gathered -> where it is read last
    sizes: dict[int, int] = {}
    parts: dict[str, list[set[int]]] = {}  # of what an instruction makes: gathered arrays in it
    for place, found in enumerate(_instructions(text)):
        read = [parts.get(name, [set()]) for name in found.operands]
        ends.update(dict.fromkeys(set().union(*itertools.chain(*read)), place))
        kind, made = found.operation.removesuffix("-start"), _arrays(found.type)
        if kind == "all-gather" and not found.alone:
            if found.operation != kind:  # starts from what is in its type, too
                made = made[len(found.operands) : 2 * len(found.operands)]
            sizes[place], ends[place] = sum(size for _, size in made), place
            parts[found.name] = [{place}]
        elif kind == "tuple":
            parts[found.name] = [set().union(*of_one) for of_one in read]
        elif kind == "get-tuple-element" and len(read[0]) > 1:
            parts[found.name] = [read[0][found.index]]
        elif kind in PASSED_ON:
            parts[found.name] = read[0]
        elif kind == "while" and any(itertools.chain(*read)):
            return None
    changes = Counter(sizes)
    for place, end in ends.items():
        changes[end + 1] -= sizes[place]
    return max(itertools.accumulate(changes[place] for place in sorted(changes)), default=0)


def products_of(text: str) -> dict[str, int]:
    """Convolutions and matrix products in the StableHLO of a program, by the dtypes of their
    factors, such as "bf16 x f32"."""
    found: Counter[str] = Counter()
    for types in re.findall(r"stablehlo\.(?:dot_general|convolution)\b.*: \((.*)\) ->", text):
        found[" x ".join(sorted(re.findall(r"[x<]([a-z]+\d\w*)>", types)))] += 1
    return dict(sorted(found.items()))
