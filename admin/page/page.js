"use strict";
// The status page: it asks for the document once, which also says whether a token is
// wanted, and then follows the server's own stream of it. Whatever ends the stream, it
// begins again.

const cookie = "eventsource_token";
const cookiePath = new URL(".", location.href).pathname;
const pause = 2000; // until it is tried again
const silence = 5000; // after which a stream is given up: a document comes each second
const points = 120; // of a sparkline, one a second
const rowsAtFirst = 12; // of channels
const rowsOfLatest = 8;

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fraction = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const history = { consumers: [], published: [], delivered: [], sent: [] };

let turn = 0; // of attempts: what an earlier one still brings is dropped
let stream = null;
let timer = 0; // the next attempt, or the end of patience
let shown = null; // the document that is on the page
let all = false; // channels are shown

// Connecting

// begin asks for the document and then follows it.
async function begin() {
  stop();
  const mine = turn;
  let answer, body;
  try {
    answer = await fetch("status.json", { cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(silence) });
    body = await answer.json();
  } catch {
    if (mine === turn) lost("The server can’t be reached.");
    return;
  }
  if (mine !== turn) return;
  if (answer.status === 401 || answer.status === 403) return ask(hasToken() ? body.detail : "");
  if (!answer.ok) return lost(body.detail || "The server answers with " + answer.status + ".");
  show(body);
  follow();
}

// follow has each document shown as it comes.
function follow() {
  const s = stream = new EventSource("stream");
  let came = false;
  patience();
  s.addEventListener("status", (e) => {
    came = true;
    patience();
    show(JSON.parse(e.data));
  });
  s.addEventListener("eventsource.end", (e) => ended(JSON.parse(e.data).reason));
  s.onerror = () => {
    if (came) lost("The connection to the server broke.");
    else refused(); // as when no more consumers may come
  };
}

function stop() {
  turn++;
  clearTimeout(timer);
  stream?.close();
  stream = null;
}

function again() {
  stop();
  timer = setTimeout(begin, pause);
}

// patience gives a stream up that is silent.
function patience() {
  clearTimeout(timer);
  timer = setTimeout(() => lost("Nothing came from the server for " + silence / 1000 + " seconds."), silence);
}

function ended(reason) {
  if (reason !== "draining") return begin(); // it says whether a token is wanted
  again();
  stale("wait", "Draining", "The server shuts down. This page comes back when the server does.");
}

function lost(why) {
  again();
  const last = shown ? " Last heard of at " + new Date(shown.reported_at * 1000).toLocaleTimeString([], { hour12: false }) + "." : "";
  stale("bad", "Disconnected", why + last + " Trying again every " + pause / 1000 + " seconds.");
}

// refused goes on without a stream.
function refused() {
  again();
  if (shown) line("wait", "The server has no place for another stream, so this page asks every " + pause / 1000 + " seconds. " + told(shown).text);
}

// Tokens

function hasToken() { return document.cookie.split("; ").some((c) => c.startsWith(cookie + "=")); }

// keep sets the cookie, or ends it, and reports whether it is as it should be.
function keep(token) {
  const secure = location.protocol === "https:" ? "; secure" : "";
  document.cookie = cookie + "=" + token + "; path=" + cookiePath + "; samesite=strict" + secure + (token ? "" : "; max-age=0");
  return !token || document.cookie.split("; ").includes(cookie + "=" + token);
}

// ask shows the form instead of the page, with why the last token was not taken.
function ask(why) {
  stop();
  keep("");
  shown = null;
  $("main").hidden = true;
  $("ask").hidden = false;
  $("forget").hidden = true;
  $("refused").textContent = why ? capital(why) + "." : "";
  $("node").textContent = "";
  state("wait", "Token wanted");
  $("token").value = "";
  $("token").focus();
}

function submit(e) {
  e.preventDefault();
  const token = $("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(token) || /[";\\]/.test(token)) {
    $("refused").textContent = "A cookie can’t hold this token: it has a space, a quote, a semicolon, a backslash or a letter that is not ASCII.";
  } else if (!keep(token)) {
    $("refused").textContent = "The browser does not keep this token in a cookie: it is too long, or cookies are off.";
  } else {
    begin();
  }
}

// Showing

function show(doc) {
  $("ask").hidden = true;
  $("main").hidden = false;
  $("main").removeAttribute("data-stale");
  $("forget").hidden = !hasToken();
  shown = doc;
  const t = told(doc);
  const [kind, name] = { OK: ["ok", "Live"], draining: ["wait", "Draining"] }[doc.status] || ["bad", "Unavailable"];
  state(kind, name);
  line(t.kind, t.text);
  document.title = (t.kind === "ok" ? "" : "! ") + number.format(doc.consumers) + (doc.consumers === 1 ? " consumer" : " consumers") + " · EventSource";
  $("node").textContent = doc.node;
  showNow(doc);
  showFollowed(doc);
  showLatest(doc);
  showRests(doc);
  showNode(doc);
  showCounts(doc);
}

