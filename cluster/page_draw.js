/* The page, part 2 of 3: the sections of the sheet, each a function from S to markup. */
'use strict'
const fact = (term, ...says) => {
  const d = says.filter(x => x != null)
  return d.length ? `<div><dt>${term}</dt>${d.map(x => `<dd>${x}</dd>`).join('')}</div>` : ''
}
function facts() { // a field that the snapshot does not carry is not shown; null is a dash
  const o = S.owners, c = S.scorers, a = S.alerts, n = S.partitions.total
  const known = (v, f) => v === undefined ? null : f(v), some = (v, f) => ok(v) ? f(v) : null
  const bounds = ok(c.min) && ok(c.max) ? ` of ${c.min}..${c.max}` : ''
  return join(
    fact('owners', known(o.up, v => ok(o.want) ? `${full(v)} of ${full(o.want)}` : full(v)),
      n ? `${full(n)} partition${n === 1 ? '' : 's'}` : null,
      known(o.lag_records, v => `lag ${ok(v) ? full(v) + ' records' : '–'}, oldest ${
        dur(o.lag_oldest_s)}`)),
    fact('scorers', known(c.serving, v => `${full(v)}${bounds}`),
      known(c.busy, v => `${pc(v)} busy`),
      known(c.p99_ms, v => `p99 ${ms(v)}`), c.model ? `model ${esc(c.model)}` : null),
    fact('alerts', known(a.today, v => `${full(v)} today`),
      some(a.last_minute, v => `${full(v)} in the last minute`),
      some(a.unacknowledged, v => `${full(v)} unacknowledged`),
      some(a.rejects_today, v => `${full(v)} reject${v === 1 ? '' : 's'}`)),
    fact('incidents', `${full(S.open)} open`,
      some(S.resolved_today, v => `${full(v)} resolved today`),
      S.last_resolved ? esc(S.last_resolved) : null))
}
function bar(v, age) {
  const u = v.state === 'unknown', k = S.cluster, old = Math.max(0, Math.round(age))
  const about = [k.version && 'raywatch ' + k.version, k.config && 'config ' + k.config,
    ok(k.up_s) && 'up ' + dur(k.up_s)].filter(Boolean).join(' · ')
  return `<b>${esc(k.name || 'raywatch')}</b><span class="word">${g(v.state)} ${v.state}</span>`
    + `<span class="dim opt">${esc(about)}</span><span class="sp"></span>`
    + `<span class="${u ? 'bad' : 'dim'}">${u ? 'no data for' : 'data'} ${old} s${u
      ? '' : ' old'}</span>`
    + '<span class="dim opt">j k incidents · c copy · 1–7 sections</span>'
}
function verdict(v) {
  const next = v.next.say || v.next.command ? `<div class="next"><p>${esc(v.next.say)}</p>${
    v.next.command ? cmd(v.next.command, 'id="next"') : ''}</div>` : ''
  return `<div id="verdict"><div><h1>${g(v.state)}${v.state}${
    v.words ? `: <span>${esc(v.words)}</span>` : ''}</h1><p class="why">${esc(v.why)}</p></div>${
      next}</div>
<dl id="facts" class="hold">${facts()}</dl>`
}

