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
  const rows = [['\u03b2', beta], ['KL(\u03bc \u2225 student), nats', kl], ['log p, student', student],
    ['log q, teacher', teacher],
    ['teacher \u2212 student', Number.isFinite(difference) ? (difference > 0 ? '+' : '') + difference.toFixed(2) : '\u2013'],
    ['log \u03bc, as drawn', mu]];
  const title = document.createElement('strong');
  title.textContent = token.classList.contains('part') ? '(part of a character)' : '\u201c' + token.textContent + '\u201d';
  const list = document.createElement('dl');
  for (const [name, value] of rows) {
    list.append(Object.assign(document.createElement('dt'), {textContent: name}),
      Object.assign(document.createElement('dd'), {textContent: value.replace('-', '\u2212')}));
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
