"""Packers of other projects, written anew from what their documentation and sources say they do.

Each takes tokens, images, capacity and max_images and gives the packs as lists of positions; a position that is in
none was dropped. Those without a limit of images have it added where their rule chooses a pack or a sample: one that
would exceed it does not fit.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator

Plan = list[list[int]]
Packer = Callable[[list[int], list[int], int, float], Plan]

BATCH = 1000  # LLaMA-Factory's preprocessing batch and ms-swift's packing batch; Energon's buffer is the user's choice
NANOVLM_SEQUENCES = 32  # sequences' worth of tokens in its buffer
NANOVLM_SPARE = 5  # knapsacks beyond the fewest possible
NANOVLM_IMAGES = 4  # a sample with more is skipped
INTERNVL_OPEN = 100  # open packs


def batches(n: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, n)) for start in range(0, n, size))


def pad(tokens: list[int], images: list[int], capacity: int, max_images: float) -> Plan:
    """No packing: one sample a sequence."""
    return [[position] for position in range(len(tokens))]


def next_fit(tokens: list[int], images: list[int], capacity: int, max_images: float) -> Plan:
    """A sample that doesn't fit the open pack closes it."""
    return next_fit_of(range(len(tokens)), tokens, images, capacity, max_images)


def next_fit_of(order: range | list[int], tokens: list[int], images: list[int], capacity: int, limit: float) -> Plan:
    plan: Plan = []
    held = shown = 0
    for position in order:
        held, shown = held + tokens[position], shown + images[position]
        if plan and held <= capacity and shown <= limit:
            plan[-1].append(position)
        else:
            plan.append([position])
            held, shown = tokens[position], images[position]
    return plan


def energon_example(tokens: list[int], images: list[int], capacity: int, max_images: float) -> Plan:
    """Megatron-Energon's documented example: a buffer sorted by length, shortest first, then joined while it fits."""
    plan: Plan = []
    for batch in batches(len(tokens), BATCH):
        plan += next_fit_of(sorted(batch, key=tokens.__getitem__), tokens, images, capacity, max_images)
    return plan


def nanovlm_knapsack(tokens: list[int], images: list[int], capacity: int, max_images: float) -> Plan:
    """nanoVLM: longest first into the lightest of the fewest knapsacks and some spare ones; more images than 4 dropped."""
    plan: Plan = []
    buffer: list[int] = []
    room = NANOVLM_SEQUENCES * capacity
    held = 0
    for position in range(len(tokens)):
        if images[position] <= NANOVLM_IMAGES:
            buffer.append(position)
            held += tokens[position]
        if held >= room or position == len(tokens) - 1:
            plan += lightest_first(buffer, tokens, images, capacity, max_images)
            buffer, held = [], 0
    return plan


def lightest_first(buffer: list[int], tokens: list[int], images: list[int], capacity: int, max_images: float) -> Plan:
    count = math.ceil(sum(tokens[position] for position in buffer) / capacity) + NANOVLM_SPARE
    plan: Plan = [[] for _ in range(count)]
    shown = [0] * count
    loads = [(0, pack) for pack in range(count)]
    for position in sorted(buffer, key=tokens.__getitem__, reverse=True):
        chosen = len(loads)
        for place, (load, pack) in enumerate(loads):
            if load + tokens[position] > capacity:
                break
            if shown[pack] + images[position] <= max_images:
                chosen = place
                break
        if chosen == len(loads):
            loads.append((0, len(plan)))
            plan.append([])
            shown.append(0)
        load, pack = loads.pop(chosen)
        plan[pack].append(position)
        shown[pack] += images[position]
        bisect.insort(loads, (load + tokens[position], pack))
    return [pack for pack in plan if pack]