function mark_labels(w) { // the newest mark takes its label first, an older one where room is left
  let o = '', free = w + 1
  for (let j = S.marks.length; j--;) {
    const k = S.marks[j], x = X(k.at_ms), label = String(k.label ?? '')
    if (x < 0 || x > 1000) continue
    const px = x / 1000 * w, len = label.length * 6.8 + 20, fits = px + len < free
    const before = j ? X(S.marks[j - 1].at_ms) / 1000 * w : 0, left = !fits && px - len > before
      + 12
    free = left ? px - len : px - 10
    const shown = fits || left ? esc(label) : `<span class="sr">${esc(k.words)}</span>`
    o += `<span class="mk ${kind(k.kind)} ${left ? 'l' : ''}" data-css="left:${x / 10}%" title="${
      hm(k.at_ms, 1)} ${esc(k.words)}">${g(k.kind === 'drill' ? 'fault' : kind(k.kind) || 'ok')}${
        shown}</span>`
  }
  return o
}
function axis() {
  const w = $('#axis .p')?.clientWidth || 500, at = hm(cursor_ms(), 1)
  const span = A.t1 - A.t0, many = span > 216e5 ? 120 : span > 36e5 ? 15 : w < 420 ? 10 : 5
  const step = 6e4 * (span < 72e4 ? 2 : many) // minutes between two ticks
  let ticks = ''
  for (let t = Math.ceil(A.t0 / step) * step; t <= A.t1; t += step)
    if (X(t) / 1e3 * w < w - 78 && X(t) > 12)
      ticks += `<span class="tk" data-css="left:${X(t) / 10}%">${hm(t)}</span>`
  const zone = new Intl.DateTimeFormat('en', {timeZoneName: 'short'}).formatToParts(A.t1)
    .find(p => p.type === 'timeZoneName').value
  const values = cur != null ? `<b class="calm">values at ${at}</b>, Esc for now`
    : A.t1 > A.e ? 'values as of ' + hm(A.e, 1) : 'values now'
  return `<div class="r" id="axis"><span class="dim">last ${
    dur(Math.round((A.t1 - A.t0) / 1e3))}, ${
    esc(zone)}</span><div class="p" tabindex="0" role="slider" aria-label="time cursor: arrow `
    + `keys read every row at that time" aria-valuemin="0" aria-valuemax="${A.n - 1}" `
    + `aria-valuenow="${
    cur ?? A.n - 1}" aria-valuetext="${at}">${ticks}<span class="tk now" data-css="left:${
    cur == null ? 100 : Math.max(9, xi(cur) / 10)}%">${at}</span>${mark_labels(
      w)}</div><span class="dim e">${
    values}</span></div>`
}
function lines() {
  let o = ''
  const step = A.t1 - A.t0 > 36e5 ? 36e5 : 3e5
  for (let t = Math.ceil(A.t0 / step) * step; t < A.t1; t += step) o += `<i data-css="left:${
    X(t) / 10}%"></i>`
  for (const k of S.marks) {
    const x = X(k.at_ms), from = Math.max(0, x), width = Math.min(1e3, X(k.until_ms)) - from
    if (ok(k.until_ms) && width > 0)
      o += `<u class="${kind(k.kind)}" data-css="left:${from / 10}%;width:${width / 10}%"></u>`
    if (x >= 0 && x <= 1000) o += `<i class="m ${kind(k.kind)}" data-css="left:${x / 10}%"></i>`
  }
  if (A.t1 > A.e) o += `<u class="gap" data-css="left:${X(A.e) / 10}%;right:0"></u>`
  if (cur != null) o += `<i class="cur" data-css="left:${xi(cur) / 10}%"></i>`
  return `<div id="lines" aria-hidden="true"><div class="r"><span></span><div class="p">${
    o}</div></div></div>`
}