// told is what is wrong, in words.
function told(doc) {
  if (doc.status === "draining") return { kind: "wait", text: "The server shuts down: publishes under way complete." };
  if (doc.backend.state !== "ok") return { kind: "bad", text: "The backend is unavailable, and nothing can be published." };
  const failing = [...doc.sources, ...doc.upstream].filter((s) => s.state === "failing").map((s) => s.name);
  if (failing.length > 0) return { kind: "wait", text: "Not connected: " + failing.join(", ") + "." };
  return { kind: "ok", text: "All is well." };
}

function state(kind, text) {
  $("state").dataset.state = kind;
  set("state", text); // which is read out only when it changes
}

function line(kind, text) {
  $("line").dataset.kind = kind;
  $("line").textContent = text;
}

// stale says that what the page shows is of earlier.
function stale(kind, name, text) {
  $("ask").hidden = true;
  $("main").hidden = false;
  $("main").setAttribute("data-stale", "");
  state(kind, name);
  line(kind, text);
  document.title = name + " · EventSource";
}

function showNow(doc) {
  const rates = doc.rates;
  set("consumers", number.format(doc.consumers));
  set("connects", rates ? rate(rates.connects) + " new a second" : "");
  set("published", rates ? rate(rates.published) : "–");
  set("published-all", number.format(doc.published) + " in all");
  set("delivered", rates ? rate(rates.delivered) : "–");
  set("delivered-all", number.format(doc.delivered) + " in all");
  const [value, unit] = size(rates ? rates.sent_bytes : 0);
  set("sent", rates ? value : "–");
  set("sent-unit", unit + "/s");
  set("sent-all", size(doc.sent_bytes).join(" ") + " in all");
  const now = { consumers: doc.consumers, published: rates?.published, delivered: rates?.delivered, sent: rates?.sent_bytes };
  for (const [name, values] of Object.entries(history)) {
    values.push(now[name] ?? 0);
    if (values.length > points) values.shift();
    draw($("spark-" + name), values);
  }
}

// draw draws a sparkline, the newest at the right.
function draw(svg, values) {
  const top = Math.max(...values, 1);
  const place = values.map((v, i) => (points - values.length + i) + " " + (38.5 - 35 * v / top).toFixed(2));
  const [area, stroke] = svg.children;
  stroke.setAttribute("d", "M" + place.join("L"));
  area.setAttribute("d", "M" + (points - values.length) + " 40L" + place.join("L") + "L" + (points - 1) + " 40Z");
}

function showFollowed(doc) {
  const { top, names, counted_at: at } = doc.followed;
  const rows = all ? top : top.slice(0, rowsAtFirst);
  const most = Math.max(...rows.map((r) => r.consumers), 1);
  fill($("followed").tBodies[0], rows, newRow, (tr, one) => {
    const [name, consumers] = tr.cells;
    setText(name.firstChild, one.channel);
    name.title = one.channel;
    name.style.setProperty("--share", one.consumers / most);
    setText(consumers, number.format(one.consumers));
  });
  $("followed").hidden = rows.length === 0;
  $("followed-none").hidden = rows.length > 0;
  set("followed-none", at === null ? "They are being counted." : names > 0 ? "Only private channels are followed." : "Nobody follows a channel.");
  set("followed-names", at === null || names === 0 ? "" : number.format(names) + " followed" + (doc.reported_at - at > 3 ? ", counted " + span(doc.reported_at - at) + " ago" : ""));
  const others = names - rows.length;
  $("followed-foot").hidden = rows.length === 0 || others === 0 && top.length <= rowsAtFirst;
  $("followed-more").hidden = top.length <= rowsAtFirst;
  set("followed-more", all ? "Show fewer" : "Show " + top.length);
  set("followed-others", others > 0 ? "and " + number.format(others) + " more" : "");
}

function showLatest(doc) {
  const rows = doc.connections.slice(0, rowsOfLatest);
  fill($("latest").tBodies[0], rows, newRow, (tr, one) => {
    const [what, since] = tr.cells;
    const follows = one.namespace.slice(1).replaceAll(",", ", ") || "private channels";
    setText(what.firstChild, follows);
    what.title = follows;
    setText(since, span(doc.reported_at - one.created_at));
  });
  $("latest").hidden = rows.length === 0;
  $("latest-none").hidden = rows.length > 0;
}

