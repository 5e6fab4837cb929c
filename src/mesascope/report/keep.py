"""Results for version control: the small JSON file of a report, and its figures as small images."""

import io
from pathlib import Path

from mesascope.errors import InputError
from mesascope.files import read_json, write_atomically
from mesascope.report.overview import natural_order

IMAGE_BYTES = 100_000
"""Images of the documentation are smaller than this."""

_WIDEST, _COLOURS = 1400, 256
_ADVICE = "run the same command again"


def keep_results(runs: Path, results: Path, docs: Path) -> list[Path]:
    """Copy what is worth keeping of finished reports, replacing what was kept of the same experiment and profile.

    Args:
        runs: output folder of one experiment, or one with a folder for each of several.
        results: where `PROFILE/NAME.json` goes.
        docs: where `images/PROFILE-NAME-FIGURE.png` goes.

    Returns:
        The JSON files that were written.

    Raises:
        InputError: there is no finished report in `runs`.
        StorageError: a file cannot be written.
    """
    pages = [runs / "index.html"] if (runs / "result.json").exists() else list(runs.glob("*/index.html"))
    reports = [page.parent for page in pages if page.exists() and (page.parent / "experiment.json").exists()]
    if not reports:
        raise InputError(f"runs: {runs} holds no finished report; make one with `mesascope reproduce`")
    kept = []
    for folder in sorted(reports, key=lambda folder: natural_order(folder.name)):
        manifest = read_json(folder / "experiment.json")
        name, profile = manifest["experiment"], manifest["profile"]
        target = results / profile / f"{name}.json"
        for old in (docs / "images").glob(f"{profile}-{name}-*.png"):
            old.unlink()
        for figure in read_json(folder / "result.json")["figures"]:
            picture = small_png((folder / "figures" / f"{figure['id']}.png").read_bytes())
            write_atomically(docs / "images" / image_name(profile, name, figure["id"]), picture, _ADVICE)
        write_atomically(target, (folder / "result.json").read_bytes(), _ADVICE)
        kept.append(target)
    return kept


def image_name(profile: str, name: str, figure: str) -> str:
    """File name of a figure of an experiment among all images."""
    return f"{profile}-{name}-{figure}.png"


def small_png(png: bytes, limit: int = IMAGE_BYTES) -> bytes:
    """The same picture in at most `limit` bytes: 256 colours, and as wide as fits, at most 1,400 pixels.

    Raises:
        InputError: not even a picture 100 pixels wide fits.
    """
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    width = min(_WIDEST, picture.width)
    while width >= min(100, picture.width):
        height = max(1, round(picture.height * width / picture.width))
        smaller = picture.resize((width, height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        # without dithering, flat areas stay flat and compress well
        smaller.quantize(_COLOURS, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
        if buffer.tell() <= limit:
            return buffer.getvalue()
        width = int(0.85 * width)
    raise InputError(f"limit: got {limit}, but a picture 100 pixels wide needs more bytes")
