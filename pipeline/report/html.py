"""The report as one HTML page: charts inline, no network, no script; readable in light, dark and on paper.

Keys and class names come from the files of others: the template escapes everything, and <bdi> keeps
right-to-left marks inside their cell.
"""

import json

from patchpack.pipeline.report import charts as report_charts
from patchpack.pipeline.report.sizes import size_facts
from patchpack.pipeline.report.text import fraction, number, size, verdict
from patchpack.schemas.report import Distribution, DistributionName, Report

_UNITS = {"tokens_per_example": "tokens", "effective_side_px": "px"}

# name in the report, title, axis, what is counted
_CHARTS: tuple[tuple[DistributionName, str, str, str], ...] = (
    ("tokens_per_example", "Tokens an example", "tokens an example", "examples"),
    ("examples_per_sequence", "Examples a sequence", "examples a sequence", "sequences"),
    ("sequence_fill", "Sequence fill", "real tokens / sequence length (fraction)", "sequences"),
    ("effective_side_px", "Resolution", "effective side, √(height × width) (px)", "examples"),
    ("aspect_error", "Aspect error", "larger aspect / smaller aspect − 1 (fraction)", "examples"),
    ("side_change", "Side change", "|effective side / requested side − 1| (fraction)", "examples"),
    ("scale", "Scale", "effective side / source's effective side (fraction)", "examples"),
)


def render_html(report: Report) -> str:
    """Returns the page for what `report.make_report` returned; equal reports give equal pages."""
    # not needed by those who only verify, and not by workers
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"fraction": fraction, "number": number, "size": size, "json": _compact}
    charts = [
        {
            "title": title,
            "svg": Markup(report_charts.histogram(name.replace("_", "-"), report[name], axis, counted)),  # noqa: S704 (our own SVG, whose words are escaped)
            "caption": _caption(report[name], name, counted),
        }
        for name, title, axis, counted in _CHARTS
    ]
    figures = report["efficiency"]
    bars = {
        "stored": figures["efficiency"],
        "as planned": figures["planned_efficiency"],
        "at the bound": figures["efficiency_at_bound"],
    }
    against = report_charts.fractions("efficiency", bars, "efficiency: real tokens / (sequences × sequence length)")
    template = environment.from_string(_PAGE)
    facts = size_facts(report["sizes"], report["config"]) if report["sizes"] else []
    values = {"charts": charts, "against": Markup(against), "facts": facts, "verdict": verdict}  # noqa: S704 (our own SVG, whose words are escaped)
    return template.render(r=report, style=Markup(_STYLE), **values)  # noqa: S704 (our own SVG, whose words are escaped)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _caption(figures: Distribution, name: str, counted: str) -> str:
    """Returns the numbers behind a chart in one sentence."""
    if not figures["num"]:
        return "Nothing was stored."
    show = fraction if name in ("sequence_fill", "aspect_error", "side_change", "scale") else number
    unit = f" {_UNITS[name]}" if name in _UNITS else ""
    text = (
        f"Mean {show(figures['mean'])}, median {show(figures['median'])} (dashed), "
        f"5th to 95th percentile {show(figures['p5'])} to {show(figures['p95'])}, "
        f"all {show(figures['min'])} to {show(figures['max'])}{unit}."
    )
    return text + (f" {figures['num_above']:,} {counted} lie beyond the axis." if figures["num_above"] else "")


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5a6068; --line: #dfe1e6; --paper: #fff; --card: #f7f8fa;
  --bar: #3b63c9; --good: #1f7a45; }
