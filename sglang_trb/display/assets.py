"""The stylesheet and the script that `sglang_trb.display.page` puts into its page."""

BETA_LEVELS = 20

STYLE = """
:root { color-scheme: light dark;
  --paper: #fbfcfb; --card: #ffffff; --ink: #14211f; --soft: #55645f; --line: #dde5e2; --wash: #eef3f1;
  --shade-l: .99; --shade-dl: -.2; --shade-c: .105; --pull: #0f766e; --odd: #d9442b; --tip: #10201d; --tip-ink: #f1f7f5;
  --shadow: 0 1px 2px #1430281a, 0 6px 20px -8px #14302826; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #0d1413; --card: #131c1a; --ink: #e6efec; --soft: #93a5a0; --line: #25322f; --wash: #1a2523;
  --shade-l: .215; --shade-dl: .27; --shade-c: .085; --pull: #4fd1c0; --odd: #ff8d75; --tip: #e9f3f0; --tip-ink: #0d1715;
  --shadow: 0 1px 2px #0006; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; print-color-adjust: exact; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 ui-sans-serif, system-ui, "Segoe UI",
  "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; }
header, main, footer { max-width: 100rem; margin: 0 auto; padding: 0 clamp(1rem, 3vw, 3rem); }
header { padding-top: clamp(1.75rem, 4vw, 3.5rem); }
h1 { font-size: clamp(1.6rem, 3.2vw, 2.5rem); line-height: 1.12; letter-spacing: -.025em; margin: 0 0 .6rem;
  text-wrap: balance; }
.lead { max-width: 46rem; margin: 0; color: var(--soft); font-size: 1.05rem; text-wrap: pretty; }
.lead b { color: var(--ink); font-weight: 600; }
.lead + .lead { margin-top: .6rem; font-size: .95rem; }
h2 { font-size: 1.05rem; margin: 0 0 .75rem; letter-spacing: -.01em; }
.soft { color: var(--soft); }

.legend { display: flex; flex-wrap: wrap; gap: .7rem 2.25rem; align-items: center; margin: 1.5rem 0 0; padding: 0;
  font-size: .875rem; color: var(--soft); list-style: none; }
.legend li { display: flex; align-items: center; gap: .6rem; }
.ramp { display: flex; border-radius: 5px; overflow: hidden; box-shadow: inset 0 0 0 1px var(--line); }
.ramp i { width: .62rem; height: 1.15rem; }

.t { --b: 0; background: oklch(calc(var(--shade-l) + var(--shade-dl)*var(--b)) calc(var(--shade-c)*var(--b)) 186);
  border-radius: 2px; padding: .14em 0; box-decoration-break: clone; -webkit-box-decoration-break: clone; cursor: default; }
.b0 { background: none; }
.odd { text-decoration: underline 2px var(--odd); text-underline-offset: .24em; text-decoration-skip-ink: none; }
.t.on { outline: 2px solid var(--pull); outline-offset: 1px; position: relative; }
.part { display: inline-block; width: .3em; height: 1.1em; vertical-align: text-bottom; margin: 0 1px; }
.mark { font-size: 0; }
.mark::after { content: "\\25A0"; font-size: .8rem; opacity: .55; padding: 0 .15em; }
.break { opacity: .4; font-style: normal; user-select: none; }

.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; box-shadow: var(--shadow); }
.glance { margin: 2rem 0 0; overflow: auto; }
table { border-collapse: collapse; width: 100%; }
.glance th, .glance td { padding: .6rem 1.1rem; text-align: left; white-space: nowrap; }
.glance thead th { font-size: .78rem; font-weight: 500; color: var(--soft); padding-top: .9rem; }
.glance tbody tr { border-top: 1px solid var(--line); }
.glance tbody th { font-weight: 600; }
.bar { display: block; width: 100%; min-width: 5.5rem; height: 5px; margin-top: .3rem; border-radius: 3px;
  background: var(--wash); overflow: hidden; }
.bar rect { fill: var(--pull); }

article { margin: 2.75rem 0 0; }
.prompt { margin: 0 0 1rem; padding: 0 0 0 1rem; border-left: 3px solid var(--pull); max-width: 60rem; font-size: 1.05rem;
  white-space: pre-wrap; overflow-wrap: anywhere; text-wrap: pretty; font-weight: 500; }
.columns { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 14.5rem), 1fr)); }
.completion { container-type: inline-size; padding: 1rem 1.1rem 1.15rem; min-width: 0; display: flex; flex-direction: column; }
.completion h3 { font-size: 1rem; margin: 0 0 .55rem; display: flex; gap: .5rem; align-items: baseline; }
.completion h3 small { margin-left: auto; font-weight: 400; font-size: .78rem; color: var(--soft); }
.chips { display: grid; grid-template-columns: repeat(4, auto); gap: .1rem .9rem; margin: 0; font-size: .74rem;
  justify-content: space-between; }
.chips div { display: flex; flex-direction: column-reverse; min-width: 0; }
.chips dt { color: var(--soft); white-space: nowrap; }
.chips dd { margin: 0; font-size: .95rem; font-weight: 600; letter-spacing: -.01em; }
@container (max-width: 15.5rem) { .chips { grid-template-columns: repeat(2, 1fr); gap: .45rem .9rem; } }
.spark { display: block; width: 100%; height: 2.6rem; margin: .85rem 0 .15rem; overflow: visible; }
.spark .area { fill: var(--pull); opacity: .16; }
.spark .line { fill: none; stroke: var(--pull); stroke-width: 1.25; vector-effect: non-scaling-stroke; }
.spark .budget { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 3; vector-effect: non-scaling-stroke; }
.spark .base { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
figure { margin: 0 0 .9rem; }
figcaption { font-size: .74rem; color: var(--soft); display: flex; justify-content: space-between; gap: .5rem; }
.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; font-size: .95rem;
  line-height: 1.72; border-radius: 6px; }
.text:focus-visible { outline: 2px solid var(--pull); outline-offset: 6px; }
.good, .bad { font-weight: 700; font-size: .9em; }
.good { color: var(--pull); } .bad { color: var(--odd); }

.short { overflow: auto; }
.short th, .short td { padding: .5rem 1rem; text-align: left; vertical-align: top; }
.short thead th { font-size: .85rem; font-weight: 600; border-bottom: 1px solid var(--line); padding-top: .8rem;
  white-space: nowrap; }
.short thead th:first-child { font-weight: 500; color: var(--soft); }
.short tbody tr + tr { border-top: 1px solid var(--line); }
.short tbody th { font-weight: 500; min-width: 9rem; max-width: 24rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.short td { min-width: 9.5rem; }
.short .text { display: inline; line-height: 1.6; }
.short .good, .short .bad { margin-left: .5rem; }

footer { margin-top: 3.5rem; padding-bottom: 3.5rem; color: var(--soft); font-size: .875rem; }
footer p { max-width: 60rem; margin: 0 0 .6rem; text-wrap: pretty; }
footer kbd { font: inherit; border: 1px solid var(--line); border-radius: 4px; padding: 0 .35em; background: var(--card); }

#tip { position: fixed; z-index: 9; top: 0; left: 0; width: 15.5rem; padding: .7rem .85rem .75rem; border-radius: 10px;
  background: var(--tip); color: var(--tip-ink); font-size: .8rem; line-height: 1.5; pointer-events: none;
  box-shadow: 0 10px 34px -8px #0009; }
#tip[hidden] { display: none; }
#tip strong { display: block; font-size: .95rem; white-space: pre-wrap; overflow-wrap: anywhere; margin-bottom: .25rem; }
#tip dl { display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; margin: 0; }
#tip dt { opacity: .72; } #tip dd { margin: 0; text-align: right; font-weight: 600; }
@media (max-width: 600px) { #tip { width: auto; top: auto !important; left: .75rem !important; right: .75rem;
  bottom: .75rem; }
  .glance thead { position: absolute; clip-path: inset(50%); }
  .glance tr { display: grid; grid-template-columns: 1fr 1fr; padding: .7rem 0; }
  .glance th, .glance td { padding: .2rem 1rem; } .glance td[data-name=Rollouts] { display: none; } .glance tbody th { grid-column: 1 / -1; }
  .glance td::before { content: attr(data-name); display: block; font-size: .74rem; color: var(--soft); }
  .short th:first-child { position: sticky; z-index: 1; left: 0; background: var(--card); } .short th, .short td { padding: .5rem .75rem; }
  .short tbody th { min-width: 7rem; } .short td { min-width: 8rem; } }
@media print { .card { box-shadow: none; break-inside: avoid; } #tip { display: none; } }
""" + "".join(f".b{level}{{--b:{level / BETA_LEVELS:g}}}" for level in range(BETA_LEVELS + 1))

