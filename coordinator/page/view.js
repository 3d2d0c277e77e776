// What the page shows, as a pure function of what the coordinator says: data in, a tree of plain objects out. page.js puts the
// tree on the screen; the test `dashboard` runs this file under node and sees that it reads only fields there are.

const kept = children => children.flat(Infinity).filter(c => c !== null && c !== undefined && c !== false);
export const h = (tag, attributes, ...children) => ({ tag, attributes, children: kept(children) });

// ---- numbers with their units

const MINUS = '\u2212', DASH = '\u2013';
const grouped = new Intl.NumberFormat('en-GB');

export function count(n) {
  return n === null || n === undefined ? DASH : grouped.format(n);
}

export function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let u = 0;
  for (; n >= 1024 && u < units.length - 1; u++) n /= 1024;
  return (u && n < 100 ? n.toFixed(1) : Math.round(n)) + ' ' + units[u];
}

export function duration(ms) {
  if (ms === null || ms === undefined) return DASH;
  const s = Math.round(ms / 1000);
  if (ms < 1000) return 'under 1 s';
  if (s < 90) return s + ' s';
  if (s < 90 * 60) return Math.round(s / 60) + ' min';
  if (s < 36 * 3600) return (s / 3600).toFixed(1) + ' h';
  return (s / 86400).toFixed(1) + ' d';
}

// Nats per token; `signed` for differences.
export function nats(v, signed) {
  if (v === null || v === undefined) return DASH;
  const text = Math.abs(v).toFixed(3);
  return (v < 0 && Number(text) ? MINUS : signed && Number(text) ? '+' : '') + text;
}

const percent = v => (100 * v).toFixed(v < 0.1 ? 1 : 0) + ' %';
const plural = (n, one, many) => count(n) + ' ' + (n === 1 ? one : many || one + 's');
const nameOf = m => m.key + '/' + m.instance.slice(0, 8);
const code = text => h('code', {}, text);
const empty = (...children) => h('p', { class: 'empty' }, ...children);
const badge = (kind, text) => h('span', { class: 'badge ' + kind }, text);
const number = (text, title) => h('td', { class: 'n', title: title || null }, text);

// A table in a region that scrolls by itself and can be reached by keyboard. Columns: [text, class].
function table(label, columns, rows) {
  return h('div', { class: 'scroll' + (rows.length > 12 ? ' tall' : ''), tabindex: '0', role: 'region', 'aria-label': label },
    h('table', {},
      h('thead', {}, h('tr', {}, columns.map(([text, kind]) => h('th', { scope: 'col', class: kind || null }, text)))),
      h('tbody', {}, rows)));
}

// ---- what needs somebody

export function problems(state) {
  const { status, held, error, mistake } = state, list = [];
  const add = (kind, title, ...text) => list.push({ kind, title, text });
  if (mistake) add('bad', 'The page made a mistake', mistake + '. Reload it; the JSON at its foot is complete.');
  if (error) add('bad', 'This page cannot show everything', error);
  if (!status) return list;
  const pending = status.domains.reduce((sum, d) => sum + d.pending_bytes, 0);
  if (status.alarm)
    add('bad', status.stopped ? 'Leasing has stopped' : 'Alarm', status.alarm + '. ', status.stopped ? ['When that is settled: ', code('alluvium resume')] : []);
  if (status.disk_low)
    add('bad', 'The disk is nearly full', bytes(status.disk_free_bytes) + ' are free; pushes are put off until there is room.');
  if (status.quarantined) {
    const first = held && held.quarantine.length ? held.quarantine : [];
    add('bad', plural(status.quarantined, 'lease') + ' held back',
      first.length ? h('ul', {}, first.slice(0, 5).map(q => h('li', {}, `Id ${q.id}, round ${q.round}: ${plural(q.segments, 'segment')}, ${q.reason}`))) : [],
      first.length > 5 ? 'and more. ' : [], code('alluvium quarantine list'), ', then ', code('release'), ' or ', code('drop'), ' each.');
  }
  if (status.round.refusals && !status.stopped)
    add('warn', plural(status.round.refusals, 'round') + ' refused since the last version', 'The gate found that something would be forgotten: see the verdicts.');
  if (pending && !status.workers)
    add('warn', 'Nobody is learning', bytes(pending) + ' of text are waiting and no worker is here.');
  for (const m of status.members.filter(m => m.plane === 'models' && m.here && m.error))
    add('warn', 'Subscriber ' + nameOf(m) + ' has a problem', m.error);
  return list;
}