function incident_plot(q, large) {
  const s = q.series, unit = String(q.unit ?? ''), old = q.similar?.series || []
  const expected = last(s.low) == null ? s.expected : [] // a band says it better than a line
  const all = [...s.observed, ...expected, ...s.high, ...s.low, ...old], top = top_of(all)
  const bottom = q.axis_from_zero === false ? low_of(all) : Math.min(0, low_of(all)) * .98
  const y = v => 97 - (v - bottom) / (top - bottom || 1) * 92
  const on = ok(q.since_ms) ? X(q.since_ms) : 1000, begin = Math.max(0, on)
  const hot = s.observed.map((v, i) => xi(i) >= on - 4 ? v : null)
  const out = hot.map((v, i) => !ok(v) ? null
    : ok(s.high[i]) && v > s.high[i] ? s.high[i] : ok(s.low[i]) && v < s.low[i] ? s.low[i] : null)
  const ground = on < 1000 ? `<rect x="${begin.toFixed(1)}" width="${
    Math.max(0, X(A.e) - begin).toFixed(1)}" y="0" height="100" fill="var(--badf)" opacity=".11"/>`
    : ''
  const start = on >= 0 && on < 1000 ? P(`M${on.toFixed(1)} 0V100`, st('bad', 1.2)) : ''
  const label = `${q.key}: ${q.what}. Observed ${num(last(s.observed))} ${unit}, expected ${
    num(last(s.expected))}`
  const drawn = P(area(s.low, s.high, y), 'fill="var(--band)"') + ground
    + P(area(out, hot, y), 'fill="var(--badf)" opacity=".42"')
    + P(line(old, y), st('ink3', 1.2, 'stroke-dasharray="3 3"')) + P(line(expected, y), st('calm', 1.2))
    + P(line(s.observed, y), st('ink', 1.3)) + P(line(hot, y), st('bad', 2.4)) + start
  const scale = large ? `<span class="yl" data-css="top:.1rem">${num(top)} ${esc(unit)}</span>`
    + `<span class="yl" data-css="bottom:-.1rem">${num(bottom)}</span>` : ''
  return `<div class="p">${svg(100, label, drawn)}${scale}</div>`
}
function incident_meta(q) {
  const s = q.series, unit = q.unit ? ' ' + q.unit : '', m = q.similar, row = (t, d, c = '') =>
    `<dt>${t}</dt><dd class="${c}">${d}</dd>`
  const band = i => `${num(s.low[i])} to ${num(s.high[i])}`, middle = i => num(s.expected[i])
  const range = s && last(s.low) != null, i = A.n - 1
  return `<dl class="meta">${join(
    s && row('observed', now(q.id + 'o', num(last(s.observed)) + unit, i => num(s.observed[i])
      + unit), 'bad'),
    s && (range || last(s.expected) != null) && row('expected', range
      ? now(q.id + 'e', `${num(last(s.low))} to ${num(last(s.high))}`, band)
      : now(q.id + 'e', num(last(s.expected)) + unit, middle)),
    q.model && row('model', esc(q.model), 'mono'), q.lineage && row('from', esc(q.lineage)),
    m && row('similar', esc([m.when, ok(m.likeness) && pc(m.likeness) + ' alike', m.ended].filter(
      Boolean).join(', '))),
  ) || row('detector', esc(q.detector))}</dl>`
}
function incident(q, large) {
  const id = esc('i-' + q.id), lv = ok(q.tail_probability) ? severity(q.tail_probability) : 0
  const bars = lv ? `<span class="sev" role="img" aria-label="severity ${lv} of 4">${
    [1, 2, 3, 4].map(i => `<i class="${i <= lv ? 'on' : ''}"></i>`).join('')}</span>` : ''
  const since = ok(q.since_ms)
    ? `<span class="t2">since ${hm(q.since_ms)}, ${
      dur(Math.max(0, (A.e - q.since_ms) / 1e3))}</span>` : ''
  const chance = lv ? `<span class="bad">${SEVERITY[lv]}, ${odds(q.tail_probability)}</span>` : ''
  const box = q.series ? incident_plot(q, large) : '', ask = q.explain ? cmd(q.explain,
    'data-k="e"') : ''
  const tog = `<button class="tog calm" data-tog="${esc(q.id)}" aria-expanded="${large}"><u>${
    large ? 'fold' : 'unfold'}</u></button>`
  if (!large) return `<article class="inc sm" data-key="${id}" id="${
    id}" tabindex="-1"><div class="r">`
    + `<div class="nm">${bars}<span class="mono">${esc(q.key)}</span><small title="${
      esc(q.what)}">${
    esc(q.what)}</small></div>${box || '<span class="e"></span>'}<div class="smv">${since}${
      chance}${tog}${
    ask}</div></div></article>`
  const shares = q.channels.length
    ? `<table class="sh"><caption class="sr">Channel shares</caption><thead><tr>`
    + '<th>channel</th><th class="bar"></th><th>share</th><th>seen</th><th>expected</th></tr>'
    + `</thead><tbody>${
    q.channels.map(c => `<tr><td>${esc(c.name)}</td><td class="bar"><i data-css="width:${
      ok(c.share) ? Math.min(100, Math.max(0, c.share * 100)) : 0}%"></i></td><td>${
        pc(c.share)}</td><td>${
      num(c.observed)}</td><td class="dim">${num(c.expected)}</td></tr>`).join(
        '')}</tbody></table>` : ''
  return `<article class="inc ${one === q.id ? 'print' : ''}" data-key="${id}" id="${
    id}" tabindex="-1">
<div class="ttl">${bars}<h3 class="mono">${esc(q.key)}</h3><h3><span>${esc(q.what)}</span></h3>${
  since}${chance}`
    + `<span class="dim">${esc(q.detector)}</span>${tog}</div><div class="r">${incident_meta(q)}${
    box || (shares && '<span class="e"></span>')}${shares}<div class="act">${join(
      q.link && `<a href="${esc(q.link)}">explain</a>`, ask, q.replay && cmd(q.replay,
        'data-k="r"'))}`
    + `<button class="tog calm" data-print="${
      esc(q.id)}"><u>print</u></button></div></div></article>`
}
function incidents() {
  const l = S.incidents, drawn = l.slice(0, INCIDENTS), unfolded = i => l.length > 2
    || innerWidth <= 820 ? !i : i < 2
  const leg = join(
    `<span>${stroke('ink', 2)}observed</span><span>${
      l.some(q => q.series && last(q.series.low) != null) ? patch_of('band')
        : stroke('calm', 2)}expected</span><span>${
      swatch('<path d="M0 2h30v10H0z" fill="var(--badf)" opacity=".5"/>'
        + '<path d="M0 3h30" stroke="var(--bad)" stroke-width="3"/>')}anomalous</span>`,
    l.some(q => q.similar) && `<span>${stroke('ink3', 2,
      'stroke-dasharray="4 4"')}similar past episode, `
      + 'laid on the same start</span>')
  const scored = ok(S.alerts.scored_today)
    ? ` ${full(S.alerts.scored_today)} records scored today.` : ''
  const before = S.last_resolved ? ` The last one was ${esc(S.last_resolved)}.` : ''
  return `<section id="incidents" tabindex="-1"><div class="r hd"><h2>Incidents, ${
    full(S.open)} open</h2>`
    + `<div class="leg">${l.some(q => q.series) ? leg : ''}</div><div></div></div>${
    drawn.map((q, i) => incident(q, one === q.id || (opened.get(q.id) ?? unfolded(i)))).join('')}${
    S.open > drawn.length ? `<p class="none">${
      full(S.open - drawn.length)} less unlikely ones are not drawn.</p>`
      : ''}${S.open ? '' : `<p class="none">No incident is open.${before}${
        scored}</p>`}</section>`
}