function showRests(doc) {
  const backend = { ...doc.backend, name: doc.backend.kind || "backend", kind: "Backend", numbers: { "events kept here": doc.history_events } };
  const sources = doc.sources.map((s) => ({ ...s, kind: "Source", numbers: { published: s.published, repeated: s.duplicates, refused: sum(s.refusals) } }));
  const brokers = doc.upstream.map((u) => ({ ...u, kind: "Broker" }));
  fill($("rests"), [backend, ...sources, ...brokers], newRest, (li, one) => {
    const [name, how, numbers, why] = li.children;
    li.dataset.kind = one.state === "ok" ? "ok" : one.state === "connecting" ? "wait" : "bad";
    setText(name, one.name);
    setText(how, one.state + (one.since ? " for " + span(doc.reported_at - Date.parse(one.since) / 1000) : ""));
    setText(numbers, [one.kind, ...Object.entries(one.numbers || {}).map(([k, n]) => number.format(n) + " " + k.replaceAll("_", " "))].join(" · "));
    setText(why, one.reason || "");
    why.hidden = !one.reason;
  });
  $("rests-none").hidden = sources.length + brokers.length > 0;
}

function showNode(doc) {
  set("uptime", span(doc.uptime));
  set("version", doc.build.version || "–");
  $("version").title = "commit " + doc.build.commit + ", " + doc.build.go;
  set("memory", size(doc.memory_bytes).join(" "));
  set("channels", number.format(doc.channels));
  set("kept", number.format(doc.history_events));
  set("kept-bytes", size(doc.history_bytes).join(" "));
  set("mark", number.format(doc.mark));
  set("relayed", number.format(Math.max(0, doc.relayed - doc.watchers)));
  set("watchers", number.format(doc.watchers));
}

// What was refused or ended, in words. Who just went, or was sent away by a shutdown,
// is nothing to look at.
const endings = {
  slow: "Ended: too slow", noisy: "Ended: sent what none sends", revoked: "Ended: token revoked", expired: "Ended: token expired", closed: "Ended: by an administrator",
};
const statuses = { 400: "Bad request", 401: "No token", 403: "Not allowed", 404: "Not found", 405: "Wrong verb", 413: "Too large", 415: "Wrong type", 422: "Key used twice", 429: "Too many", 500: "Failed", 503: "Unavailable" };

function showCounts(doc) {
  const rows = [
    ...Object.entries(doc.refusals).map(([status, n]) => ["Refused: " + status + " " + (statuses[status] || ""), n]),
    ...Object.entries(doc.limited).map(([limit, n]) => ["Of them by " + limit, n]),
    ...Object.entries(endings).map(([reason, text]) => [text, doc.disconnects[reason]]),
    ["Told of a gap", doc.gaps],
  ].filter(([, n]) => n > 0);
  fill($("counts"), rows, newPair, (div, [text, n]) => {
    setText(div.firstChild, text);
    setText(div.lastChild, number.format(n));
  });
  $("counts-none").hidden = rows.length > 0;
}

// Rows, which are used again: nothing flickers, and what is selected stays so

function fill(parent, items, make, write) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, i) => write(parent.children[i], item));
}

function newRow() {
  const tr = document.createElement("tr"), what = document.createElement("td");
  what.append(document.createElement("span"));
  tr.append(what, document.createElement("td"));
  return tr;
}

function newRest() {
  const li = document.createElement("li"), how = document.createElement("span"), numbers = document.createElement("p"), why = document.createElement("p");
  how.className = "how";
  numbers.className = "soft";
  why.className = "why";
  li.append(document.createElement("b"), how, numbers, why);
  return li;
}

function newPair() {
  const div = document.createElement("div");
  div.append(document.createElement("dt"), document.createElement("dd"));
  return div;
}

function set(id, text) { setText($(id), text); }
function setText(e, text) { if (e.textContent !== text) e.textContent = text; }

// Numbers in words

function rate(n) { return (n < 10 ? fraction : number).format(n); }
function sum(counts) { return Object.values(counts || {}).reduce((a, b) => a + b, 0); }
function capital(text) { return text.charAt(0).toUpperCase() + text.slice(1); }

// size returns a number of bytes with its unit.
function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; bytes >= 1000 && i < units.length - 1; i++) bytes /= 1024;
  return [(i > 0 && bytes < 100 ? fraction : number).format(bytes), units[i]];
}

// span returns seconds as a person says them.
function span(seconds) {
  const s = Math.max(0, Math.round(seconds)), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  if (d > 0) return d + " d " + h % 24 + " h";
  if (h > 0) return h + " h " + m % 60 + " min";
  if (m > 0) return m + " min " + s % 60 + " s";
  return s + " s";
}

$("ask").addEventListener("submit", submit);
$("forget").addEventListener("click", () => { keep(""); ask(""); });
$("followed-more").addEventListener("click", (e) => {
  all = !all;
  e.target.setAttribute("aria-expanded", String(all));
  if (shown) showFollowed(shown);
});
begin();