function problemList(state) {
  const list = problems(state);
  if (!list.length && !state.status) return [];
  if (!list.length) return [h('p', { class: 'fine' }, h('span', { 'aria-hidden': 'true' }, '\u2713 '), 'Nothing needs you.')];
  return list.map(p => h('div', { class: 'problem ' + p.kind },
    h('strong', {}, (p.kind === 'bad' ? 'Act: ' : 'Look: ') + p.title), h('div', {}, ...p.text)));
}

// ---- at a glance

const tile = (label, value, ...notes) => h('div', { class: 'tile' }, h('h2', {}, label), h('p', { class: 'value' }, value), h('p', { class: 'note' }, ...notes));

const age = (state, seconds) => duration(Math.max(0, 1000 * (state.now_s - seconds)));

function roundTile(r) {
  if (r.phase === 'none') return tile('Round', 'idle', 'A round begins when enough text is pending.');
  const notes = r.phase === 'open' ? `${r.leases_accepted} of ${plural(r.leases, 'lease')} in${r.leases_open ? `, ${r.leases_open} with nobody` : ''}`
    : r.phase === 'evaluating' ? `${plural(r.evaluations, 'evaluation')} to come, look ${r.look + 1}` : 'deltas become a candidate';
  return tile('Round ' + r.round, r.phase, notes, ['', ' (half step)', ' (each lease alone)', ' (the rest)'][r.attempt] || '');
}

function tiles(state) {
  const { status: s, versions } = state;
  const newest = versions && versions.length && versions[0].version === s.version ? versions[0] : null;
  const pending = s.domains.reduce((sum, d) => sum + d.pending_bytes, 0);
  const working = s.domains.reduce((sum, d) => sum + d.states.leased + d.states.accepted, 0);
  const eta = s.domains.reduce((worst, d) => (d.eta_ms === null || worst === null ? null : Math.max(worst, d.eta_ms)), 0);
  const here = s.members.filter(m => m.plane === 'models' && m.here);
  const current = here.filter(m => m.serving === s.version).length;
  const measured = newest && newest.metrics && newest.metrics.peak_forgetting !== null;
  const worst = measured ? newest.domains.filter(d => d.peak_forgetting !== null).reduce((a, b) => (b.peak_forgetting > a.peak_forgetting ? b : a)) : null;
  return [
    tile('Newest version', 'v' + s.version, newest ? (s.version ? 'published ' : 'made ') + age(state, newest.created_s) + ' ago' : '',
      h('span', { class: 'chips' }, Object.entries(s.aliases).map(([name, v]) => badge('alias', name + ' \u2192 v' + v)))),
    tile('Backlog', bytes(pending), !pending ? (working ? plural(working, 'segment') + ' are in the round' : 'everything is learnt') : eta === null ? 'nobody is learning' : duration(eta) + ' at the present rate'),
    tile('Learning', count(s.tokens_per_s) + ' tokens/s', plural(s.workers, 'worker') + ' here'),
    roundTile(s.round),
    tile('Forgetting', measured ? nats(newest.metrics.peak_forgetting, true) : DASH,
      measured ? `nats per token from its best, mean; most: ${worst.domain} ${nats(worst.peak_forgetting, true)}` : 'not measured yet'),
    tile('Served', here.length ? `${current} of ${here.length}` : DASH, here.length ? 'subscribers serve the newest version' : 'no subscriber is here'),
  ];
}

// ---- the heat map