function detectors() {
  const D = S.detectors, amber = S.verdict.state !== 'healthy' // health has no colour
  if (!D.length) return ''
  const delay = D.some(d => d.delay_ms_p50 !== undefined), budget = D.some(d => has(d.budget))
  const heads = ['in /s', 'out /s', 'lag', ...delay ? ['p50', 'p99'] : [], ...budget
    ? ['budget /h'] : []]
  const row = (d, j) => {
    const s = d.series, a = s.in_per_s, b = s.out_per_s, mx = Math.max(1, top_of(a), top_of(b))
    const y = v => 29 - v / mx * 27, most = where(a, b, (i, o) => Math.max(i, o)),
      used = obj(d.budget)
    const cell = (head, html, late) =>
      `<span data-h="${head}" class="${late && amber ? 'wait' : ''}"><span class="sr">${
        head} </span>${html}</span>`
    const share = ok(used.used) && used.limit > 0 ? Math.min(100, used.used / used.limit * 100) : 0
    const cells = [cell('in', now('i' + j, num(last(a)), i => num(a[i]))),
      cell('out', now('u' + j, num(last(b)), i => num(b[i]))),
      cell('lag', now('l' + j, dur(d.lag_s), i => dur(s.lag_s[i])), d.lag_s > 10),
      ...delay ? [cell('p50', ms(d.delay_ms_p50)), cell('p99', ms(d.delay_ms_p99),
        d.delay_ms_p99 > 1e3)] : [],
      ...budget ? [cell('budget', ok(used.limit) ? `${full(used.used)} of ${
        full(used.limit)}<span class="bud"><i `
        + `data-css="width:${share}%"></i></span>` : '–')] : []]
    const drawn = P(area(b, most, y), 'fill="var(--waitf)" opacity=".65"')
      + P(area(a, most, y), 'fill="var(--calmf)" opacity=".5"') + P(line(a, y), st('ink3', 1))
        + P(line(b, y), st('ink', 1.5))
    const kept = list(d.nominal).map(e => `p ≤ ${e.p}: ${ok(e.ratio) ? e.ratio : '–'}`)
    const promise = kept.length ? `${kept.join(', ')} of nominal, ${
      full(d.judged_records)} records` : ''
    return `<div class="r det" data-key="${esc('d-' + d.name)}"><div class="nm">${
      esc(d.name)}<small class="mono" title="${esc(promise)}">${
      esc(d.model)}</small></div><div class="p">${
      svg(30, `${d.name}: ${num(last(a))} records/s in, ${num(last(b))} out`, drawn)}${
      last(a) == null ? '<span class="yl" data-css="top:.5rem">no data yet</span>' : ''}</div>`
      + `<div class="v v6 n${
      cells.length}">${cells.join('')}</div></div>`
  }
  return `<section id="detectors" tabindex="-1"><div class="r hd"><h2>Detectors</h2>`
    + `<div class="leg"><span>${
    stroke('ink3', 2)}in</span><span>${stroke('ink', 3)}out</span><span>${patch_of('waitf',
      .7)}falling behind</span>`
    + `<span>${patch_of('calmf', .6)}catching up</span></div><div class="v v6 n${heads.length}">${
    heads.map(h => `<span>${h}</span>`).join('')}</div></div>${D.map(row).join('')}</section>`
}

