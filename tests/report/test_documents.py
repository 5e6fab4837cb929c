"""Pages about kept results say what was measured and why it differs, and follow from the files alone."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mesascope import cli
from mesascope.errors import CheckpointError, InputError
from mesascope.files import write_json
from mesascope.report import Report, keep_results, write_documents, write_report
from mesascope.report.documents import render_documents
from mesascope.report.keep import IMAGE_BYTES, small_png
from report import demo


def finish(report: Report, folder: Path, name: str) -> Path:
    """A finished report as `reproduce` leaves it."""
    write_report(report, folder)
    write_json(folder / "experiment.json", {"experiment": name, "profile": report.profile})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished experiments, one that is not finished, and trainings."""
    runs = tmp_path_factory.mktemp("runs")
    written = finish(demo.report(), runs / "fig4", "fig4")
    for name in ("fig9", "fig11"):
        shutil.copytree(written, runs / name)
        write_json(runs / name / "experiment.json", {"experiment": name, "profile": "quick"})
    (runs / "fig9" / "index.html").unlink()
    (runs / "runs" / "0123456789ab").mkdir(parents=True)
    return runs


@pytest.fixture(scope="module")
def kept(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is kept of them, in `results`, and the pages about it, in `docs`."""
    folder = tmp_path_factory.mktemp("kept")
    keep_results(runs, folder / "results", folder / "docs")
    write_documents(folder / "results", folder / "docs")
    return folder


@pytest.fixture
def results_and_docs(kept: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of both folders, to change."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return tmp_path / "results", tmp_path / "docs"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_kept_and_written(runs: Path, tmp_path: Path) -> None:
    results, docs = tmp_path / "results", tmp_path / "docs"
    assert keep_results(runs, results, docs) == [results / "quick" / "fig4.json", results / "quick" / "fig11.json"]
    assert (results / "quick" / "fig4.json").read_bytes() == (runs / "fig4" / "result.json").read_bytes()
    assert write_documents(results, docs) == [docs / "index.md", docs / "fig4.md", docs / "fig11.md"]
    images = {f"images/quick-{name}-{figure.id}.png" for name in ("fig4", "fig11") for figure in demo.report().figures}
    assert set(files(docs)) == {"index.md", "fig4.md", "fig11.md", *images}
    assert all(len(files(docs)[image]) <= IMAGE_BYTES for image in images)
    page = (docs / "fig4.md").read_text()
    assert all(f"]({image})" in page for image in images if "fig4" in image)
    for measured in demo.report().claims:
        (row,) = (line for line in page.splitlines() if line.startswith("|") and f"`{measured.claim.id}`" in line)
        assert row.endswith("| holds |" if measured.passed else "| **does not hold** |")
        assert f"| {measured.claim.threshold} |" in row
        explained = f"**`{measured.claim.id}`** (**does not hold**): Not explained yet." in page
        assert explained == (not measured.passed)
    assert "| 0.6123 | between 0.1 and 0.5 | **does not hold** |" in page
    for reduction in demo.report().reductions:
        assert f"- {reduction}" in page
    assert "### Final losses\n\n| model | layers | loss | converged |\n| --- | --- | --- | --- |\n" in page
    assert "| linear, 7 layers | 7 | 0.1286 | yes |" in page
    index = (docs / "index.md").read_text()
    assert index.index("| [fig4](fig4.md) |") < index.index("| [fig11](fig11.md) |")
    assert "| 2 of 4 |" in index
    assert "| | **all** | 4 of 8 |  |" in index


def test_explanations_are_part_of_the_page(results_and_docs: tuple[Path, Path]) -> None:
    results, docs = results_and_docs
    (docs / "why").mkdir()
    (docs / "why" / "fig4.depth_helps.md").write_text("Too few *steps*.\n")
    (docs / "why" / "fig4.mesa_beats_linear.md").write_text("As expected.")
    write_documents(results, docs)
    page = (docs / "fig4.md").read_text()
    assert "**`fig4.depth_helps`** (**does not hold**): Too few *steps*.\n" in page
    assert "**`fig4.mesa_beats_linear`** (holds): As expected.\n" in page
    assert page.count("Not explained yet.") == 1


def test_pages_follow_from_the_files(runs: Path, results_and_docs: tuple[Path, Path], tmp_path: Path) -> None:
    results, docs = results_and_docs
    before = files(tmp_path)
    keep_results(runs, results, docs)
    write_documents(results, docs)
    assert files(tmp_path) == before
    assert {path: path.read_text() for path in docs.glob("*.md")} == render_documents(results, docs)


def test_both_profiles_share_a_page(results_and_docs: tuple[Path, Path], tmp_path: Path) -> None:
    results, docs = results_and_docs
    paper = replace(demo.report(), profile="paper", figures=demo.report().figures[1:])
    keep_results(finish(paper, tmp_path / "paper", "fig4"), results, docs)
    write_documents(results, docs)
    page = (docs / "fig4.md").read_text()
    assert page.index("## Quick profile") < page.index("## Paper profile")
    assert "images/paper-fig4-weight_products.png" in page
    assert "| 2 of 4 | 2 of 4 |" in (docs / "index.md").read_text()


def test_what_is_no_longer_there_is_removed_and_what_others_wrote_is_not(
    runs: Path, results_and_docs: tuple[Path, Path]
) -> None:
    results, docs = results_and_docs
    (docs / "guide.md").write_text("# By hand\n")
    (docs / "images" / "quick-fig4-old.png").write_bytes(b"")
    (results / "quick" / "fig11.json").unlink()
    keep_results(runs / "fig4", results, docs)
    write_documents(results, docs)
    assert not (docs / "fig11.md").exists()
    assert not (docs / "images" / "quick-fig4-old.png").exists()
    assert (docs / "guide.md").read_text() == "# By hand\n"


def test_texts_are_no_markdown(tmp_path: Path) -> None:
    hostile = replace(demo.report(), title="W* | <b>", notes=(demo.HOSTILE,), figures=())
    results, docs = tmp_path / "results", tmp_path / "docs"
    keep_results(finish(hostile, tmp_path / "run", "fig1"), results, docs)
    write_documents(results, docs)
    page = (docs / "fig1.md").read_text()
    assert "# W\\* \\| \\<b\\>\n" in page
    assert "<script>" not in page
    assert "| [fig1](fig1.md) | W\\* \\| \\<b\\> |" in (docs / "index.md").read_text()


def test_folders_without_reports(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"runs: .* holds no finished report; make one with `mesascope reproduce`"):
            keep_results(folder, tmp_path / "results", tmp_path / "docs")
    assert files(tmp_path) == {}
    (tmp_path / "results" / "quick").mkdir(parents=True)
    (tmp_path / "results" / "quick" / "fig4.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"fig4\.json: cannot be read .*; make it again with `mesascope document`"
    ):
        write_documents(tmp_path / "results", tmp_path / "docs")


def test_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--results", str(tmp_path / "results"), "--docs", str(tmp_path / "docs")]
    assert cli.main(["document", str(runs), *options]) == 0
    assert capsys.readouterr().out == f"2 results kept in {tmp_path / 'results'}; 3 pages in {tmp_path / 'docs'}\n"
    (tmp_path / "docs" / "fig4.md").unlink()
    assert cli.main(["document", *options]) == 0
    assert (tmp_path / "docs" / "fig4.md").exists()
    stored = json.loads((tmp_path / "results" / "quick" / "fig4.json").read_text())
    assert stored["introduction"] == list(demo.report().introduction)
    assert [figure["id"] for figure in stored["figures"]] == [figure.id for figure in demo.report().figures]


def test_small_pictures_keep_their_shape() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 450, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "png")
    for limit in (100_000, 20_000):
        small = small_png(buffer.getvalue(), limit)
        assert len(small) <= limit
        with Image.open(io.BytesIO(small)) as opened:
            assert opened.width / opened.height == pytest.approx(1.5, rel=0.02)
    with pytest.raises(InputError, match="limit: got 50, but a picture 100 pixels wide needs more bytes"):
        small_png(buffer.getvalue(), 50)


def test_small_pictures_look_like_the_large_ones() -> None:
    flat = np.zeros((300, 300, 3), np.uint8)
    flat[:, :150] = (214, 96, 77)
    flat[:, 150:] = (33, 102, 172)
    buffer = io.BytesIO()
    Image.fromarray(flat).save(buffer, "png")
    with Image.open(io.BytesIO(small_png(buffer.getvalue()))) as opened:
        assert np.array_equal(np.asarray(opened.convert("RGB")), flat)
