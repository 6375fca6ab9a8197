/* The page, part 1 of 3: what a snapshot is, how it becomes text and lines, how nodes are kept.

One snapshot in, one sheet out. The page decides one thing alone: what is older than STALE_S is
`unknown`; all other words come from the snapshot. Keys, names and words are made by whoever writes
the records, so every text passes esc(), every number passes ok(), and every class comes from a
list below. No inline style is ever parsed (the content security policy forbids it): geometry
travels in data-css and is set by dress(). */
'use strict'
const STALE_S = 10 // an older snapshot says nothing about now
const ROWS = 8 // partitions in trouble drawn as rows where not all are
const INCIDENTS = 40, MARKS = 60, JOURNAL = 20, FLOW = 12,
  BARS = 20000 // most that is drawn of each
const STATES = ['healthy', 'slow', 'degraded', 'starting', 'unknown']
const KINDS = ['grow', 'shrink', 'rollout', 'fault', 'drill']
const RANK = {stalled: 0, stopped: 1, rewound: 2, slow: 3, unknown: 4, ok: 5}
const TONE = {slow: 'wait', stalled: 'bad', stopped: 'bad', rewound: 'roll', unknown: 'dim'}
const SEVERITY = ['', 'mild', 'clear', 'strong', 'extreme']

let S = null // the last snapshot, or null
let heard = performance.now() // when it came
let denied = false // the server wants a token
let cur = null // time cursor: index on the axis, or null for now
let reads = {} // what [data-r] elements say under the cursor
let said = '', one = new URLSearchParams(location.search).get('print')
const opened = new Map // incident id -> unfolded by hand