const BARS_SAY = 'Each bar is a partition, its height the lag; '
  + 'a tick under the line asks for attention.'
const trouble = w => w !== 'ok' && w !== 'unknown'
const log_scale = p => {
  const top = Math.log1p(Math.max(60, top_of(p.lag_s)))
  return h => v => h - .5 - Math.min(1, Math.log1p(Math.max(0, v)) / top) * (h - 1.5)
}
function partition(i, ys) {
  const p = S.partitions, name = p.name[i], s = p.spark.get(name) || fit([], A.n), b = trouble(
    p.state[i])
  const c = b ? TONE[p.state[i]] : 'ink3', fill = {wait: 'waitf', bad: 'badf', roll: 'roll'}[c]
    || 'idle'
  const drawn = P(area(zero(s), s, ys(16)), `fill="var(--${fill})" opacity="${b ? .6 : .35}"`)
    + P(line(s, ys(16)), st(c, b ? 1.5 : 1))
  return `<div class="r part ${b ? 'x' : ''}" data-key="${esc('p-' + name)}"><div class="nm">${
    esc(name)}</div>`
    + `<div class="p">${svg(16, `lag of ${name}: ${dur(p.lag_s[i])}, ${p.state[i]}`,
      drawn)}</div><div class="v v4">`
    + `<span>${word(p.state[i])}</span><span>${now('p' + i, dur(p.lag_s[i]), k =>
      dur(s[k]))}</span><span>${
    num(p.lag_records[i])}</span><span class="dim">${esc(p.owner[i])}</span></div></div>`
}
function wall(ys) { // every partition is a bar, its height the logarithm of its lag
  const p = S.partitions, n = p.name.length, w = $('#sheet')?.clientWidth || 1e3, H = 30, by = {}
  const rows = Math.ceil(n * 4 / w), per = Math.ceil(n / rows), pitch = Math.min(14, w / per),
    b = (pitch - 1).toFixed(1)
  p.state.forEach((s, i) => {
    const x = (i % per * pitch).toFixed(1), foot = (Math.floor(i / per) + 1) * H - 8
    const h = (ok(p.lag_s[i]) ? 2 + 19 - ys(19)(p.lag_s[i]) : 3).toFixed(1)
    const tick = trouble(s) ? `M${x} ${foot + 2}h${b}v4h-${b}z` : ''
    by[s] = (by[s] || '') + `M${x} ${foot}v-${h}h${b}v${h}z` + tick
  })
  const fill = {ok: 'idle', slow: 'wait', stalled: 'badf', stopped: 'bad', rewound: 'roll',
    unknown: 'rule'}
  return `<div class="wall"><svg id="bars" tabindex="0" role="slider" aria-label="all `
    + `partitions: arrow keys to walk, down arrow to the next one in trouble" aria-valuemin="0" `
    + `aria-valuemax="${
      n - 1}" aria-valuenow="${
    picked}" data-css="height:${rows * H}px" data-per="${per}" data-pitch="${pitch}" data-h="${
      H}">${
    Object.entries(by).map(([s, d]) => `<path d="${d}" fill="var(--${fill[s]})"/>`).join(
      '')}</svg><output id="pick">${
    esc(pick_text() || BARS_SAY)}`
    + '</output></div>'
}
function partitions() {
  const p = S.partitions, n = p.name.length, each = n <= 32 && innerWidth > 820 && innerWidth < 1800
  if (!n) return ''
  const most = innerWidth < 1800 ? ROWS : 4, ys = log_scale(p), count = {}
  p.state.forEach(s => count[s] = (count[s] || 0) + 1)
  const bad = [...p.name.keys()].filter(i => trouble(p.state[i]))
    .sort((a, b) => RANK[p.state[a]] - RANK[p.state[b]] || (p.lag_s[b] ?? 0) - (p.lag_s[a] ?? 0))
  const rest = () => P(area(zero(p.ok_max), p.ok_max, ys(16)), 'fill="var(--idle)" opacity=".35"')
    + P(line(p.ok_p50, ys(16)), st('ink3', 1))
  const body = each ? p.name.map((_, i) => partition(i, ys)).join('') : join(
    bad.slice(0, most).map(i => partition(i, ys)).join(''),
    bad.length > most && `<p class="more dim">and ${
      full(bad.length - most)} more in trouble, see the bars</p>`,
    count.ok && `<div class="r part" data-key="others"><div class="nm">${
      bad.length ? full(count.ok) + ' others' : 'all ' + full(count.ok)}</div><div class="p">${
      svg(16, 'highest and median lag of the partitions that are ok',
        rest())}</div><div class="v v4"><span>${
      word('ok')}</span><span>${
        dur(last(p.ok_max))}</span><span class="dim">highest</span><span></span></div></div>`,
    wall(ys))
  return `<section id="partitions" tabindex="-1"><div class="r hd"><h2>Partitions, ${
    full(p.total)}</h2><div `
    + `class="leg">${Object.keys(RANK).filter(s => count[s]).map(s => `<span>${full(count[s])} ${
      word(s)}</span>`)
      .join('')}</div><div class="v v4"><span>state</span><span>lag</span><span>records</span>`
    + `<span>owner</span></div></div>${body}</section>`
}

