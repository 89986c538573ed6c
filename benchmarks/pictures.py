"""Pictures as the eye sees them: how near stored pixels are to independent readings, and what hostile files cost.

    python benchmarks/pictures.py [--photos DIR] [--vips PYTHON] [--other FOLDER] [--json OUT]

`--photos`: photographs beside the color charts. `--vips`: a Python that has pyvips, for a second reading.
What is resized is compared with other code for the same resize (`resampled`), from the size at which both
decoders were asked to decode: filters differ from one another by more than readers do.
`--other`: a folder with another vila_data, whose figures are put beside today's. Each hostile file is
normalized in a process of its own, under the default limits, to a shorter side of 336: seconds of CPU,
and peak memory beyond that of the imported package. Differences are in levels of 0 to 255, before encoding.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "benchmarks")]

from hostile_pictures import HOSTILE, SIDE  # noqa: E402

from tests.core.made_pictures import Case, cases, chart, flat, reading, saved, seen_with  # noqa: E402

MEAN, TAIL = 2, 6
MEMORY, SECONDS = 16 << 30, 120

VIPS = """
import sys, json, pyvips
for path in json.load(open(sys.argv[1])):
    try:
        image = pyvips.Image.new_from_file(path, fail_on="error").autorot()
        if image.get_typeof("icc-profile-data"):
            image = image.icc_transform("srgb", embedded=True, intent="perceptual")
        image = image.colourspace("srgb")
        if image.hasalpha():
            image = image.flatten(background=[255, 255, 255])
        image = image[0].bandjoin([image[0], image[0]]) if image.bands < 3 else image[0:3]
        image = image.cast("uchar")
        head = b"P6 %d %d 255 " % (image.width, image.height)
        open(path + ".ppm", "wb").write(head + bytes(image.write_to_memory()))
    except Exception as error:
        print(path, str(error).splitlines()[0] if str(error) else repr(error), file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--vips")
    parser.add_argument("--other", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("readings", "bombs"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(Path(arguments.child))
        return
    result: dict[str, Any] = {}
    if arguments.only != "bombs":
        result["readings"] = readings(arguments.photos, arguments.vips)
    if arguments.only != "readings":
        result["bombs"] = bombs(arguments.other)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


# readings


def sources(photos: Path | None) -> dict[str, Image.Image]:
    found = {"chart": chart(480, 336), "large chart": chart(1500, 1000)}
    for path in sorted(photos.iterdir())[:4] if photos else []:
        with Image.open(path) as image:
            found[path.stem] = Image.fromarray(np.asarray(image.convert("RGB")))
    return found


def readings(photos: Path | None, vips: str | None) -> dict[str, Any]:
    """Differences of all cases, at their own size and at a shorter side of 336 or 224, to Pillow and libvips."""
    from vila_data.core.images import ImageError, pixels_to_store

    table: dict[str, dict[str, list[float]]] = {}
    for name, source in sources(photos).items():
        made = list(cases(source))
        by_vips = vips_readings(vips, [case.data for case in made]) if vips else {}
        for at, case in enumerate(made):
            row = table.setdefault(case.name, {})
            for side in (None, 336 if min(source.size) > 336 else 224):  # the large chart is decoded at 1/2
                try:
                    got = pixels_to_store(case.data, max_pixels=SIDE * SIDE, shorter_side_px=side)
                except ImageError as error:
                    row.setdefault("failed", []).append(255.0)
                    print(f"{name} {case.name}: {error}", file=sys.stderr)
                    continue
                where = "own size" if side is None else "resized"
                seen = case.seen if side is None else at_scale(case, source, side)
                row.setdefault(f"pillow, {where}", []).extend(difference(got, seen))
                if at in by_vips:
                    row.setdefault(f"libvips, {where}", []).extend(difference(got, by_vips[at]))
    columns = [f"{who}, {where}" for who in ("pillow", "libvips") for where in ("own size", "resized")]
    print(f"{'case':44}" + "".join(f"{column:>22}" for column in columns))
    summary: dict[str, Any] = {}
    for name, row in sorted(table.items()):
        cells = {column: (max(row[column][::2]), max(row[column][1::2])) for column in columns if column in row}
        marks = {column: "*" * (cell[0] > MEAN or cell[1] > TAIL) for column, cell in cells.items()}
        shown = (f"{cells[c][0]:.2f} / {cells[c][1]:.0f}{marks[c]}" if c in cells else "-" for c in columns)
        print(f"{name:44}" + "".join(f"{cell:>22}" for cell in shown))
        summary[name] = {column: [round(value, 2) for value in cell] for column, cell in cells.items()}
    for column in columns:
        rows = [cell[column] for cell in summary.values() if column in cell]
        if rows:
            good = sum(mean <= MEAN and tail <= TAIL for mean, tail in rows)
            print(f"{column}: {good} of {len(rows)} cases at most {MEAN} in the mean and {TAIL} at 99%")
    return summary


def at_scale(case: Case, source: Image.Image, side: int) -> np.ndarray:
    """A case as Pillow reads it for a shorter side of `side`: a JPEG at half its size or less where that covers it."""
    scale = max(scale for scale in (1, 2, 4, 8) if min(source.size) >= side * scale)
    if scale == 1 or not case.name.startswith("JPEG"):
        return case.seen
    if not case.name.startswith("JPEG L") or "gray" in case.name:
        return reading(case.data, scale)
    with Image.open(io.BytesIO(case.data)) as image:  # gray with a profile for color
        image.draft(None, (image.width // scale, image.height // scale))
        return flat(seen_with(image.convert("RGB"), image.info["icc_profile"]))


def difference(got: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    """Mean and 99th percentile; a reading of another size is brought to it by `resampled`."""
    seen = np.clip(seen, 0, 255).astype(np.uint8)
    height, width = got.shape[:2]
    if (height < width) != (seen.shape[0] < seen.shape[1]):
        return 255.0, 255.0
    delta = np.abs(got.astype(np.float64) - resampled(seen, width, height))
    return float(delta.mean()), float(np.percentile(delta, 99))


def resampled(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture at another size, by none of the package's code and from all its pixels: Pillow's bilinear
    transform to at least half its size, exact averages of areas (float64) below."""
    tall, wide = pixels.shape[:2]
    if (tall, wide) == (height, width):
        return pixels.astype(np.float64)
    if max(tall / height, wide / width) <= 2:
        at_size = Image.fromarray(np.pad(pixels, ((1, 1), (1, 1), (0, 0)), "edge"))
        matrix = (wide / width, 0.0, 1.0, 0.0, tall / height, 1.0)
        moved = at_size.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        return np.asarray(moved, np.float64)
    return _averages(_averages(pixels.astype(np.float64), height).swapaxes(0, 1), width).swapaxes(0, 1)


def _averages(rows: np.ndarray, count: int) -> np.ndarray:
    """[count, ...] means of equal stretches of the first axis, parts of rows included."""
    sums = np.concatenate([np.zeros((1, *rows.shape[1:])), np.cumsum(rows, axis=0)])
    places = np.linspace(0, len(rows), count + 1)
    whole = np.minimum(places.astype(int), len(rows) - 1)
    part = (places - whole).reshape(-1, *[1] * (rows.ndim - 1))
    at = sums[whole] + part * rows[whole]
    return np.diff(at, axis=0) * count / len(rows)


def vips_readings(python: str, files: list[bytes]) -> dict[int, np.ndarray]:
    """What libvips makes of the files that it reads, by number."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{at:04d}" for at in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            Path(path).write_bytes(data)
        Path(folder, "list").write_text(json.dumps(paths))
        subprocess.run([python, "-c", VIPS, f"{folder}/list"], check=True)
        return {
            at: np.asarray(Image.open(f"{path}.ppm").convert("RGB"))
            for at, path in enumerate(paths)
            if Path(f"{path}.ppm").exists()
        }


# hostile files


def bombs(other: Path | None) -> dict[str, Any]:
    """Each file's bytes, pixels, outcome, seconds and memory."""
    result: dict[str, Any] = {}
    versions = {"now": REPO, **({"other": other} if other else {})}
    heads = "".join(f"{name + ': s':>14}{'MB':>7}  {'outcome':20}" for name in versions)
    print(f"{'hostile file':44}{'bytes':>12}{heads}")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in HOSTILE.items():
            path = Path(folder, "file")
            path.write_bytes(make())
            row: dict[str, Any] = {"bytes": path.stat().st_size}
            for version, root in versions.items():
                row[version] = measured(path, root)
            result[name] = row
            cells = "".join(
                f"{r['cpu_s']:>14.2f}{r['peak_mb']:>7.0f}  {r['outcome']:20}" for r in map(row.get, versions)
            )
            print(f"{name:44}{row['bytes']:>12,}{cells}", flush=True)
    worst = max(result.values(), key=lambda row: row["now"]["cpu_s"])["now"]["cpu_s"]
    print(
        f"{len(result)} files; worst {worst:.2f} s, {max(r['now']['peak_mb'] for r in result.values()):.0f} MB; ",
        end="",
    )
    print(f"decoded RGB of the largest picture allowed: {3 * SIDE * SIDE / 1e6:.0f} MB")
    return result


def measured(path: Path, root: Path) -> dict[str, Any]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    command = [sys.executable, __file__, "--child", str(path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root), "VILA_DATA_ROOT": str(root)},
        preexec_fn=limit,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        return {"cpu_s": float(SECONDS), "peak_mb": MEMORY / 1e6, "outcome": f"killed ({done.returncode})"}
    value: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return value


def child(path: Path) -> None:
    import os
    import time

    sys.path[:0] = [os.environ["VILA_DATA_ROOT"]]
    for name in [name for name in sys.modules if name.startswith("vila_data")]:
        del sys.modules[name]
    from vila_data.core import images

    assert str(images.__file__).startswith(os.environ["VILA_DATA_ROOT"])
    images.normalize_image(saved(chart(), "JPEG"), max_pixels=SIDE * SIDE + 1, shorter_side_px=100)
    images.normalize_image(saved(chart(), "WEBP"), max_pixels=SIDE * SIDE + 1, shorter_side_px=100)
    data = path.read_bytes()
    before, begun = peak_kb(), time.process_time()
    try:
        stored = images.normalize_image(data, max_pixels=89_478_485)
        outcome = f"stored {stored.original_width}x{stored.original_height}"
    except images.ImageError as error:
        outcome = error.error_class
    except MemoryError:
        outcome = "MemoryError"
    seconds = time.process_time() - begun
    peak = (peak_kb() - before) * 1024 / 1e6
    print("RESULT " + json.dumps({"cpu_s": round(seconds, 3), "peak_mb": round(peak, 1), "outcome": outcome}))


def peak_kb() -> int:
    """Of this process since it began: `ru_maxrss` would count the one that it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
