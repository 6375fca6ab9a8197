/* The page, part 3 of 3: render a snapshot, follow the supervisor, answer keys and pointer. */
'use strict'
function lost_verdict(age) {
  const was = hm(S.at_ms, 1), gone = denied
    ? ' It is no longer let in: reload it, and log in again.' : ''
  return {
    state: 'unknown', words: `no data for ${Math.round(age)} s, it was ${S.verdict.state} at ${
      was}`,
    why: `This page lost its connection to the supervisor.${
      gone} Scoring and alerts do not pass through this page. `
      + `Everything below is as of ${was}.`,
    next: {say: 'Ask the cluster itself:', command: 'raywatch status'},
  }
}
function render() {
  if (!S) return
  const age = (performance.now() - heard) / 1e3 + S.age_s, lost = age > STALE_S, x = S.axis
  A = {n: x.n, step: x.step_s * 1e3, e: x.end_ms, t0: x.end_ms - (x.n - 1) * x.step_s * 1e3,
    t1: x.end_ms}
  if (lost) { // the axis runs on and the gap is hatched
    A.t1 += age * 1e3
    A.t0 += age * 1e3
  }
  const v = lost ? lost_verdict(age) : S.verdict
  document.body.className = 's-' + v.state + (one ? ' one' : '')
  reads = {}
  const t = `${v.state}${S.open ? ` · ${S.open} open` : ''} · ${S.cluster.name || 'raywatch'}`
  if (document.title !== t) document.title = t
  morph($('#bar'), bar(v, age))
  morph($('#top'), verdict(v))
  morph($('#sheet'), lines() + axis() + incidents() + detectors() + partitions() + pool())
  morph($('#journal'), journal())
  morph($('#flow'), flow())
  if (cur != null) for (const e of document.querySelectorAll(
    '[data-r]')) e.textContent = reads[e.dataset.r](cur)
  const s = v.state + ': ' + (lost ? 'connection lost' : v.words ?? '')
  if (s !== said) $('#say').textContent = said = s
}
function accept(raw) {
  const first = !S
  S = shape(raw)
  heard = performance.now()
  denied = false
  if (cur != null && cur >= S.axis.n) cur = null
  for (const id of opened.keys()) if (!S.incidents.some(q => q.id === id)) opened.delete(id)
  render()
  if (first) render() // the second pass knows the widths
}

/* server-sent events where they work, else a poll every 2 s; both carry whole snapshots */
let stream = null
function follow() {
  stream = new EventSource('snapshot/stream')
  stream.onmessage = e => accept(JSON.parse(e.data))
  stream.onerror = () => { if (stream?.readyState === 2) fall_back() }
}
function fall_back() {
  stream?.close()
  stream = null
  poll()
}
async function poll() {
  try {
    const r = await fetch('snapshot.json', {cache: 'no-store', signal: AbortSignal.timeout(5e3)})
    denied = r.status === 401
    if (r.ok) accept(await r.json())
  } catch { /* stays unheard, and turns unknown */ }
  setTimeout(poll, 2e3)
}
setInterval(() => {
  // a stream can be cut without an error (sleep, a proxy): then ask
  if (stream && performance.now() - heard > STALE_S * 1e3) fall_back()
  if (!document.hidden) render()
}, 1e3)
addEventListener('resize', render)
document.addEventListener('visibilitychange', () => { if (!document.hidden) render() })

async function copy(b) {
  if (!b) return
  let how = 'copied'
  try { await navigator.clipboard.writeText(
    b.dataset.copy) } catch { // no secure context: select it
    const r = document.createRange()
    r.selectNodeContents(b.querySelector('code'))
    getSelection().removeAllRanges()
    getSelection().addRange(r)
    how = 'selected'
  }
  const i = b.querySelector('i')
  i.textContent = how
  $('#say').textContent = `${how} ${b.dataset.copy}`
  setTimeout(() => i.textContent = 'copy', 1500)
}
function print_one(id) {
  one = id
  opened.set(id, true)
  render()
  print()
}
addEventListener('afterprint', () => {
  one = null
  render()
})
document.addEventListener('click', e => {
  const b = e.target.closest('[data-copy],[data-tog],[data-print]')
  if (!b) return
  if (b.dataset.copy) copy(b)
  else if (b.dataset.print) print_one(b.dataset.print)
  else {
    opened.set(b.dataset.tog, b.getAttribute('aria-expanded') !== 'true')
    render()
  }
})