SCRIPT = """
'use strict';
const tip = document.getElementById('tip');
let current = null;

function show(token) {
  if (current) current.classList.remove('on');
  current = token;
  tip.hidden = !token;
  if (!token) return;
  token.classList.add('on');
  const [beta, kl, student, teacher, mu] = token.dataset.v.split(' ');
  const difference = Number(teacher) - Number(student);
  const rows = [['\\u03b2', beta], ['KL(\\u03bc \\u2225 student), nats', kl], ['log p, student', student],
    ['log q, teacher', teacher],
    ['teacher \\u2212 student', Number.isFinite(difference) ? (difference > 0 ? '+' : '') + difference.toFixed(2) : '\\u2013'],
    ['log \\u03bc, as drawn', mu]];
  const title = document.createElement('strong');
  title.textContent = token.classList.contains('part') ? '(part of a character)' : '\\u201c' + token.textContent + '\\u201d';
  const list = document.createElement('dl');
  for (const [name, value] of rows) {
    list.append(Object.assign(document.createElement('dt'), {textContent: name}),
      Object.assign(document.createElement('dd'), {textContent: value.replace('-', '\\u2212')}));
  }
  tip.replaceChildren(title, list);
  place(token);
}

function place(token) {
  const box = token.getClientRects()[0] || token.getBoundingClientRect();
  const above = box.top - tip.offsetHeight - 8;
  tip.style.top = (above > 8 ? above : box.bottom + 8) + 'px';
  tip.style.left = Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8)) + 'px';
}

function step(text, key) {
  const tokens = [...text.querySelectorAll('.t')];
  const at = tokens.indexOf(current);
  const next = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1}[key];
  if (next === undefined || !tokens[next]) return false;
  show(tokens[next]);
  tokens[next].scrollIntoView({block: 'nearest'});
  return true;
}

document.addEventListener('pointerover', event => show(event.target.closest('.t')));
document.addEventListener('click', event => show(event.target.closest('.t')));
document.addEventListener('scroll', () => current && place(current), {passive: true, capture: true});
document.addEventListener('focusout', () => show(null));
document.addEventListener('keydown', event => {
  const text = event.target.closest('.text');
  if (event.key === 'Escape') show(null);
  else if (text && step(text, event.key)) event.preventDefault();
});
"""