export const measures = {
  learnt: { of: d => d.learnt, words: 'learnt since the base', better: 1, signed: true },
  loss: { of: d => d.loss, words: 'loss', better: 1, signed: false },
  forgetting: { of: d => d.peak_forgetting, words: 'forgotten from its best', better: -1, signed: true },
};
const LEVELS = 5;

// Colour says again what the number says: good (g) or bad (b), in LEVELS steps of the largest there is.
function heatClass(d, measure, top) {
  const v = measure === 'forgetting' ? d.peak_forgetting : d.learnt;
  if (v === null || !top) return 'none';
  const good = v * measures[measure].better >= 0;
  return (good ? 'g' : 'b') + Math.min(LEVELS, Math.ceil((LEVELS * Math.abs(v)) / top));
}

function short(v, measure) {
  if (v === null) return DASH;
  if (measure === 'loss') return v.toFixed(2);
  const text = Math.abs(v).toFixed(2);
  return (v < 0 && Number(text) ? MINUS : '') + text.replace(/^0\./, '.');
}

export function cellWords(v, d) {
  const learnt = d.learnt === null ? 'what it learnt is not measured' : `learnt ${nats(d.learnt, true)} since the base`;
  const forgot = d.peak_forgetting === null ? '' : `, ${nats(d.peak_forgetting, true)} from its best`;
  const loss = d.loss === null ? 'no loss measured' : `loss ${nats(d.loss)}`;
  const fresh = d.fresh_segments ? `; ${plural(d.fresh_segments, 'fresh segment')} in this version` : '';
  return `${d.domain} at version ${v.version}: ${loss}, ${learnt}${forgot} nats per token on ${plural(d.windows, 'window')}${fresh}`;
}

function heat(state) {
  if (!state.versions) return [empty('Reading the versions.')];
  const columns = state.versions.slice().reverse(), names = [], measure = state.measure;
  for (const v of state.versions) for (const d of v.domains) if (!names.includes(d.domain)) names.push(d.domain);
  if (state.versions.length < 2 && state.versions[0].version === 0)
    return [empty('Version 0 is the base. The first version comes when a round has been trained and has passed the gate; then this shows, domain by domain, what each version learnt and what it forgot.')];
  const all = columns.flatMap(v => v.domains.map(d => (measure === 'forgetting' ? d.peak_forgetting : d.learnt)));
  const top = Math.max(0, ...all.filter(v => v !== null).map(Math.abs));
  const chosen = state.chosen || { version: columns[columns.length - 1].version, domain: names[0] };
  const cell = (v, name) => {
    const d = v.domains.find(x => x.domain === name), is = v.version === chosen.version && name === chosen.domain;
    const common = { role: 'gridcell', 'data-version': v.version, 'data-domain': name, tabindex: is ? '0' : '-1' };
    if (!d) return h('td', { ...common, class: 'heat none', 'aria-label': `${name} at version ${v.version}: not measured` }, '\u00a0');
    const fresh = d.fresh_segments ? ' fresh' : '';
    return h('td', { ...common, class: 'heat ' + heatClass(d, measure, top) + fresh, 'aria-label': cellWords(v, d) }, short(measures[measure].of(d), measure));
  };
  const head = v => h('th', { scope: 'col', class: v.aliases.length ? 'aliased' : null, title: v.aliases.join(', ') || null,
    'aria-label': 'version ' + v.version + (v.aliases.length ? ', ' + v.aliases.join(', ') : '') }, 'v' + v.version);
  const at = columns.find(v => v.version === chosen.version), shown = at && at.domains.find(d => d.domain === chosen.domain);
  return [
    h('div', { class: 'scroll end', role: 'region', 'aria-label': 'Domains by versions' },
      h('table', { role: 'grid', class: 'heatmap', 'aria-label': `${measures[measure].words}, nats per token; arrow keys move` },
        h('thead', {}, h('tr', { role: 'row' }, h('th', { scope: 'col' }, 'Domain'), columns.map(head))),
        h('tbody', {}, names.map(name => h('tr', { role: 'row' }, h('th', { scope: 'row' }, name), columns.map(v => cell(v, name))))))),
    h('p', { class: 'detail', role: 'status' }, shown ? cellWords(at, shown) + '.' : 'Not measured.'),
    h('div', { class: 'legend' },
      h('span', {}, measure === 'loss' ? 'Numbers: loss in nats per token. Colour: learnt.' : 'Nats per token.'),
      h('span', { class: 'scale', 'aria-hidden': 'true' },
        [5, 3, 1].map(i => h('i', { class: 'heat b' + i })), [1, 3, 5].map(i => h('i', { class: 'heat g' + i }))),
      h('span', {}, measure === 'forgetting' ? `worse by ${nats(top)} \u2026 better` : `worse than the base \u2026 better by ${nats(top)}`),
      h('span', {}, h('i', { class: 'heat none fresh', 'aria-hidden': 'true' }), ' underlined: learnt fresh text of the domain')),
  ];
}

