"""The page of a study: differences, curves and tables of its runs."""

from __future__ import annotations

from dataclasses import replace

from jepamba.report import page
from jepamba.report.html import scaled, time_unit
from jepamba.report.plots import chart
from jepamba.study.compare import MEASURES
from jepamba.study.pictures import curve_lines, differences
from jepamba.study.results import Study
from jepamba.study.tables import TITLES, comparison_table, explanation, notes, remarks, run_table, settings_text


def study_page(study: Study) -> str:
    """Return the page of `study`, one self-contained HTML document. All text of the study is escaped."""
    plan = study.plan
    facts = [
        ("preset", plan.preset),
        ("seeds", ", ".join(map(str, plan.seeds))),
        ("baseline", plan.baseline),
        ("settings", settings_text(plan.settings) if plan.settings else ""),
        ("rule", plan.rule),
        ("cost", plan.cost),
        *((heading.lower(), names) for heading, names in remarks(study).items()),
    ]
    configurations = [[item.name, settings_text(item.settings)] for item in plan.configurations]
    tables = []
    for measure in MEASURES:
        about = explanation(study, measure).replace("`", "")
        tables.append(f"<h3>{page.text(TITLES[measure])}</h3><p class='mute'>{page.text(about)}</p>")
        tables.append(page.table("", *comparison_table(study, measure)))
    by_time = curve_lines(study, "seconds")
    scale, unit = time_unit(max((x for item in by_time for x, _ in item.points), default=0.0))
    timed = [replace(item, points=scaled(item.points, scale)) for item in by_time]
    axes = {f"training time ({unit})": timed, "step": curve_lines(study)}
    curves = [
        chart("Held-out text, mean of seeds", label, "bits per byte", lines, clip=True, height=340)
        for label, lines in axes.items()
    ]
    body = [
        f"<h1>Study {page.text(plan.name)}</h1>",
        f"<p>{page.text(plan.question)}</p>",
        page.facts(facts),
        f'<figure class="picture">{differences(study)}</figure>' if study.results else "",
        page.section("Configurations", page.table("", ["configuration", "settings"], configurations)),
        page.section("Curves", *curves),
        page.section("Differences", f"<p class='mute'>{page.text(notes(study))}</p>", *tables),
        page.section("Runs", page.table("", *run_table(study))),
    ]
    return page.page(f"{plan.name}: jepamba study", body)
