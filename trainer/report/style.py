"""Colours of the report, for the PNGs and for the page, and the page's stylesheet on top of the generated page's."""

INK, SOFT, LINE, SHADE = "#14211f", "#55645f", "#dde5e2", "#e9f0ee"
SERIES = ("#0f766e", "#d9442b", "#3b6fd4", "#b7791f", "#8e4ec6", "#c2387a", "#5d8a1e", "#5f6b68")
DARK_SERIES = ("#4fd1c0", "#ff8d75", "#8ab0ff", "#f0bd5e", "#c9a2ff", "#ff8fc0", "#b3dd6c", "#b4c0bc")
"""At most so many runs can be told apart in one chart."""

COLOURS = {INK: "--ink", SOFT: "--soft", LINE: "--line", SHADE: "--shade"} | {
    colour: f"--s{i}" for i, colour in enumerate(SERIES)
}
"""Each colour of the PNGs, and the variable that takes its place in the page."""


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--s{i}: {colour};" for i, colour in enumerate(colours))


STYLE = (
    f"""
:root {{ --shade: {SHADE}; {_variables(SERIES)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --shade: #1d2b28; {_variables(DARK_SERIES)} }} }}
"""
    + """
main > h2 { margin: 2.75rem 0 .9rem; font-size: 1.2rem; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)); }
.chart { margin: 0; padding: .8rem .8rem .9rem; display: flex; flex-direction: column; min-width: 0; }
.chart svg { width: 100%; height: auto; overflow: visible; stroke-linejoin: round; stroke-linecap: butt; }
.chart text { font-family: inherit !important; }
.chart figcaption { display: block; margin: auto 0 0; padding: .4rem .45rem 0; font-size: .82rem; }
.notes { margin: 1.5rem 0 0; padding: .8rem 1.1rem .8rem 2.1rem; max-width: 60rem; font-size: .92rem; }
.notes li + li { margin-top: .3rem; }
.notes b { color: var(--odd); }
.glance tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
.glance td { white-space: normal; vertical-align: top; }
.glance tbody th { vertical-align: top; }
.glance td[data-name=Benchmark], .glance td[data-name=Drawn] { overflow-wrap: anywhere; min-width: 7rem; }
.glance td small { color: var(--soft); }
.range, .glance td small { white-space: nowrap; }
.rule { display: inline-block; width: 1.3rem; height: 3px; border-radius: 2px; margin-right: .5rem;
  vertical-align: middle; }
details, .differ { margin: 1rem 0 0; padding: .8rem 1.1rem; }
summary { cursor: pointer; font-weight: 600; }
.settings { overflow: auto; }
.settings th, .settings td { padding: .3rem 1rem .3rem 0; text-align: left; vertical-align: top; font-weight: 400;
  font-size: .875rem; overflow-wrap: anywhere; }
.settings thead th { color: var(--soft); font-size: .78rem; }
.settings tbody tr { border-top: 1px solid var(--line); }
.settings tbody th { color: var(--soft); width: 1%; min-width: 8.5rem; overflow-wrap: break-word; }
.settings td { white-space: pre-wrap; }
@media (max-width: 600px) {
  .glance tr { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
  .glance td[data-name=Benchmark] { grid-column: 1 / -1; } }
@media print { .charts { grid-template-columns: 1fr 1fr; } .chart { break-inside: avoid; } }
"""
    + "".join(f".r{i} {{ background: var(--s{i}); }}\n" for i in range(len(SERIES)))
)