function pool() {
  const s = S.pool.series, c = S.scorers, u = (v, w) => ok(v) ? `${full(v)} ${w}` : ''
  if (!has(c)) return ''
  const a = s.serving, b = plus(a, s.starting), d = plus(b, s.draining), limit = ok(c.max)
    ? c.max : 0
  const mx = Math.max(1, limit, top_of(d), top_of(a), top_of(s.wanted)), y = v => 98 - v / mx * 94
  const most = Math.max(1, top_of(s.queue_records)), yq = v => 23.5 - v / most * 22
  const sw = f => swatch(`<path d="M0 1h30v12H0z" fill="${f}" stroke="var(--ink3)"/>`)
  const drawn = (limit ? P(`M0 ${y(limit).toFixed(1)}H1000`, st('edge', 1)) : '')
    + P(stairs(zero(a), a, y), 'fill="var(--calmf)" opacity=".75"') + P(stairs(a, b, y),
      'fill="url(#hatch)"')
    + P(stairs(b, d, y), 'fill="url(#dots)"') + P(line(s.wanted, y), st('ink', 1.3,
      'stroke-dasharray="5 3"'))
  const bounds = ok(c.min) && ok(c.max) ? ` of ${c.min}..${c.max}` : ' scorers'
  const thin = (name, label, plot, value, side) => `<div class="r thin"><div class="nm">${
    name}</div><div class="p">${
    svg(24, label, plot)}</div><div class="v v4 pv"><span>${value}</span><span class="dim">${
      side}</span></div></div>`
  return `<section id="pool" tabindex="-1"><div class="r hd"><h2>Scorers</h2>`
    + `<div class="leg"><span>${
    sw('var(--calmf)')}serving</span><span>${sw('url(#hatch)')}starting</span><span>${
      sw('url(#dots)')}draining</span>`
    + `<span>${stroke('ink', 2,
      'stroke-dasharray="5 3"')}wanted</span></div><div></div></div><div class="r pool">`
    + `<div class="nm">${full(c.serving)}${bounds}<small>${
      esc(S.pool.say)}</small></div><div class="p">${
    svg(100, ['serving', 'starting', 'draining'].map(k => `${full(c[k])} ${k}`).join(', '),
      drawn)}<span class="yl" `
    + `data-css="top:-.1rem">${full(mx)}</span></div><div class="v v4 pv"><span>${
    now('sv', full(c.serving) + ' serving', i => full(a[i]) + ' serving')}</span><span class="${
    c.starting ? 'calm' : 'dim'}">${u(c.starting, 'starting')}</span><span class="dim">${
    u(c.draining, 'draining')}</span><span></span></div></div>${join(
      c.busy !== undefined && thin('busy', `busy ${pc(c.busy)}`, (ok(c.busy_target)
        ? P(`M0 ${(23.5 - c.busy_target * 22).toFixed(1)}H1000`, st('edge', 1,
          'stroke-dasharray="2 3"')) : '')
        + P(line(s.busy, v => 23.5 - Math.min(1, v) * 22), st('ink', 1.3)), now('bz', pc(c.busy),
          i => pc(s.busy[i])),
        ok(c.busy_target) ? 'target ' + pc(c.busy_target) : ''),
      c.queue_records !== undefined && thin('queue', `queue ${num(c.queue_records)} records`,
        P(area(zero(s.queue_records), s.queue_records, yq), 'fill="var(--waitf)" opacity=".5"')
        + P(line(s.queue_records, yq), st('ink', 1.2)), now('qu', num(c.queue_records), i =>
          num(s.queue_records[i])),
        'records'))}</section>`
}
function journal() {
  return `<div class="hd"><h2>Journal</h2></div><ol>${S.journal.map(j => `<li class="${
    kind(j.kind)}" data-key="${
    esc('j-' + j.at_ms + j.words)}"><time>${hm(j.at_ms, 1)}</time><span>${
      esc(j.words)}</span></li>`).join('')
    || '<li><span></span><span class="dim">Nothing yet.</span></li>'}</ol>`
}
function flow() {
  if (!S.flow.length) return ''
  return `<h2 class="sr">Topology</h2><ol>${S.flow.map(f => `<li class="${f.held
    ? 'held' : ''}"><b>${
    esc(f.name)}</b> <em>${ok(f.per_s) ? num(f.per_s) + '/s' : ''}${ok(f.per_min) ? num(f.per_min)
      + '/min' : ''}</em>`
    + `<span class="${f.held ? 'wait' : ''}" title="${esc(f.words)}">${f.held ? 'held up: ' : ''}${
    esc(f.words)}</span></li>`).join('')}</ol>`
}
