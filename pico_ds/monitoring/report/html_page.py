"""Writes tables and panels into one HTML file that needs no network."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment
from plotly.offline import get_plotlyjs

from pico_ds.file_writing import replace_text
from pico_ds.monitoring.report.panels import Panel, Section, Table
from pico_ds.progress import track

_HEIGHT = "16rem"


def write_page(
    path: Path,
    title: str,
    summary: Table | None,
    sections: Sequence[Section],
    details: Sequence[Table] = (),
    legend: Mapping[str, str] | None = None,
) -> None:
    """Write a page with a summary table, sections with grids of panels, and further tables.

    Args:
        legend: name -> colour, for lines that have the same colour in all panels.
    """
    count = sum(len(section.panels) for section in sections)
    panels = iter(track((panel for section in sections for panel in section.panels), "drawing panels", count))
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    content = (
        Environment(autoescape=True, trim_blocks=True)
        .from_string(template)
        .render(
            title=title,
            # a script element ends at the first closing tag, even inside a string
            plotly_source=get_plotlyjs().replace("</script", "<\\/script"),
            summary=summary,
            details=details,
            sections=[
                {
                    "title": section.title,
                    "note": section.note,
                    "panels": [_render(next(panels)) for _ in section.panels],
                }
                for section in sections
            ],
            legend=legend,
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, content)


def _render(panel: Panel) -> dict[str, str]:
    markup = panel.figure().to_html(
        full_html=False,
        include_plotlyjs=False,
        default_height=_HEIGHT,
        config={
            "responsive": True,
            "displaylogo": False,
            "modeBarButtons": [["toImage", "zoom2d", "resetScale2d"]],
            # Plotly escapes the figure, but not this name
            "toImageButtonOptions": {"format": "svg", "filename": re.sub(r"[^\w.-]+", "_", panel.caption)},
        },
    )
    return {"caption": panel.caption, "html": markup}
