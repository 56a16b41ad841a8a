"""Draw the picture of the studio that README.md shows: the page of a workspace, in a headless Chromium.

    python scripts/studio_picture.py WORKSPACE [--out scripts/studio.png]

WORKSPACE: what `scripts/demo` made, ``demo_out``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from chromium import chromium  # noqa: E402 - the driver of the tests of the page

COMMAND = [sys.executable, "-c", "from featcache.cli import main; main()", "studio", "--no-browser", "--port", "0"]
COLOURS = 128  # of the palette: a third of the bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "studio.png")
    arguments = parser.parse_args()
    studio = subprocess.Popen(
        [*COMMAND, str(arguments.workspace)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert studio.stdout is not None
    try:
        said = next(line for line in studio.stdout if "http://" in line)
        url = said.partition("is at ")[2].partition(";")[0]
        with chromium() as page:
            page.open(url, width=1100, height=640)
            page.wait("document.body && /Trained on/.test(document.body.innerText)", 60)
            page.wait("[...document.images].length > 8 && [...document.images].every(image => image.complete)", 60)
            page.screenshot(arguments.out)
    finally:
        studio.terminate()
        studio.wait()
    picture = Image.open(arguments.out).convert("RGB")
    picture.quantize(COLOURS, method=Image.Quantize.FASTOCTREE).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