// ---- domains and replay

function segments(states) {
  const waiting = states.pending + states.leased + states.accepted;
  const out = states.quarantined + states.superseded + states.retracted;
  return [number(count(waiting), 'pending, leased or accepted'), number(count(states.done)), number(count(states.skipped + out), 'skipped, quarantined, superseded or retracted')];
}

function domains(s) {
  const learnt = s.domains.filter(d => d.domain !== 'general');
  const rows = s.domains.map(d => h('tr', {}, h('th', { scope: 'row' }, d.domain + ' ', d.sentinel ? badge('', 'sentinel') : null),
    number(bytes(d.pending_bytes)), number(d.pending_bytes ? duration(d.lag_ms) : DASH),
    number(!d.pending_bytes ? DASH : d.eta_ms === null ? 'nobody works' : duration(d.eta_ms)),
    ...segments(d.states), number(bytes(d.bytes)), number(count(d.records)),
    number(count(d.refused + d.duplicates), `${d.duplicates} duplicates, ${d.refused} refused`), number('v' + d.reference), number(count(d.gate_windows))));
  return [
    !learnt.length && empty('No stream yet. Make a domain and push text into it: ', code('alluvium domains set notes -C LINE'), ', then ', code('alluvium push -C LINE notes FILE')),
    table('Domains', [['Domain'], ['Backlog', 'n'], ['Lag', 'n'], ['ETA', 'n'], ['Waiting', 'n'], ['Done', 'n'], ['Left out', 'n'], ['Text', 'n'],
      ['Records', 'n'], ['Not taken', 'n'], ['Reference', 'n'], ['Probe windows', 'n']], rows),
  ];
}

function replay(s) {
  const { anchor_permille: anchor, history_permille: history, sample_k: k } = s.replay;
  const total = s.domains.reduce((sum, d) => sum + d.history_weight, 0);
  const settled = s.domains.filter(d => d.history_weight);
  const parts = [{ name: 'fresh text', share: 1000 - anchor - history }, { name: 'anchor (general)', share: anchor },
    ...settled.map(d => ({ name: 'history of ' + d.domain, share: (history * d.history_weight) / total }))];
  if (!settled.length) parts.push({ name: 'history, once there is any', share: history });
  let x = 0;
  const bars = parts.map((p, i) => { x += p.share; return h('rect', { class: 'part p' + (i % 8), x: x - p.share, y: 0, width: Math.max(0, p.share - 2), height: 24 }); });
  return [
    h('svg', { class: 'stack', viewBox: '0 0 1000 24', preserveAspectRatio: 'none', role: 'img',
      'aria-label': parts.map(p => `${p.name} ${percent(p.share / 1000)}`).join(', ') }, bars),
    h('ul', { class: 'parts' }, parts.map((p, i) => h('li', {}, h('i', { class: 'key p' + (i % 8), 'aria-hidden': 'true' }), p.name + ' ', h('b', {}, percent(p.share / 1000))))),
    h('p', { class: 'note' }, `Of all tokens of a lease. History is drawn from a uniform sample of at most ${count(k)} settled segments a domain, domains by the square root of their tokens.`),
  ];
}

