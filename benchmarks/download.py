"""Images a second from URLs to stored JPEGs: vila_data against img2dataset and a bare decode loop, in one run.

    python benchmarks/download.py [--images N] [--photos DIR] [--repeats 3] [--json OUT]

nginx serves the same pictures to all from core 1; each client, with its children, is held to
core 0. Half the pictures are 640x480, half 1280x960; the output's shorter side is 336, quality 90.
The contenders alternate; medians are given. Start-up is left out of every rate and given apart:
ours is timed from the call of `download_part` to its receipt (reading records, robots.txt,
perceptual hash, sha256, tar, tables and fsync included); img2dataset by the start and end times
of its own shard statistics, which leave out its process start and its logger's wait, with hashes
off and the thread count (16, 32 or 64) that suits it best in a trial.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIDE, QUALITY = 336, 90
SIZES = ((640, 480), (1280, 960))
DISTINCT = 24  # pictures a size; URLs are distinct all the same
SERVER_CORE, CLIENT_CORE = 1, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "ARGUMENTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, values = arguments.child
        print("RESULT " + json.dumps(CHILDREN[what](**json.loads(values))), flush=True)
        return
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("benchmarks/download.py needs two cores: one for the server, one for the client")
    with tempfile.TemporaryDirectory(prefix="vila-bench-") as folder:
        result = compare(Path(folder), arguments.images, arguments.photos, arguments.repeats)
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def compare(folder: Path, images: int, photos: Path | None, repeats: int) -> dict[str, Any]:
    root = folder / "www"
    mean_bytes = make_pictures(root, images, photos)
    with nginx(folder, root) as port:
        urls = {"port": port, "images": images}
        run_child("builtin", {**urls, "images": 50})  # warms the page cache and compiles bytecode
        trials = {count: run_child("img2dataset", {**urls, "threads": count}) for count in (16, 32, 64)}
        threads = max(trials, key=lambda count: trials[count]["rate"])
        runs: dict[str, list[dict[str, Any]]] = {"loop": [], "builtin": [], "img2dataset": []}
        for turn in range(repeats):
            for name, values in (
                ("loop", {"root": str(root), "images": images}),
                ("builtin", urls),
                ("img2dataset", {**urls, "threads": threads}),
            ):
                runs[name].append(run_child(name, values))
                print(f"{turn + 1}/{repeats} {name}: {runs[name][-1]['rate']:.1f} images/s", file=sys.stderr)
        quality = psnr_table(root, port)
    rates = {name: statistics.median(run["rate"] for run in found) for name, found in runs.items()}
    return {
        "images_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "builtin_over_img2dataset": round(rates["builtin"] / rates["img2dataset"], 2),
        "builtin_over_loop": round(rates["builtin"] / rates["loop"], 2),
        "all_images_per_s": {name: [round(run["rate"], 1) for run in found] for name, found in runs.items()},
        "start_up_s": {
            name: round(statistics.median(r["start_up_s"] for r in found), 2) for name, found in runs.items()
        },
        "img2dataset_threads": threads,
        "img2dataset_trials": {str(count): round(trial["rate"], 1) for count, trial in trials.items()},
        "psnr_db": quality,
        "conditions": conditions(images, photos, repeats, mean_bytes),
    }


def conditions(images: int, photos: Path | None, repeats: int, mean_bytes: dict[str, int]) -> dict[str, Any]:
    packages = ("aiohttp", "simplejpeg", "opencv-python-headless", "pillow", "numpy", "pyarrow", "img2dataset")
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "images": images,
        "distinct_pictures": DISTINCT * len(SIZES),
        "pictures": "photographs, resized" if photos else "synthetic textures",
        "mean_bytes": mean_bytes,
        "repeats": repeats,
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu.partition(":")[2].strip(),
        "load_average_1m": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "shorter_side_px": SIDE,
        "jpeg_quality": QUALITY,
    }


# pictures and server


def make_pictures(root: Path, images: int, photos: Path | None) -> dict[str, int]:
    """`images` files, links to DISTINCT pictures of each size; mean bytes by size."""
    (root / "base").mkdir(parents=True)
    found = sorted(path for path in photos.iterdir() if path.suffix == ".jpg") if photos else []
    names, sizes = [], {}
    for width, height in SIZES:
        total = 0
        for index in range(DISTINCT):
            pixels = photograph(found[index % len(found)], width, height) if found else texture(index, width, height)
            content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
            path = root / "base" / f"{width}-{index}.jpg"
            path.write_bytes(content)
            names.append(path)
            total += len(content)
        sizes[f"{width}x{height}"] = total // DISTINCT
    for index in range(images):
        which = (index % len(SIZES)) * DISTINCT + index // len(SIZES) % DISTINCT
        (root / f"{index:06d}.jpg").symlink_to(names[which])
    return sizes


def photograph(path: Path, width: int, height: int) -> Any:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
        scale = max(width / rgb.width, height / rgb.height)
        rgb = rgb.resize((max(width, round(rgb.width * scale)), max(height, round(rgb.height * scale))), Image.LANCZOS)
        return cv2.cvtColor(np.asarray(rgb)[:height, :width], cv2.COLOR_RGB2BGR)


def texture(seed: int, width: int, height: int) -> Any:
    """Noise with a photograph's falling spectrum, and some edges."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 10):
        cells = (max(2, height >> (9 - octave)), max(2, width >> (9 - octave)), 3)
        noise = rng.standard_normal(cells).astype(np.float32)
        pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 46 / 1.75**octave * 2
    for _ in range(12):
        centre = tuple(int(rng.integers(side)) for side in (width, height))
        colour = [float(value) for value in rng.integers(-40, 40, 3)]
        shape = np.zeros_like(pixels)
        cv2.circle(shape, centre, int(rng.integers(20, height // 3)), colour, -1)
        pixels += shape
    return np.clip(pixels + 120, 0, 255).astype(np.uint8)


@contextmanager
def nginx(folder: Path, root: Path) -> Iterator[int]:
    """A static server on core 1; gives its port."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        sys.exit("benchmarks/download.py needs nginx in PATH or /usr/sbin (Debian: apt-get install nginx-light)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    user = "user root;" if os.getuid() == 0 else ""
    temporary = "".join(
        f"{kind}_temp_path {folder}/tmp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; {user} worker_processes 1; pid {folder}/pid; error_log stderr crit;"
        f"events {{ worker_connections 2048; }} http {{ access_log off; sendfile on; tcp_nopush on; {temporary}"
        f"keepalive_requests 100000; types {{ image/jpeg jpg; }}"
        f"server {{ listen 127.0.0.1:{port} backlog=2048; root {root}; }} }}"
    )
    server = subprocess.Popen(
        [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)],
        preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


# contenders, each in a process of its own on core 0


def run_child(what: str, values: dict[str, Any]) -> dict[str, Any]:
    started = time.time()
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", what, json.dumps({**values, "started": started})],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, {CLIENT_CORE}),
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if done.returncode or line is None:
        sys.exit(f"{what} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return result


def child_builtin(port: int, images: int, started: float) -> dict[str, Any]:
    from vila_data.core.layout import Part
    from vila_data.core.records import ImageRef, Record
    from vila_data.core.store import Store
    from vila_data.download.config import DownloadConfig
    from vila_data.download.part import download_part

    records = (
        Record(f"r{i}", "pair", (f"caption {i}",), (ImageRef(f"http://127.0.0.1:{port}/{i:06d}.jpg", 0),))
        for i in range(images)
    )
    part = Part("bench", 0, "bench", "bench", 0, images, images, "bench")
    with tempfile.TemporaryDirectory() as out:
        begun = time.time()
        receipt = download_part(Store(out), part, records, DownloadConfig(allow_private_hosts=["127.0.0.1"]), "bench")
        ended = time.time()
    if receipt.counts["images"] != {"ok": images}:
        raise SystemExit(f"not all images came: {receipt.counts}")
    return {"rate": images / (ended - begun), "start_up_s": begun - started}


def child_img2dataset(port: int, images: int, threads: int, started: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        stats = img2dataset_run(Path(out), [f"http://127.0.0.1:{port}/{i:06d}.jpg" for i in range(images)], threads)
        ended = time.time()
    if stats["successes"] != images:
        raise SystemExit(f"not all images came: {stats}")
    seconds = stats["end_time"] - stats["start_time"]
    return {"rate": images / seconds, "start_up_s": ended - started - seconds}


def img2dataset_run(out: Path, urls: list[str], threads: int) -> dict[str, Any]:
    import pandas
    from img2dataset import download

    pandas.DataFrame({"url": urls, "caption": [f"caption {i}" for i in range(len(urls))]}).to_parquet(
        out / "in.parquet"
    )
    download(
        url_list=str(out / "in.parquet"),
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=str(out / "out"),
        output_format="webdataset",
        processes_count=1,
        thread_count=threads,
        image_size=SIDE,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        encode_quality=QUALITY,
        number_sample_per_shard=len(urls),
        compute_hash=None,
        extract_exif=False,
        timeout=10,
        enable_wandb=False,
    )
    stats: dict[str, Any] = json.loads((out / "out" / "00000_stats.json").read_text())
    return stats


def child_loop(root: str, images: int, started: float) -> dict[str, Any]:
    from vila_data.core.images import normalize_image

    begun = time.time()
    for index in range(images):
        data = Path(root, f"{index:06d}.jpg").read_bytes()
        normalize_image(data, max_pixels=10**8, shorter_side_px=SIDE, only_if_larger=True, jpeg_quality=QUALITY)
    return {"rate": images / (time.time() - begun), "start_up_s": begun - started}


def child_img2dataset_pictures(port: int, names: list[str], out: str, started: float) -> dict[str, Any]:
    import tarfile

    img2dataset_run(Path(out), [f"http://127.0.0.1:{port}/{name}" for name in names], 16)
    with tarfile.open(Path(out) / "out" / "00000.tar") as tar:
        for member in tar.getmembers():
            if member.name.endswith(".json"):
                meta = json.loads(tar.extractfile(member).read())
                jpeg = tar.extractfile(member.name.replace(".json", ".jpg")).read()
                Path(out, meta["url"].rpartition("/")[2]).write_bytes(jpeg)
    return {"rate": 0, "start_up_s": 0}


CHILDREN = {
    "builtin": child_builtin,
    "img2dataset": child_img2dataset,
    "loop": child_loop,
    "img2dataset_pictures": child_img2dataset_pictures,
}


# quality


def psnr_table(root: Path, port: int) -> dict[str, Any]:
    """Mean PSNR, dB, of stored JPEGs against a full decode and Pillow's antialiased bicubic resize."""
    from vila_data.core.images import normalize_image

    result: dict[str, Any] = {}
    for width, height in SIZES:
        names = [f"base/{width}-{index}.jpg" for index in range(DISTINCT)]
        with tempfile.TemporaryDirectory() as out:
            run_child("img2dataset_pictures", {"port": port, "names": names, "out": out})
            found: dict[str, list[float]] = {"vila_data": [], "img2dataset": [], "reference_encoded": []}
            for name in names:
                data = (root / name).read_bytes()
                size = (SIDE * width // height, SIDE)
                reference = Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.BICUBIC)
                encoded = io.BytesIO()
                reference.save(encoded, "JPEG", quality=QUALITY)
                ours = normalize_image(data, max_pixels=10**8, shorter_side_px=SIDE, jpeg_quality=QUALITY).jpeg
                theirs = Path(out, name.rpartition("/")[2]).read_bytes()
                for who, jpeg in (
                    ("vila_data", ours),
                    ("img2dataset", theirs),
                    ("reference_encoded", encoded.getvalue()),
                ):
                    found[who].append(psnr(jpeg, np.asarray(reference)))
        result[f"{width}x{height}"] = {who: round(statistics.mean(values), 2) for who, values in found.items()}
    return result


def psnr(jpeg: bytes, reference: Any) -> float:
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), dtype=np.float64)
    return float(10 * np.log10(255**2 / np.mean((pixels - reference) ** 2)))


if __name__ == "__main__":
    main()
