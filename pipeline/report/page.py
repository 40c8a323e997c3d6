"""The page of a dataset: its report, and what else of it a page shows."""

from patchpack.pipeline.report.gallery import Gallery, thumbnails
from patchpack.pipeline.report.html import render_html
from patchpack.pipeline.report.rejected import reject_thumbnails
from patchpack.pipeline.report.times import read_times
from patchpack.schemas.report import Report


def page_of(folder: str, report: Report, gallery: Gallery | None) -> str:
    """Returns the page of a dataset; equal for equal ones, but for the section of times.

    Args:
        folder: where it lies.
        report: of it.
        gallery: of it; without one the page shows no image at all.

    Raises:
        FormatError: a shard is missing or broken.
        MissingExtra: what draws pages is not installed.
    """
    if gallery is None:
        return render_html(report, times=read_times(folder))
    stretched = thumbnails(folder, report["aspect_plane"]["worst"])
    return render_html(report, gallery, stretched, reject_thumbnails(folder, report["rejects"]), read_times(folder))