// ---- workers and subscribers

function leaseOf(s, m) {
  return s.round.lease_list.find(l => l.phase === 'granted' && l.worker === m.key && l.instance === m.instance);
}

function workerState(m, lease) {
  if (!m.here) return badge('off', 'gone');
  if (m.seen_ms > 60000) return badge('warn', 'silent');
  return lease ? badge('on', 'training') : m.waiting ? badge('', 'waiting') : badge('on', 'busy');
}

function workers(s) {
  const list = s.members.filter(m => m.plane === 'work');
  if (!list.length) return [empty('No worker has come yet. Start one: ', code('alluvium worker --join pool.join --base BASE'))];
  const rows = list.map(m => {
    const lease = leaseOf(s, m);
    return h('tr', { class: m.here ? null : 'gone' }, h('th', { scope: 'row', title: m.fingerprint }, nameOf(m)),
      h('td', {}, workerState(m, lease)), number(m.here ? count(m.tokens_per_s) + ' tokens/s' : DASH),
      h('td', { class: 'n' }, lease ? [h('progress', { max: lease.total || 1, value: lease.done, 'aria-label': 'steps done' }), ` ${lease.done} of ${lease.total} steps`] : DASH),
      number(lease ? duration(lease.age_ms) : DASH), number(duration(m.seen_ms) + ' ago'), number(count(Math.max(0, s.exclusions - m.exclusion_seq))));
  });
  return [table('Workers', [['Worker'], ['State'], ['Rate', 'n'], ['Lease', 'n'], ['Lease age', 'n'], ['Last heard', 'n'], ['Exclusions behind', 'n']], rows),
    s.members_total > s.members.length && h('p', { class: 'note' }, `${s.members_total - s.members.length} more are not listed.`)];
}

function subscribers(s) {
  const list = s.members.filter(m => m.plane === 'models');
  if (!list.length) return [empty('Nobody subscribes yet. Let a model server follow the line: ', code('alluvium subscribe --join server.join --follow latest --dir ./adapters'))];
  const rows = list.map(m => h('tr', { class: m.here ? null : 'gone' }, h('th', { scope: 'row' }, nameOf(m)), h('td', {}, m.target || DASH),
    h('td', {}, !m.here ? badge('off', 'gone') : m.error ? badge('bad', 'problem') : badge('on', 'well')), number('v' + m.serving), number('v' + m.staged),
    number(m.serving < s.version ? plural(s.version - m.serving, 'version') : 'none'), number(duration(m.seen_ms) + ' ago'), h('td', { class: 'words' }, m.error || DASH)));
  return [table('Subscribers', [['Subscriber'], ['Serves through'], ['State'], ['Serving', 'n'], ['Staged', 'n'], ['Behind', 'n'], ['Last heard', 'n'], ['Says']], rows)];
}

// ---- verdicts and versions

const gateOf = v => (v.gate && v.gate.gate ? v.gate.gate : null);

export function verdictWords(v) {
  const gate = gateOf(v);
  if (!gate) return 'The verdict cannot be read.';
  const refused = gate.domains.filter(d => d.outcome === 'refuse'), measured = gate.domains.filter(d => d.windows);
  const bounds = d => `${d.domain} ${nats(d.mean, true)} (between ${nats(d.low, true)} and ${nats(d.high, true)}), allowed ${nats(d.budget, true)}`;
  if (refused.length) return 'Would forget: ' + refused.map(bounds).join('; ') + '.';
  if (!measured.length) return 'No domain has a probe: nothing was measured.';
  const nearest = measured.reduce((a, b) => (b.high - b.budget > a.high - a.budget ? b : a));
  return 'Nearest to its budget: ' + bounds(nearest) + '.';
}