/* the time cursor, and one bar of the wall */
function at(i) {
  cur = i == null ? null : Math.max(0, Math.min(A.n - 1, i))
  render()
}
let picked = 0, asked = false
function pick_text() {
  const p = S.partitions, i = picked
  if (!asked || i >= p.name.length) return ''
  return `${p.name[i]} ${p.state[i]}, lag ${dur(p.lag_s[i])}, ${num(p.lag_records[i])} records, ${
    p.owner[i]}`
}
function pick(i) {
  if (!(i >= 0 && i < S.partitions.name.length)) return
  picked = i
  asked = true
  $('#pick').textContent = pick_text()
  $('#bars').setAttribute('aria-valuenow', i)
  $('#bars').setAttribute('aria-valuetext', pick_text())
}
$('#sheet').addEventListener('pointermove', e => {
  if (e.pointerType === 'touch' || !S) return
  const r = $('#axis .p').getBoundingClientRect(), u = (e.clientX - r.left) / r.width
  const i = u < 0 || u > 1 ? null : Math.round((A.t0 + u * (A.t1 - A.t0) - A.e) / A.step) + A.n - 1
  if (i !== cur) at(i)
  const w = e.target.closest('#bars')
  if (!w) return
  const q = w.getBoundingClientRect(), d = w.dataset
  pick(Math.floor((e.clientY - q.top) / d.h) * d.per + Math.floor((e.clientX - q.left) / d.pitch))
})
$('#sheet').addEventListener('pointerleave', () => { if (S) at(null) })

function key_on_axis(e) {
  e.preventDefault()
  at((cur ?? A.n - 1) + (e.key === 'ArrowLeft' ? -1 : 1) * (e.shiftKey ? 10 : 1))
}
function key_on_bars(e) {
  e.preventDefault()
  if (e.key !== 'ArrowDown') return pick(picked + (e.key === 'ArrowLeft' ? -1 : 1))
  const s = S.partitions.state, n = s.length
  const next = [...s.slice(picked + 1), ...s.slice(0, picked + 1)].findIndex(w => w !== 'ok')
  if (next >= 0) pick((picked + 1 + next) % n)
}
const SECTIONS = ['#verdict', '#incidents', '#detectors', '#partitions', '#pool', '#journal',
  '#flow']
document.addEventListener('keydown', e => {
  const k = e.key, h = e.target
  if (!S || e.ctrlKey || e.metaKey || e.altKey || /INPUT|SELECT/.test(h.tagName)) return
  if (h.matches('#axis .p') && /^Arrow[LR]/.test(k)) return key_on_axis(e)
  if (h.id === 'bars' && /^Arrow/.test(k)) return key_on_bars(e)
  if (k === 'Escape') return at(null)
  const l = [...document.querySelectorAll('.inc')], c = l.indexOf(document.activeElement.closest(
    '.inc'))
  if ((k === 'j' || k === 'k') && l.length) {
    const n = l[Math.max(0, Math.min(l.length - 1, c + (k === 'j' ? 1 : -1)))]
    n.focus({preventScroll: true})
    n.scrollIntoView({block: 'nearest'})
  } else if (k === 'c') copy(l[c]?.querySelector('[data-k=e]') || $('#next') || $('.cp'))
  else if (k === 'r' && c >= 0) copy(l[c].querySelector('[data-k=r]'))
  else if (k >= '1' && k <= '7' && $(SECTIONS[k - 1])) {
    const n = $(SECTIONS[k - 1])
    n.tabIndex = -1
    n.focus({preventScroll: true})
    n.scrollIntoView()
  }
})
follow()