/* text */
const $ = s => document.querySelector(s)
const esc = s => String(s ?? '').replace(/[&<>"'`]/g, c => '&#' + c.charCodeAt(0) + ';')
const ok = v => typeof v === 'number' && Number.isFinite(v)
const full = v => ok(v) ? v.toLocaleString('en') : '–'
const num = v => !ok(v) ? '–' : Math.abs(v) < 10 && v % 1 ? v.toFixed(1)
  : Math.abs(v) < 1e4 ? Math.round(v).toLocaleString('en')
  : Math.abs(v) < 1e6 ? (v / 1e3).toFixed(Math.abs(v) < 1e5 ? 1 : 0) + ' k' : (v / 1e6).toFixed(1)
    + ' M'
const dur = s => !ok(s) ? '–' : s < 9.95 ? s.toFixed(1) + ' s' : s < 120 ? Math.round(s) + ' s'
  : s < 7200 ? Math.round(s / 60) + ' min'
  : s < 172800 ? Math.floor(s / 3600) + ' h ' + Math.floor(s % 3600 / 60) + ' min'
  : Math.round(s / 86400) + ' d'
const ms = v => !ok(v) ? '–' : v < 1e3 ? Math.round(v) + ' ms' : (v / 1e3).toFixed(1) + ' s'
const pc = v => ok(v) ? Math.round(v * 100) + ' %' : '–'
const hm = (t, s) => {
  if (!ok(t)) return '–'
  const d = new Date(t), z = n => String(n).padStart(2, '0')
  return z(d.getHours()) + ':' + z(d.getMinutes()) + (s ? ':' + z(d.getSeconds()) : '')
}
function odds(p) { // a number one can argue with, instead of a score without a unit
  let n = 1 / p, u = ''
  for (const w of ['', ' thousand', ' million', ' billion', ' trillion']) {
    u = w
    if (n < 999.5) break
    n /= 1e3
  }
  return n >= 999.5 ? 'beyond 1 in 10¹⁵' : '1 in ' + Math.round(n) + u
}
const severity = p => p <= 1e-12 ? 4 : p <= 1e-9 ? 3 : p <= 1e-6 ? 2 : 1
const g = n => `<svg class="g" aria-hidden="true"><use href="#g-${n}"/></svg>`
const cmd = (c, x = '') =>
  `<button class="cp" data-copy="${esc(c)}" ${x}><code>${esc(c)}</code><i>copy</i></button>`
const word = w => `<span class="w ${TONE[w] || ''}">${g(w)}${w}</span>`
const kind = k => KINDS.includes(k) ? k : ''
const now = (k, text, f) => { reads[k] = f; return `<span data-r="${esc(k)}">${esc(text)}</span>` }
const join = (...parts) => parts.filter(x => typeof x === 'string').join('') // without null, false
function link(u) { // a link only where it leads to a page: never javascript: or data:
  try { return /^https?:$/.test(new URL(u, location.href).protocol)
    ? u : null } catch { return null }
}

/* What a snapshot may lack is filled in here, once: below, every field has its type. */
const obj = v => v !== null && typeof v === 'object' && !Array.isArray(v) ? v : {}
const has = v => Object.keys(obj(v)).length > 0
const list = v => (Array.isArray(v) ? v : []).filter(has)
const last = a => { for (let i = a.length; i--;) if (ok(a[i])) return a[i]; return null }
const top_of = a => a.reduce((m, v) => ok(v) && v > m ? v : m, -Infinity)
const low_of = a => a.reduce((m, v) => ok(v) && v < m ? v : m, Infinity)
const fit = (a, n) => { // exactly n values, the last one now; what is missing is unknown
  const s = Array.isArray(a) ? a.slice(-n).map(v => ok(v) ? v : null) : []
  return Array(n - s.length).fill(null).concat(s)
}
const fits = (o, n, ...names) => Object.fromEntries(names.map(k => [k, fit(obj(o)[k], n)]))

function shape(raw) {
  const s = obj(raw), x = obj(s.axis), v = obj(s.verdict)
  const at_ms = ok(s.at_ms) ? s.at_ms : Date.now(), n = ok(x.n) ? Math.min(2000, Math.max(2,
    x.n | 0)) : 2
  const incidents = list(s.incidents).map(q => {
    const series = fits(q.series, n, 'observed', 'expected', 'low', 'high')
    const similar = has(q.similar) ? {...q.similar, series: fit(q.similar.series, n)} : null
    return {...q, id: String(q.id ?? q.key ?? ''), channels: list(q.channels).slice(0, 12), similar,
      series: last(series.observed) == null ? null : series, link: q.explain_url
        ? link(q.explain_url) : null}
  }).sort((a, b) => (a.tail_probability ?? 1) - (b.tail_probability ?? 1))
  const p = obj(s.partitions), names = (Array.isArray(p.name) ? p.name : []).slice(0, BARS).map(
    String)
  const column = k => names.map((_, i) => obj(p)[k]?.[i] ?? null)
  return {
    at_ms, age_s: ok(s.age_s) ? s.age_s : 0, incidents,
    open: ok(s.incidents_open) ? s.incidents_open : incidents.length,
    axis: {n, step_s: ok(x.step_s) && x.step_s > 0 ? x.step_s : 15, end_ms: ok(x.end_ms)
      ? x.end_ms : at_ms},
    verdict: {...v, state: STATES.includes(v.state) ? v.state : 'unknown', next: obj(v.next)},
    cluster: obj(s.cluster), owners: obj(s.owners), scorers: obj(s.scorers), alerts: obj(s.alerts),
    resolved_today: s.resolved_today, last_resolved: s.last_resolved,
    detectors: list(s.detectors).map(d => ({...d, series: fits(d.series, n, 'in_per_s', 'out_per_s',
      'lag_s')})),
    partitions: {total: ok(p.total) ? p.total : names.length, name: names, lag_s: column('lag_s'),
      state: column('state').map(w => w in RANK ? w : 'unknown'), lag_records: column(
        'lag_records'),
      owner: column('owner').map(o => o == null ? '–' : ok(o) ? 'owner-' + o : String(o)),
      spark: new Map(Object.entries(obj(p.spark)).map(([k, a]) => [k, fit(a, n)])),
      ...fits(p, n, 'ok_p50', 'ok_max')},
    pool: {say: obj(s.pool).say, series: fits(obj(s.pool).series, n,
      'serving', 'starting', 'draining', 'wanted', 'busy', 'queue_records')},
    marks: list(s.marks).filter(k => ok(k.at_ms)).sort((a, b) => a.at_ms - b.at_ms).slice(-MARKS),
    journal: list(s.journal).slice(0, JOURNAL), flow: list(s.flow).slice(0, FLOW),
  }
}

/* geometry: every plot is 1000 wide, so one X serves all */
let A
const X = t => (t - A.t0) / (A.t1 - A.t0) * 1000
const xi = i => +X(A.e - (A.n - 1 - i) * A.step).toFixed(1)
const cursor_ms = () => cur == null ? A.e : A.e - (A.n - 1 - cur) * A.step
function runs(a, b = a) { // stretches of indices where both are known
  const o = []
  let r = null
  a.forEach((v, i) => {
    if (!ok(v) || !ok(b[i])) r = null
    else (r = r || (o.push(r = []), r)).push(i)
  })
  return o
}
const pt = (i, v) => xi(i) + ' ' + v.toFixed(1)
const line = (a, y) => runs(a).map(r => 'M' + r.map(i => pt(i, y(a[i]))).join('L')).join('')
const area = (lo, hi, y) => runs(lo, hi).map(r => 'M' + r.map(i => pt(i, y(hi[i]))).join('L') + 'L'
  + [...r].reverse().map(i => pt(i, y(lo[i]))).join('L') + 'Z').join('')
const stairs = (lo, hi, y) => runs(lo, hi).map(r => {
  const edge = a => r.flatMap((i, k) => k ? [pt(i, y(a[r[k - 1]])), pt(i, y(a[i]))] : [pt(i,
    y(a[i]))])
  return 'M' + edge(hi).join('L') + 'L' + edge(lo).reverse().join('L') + 'Z'
}).join('')
const P = (d, a) => d ? `<path d="${d}" vector-effect="non-scaling-stroke" ${a}/>` : ''
const st = (c, w = 1.2, x = '') =>
  `fill="none" stroke="var(--${c})" stroke-width="${w}" stroke-linejoin="round" ${x}`
const svg = (h, label, inner) =>
  `<svg viewBox="0 0 1000 ${h}" preserveAspectRatio="none" role="img" aria-label="${esc(label)}">${
    inner}</svg>`
const swatch = i => `<svg viewBox="0 0 30 14" aria-hidden="true">${i}</svg>`
const stroke = (c, w, x = '') => swatch(`<path d="M0 7h30" stroke="var(--${c})" stroke-width="${
  w}" ${x}/>`)
const patch_of = (c, o = 1) => swatch(`<path d="M0 2h30v10H0z" fill="var(--${c})" opacity="${o}"/>`)
const zero = a => a.map(v => ok(v) ? 0 : null)
const plus = (a, b) => a.map((v, i) => ok(v) && ok(b[i]) ? v + b[i] : null)
const where = (a, b, f) => a.map((v, i) => ok(v) && ok(b[i]) ? f(v, b[i]) : null)

/* keep nodes, change what changed: focus, selection and scroll survive an update */
const dress = n => { if (n.nodeType === 1 && n.dataset.css) n.style.cssText = n.dataset.css }
function patch(a, b) {
  if (a.nodeName !== b.nodeName || a.nodeType !== b.nodeType || a.dataset?.key !== b.dataset?.key) {
    a.replaceWith(b)
    return
  }
  if (a.nodeType !== 1) {
    if (a.data !== b.data) a.data = b.data
    return
  }
  for (const {name} of [...a.attributes]) if (name !== 'style' && !b.hasAttribute(
    name)) a.removeAttribute(name)
  for (const {name, value} of b.attributes)
    if (name !== 'style' && a.getAttribute(name) !== value) {
      a.setAttribute(name, value)
      if (name === 'data-css') dress(a)
    }
  kids(a, b)
}
function kids(a, b) {
  const keyed = new Map
  for (const c of a.children) if (c.dataset.key) keyed.set(c.dataset.key, c)
  let i = 0
  for (const n of [...b.childNodes]) {
    const k = n.dataset?.key && keyed.get(n.dataset.key)
    let o = a.childNodes[i]
    if (k && k !== o) {
      a.insertBefore(k, o || null)
      o = k
    }
    // a new key goes in between: replacing its neighbour would take the focus out of that
    if (o && !(n.dataset?.key && !k)) patch(o, n)
    else a.insertBefore(n, o || null)
    i++
  }
  while (a.childNodes.length > i) a.lastChild.remove()
}
function morph(el, html) {
  const t = el.cloneNode(false), focus = document.activeElement
  t.innerHTML = html
  for (const n of t.querySelectorAll('[data-css]')) dress(n)
  kids(el, t)
  if (focus !== document.activeElement && focus.isConnected) focus.focus({preventScroll: true})
}