function verdict(state, v) {
  const gate = gateOf(v), step = v.gate && v.gate.step < 1 ? ', half the step' : '';
  const rows = gate ? gate.domains.map(d => h('tr', {}, h('th', { scope: 'row' }, d.domain), number(nats(d.mean, true)), number(nats(d.low, true)),
    number(nats(d.high, true)), number(nats(d.budget, true)), number(`${d.windows} of ${d.available}`), number('v' + d.reference), h('td', { class: 'words' }, d.remark))) : [];
  return h('li', { 'data-key': `verdict-${v.round}-${v.attempt}-${v.lease || 0}` }, h('details', {},
    h('summary', {}, v.published ? badge('on', 'published v' + v.version) : badge('bad', 'refused'), ` Round ${v.round}${step}, ${age(state, v.time_s)} ago. `, h('span', { class: 'words' }, verdictWords(v))),
    gate && h('p', { class: 'note' }, `Candidate minus reference in nats per token. A wrong verdict has a chance of at most ${percent(gate.error_rate)}, look ${gate.look}; ` +
      `${plural(v.gate.leases, 'lease')}, error of averaging ${percent(v.gate.averaging_error)}.`),
    gate && table(`Verdict of round ${v.round}`, [['Domain'], ['Mean', 'n'], ['At least', 'n'], ['At most', 'n'], ['Budget', 'n'], ['Windows', 'n'], ['Reference', 'n'], ['In words']], rows)));
}

function verdicts(state) {
  if (!state.verdicts) return [empty('Reading the verdicts.')];
  if (!state.verdicts.length) return [empty('No round has been judged yet.')];
  return [h('ul', { class: 'verdicts' }, state.verdicts.map(v => verdict(state, v)))];
}

function versions(state) {
  if (!state.versions) return [empty('Reading the versions.')];
  const flag = (is, kind, text) => is && badge(kind, text);
  const rows = state.versions.map(v => {
    const m = v.metrics || { learnt_mean: null, peak_forgetting: null, backward_transfer: null, forward_transfer: null, general_delta: null };
    return h('tr', {}, h('th', { scope: 'row' }, 'v' + v.version + ' ', v.aliases.map(a => badge('alias', a)), flag(v.withdrawn, 'bad', 'withdrawn'), flag(v.tainted, 'bad', 'tainted'),
      flag(v.rollback_of !== null, 'warn', 'rollback of v' + v.rollback_of), flag(v.partial, 'warn', 'partial')),
      number(age(state, v.created_s) + ' ago'), number(v.version ? 'v' + v.parent : DASH), number(nats(m.learnt_mean, true)), number(nats(m.peak_forgetting, true)),
      number(nats(m.backward_transfer, true)), number(nats(m.forward_transfer, true)), number(nats(m.general_delta, true)), number(count(v.segments)), number(count(v.tokens)), number(count(v.leases)),
      number(percent(v.averaging_error)));
  });
  return [table('List of versions', [['Version'], ['Age', 'n'], ['Parent', 'n'], ['Learnt', 'n'], ['Forgetting', 'n'], ['Backward transfer', 'n'], ['Forward transfer', 'n'], ['General delta', 'n'],
    ['Segments', 'n'], ['Tokens', 'n'], ['Leases', 'n'], ['Averaging error', 'n']], rows),
    h('p', { class: 'note' }, `Means over domains, nats per token. ${DASH}: not measured.`)];
}

// The parts of the page by the id of their element.
export function view(state) {
  const s = state.status, parts = { problems: problemList(state) };
  if (!s) return parts;
  parts.title = [h('h1', {}, s.line), h('p', { class: 'note' }, 'alluvium, session ' + s.session)];
  parts.tiles = tiles(state);
  parts.heat = heat(state);
  parts.domains = domains(s);
  parts.replay = replay(s);
  parts.workers = workers(s);
  parts.subscribers = subscribers(s);
  parts.verdicts = verdicts(state);
  parts.versions = versions(state);
  for (const id of Object.keys(parts)) parts[id] = kept(parts[id]);
  return parts;
}