@media (prefers-color-scheme: dark) { :root { --ink: #eceef1; --soft: #a9b0ba; --line: #383d45; --paper: #131518;
  --card: #1c1f24; --bar: #86a3f0; --good: #6fcf97; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #ccc; --paper: #fff; --card: #fff;
  --bar: #3b63c9; --good: #1f7a45; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 4px; }
h2 { font-size: 1.25rem; letter-spacing: -0.01em; margin: 44px 0 12px; }
p { margin: 0 0 12px; max-width: 70ch; } .soft { color: var(--soft); }
code { font: 0.88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(155px, 1fr)); gap: 12px; margin-top: 24px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 12px; }
.card b { display: block; font-size: 1.65rem; line-height: 1.25; font-weight: 600; letter-spacing: -0.02em; }
.card span { color: var(--soft); font-size: 0.82rem; } .card i { font-style: normal; color: var(--good); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 28px 32px; }
figure { margin: 0; min-width: 0; } figure h3 { font-size: 1rem; margin: 0 0 4px; }
figure svg { display: block; width: 100%; height: auto; }
figure.wide { max-width: 640px; margin-bottom: 12px; }
figure svg * { stroke-linejoin: round; } figure svg text { font-family: inherit !important; }
figcaption { color: var(--soft); font-size: 0.86rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 0.94rem; }
th, td { text-align: left; padding: 6px 16px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } .n { text-align: right; white-space: nowrap; }
.n + :not(.n) { padding-left: 16px; } .scroll + p { margin-top: 14px; }
td:last-child, th:last-child { padding-right: 0; } .one-line { white-space: nowrap; }
.good { color: var(--good); }
.config { columns: 2 380px; column-gap: 32px; margin: 0; } .config div { display: flex; justify-content: space-between;
  gap: 16px; padding: 5px 0; border-bottom: 1px solid var(--line); break-inside: avoid; font-size: 0.94rem; }
dt { color: var(--soft); } dd { margin: 0; text-align: right; }
@media print { body { font-size: 9.5pt; } main { max-width: none; padding: 0; } h2 { margin-top: 28px; break-after: avoid; }
  .cards { grid-template-columns: repeat(3, 1fr); } .charts { grid-template-columns: 1fr 1fr; gap: 18px 24px; }
  .scroll { overflow: visible; } .one-line { white-space: normal; } figure, .card, tr { break-inside: avoid; } }
"""

_PAGE = """\
{% set stored = r.totals.stored %}
{% set planned = r.totals.planned %}
{% set cost = r.attention_cost_per_sequence %}
{% set steps = r.step_balance %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Dataset {{ r.dataset_digest[:8] }}: efficiency {{ r.efficiency.efficiency | fraction }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<h1>Dataset</h1>
<p class="soft">Dataset digest <code>{{ r.dataset_digest }}</code></p>

<div class="cards">
<div class="card"><span>Efficiency</span><b>{{ r.efficiency.efficiency | fraction }}</b>
<span>padding {{ r.efficiency.padding_fraction | fraction }}</span></div>
<div class="card"><span>Sequences</span><b>{{ stored.num_sequences | number }}</b>
<span>{% if r.bounds and not r.bounds | rejectattr("proven_optimal") | list %}<i>proven optimal</i>
{%- else %}the bound is {{ r.bounds | sum(attribute="bound") | number }}{% endif %}</span></div>
<div class="card"><span>Examples</span><b>{{ stored.num_segments | number }}</b>
<span>{{ r.frames.num_images | number }} images, {{ r.frames.num_clips | number }} clips</span></div>
<div class="card"><span>Tokens</span><b>{{ stored.num_tokens | number }}</b>
<span>{{ r.tokens_per_example.mean | number }} an example</span></div>
<div class="card"><span>Inputs</span><b>{{ r.totals.num_inputs | number }}</b>
<span>{{ r.totals.num_rejected_inputs | number }} rejected, {{ r.totals.num_ignored | number }} ignored</span></div>
<div class="card"><span>Stored</span><b>{{ stored.bytes | size }}</b>
<span>{{ stored.num_shards | number }} {{ "shard" if stored.num_shards == 1 else "shards" }}</span></div>
</div>

<section>
<h2>Efficiency against the bound</h2>
<p>The bound is the proven least number of sequences for the lengths of all examples together; no packing is fuller
than the efficiency at the bound. “As planned” counts examples that failed only when they were decoded.</p>
<figure class="wide">{{ against }}</figure>
<div class="scroll"><table>
<tr><th>View</th><th>Layout</th><th class="n">Sequences</th><th class="n">Bound</th><th>Verdict</th>
<th class="n">Chunks optimal alone</th></tr>
{% for b in r.bounds %}
<tr><td>{{ b.view }}</td><td>{{ b.layout }}</td><td class="n">{{ b.num_sequences | number }}</td>
<td class="n">{{ b.bound | number }}</td><td class="one-line{{ " good" if b.proven_optimal }}">{{ verdict(b) }}</td>
<td class="n">{{ b.num_chunks_optimal | number }} of {{ b.num_chunks | number }}</td></tr>
{% endfor %}
</table></div>
</section>

<section>
<h2>What was packed</h2>
<div class="charts">
{% for chart in charts %}
<figure><h3>{{ chart.title }}</h3>{{ chart.svg }}<figcaption>{{ chart.caption }}</figcaption></figure>
{% endfor %}
</div>
</section>

<section>
<h2>Counts</h2>
<div class="scroll"><table>
<tr><th></th><th class="n">Planned</th><th class="n">Stored</th></tr>
{% for name, key in (("Sequences", "num_sequences"), ("Examples", "num_segments"), ("Tokens", "num_tokens")) %}
<tr><td>{{ name }}</td><td class="n">{{ planned[key] | number }}</td><td class="n">{{ stored[key] | number }}</td></tr>
{% endfor %}
<tr><td>Full sequences</td><td></td><td class="n">{{ stored.num_full_sequences | number }}</td></tr>
{% if r.decoder_warnings.num_examples %}
<tr><td>Decoder warnings kept
{% for text, count in r.decoder_warnings.texts.items() %}
<br><span class="soft"><bdi>{{ text }}</bdi>: {{ count | number }}</span>
{% endfor %}
</td><td></td><td class="n">{{ r.decoder_warnings.num_examples | number }}</td></tr>
{% endif %}
<tr><td>Frames in clips</td><td></td><td class="n">{{ r.frames.num_clip_frames | number }}</td></tr>
<tr><td>Frames repeated to fill clips and tubelets</td><td></td><td class="n">
{{- r.frames.num_repeated_clip_frames | number }}</td></tr>
<tr><td>Attention cost a sequence, mean (pairs of tokens)</td><td></td><td class="n">{{ cost.mean | number }}</td></tr>
<tr><td>Attention cost a sequence, max (pairs of tokens)</td><td></td><td class="n">{{ cost.max | number }}</td></tr>
<tr><td>Attention cost, max / mean</td><td></td><td class="n">{{ cost.max_over_mean | fraction }}</td></tr>
<tr><td>Attention cost, fraction of full attention</td><td></td><td class="n">
{{- cost.fraction_of_full | fraction }}</td></tr>
</table></div>
</section>

{% if facts %}
<section>
<h2>Made to fit</h2>
<p>What planning did to examples that are larger than the cap, smaller than the size drawn, or shorter or slower than
the clips asked for.</p>
<div class="scroll"><table>
<tr><th>What</th><th>Examples</th><th>In words</th></tr>
{% for name, count, words in facts %}
<tr><td>{{ name | capitalize }}</td><td class="one-line">{{ count }}</td>
<td>{% for line in words %}{{ line }}{% if not loop.last %}<br>{% endif %}{% endfor %}</td></tr>
{% endfor %}
</table></div>
</section>
{% endif %}

<section>
<h2>Balance and mixing</h2>
<div class="scroll"><table>
<tr><th>Figure</th><th class="n">Value</th><th>In words</th></tr>
<tr><td>Step cost, max / mean, in random order</td><td class="n">{{ steps.random_max_over_mean | fraction }}</td>
<td>A step of {{ steps.num_sequences | number }} sequences, one a rank, lasts as long as its most expensive: this many times
their mean attention cost.</td></tr>
{% if steps.num_steps %}
<tr><td>Step cost, max / mean, as stored</td><td class="n">{{ steps.mean_max_over_mean | fraction }}</td>
<td>The mean over {{ steps.num_steps | number }} steps of sequences of near-equal cost; the worst has
{{ steps.worst_max_over_mean | fraction }}, and {{ steps.fraction_within_limit | fraction }} of them are within
1.02.</td></tr>
{% endif %}
<tr><td>Length correlation</td><td class="n">{{ r.mixing.length_correlation | fraction }}</td>
<td>How alike the lengths inside a sequence are: 0 as drawn at random, 1 where each sequence holds one length.</td></tr>
<tr><td>Source span</td><td class="n">{{ r.mixing.source_span | fraction }}</td>
<td>How much of the listing (inputs by key) lies between the first and the last example of a sequence; at random
{{ r.mixing.random_source_span | fraction }}.</td></tr>
</table></div>
</section>

<section>
<h2>Left out</h2>
{% if r.rejects %}
<div class="scroll"><table>
<tr><th>Stage</th><th>Reason</th><th class="n">Rejects</th><th>Such as</th></tr>
{% for entry in r.rejects %}
<tr><td>{{ entry.stage }}</td><td>{{ entry.reason }}</td><td class="n">{{ entry.num_rejects | number }}</td>
<td>{% for key in entry.sample_keys %}<code><bdi>{{ key }}</bdi></code>{{ "" if loop.last else ", " }}{% endfor %}</td>
</tr>
{% endfor %}
</table></div>
{% else %}
<p>No input was rejected.</p>
{% endif %}
{% if r.totals.ignored %}
<p class="soft">Ignored, by suffix or cause:
{% for why, count in r.totals.ignored.items() %}
<bdi>{{ why }}</bdi> {{ count | number }}{{ "." if loop.last else "," }}
{% endfor %}
</p>
{% endif %}
</section>

{% if r.classes %}
<section>
<h2>Classes</h2>
<p>{{ r.classes.num_classes | number }} classes, {{ r.classes.num_labelled | number }} examples labelled,
{{ r.classes.num_unlabelled | number }} not; {{ r.classes.num_empty_classes | number }} classes without an example.</p>
<div class="scroll"><table>
<tr><th>Class</th><th class="n">Label</th><th class="n">Examples</th></tr>
{% for entry in r.classes.largest %}
<tr><td><bdi>{{ entry.name }}</bdi></td><td class="n">{{ entry.label }}</td>
<td class="n">{{ entry.num_examples | number }}</td></tr>
{% endfor %}
{% if r.classes.rest.num_classes %}
<tr><td class="soft">{{ r.classes.rest.num_classes | number }} more</td><td></td>
<td class="n">{{ r.classes.rest.num_examples | number }}</td></tr>
{% endif %}
</table></div>
</section>
{% endif %}

{% for layout in r.layouts %}
<section>
<h2>Layout {{ loop.index0 }}</h2>
<dl class="config">
{% for name, value in layout.items() %}
<div><dt>{{ name }}</dt><dd><code>{{ value | json }}</code></dd></div>
{% endfor %}
</dl>
</section>
{% endfor %}

<section>
<h2>Configuration</h2>
<dl class="config">
{% for name, value in r.config.items() %}
<div><dt>{{ name }}</dt><dd><code>{{ value | json }}</code></dd></div>
{% endfor %}
</dl>
</section>
</main>
</body>
</html>
"""
