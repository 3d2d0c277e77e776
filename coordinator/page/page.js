// Asks the coordinator, and puts what view.js makes of its answers on the screen: changed nodes only, so that nothing flickers
// and focus, scrolling and open details stay.
import { view } from '/view.js';

const EVERY_MS = 2000, LATE_MS = 10000;
const state = { status: null, versions: null, verdicts: null, held: null, now_s: 0, error: null, mistake: null, measure: 'learnt', chosen: null };
let seen_ms = 0, known = '', next = null, failures = 0;
const $ = id => document.getElementById(id);

// ---- the tree on the screen

const SVG = new Set(['svg', 'rect']);

function create(node) {
  if (typeof node !== 'object') return document.createTextNode(String(node));
  const e = SVG.has(node.tag) ? document.createElementNS('http://www.w3.org/2000/svg', node.tag) : document.createElement(node.tag);
  patch(e, node);
  return e;
}

function patch(e, node) {
  for (const [name, value] of Object.entries(node.attributes)) {
    if (value === null || value === undefined) e.removeAttribute(name);
    else if (e.getAttribute(name) !== String(value)) e.setAttribute(name, value);
  }
  patchChildren(e, node.children);
}

function fits(e, node) {
  if (typeof node !== 'object') return e.nodeType === Node.TEXT_NODE;
  const key = node.attributes['data-key'];
  return e.nodeType === Node.ELEMENT_NODE && e.localName === node.tag && (!key || e.dataset.key === key);
}

function patchChildren(parent, nodes) {
  nodes.forEach((node, i) => {
    const key = typeof node === 'object' && node.attributes['data-key'];
    const same = key && [...parent.children].find(c => c.dataset.key === key);
    if (same && same !== parent.childNodes[i]) parent.insertBefore(same, parent.childNodes[i]); // it moved, open as it was
    const e = parent.childNodes[i];
    if (!e) parent.append(create(node));
    else if (!fits(e, node)) e.replaceWith(create(node));
    else if (typeof node !== 'object') { if (e.data !== String(node)) e.data = String(node); } else patch(e, node);
  });
  while (parent.childNodes.length > nodes.length) parent.lastChild.remove();
}

function draw() {
  state.now_s = Date.now() / 1000;
  for (const [id, nodes] of Object.entries(view(state))) patchChildren($(id), nodes);
  if (state.status) document.title = `v${state.status.version} \u00b7 ${state.status.line} \u00b7 alluvium`;
  const late = Date.now() - seen_ms > LATE_MS;
  $('live').className = late ? 'late' : 'on';
  const text = !seen_ms ? 'connecting' : late ? `no answer for ${Math.round((Date.now() - seen_ms) / 1000)} s` : 'live';
  if ($('live').textContent !== text) $('live').textContent = text;
  document.body.classList.toggle('stale', late && seen_ms > 0);
  $('older').hidden = next === null;
  const map = document.querySelector('.scroll.end');
  if (map && !map.dataset.placed) { // the newest versions are what one wants to see first
    map.scrollLeft = map.scrollWidth;
    map.dataset.placed = 'yes';
  }
}

// ---- asking

async function get(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
}

// Versions and verdicts are facts: they are read again only when the status says that there is something new.
async function facts(status) {
  const now = JSON.stringify([status.session, status.version, status.aliases, status.round.round, status.round.attempt, status.round.refusals, status.quarantined]);
  const measured = state.versions && state.versions[0].metrics !== null;
  if (now === known && measured) return;
  const [versions, verdicts, held] = await Promise.all([get('/versions.json?n=30'), get('/verdicts.json?n=10'), get('/quarantine.json')]);
  const oldest = versions.versions[versions.versions.length - 1].version;
  const older = (state.versions || []).filter(v => v.version < oldest);
  state.versions = versions.versions.concat(older);
  if (!older.length) next = versions.next;
  state.verdicts = verdicts.verdicts;
  state.held = held;
  known = now;
}

async function turn() {
  try {
    const status = await get('/status.json');
    await facts(status);
    state.status = status;
    state.error = null;
    seen_ms = Date.now();
    failures = 0;
  } catch (error) {
    failures++;
    if (!(error instanceof TypeError) && error.name !== 'TimeoutError') state.error = error.message; // else it is away: "no answer"
  }
  safely(draw);
}

async function run() {
  for (;;) {
    if (!document.hidden) await turn();
    await new Promise(done => setTimeout(done, EVERY_MS * Math.min(8, 1 + failures)));
  }
}

async function older() {
  const page = await get(`/versions.json?n=30&before=${next}`);
  state.versions = state.versions.concat(page.versions);
  next = page.next;
  draw();
}

// ---- errors are shown, not swallowed

function report(error) {
  console.error(error);
  state.mistake = String(error && error.message ? error.message : error);
  try { draw(); } catch { // it cannot even draw: the plainest way there is
    const p = document.createElement('p');
    p.className = 'problem bad';
    p.textContent = 'The page made a mistake: ' + state.mistake;
    $('problems').replaceChildren(p);
  }
}

function safely(action) {
  try { action(); } catch (error) { report(error); }
}

window.addEventListener('error', event => report(event.error || event.message));
window.addEventListener('unhandledrejection', event => report(event.reason));

// ---- keyboard and switches

function choose(cell, focus) {
  state.chosen = { version: Number(cell.dataset.version), domain: cell.dataset.domain };
  draw();
  if (focus) cell.focus();
}

function move(event) {
  const cell = event.target.closest('[role=gridcell]');
  if (!cell) return;
  const row = cell.parentElement, rows = [...row.parentElement.children], x = [...row.children].indexOf(cell), y = rows.indexOf(row);
  const to = { ArrowLeft: [x - 1, y], ArrowRight: [x + 1, y], ArrowUp: [x, y - 1], ArrowDown: [x, y + 1], Home: [1, y], End: [row.children.length - 1, y] }[event.key];
  if (!to) return;
  event.preventDefault();
  const target = rows[to[1]] && rows[to[1]].children[to[0]];
  if (target && target.getAttribute('role') === 'gridcell') choose(target, true);
}

function theme(value) {
  document.documentElement.dataset.theme = value;
  try { localStorage.setItem('theme', value); } catch { /* private windows have no storage */ }
}

$('heat').addEventListener('keydown', move);
$('heat').addEventListener('click', event => { const cell = event.target.closest('[role=gridcell]'); if (cell) choose(cell, true); });
$('measure').addEventListener('change', event => { state.measure = event.target.value; safely(draw); });
$('theme').addEventListener('change', event => theme(event.target.value));
$('older').addEventListener('click', () => older().catch(report));
document.addEventListener('visibilitychange', () => { if (!document.hidden) turn(); });
let saved = 'auto';
try { saved = localStorage.getItem('theme') || 'auto'; } catch { /* as above */ }
const radio = document.querySelector(`#theme input[value="${CSS.escape(saved)}"]`);
if (radio) { radio.checked = true; theme(saved); }
run();