def internvl_open_packs(tokens: list[int], images: list[int], capacity: int, max_images: float) -> Plan:
    """InternVL: open packs by images descending, a sample into the first that it fits; full ones leave.

    Where too many are open, it sends out the one with most images, and splits samples so that others fill up. Without
    splitting, packs of much text would stay open for ever; so here the one with most tokens leaves.
    """
    plan: Plan = []
    order: list[tuple[int, int]] = []  # (-images, arrival) of open packs, ascending
    opened: dict[tuple[int, int], tuple[int, list[int]]] = {}
    for position in range(len(tokens)):
        held, shown, members = tokens[position], images[position], [position]
        for place, key in enumerate(order):
            if held + opened[key][0] <= capacity and shown - key[0] <= max_images:
                del order[place]
                load, before = opened.pop(key)
                held, shown, members = held + load, shown - key[0], [*before, position]
                break
        if held >= capacity or shown >= max_images:
            plan.append(members)
            continue
        bisect.insort(order, (-shown, position))
        opened[-shown, position] = (held, members)
        if len(order) > INTERNVL_OPEN:
            fullest = max(order, key=lambda key: opened[key][0])
            order.remove(fullest)
            plan.append(opened.pop(fullest)[1])
    return plan + [opened[key][1] for key in order]


def llama_factory_knapsack(tokens: list[int], images: list[int], capacity: int, max_images: float) -> Plan:
    """LLaMA-Factory: in each preprocessing batch, pack after pack takes the longest sample that fits."""
    plan: Plan = []
    for batch in batches(len(tokens), BATCH):
        plan += longest_that_fits(batch, tokens, images, capacity, max_images)
    return plan


def longest_that_fits(batch: range, tokens: list[int], images: list[int], capacity: int, limit: float) -> Plan:
    shelves: dict[int, list[tuple[int, int]]] = {}
    for position in sorted(batch, key=tokens.__getitem__):
        shelves.setdefault(images[position], []).append((tokens[position], position))
    plan: Plan = []
    while shelves:
        room, slots, pack = capacity, limit, []
        while True:
            best, best_shelf, best_place = 0, 0, 0
            for count, shelf in shelves.items():
                place = bisect.bisect_right(shelf, (room, len(tokens))) if count <= slots else 0
                if place and shelf[place - 1][0] > best:
                    best, best_shelf, best_place = shelf[place - 1][0], count, place - 1
            if not best:
                break
            pack.append(shelves[best_shelf].pop(best_place)[1])
            room, slots = room - best, slots - best_shelf
            if not shelves[best_shelf]:
                del shelves[best_shelf]
        plan.append(pack)
    return plan


def ms_swift_constant_volume(tokens: list[int], images: list[int], capacity: int, max_images: float) -> Plan:
    """ms-swift: in each batch, longest first into the fullest pack that it fits; the last pack joins the next batch."""
    plan: Plan = []
    carried: list[int] = []
    for batch in batches(len(tokens), BATCH):
        packs = best_fit_decreasing([*carried, *batch], tokens, images, capacity, max_images)
        carried = packs.pop()
        plan += packs
    return [*plan, carried] if carried else plan


def best_fit_decreasing(batch: list[int], tokens: list[int], images: list[int], capacity: int, limit: float) -> Plan:
    plan: Plan = []
    shown: list[int] = []
    loads: list[tuple[int, int]] = []
    for position in sorted(batch, key=tokens.__getitem__, reverse=True):
        place = bisect.bisect_right(loads, (capacity - tokens[position], len(plan))) - 1
        while place >= 0 and shown[loads[place][1]] + images[position] > limit:
            place -= 1
        if place < 0:
            plan.append([])
            shown.append(0)
            load, pack = 0, len(plan) - 1
        else:
            load, pack = loads.pop(place)
        plan[pack].append(position)
        shown[pack] += images[position]
        bisect.insort(loads, (load + tokens[position], pack))
    return plan


PEERS: dict[str, Packer] = {
    "pad": pad,
    "Energon's example": energon_example,
    "next-fit": next_fit,
    "nanoVLM": nanovlm_knapsack,
    "InternVL": internvl_open_packs,
    "LLaMA-Factory": llama_factory_knapsack,
    "ms-swift": ms_swift_constant_volume,
}
