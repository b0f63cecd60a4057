"use strict";
// Draws the tree of a run. All texts of the run reach the page as text nodes; nothing is built from markup. A node is
// drawn when it is opened, and long lists a page at a time, so that a run of thousands of events opens at once.
(() => {
  const run = JSON.parse(document.getElementById("run").textContent);
  const find = (id) => document.getElementById(id);
  const tree = find("tree");
  const PAGE = 100;
  const ROWS = 60, HEAD = 30, TAIL = 15, WIDEST = 8000; // lines and characters of a text that is shown as a whole
  const OPENED = 12; // matches that a search opens by itself

  // -- the tree -----------------------------------------------------------------------------------------------------

  const nodes = new Map(), drawn = new Map(), lists = new Map(), shares = new Map(), fillers = new WeakMap();
  const order = [];
  const ROOT = { kind: "run", id: "", kids: run.items, use: run.use, s: run.s };

  // Many calls of one function stand in a group of their own.
  function grouped(cell) {
    const named = new Map();
    for (const kid of cell.kids.filter((one) => one.kind === "call")) {
      if (!named.has(kid.name)) named.set(kid.name, []);
      named.get(kid.name).push(kid);
    }
    const few = (kid) => kid.kind !== "call" || named.get(kid.name).length <= 5;
    const first = (kid) => named.get(kid.name)[0] === kid;
    return cell.kids.filter((kid) => few(kid) || first(kid)).map((kid) => (few(kid) ? kid : group(cell, kid.name, named.get(kid.name))));
  }

  function group(cell, name, calls) {
    const use = [0, 0, 0, 0, 0];
    for (const call of calls) (call.use || []).forEach((n, i) => { use[i] = n === null || use[i] === null ? null : use[i] + n; });
    return { kind: "group", id: `${cell.id}/${name}`, name, kids: calls, use, s: calls.reduce((sum, call) => sum + call.s, 0) };
  }

  (function index(node, top) {
    node.kids ||= [];
    if (node.kind === "cell" || node.kind === "own") node.kids = grouped(node);
    for (const kid of node.kids) {
      kid.above = node;
      kid.top = top || kid;
      nodes.set(kid.id, kid);
      order.push(kid);
      index(kid, kid.top);
    }
  })(ROOT, null);

  // -- elements -----------------------------------------------------------------------------------------------------

  function el(tag, kind, ...kids) {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    element.append(...kids);
    return element;
  }

  let wanted = null; // what the search looks for, as a regular expression

  // A text with the matches of the search in it marked.
  function words(text) {
    const part = document.createDocumentFragment();
    let at = 0;
    if (wanted) {
      for (const match of text.matchAll(wanted)) {
        part.append(text.slice(at, match.index), el("mark", "", match[0]));
        at = match.index + match[0].length;
      }
    }
    part.append(text.slice(at));
    return part;
  }

  const count = (n, thing) => `${n.toLocaleString("en-US")} ${thing}${n === 1 ? "" : "s"}`;
  const whole = (n) => n.toLocaleString("en-US");
  const line = (text) => (text || "").slice(0, 600).split("\n").map((one) => one.trim()).find(Boolean) || "";

  function tokens(n) {
    return n < 1e5 ? whole(n) : n < 1e6 ? `${Math.round(n / 1e3)}k` : `${(n / 1e6).toFixed(2)}M`;
  }

  function dollars(cost) {
    if (cost === null) return "?";
    return cost === 0 ? "$0" : cost < 0.0001 ? "<$0.0001" : cost < 10 ? `$${cost.toFixed(4)}` : `$${cost.toFixed(2)}`;
  }

  function seconds(s) {
    if (s < 0.9995) return s < 0.0005 ? "0 ms" : `${Math.round(s * 1000)} ms`;
    if (s < 59.95) return `${s.toFixed(1)} s`;
    const whole = Math.round(s), two = (n) => String(n).padStart(2, "0");
    const [h, m] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
    return h ? `${h}:${two(m)}:${two(whole % 60)}` : `${m}:${two(whole % 60)}`;
  }

  function bytes(n) {
    return n < 1000 ? `${n} B` : n < 1e6 ? `${(n / 1e3).toFixed(1)} kB` : n < 1e9 ? `${(n / 1e6).toFixed(1)} MB` : `${(n / 1e9).toFixed(2)} GB`;
  }

  // -- shares -------------------------------------------------------------------------------------------------------

  let measure = run.use[4] ? "cost" : run.s ? "time" : "tokens";

  function amount(node) {
    const use = node.use || [0, 0, 0, 0, 0];
    return measure === "time" ? node.s : measure === "cost" ? use[4] || 0 : use[1] + use[3];
  }

  function bar(node) {
    const fill = el("i"), element = el("span", "bar", fill);
    const draw = () => {
      const all = amount(node.above === ROOT ? ROOT : node.top);
      const share = all > 0 ? Math.min(1, amount(node) / all) : 0;
      element.classList.toggle("none", share === 0);
      fill.style.width = share > 0 ? `max(2px, ${(share * 100).toFixed(1)}%)` : "0";
      element.title = `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} % of the ${node.above === ROOT ? "run" : "turn"}'s ${measure}`;
    };
    draw();
    shares.set(element, draw);
    return element;
  }

  function figures(node) {
    if (NOTES.has(node.kind)) return [el("span", "bar-none"), el("span", "figure"), el("span", "figure"), el("span", "figure")];
    const used = node.use && (node.use[1] || node.use[3] || node.use[0]);
    const size = el("span", "figure", used ? tokens(node.use[1] + node.use[3]) : "");
    const cost = el("span", "figure", used ? dollars(node.use[4]) : "");
    if (used) {
      size.title = `${whole(node.use[1])} tokens in, ${whole(node.use[2])} of them cached, ${whole(node.use[3])} out; ${count(node.use[0], "request")}`;
      if (node.use[4] === null) cost.title = "the price of a model is unknown";
    }
    const time = el("span", "figure", (node.kind === "group" ? "Σ " : "") + seconds(node.s));
    if (node.kind === "group") time.title = "of all calls, added up; they may have run at the same time";
    return [bar(node), size, cost, time];
  }

  // -- rows ---------------------------------------------------------------------------------------------------------

  const NOTES = new Set(["context", "checkpoint", "restored", "resumed", "forked", "rewound"]);
  const name = (text, kind) => el("span", `name ${kind || ""}`, text);
  const gist = (text, kind) => el("span", `gist ${kind || ""}`, words(text));
  const came = (text, kind) => el("span", `came ${kind || ""}`, words(text));
  const chip = (text, kind) => el("span", `chip ${kind}`, text);

  const ENDS = { stopped: "warn", failed: "bad", unfinished: "warn" };

  // The first line of code that says something.
  function firstLine(code) {
    const lines = (code || "").slice(0, 4000).split("\n").map((one) => one.trim()).filter(Boolean);
    return lines.find((one) => !/^(#|import |from )/.test(one)) || lines[0] || "";
  }

  // The code that a reply begins with, for a cell that left none in the log.
  const written = (reply) => (/^[ \t]*(?:`{3,}|~{3,})[^\n]*\n([^]*)/m.exec(reply || "") || [])[1];

  const cells = (node) => node.kids.filter((kid) => kid.kind === "cell");

  function outcome(cell) {
    if (cell.state === "unfinished") return came("did not end", "warn");
    if (cell.state === "failed") return came((cell.err || "").trim().split("\n").pop() || cell.error, "bad");
    const said = line(cell.out) || (cell.answer ? `answer: ${line(cell.answer)}` : "");
    return said ? came(`→ ${said}`) : "";
  }

  function calls(cell) {
    const named = new Map();
    for (const kid of cell.kids) {
      if (kid.kind === "group") named.set(kid.name, kid.kids.length);
      if (kid.kind === "call") named.set(kid.name, (named.get(kid.name) || 0) + 1);
    }
    const said = [...named].map(([one, n]) => (n === 1 ? one : `${one} × ${whole(n)}`)).join(", ");
    return said ? el("span", "name called", said) : "";
  }

  const title = {
    turn: (node) => [
      name(`Turn ${node.n ?? node.id}`),
      gist(line(node.question) || line(node.about) || "The task is in the input"),
      node.state in ENDS ? chip(node.state, ENDS[node.state]) : "",
      node.dropped ? chip("dropped", "warn") : "",
    ],
    own: (node) => [name("Your cell"), gist(firstLine(node.code), "mono"), calls(node), outcome(node), node.dropped ? chip("dropped", "warn") : ""],
    iteration(node) {
      const label = name(node.purpose === "final" ? "Final" : `${node.n}`);
      const [first, ...more] = cells(node);
      if (!first) return [label, gist(line(node.reply) || "(an empty reply)")];
      const failed = cells(node).find((cell) => cell.state !== "ok");
      return [label, gist(firstLine(first.code || written(node.reply)), "mono"), more.length ? name(`+ ${count(more.length, "cell")}`) : "", calls(first), outcome(failed || more.at(-1) || first)];
    },
    cell: (node) => [name(`Cell ${node.n}`), mark(node), calls(node)],
    call: (node) => [
      name(node.name, "called"), gist(line(node.prompt)),
      node.state === "failed" ? came(line(node.error), "bad") : node.state === "unfinished" ? came("no answer", "warn") : came(`→ ${line(node.value)}`),
    ],
    group(node) {
      const failed = node.kids.filter((kid) => kid.state === "failed").length;
      return [name(`${node.name} × ${whole(node.kids.length)}`, "called"), gist(line(node.kids[0].prompt)), failed ? chip(`${whole(failed)} failed`, "bad") : ""];
    },
    context: (node) => [name(`context_${node.index ?? 0}`, "mono"), gist(`${node.type}${node.size === undefined ? "" : `, ${whole(node.size)} long`}${node.name ? `, also ${node.name}` : ""}`)],
    checkpoint(node) {
      const heap = run.heaps[node.heap];
      const saved = (heap.saved || []).flatMap((one) => one.names.filter((each) => each && each !== "answer"));
      const size = (heap.saved || []).reduce((sum, one) => sum + one.size, 0);
      const lost = Object.keys(heap.lost || {});
      return [
        name("Saved"),
        gist(saved.length ? `${count(saved.length, "name")}, ${bytes(size)}: ${saved.slice(0, 12).join(", ")}${saved.length > 12 ? ", …" : ""}` : "nothing new"),
        lost.length ? chip(`${whole(lost.length)} not saved`, "bad") : "",
      ];
    },
    restored(node) {
      const lost = Object.keys(node.lost || {}).length;
      const cells = [node.rerun && `, ${count(node.rerun, "cell")} run again`, node.skipped && `, ${count(node.skipped, "cell")} not run again`];
      return [name("Restored"), gist(`${count(node.live || 0, "name")} live${cells.filter(Boolean).join("")}`), lost ? chip(`${whole(lost)} lost`, "bad") : "", node.diverged ? chip(`${whole(node.diverged)} diverged`, "warn") : ""];
    },
    resumed: (node) => [name("Resumed"), gist("The unfinished turn goes on in a new process")],
    forked: (node) => [name("Forked"), gist(`What stands above is a copy of ${node.source}${node.turn === undefined ? "" : `, up to the end of turn ${node.turn}`}`)],
    rewound: (node) => [name("Rewound"), gist(node.turn === undefined || node.turn === null ? "Back to the beginning" : `Back to the end of turn ${node.turn}`)],
  };

  function mark(cell) {
    if (cell.state === "unfinished") return chip("did not end", "warn");
    return cell.state === "failed" ? chip(cell.error, "bad") : "";
  }

  const href = (id) => `#${encodeURIComponent(id).replaceAll("%2F", "/").replaceAll("%3A", ":")}`;

  function row(node) {
    const kind = NOTES.has(node.kind) || !title[node.kind] ? "note" : "";
    const details = el("details", `node ${node.kind} ${kind} ${node.dropped ? "dropped" : ""}`);
    details.id = `at:${node.id}`; // not the anchor itself, to which the browser would jump before there is anything
    const said = title[node.kind] ? title[node.kind](node) : [name(node.kind)];
    const link = el("a", "link", "#");
    link.href = href(node.id);
    link.title = `Link to ${node.id}`;
    link.tabIndex = -1;
    details.append(el("summary", "", el("span", "what", ...said, link), ...figures(node)));
    if (!body[node.kind]) details.classList.add("leaf");
    filled(details, () => fill(node));
    drawn.set(node, details);
    return details;
  }

  // What a row holds is made when it is opened, whoever opens it.
  function filled(details, fill) {
    fillers.set(details, fill);
    details.addEventListener("toggle", () => details.open && fill());
  }

  function fill(node) {
    const details = drawn.get(node);
    if (details.children.length > 1 || !body[node.kind]) return;
    const inside = el("div", "body");
    details.append(inside);
    body[node.kind](node, inside);
  }

  // -- what a row holds ---------------------------------------------------------------------------------------------

  const body = {
    turn(node, into) {
      const meta = [node.began, node.model, node.isolation && `isolation ${node.isolation}`, node.key && `key ${node.key}`];
      if (node.contexts !== undefined) meta.push(count(node.contexts, "context"));
      if (node.histories) meta.push(count(node.histories, "earlier history").replace("historys", "histories"));
      if (node.uncertain) meta.push(`${count(node.uncertain, "request")} may have been paid twice`);
      into.append(el("p", "meta", meta.filter(Boolean).join(" · ")));
      const asked = node.question || node.about;
      if (asked && (asked.length > 100 || asked.includes("\n"))) into.append(block("Question", asked, "said"));
      if (node.told) into.append(block("Told at the start", node.told.join("\n"), "said"));
      if (node.schema) into.append(fold("Schema of the answer", () => block("", node.schema, "wrap")));
      list(node, into);
      if (node.answer !== undefined) into.append(block("Answer", node.answer, "said answer"));
      else if (node.state !== "answered") into.append(block(endOf(node), node.message || "", `said answer ${ENDS[node.state] || ""}`));
      if (node.partial) into.append(block("Partial answer", node.partial, "said"));
      into.append(variables(node));
    },
    own(node, into) {
      theCell(node, into);
      into.append(variables(node));
    },
    iteration(node, into) {
      const own = cells(node), said = own.length ? beside(node.reply || "", own) : node.reply || "(an empty reply)";
      const meta = [node.model, node.asking !== undefined && `the model took ${seconds(node.asking)}`];
      const folds = el("div", "folds", el("p", "meta", meta.filter(Boolean).join(" · ")));
      if (own.length) folds.append(fold("Whole reply", () => block("", node.reply || "", "wrap")));
      if (node.sent) folds.append(fold(`Sent: ${count(node.sent.length, "message")}`, () => el("div", "", ...node.sent.map(([role, text]) => block(role, run.messages[text], "wrap")))));
      into.append(folds);
      if (said) into.append(block("", said, "said"));
      list(node, into);
      for (const cell of visible(node)) if (drawn.has(cell) && (cell.kind === "cell")) open(cell);
    },
    cell: theCell,
    call(node, into) {
      if (node.model) into.append(el("p", "meta", node.model));
      if (node.prompt) into.append(block("Prompt", node.prompt, "wrap"));
      list(node, into);
      if (node.error !== undefined) into.append(block(`Failed${node.reason ? `: ${node.reason}` : ""}`, node.error, "wrap error"));
      else if (node.attempted && node.state === "unfinished") into.append(el("p", "meta warn", "Nobody knows whether it took effect: it was made, and its answer is not in the log."));
      else if (node.value !== undefined) into.append(block("Value", node.value, "wrap output"));
    },
    group(node, into) {
      const failed = node.kids.filter((kid) => kid.state === "failed").length;
      list(node, into, !kept && failed && failed < node.kids.length ? { name: `Only the ${whole(failed)} that failed`, keep: (kid) => kid.state === "failed" } : null);
    },
    context(node, into) {
      into.append(node.preview ? block("", node.preview, "wrap") : el("p", "meta", "The log holds no preview of it."));
    },
    checkpoint(node, into) {
      const heap = run.heaps[node.heap];
      const meta = [`after ${count(node.cells, "cell")}`, heap.on === null ? "stands alone" : "adds to the one before", heap.whole && "everything was looked at", heap.seconds && `took ${seconds(heap.seconds)}`, heap.pause && `cells waited ${seconds(heap.pause)}`];
      into.append(el("p", "meta", meta.filter(Boolean).join(" · ")));
      const rows = [...fold1(new Map(), heap).values()].filter((one) => one.name !== "answer");
      if (rows.length) into.append(names(rows));
      for (const [label, gone] of [["No more there", heap.gone], ["Found only by looking at everything", heap.caught], ["Files that are no more", heap.files_gone]]) {
        if (gone) into.append(block(label, gone.join(", "), "wrap said"));
      }
      const files = [...Object.entries(heap.files || {}).map(([path, size]) => ({ name: path, type: "file", size, note: "" })), ...losses(heap.files_lost)];
      if (files.length) into.append(names(files));
    },
    restored(node, into) {
      const meta = [`checkpoint after ${count(node.cells || 0, "cell")}`, node.diverged && `${count(node.diverged, "cell")} did something else than the first time`];
      into.append(el("p", "meta", meta.filter(Boolean).join(" · ")));
      if (node.lost) into.append(names(losses(node.lost)));
    },
  };

  function endOf(node) {
    if (node.state === "unfinished") return "Unfinished: the log ends before the turn does";
    return `${node.state === "stopped" ? "Stopped" : "Failed"}: ${node.why || ""}`;
  }

  function theCell(node, into) {
    if (node.code) into.append(block("", node.code, "code"));
    else if (node.state === "unfinished") into.append(el("p", "meta", "The cell did not end; its code stands in the reply above."));
    list(node, into);
    if (node.out) into.append(block("Output", node.out, "wrap output"));
    if (node.err) into.append(block(node.state === "failed" ? "Error" : "Standard error", node.err, node.state === "failed" ? "wrap error" : "wrap output"));
    if (node.answer !== undefined) into.append(block("Submitted", node.answer, "said"));
    if (node.restarted) into.append(el("p", "meta warn", "The worker was lost with this cell; a new one took its place."));
  }

  // What a reply says beside the code of its cells.
  function beside(reply, own) {
    const flat = (text) => text.split("\n").map((one) => one.trim()).filter(Boolean).join("\n");
    const codes = new Set(own.map((cell) => flat(cell.code || "")));
    const fenced = /^[ \t]*(`{3,}|~{3,})[^\n]*\n([^]*?)(?:\n[ \t]*\1[`~]*[ \t]*(?=\n|$)|$(?![^]))/gm;
    return reply.replace(fenced, (all, _, code) => (codes.has(flat(code)) ? "" : all)).replace(/\n{3,}/g, "\n\n").trim();
  }

  // A text under a label; of a long one the beginning and the end, until all of it is asked for.
  function block(label, text, kind) {
    const pre = el("pre"), element = el("div", `block ${kind}`);
    if (label) element.append(el("div", "label", label));
    element.append(pre);
    const paint = kind === "code" ? coloured : words;
    const lines = text.split("\n");
    const hit = wanted && text.search(wanted) >= 0;
    if (hit || (lines.length <= ROWS && text.length <= WIDEST)) {
      pre.append(paint(text));
      return element;
    }
    const head = lines.slice(0, HEAD).join("\n").slice(0, WIDEST / 2), tail = lines.slice(-TAIL).join("\n").slice(-WIDEST / 4);
    const cut = el("button", "", lines.length > ROWS ? `Show all ${whole(lines.length)} lines` : `Show all ${whole(text.length)} characters`);
    cut.type = "button";
    cut.addEventListener("click", () => pre.replaceChildren(paint(text)));
    pre.append(paint(head), el("span", "cut", cut), paint(tail));
    return element;
  }

  function fold(label, make) {
    const details = el("details", "fold", el("summary", "", label));
    filled(details, () => details.children.length === 1 && details.append(make()));
    return details;
  }

  const PYTHON = /(#[^\n]*)|([rbfuRBFU]{0,2}(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?))|\b(and|as|assert|async|await|break|class|continue|def|del|elif|else|except|False|finally|for|from|global|if|import|in|is|lambda|None|nonlocal|not|or|pass|raise|return|True|try|while|with|yield)\b|\b(llm_query(?:_batched)?|rlm_query(?:_batched)?|SHOW_VARS|answer|(?:context|history)(?:_\d+)?)\b|\b(\d[\d_.]*(?:e[+-]?\d+)?)\b/g;

  function coloured(code) {
    if (wanted && code.search(wanted) >= 0) return words(code);
    const part = document.createDocumentFragment();
    let at = 0;
    for (const match of code.matchAll(PYTHON)) {
      const kind = "cskfn"[match.slice(1).findIndex((one) => one !== undefined)];
      part.append(code.slice(at, match.index), el("span", kind, match[0]));
      at = match.index + match[0].length;
    }
    part.append(code.slice(at));
    return part;
  }

  // -- variables ----------------------------------------------------------------------------------------------------

  const losses = (lost) => Object.entries(lost || {}).map(([key, [type, reason, repr]]) => ({ name: key, type, lost: true, note: repr ? `${reason} · ${repr}` : reason }));

  // The names after a change of the namespace.
  function fold1(known, heap) {
    const put = (one) => { known.delete(one.name); known.set(one.name, one); };
    for (const gone of heap.gone || []) known.delete(gone);
    for (const { names: all, types, size, definition } of heap.saved || []) {
      all.forEach((one, i) => {
        const others = all.filter((other) => other && other !== one);
        const note = [others.length ? `shares objects with ${others.slice(0, 8).join(", ")}${others.length > 8 ? ", …" : ""}` : "", definition ? "defined in the session" : ""];
        if (one) put({ name: one, type: types[i] || "", size, note: note.filter(Boolean).join(" · ") });
      });
    }
    for (const [one, module] of Object.entries(heap.modules || {})) put({ name: one, type: "module", note: module === one ? "" : module });
    for (const [one, given] of Object.entries(heap.given || {})) put({ name: one, type: "given by the host", note: given === one ? "" : given });
    for (const one of losses(heap.lost)) put(one);
    return known;
  }

  function variables(node) {
    if (node.heap === undefined) return el("p", "meta", run.heaps.length ? "No checkpoint of the variables came before this." : "");
    const chain = [];
    for (let i = node.heap; i !== null && i !== undefined; i = run.heaps[i].on) chain.unshift(i);
    const known = new Map(), fresh = new Set();
    const before = chain.indexOf(node.since);
    chain.forEach((i, n) => {
      fold1(known, run.heaps[i]);
      if (n > before && node.since !== node.heap) fold1(new Map(), run.heaps[i]).forEach((_, key) => fresh.add(key));
    });
    known.delete("answer"); // which every turn begins anew
    const rows = [...known.values()].sort((a, b) => fresh.has(b.name) - fresh.has(a.name) || (a.name < b.name ? -1 : 1));
    const lost = rows.filter((one) => one.lost).length, changed = rows.filter((one) => fresh.has(one.name)).length;
    const said = [count(rows.length, "name"), changed && `${whole(changed)} new or changed`, lost && `${whole(lost)} lost`];
    const panel = fold(`Variables after this ${node.kind === "own" ? "cell" : "turn"}: ${said.filter(Boolean).join(", ")}`, () => names(rows, fresh));
    panel.classList.add("variables");
    return panel;
  }

  function names(rows, fresh = new Set()) {
    const box = el("div", "names");
    paged(box, rows, PAGE, (some) => {
      const cell = (kind, ...kids) => el("td", kind, ...kids);
      const head = el("tr", "", ...["Name", "Type", "Bytes", ""].map((one) => el("th", one === "Bytes" ? "number" : "", one)));
      const lines = some.map((one) => el("tr", "",
        cell("mono", words(one.name)), cell("mono", one.type), cell("number", one.size === undefined ? "" : bytes(one.size)),
        cell(one.lost ? "bad" : "", [one.lost ? "lost" : fresh.has(one.name) ? "new or changed" : "", one.note].filter(Boolean).join(" · "))));
      return [el("div", "table", el("table", "", el("thead", "", head), el("tbody", "", ...lines)))];
    });
    return box;
  }

  // -- lists --------------------------------------------------------------------------------------------------------

  let kept = null; // nodes that a search leaves, with those above them

  function visible(node) {
    if (!kept) return node.kids;
    const some = node.kids.filter((kid) => kept.has(kid));
    return some.length || node === ROOT ? some : node.kids;
  }

  function list(node, into, filter = null) {
    const box = el("div", "list");
    into.append(box);
    const shown = visible(node);
    const show = (some) => { lists.set(node, { all: some, go: paged(box, some, PAGE, (few) => few.map(row), filter && toggle) }); };
    let only = false;
    const toggle = el("button", "", filter ? filter.name : "");
    toggle.type = "button";
    toggle.setAttribute("aria-pressed", "false");
    toggle.addEventListener("click", () => {
      only = !only;
      toggle.textContent = only ? `All ${whole(shown.length)}` : filter.name;
      show(only ? shown.filter(filter.keep) : shown);
    });
    show(shown);
  }

  // Draws a page of items into the box; returns a function that goes to the page of the item at an index.
  function paged(box, items, size, draw, extra = null) {
    const pages = Math.ceil(items.length / size);
    const go = (page) => {
      const some = items.slice(page * size, (page + 1) * size);
      const bar = el("div", "pager");
      if (extra) bar.append(extra);
      if (pages > 1) {
        const step = (label, to) => {
          const button = el("button", "", label);
          button.type = "button";
          button.disabled = to < 0 || to >= pages;
          button.addEventListener("click", () => go(to));
          return button;
        };
        const range = `${whole(page * size + 1)}–${whole(page * size + some.length)} of ${whole(items.length)}`;
        bar.append(step("First", page ? 0 : -1), step("Previous", page - 1), el("span", "", range), step("Next", page + 1), step("Last", page < pages - 1 ? pages - 1 : -1));
      }
      box.replaceChildren(...(bar.children.length ? [bar] : []), ...draw(some));
      box.page = page;
    };
    go(0);
    return (index) => Math.floor(index / size) !== box.page && go(Math.floor(index / size));
  }

  // -- opening ------------------------------------------------------------------------------------------------------

  function open(node) {
    fill(node);
    drawn.get(node).open = true;
  }

  // Draws a node and all above it, which are opened; returns its element.
  function reach(node) {
    if (node.above !== ROOT) {
      reach(node.above);
      open(node.above);
    }
    const { all, go } = lists.get(node.above);
    go(all.indexOf(node));
    return drawn.get(node);
  }

  function show(node, focus) {
    document.querySelectorAll(".here").forEach((one) => one.classList.remove("here"));
    const details = reach(node);
    open(node);
    details.classList.add("here");
    details.scrollIntoView({ block: "start" });
    if (focus) details.firstElementChild.focus({ preventScroll: true });
  }

  function byHash() {
    let id = "";
    try {
      id = decodeURIComponent(location.hash.slice(1));
    } catch { return; }
    while (id && !nodes.has(id)) id = id.slice(0, Math.max(0, id.lastIndexOf("/")));
    if (!id) return;
    if (kept && !kept.has(nodes.get(id))) search("");
    show(nodes.get(id), true);
  }

  function draw() {
    drawn.clear();
    lists.clear();
    shares.clear();
    const heads = el("div", "heads", el("span"), el("span"), el("span", "share", "Share"), el("span", "", "Tokens"), el("span", "", "Cost"), el("span", "", "Time"));
    tree.replaceChildren(heads);
    if (!run.items.length) tree.append(el("p", "word", "The log is empty."));
    list(ROOT, tree);
  }

  // -- search -------------------------------------------------------------------------------------------------------

  const query = find("query"), found = find("found");
  let matches = [], current = -1;

  function text(node) {
    if (node.hay !== undefined) return node.hay;
    const heap = node.kind === "checkpoint" ? Object.keys(Object.fromEntries(fold1(new Map(), run.heaps[node.heap]))) : [];
    const parts = [node.question, node.about, ...(node.told || []), node.reply, node.code, node.out, node.err, node.answer, node.message, node.partial, node.why, node.prompt, node.value, node.kind === "call" ? node.name : "", node.error, node.key, node.preview, ...heap, ...Object.keys(node.lost || {}), node.id];
    return (node.hay = parts.filter(Boolean).join("\n"));
  }

  function search(said) {
    query.value = said;
    wanted = said.trim() ? new RegExp(said.trim().replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi") : null;
    matches = wanted ? order.filter((node) => node.kind !== "group" && text(node).search(wanted) >= 0) : [];
    kept = wanted ? new Set() : null;
    current = -1;
    for (let node of matches) for (; node && node !== ROOT && !kept.has(node); node = node.above) kept.add(node);
    draw();
    for (const node of matches.slice(0, OPENED)) {
      reach(node);
      open(node);
    }
    say();
  }

  function say() {
    const at = current >= 0 ? `${whole(current + 1)} of ` : "";
    found.textContent = wanted ? (matches.length ? at + count(matches.length, "match").replace("matchs", "matches") : "no match") : "";
    find("previous").hidden = find("next").hidden = matches.length === 0;
  }

  function step(by) {
    if (!matches.length) return;
    current = current < 0 ? (by > 0 ? 0 : matches.length - 1) : (current + by + matches.length) % matches.length;
    show(matches[current], false);
    say();
  }

  let waiting = 0;
  query.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => search(query.value), 150);
  });
  query.addEventListener("keydown", (event) => {
    if (event.key === "Escape") search("");
    if (event.key !== "Enter") return;
    event.preventDefault();
    clearTimeout(waiting);
    if (!wanted || wanted.source !== query.value.trim().replace(/[.*+?^${}()|[\]\\]/g, "\\$&")) search(query.value);
    step(event.shiftKey ? -1 : 1);
  });
  find("next").addEventListener("click", () => step(1));
  find("previous").addEventListener("click", () => step(-1));
  find("tools").addEventListener("submit", (event) => event.preventDefault());

  // -- keys and buttons ---------------------------------------------------------------------------------------------

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      query.focus();
      query.select();
      return;
    }
    const summary = event.target.closest && event.target.closest("#tree summary");
    const details = summary && summary.parentElement;
    if (!summary || event.target !== summary) return;
    const rows = () => [...tree.querySelectorAll("summary")].filter((one) => !one.parentElement.parentElement.closest("details:not([open])"));
    const move = (by) => { const all = rows(); return all[all.indexOf(summary) + by]; };
    let to = null;
    if (event.key === "ArrowDown") to = move(1);
    else if (event.key === "ArrowUp") to = move(-1);
    else if (event.key === "Home") to = rows()[0];
    else if (event.key === "End") to = rows().at(-1);
    else if (event.key === "ArrowRight") {
      if (details.open) to = move(1);
      else fillers.get(details)?.();
      details.open = true;
    }
    else if (event.key === "ArrowLeft") {
      if (details.open && !details.classList.contains("leaf")) details.open = false;
      else to = details.parentElement.closest("details")?.firstElementChild;
    } else return;
    event.preventDefault();
    if (to) to.focus();
  });

  function choose(chosen) {
    measure = chosen;
    for (const button of find("measure").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.value === measure));
    for (const draw of shares.values()) draw();
  }
  find("measure").addEventListener("click", (event) => event.target.value && choose(event.target.value));

  find("close").addEventListener("click", () => search(""));

  const THEMES = ["auto", "light", "dark"];
  find("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme || "auto") + 1) % 3];
    document.documentElement.dataset.theme = next;
    find("theme").textContent = next[0].toUpperCase() + next.slice(1);
    find("theme").setAttribute("aria-label", next === "auto" ? "Colours: as the system has them" : `Colours: ${next}`);
  });

  // On paper every turn is open, with its question and answer.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = run.items.filter((node) => drawn.has(node) && !drawn.get(node).open && body[node.kind]);
    opened.forEach(open);
  });
  addEventListener("afterprint", () => opened.forEach((node) => { drawn.get(node).open = false; }));

  // -- the beginning ------------------------------------------------------------------------------------------------

  find("tools").hidden = tree.hidden = false;
  choose(measure);
  draw();
  if (run.items.length === 1) open(run.items[0]);
  addEventListener("hashchange", byHash);
  byHash();
})();
