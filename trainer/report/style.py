"""Colours of the report, for the PNGs and for the page."""

INK, SOFT, LINE, SHADE = "#14211f", "#55645f", "#dde5e2", "#e9f0ee"
SERIES = ("#0f766e", "#d9442b", "#3b6fd4", "#b7791f", "#8e4ec6", "#c2387a", "#5d8a1e", "#5f6b68")
DARK_SERIES = ("#4fd1c0", "#ff8d75", "#8ab0ff", "#f0bd5e", "#c9a2ff", "#ff8fc0", "#b3dd6c", "#b4c0bc")
"""At most so many runs can be told apart in one chart."""

COLOURS = {INK: "--ink", SOFT: "--soft", LINE: "--line", SHADE: "--shade"} | {
    colour: f"--s{i}" for i, colour in enumerate(SERIES)
}
"""Each colour of the PNGs, and the variable that takes its place in the page."""
