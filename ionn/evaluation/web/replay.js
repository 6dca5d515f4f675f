// Replays a run: the chain at the client and at the server, what has arrived of it, and the path of the query under way.
// The data are those of ionn/evaluation/replay.py.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const CLIENT_Y = 24, SERVER_Y = 138, BLOCK = 38, STRIP_Y = 228, STRIP = 56, HEIGHT = 310;
const COLORS = {
  client: "#cbd5df", pinned: "#eef1f4", empty: "#ffffff", edge: "#7b8794", arriving: "#5b9bc8", usable: ["#0b5a8f", "#2878ad"],
  path: "#8f2a00", ahead: "#e0703a", halo: "#ffffff", latency: "#52606d", ink: "#1f2933",
};
const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 5, 10, 50];

function draw(parent, name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  if (text !== "") made.textContent = text;
  parent.append(made);
  return made;
}

// The index of the last of sorted `items` for which `of(item) <= value`; -1 if there is none.
function lastAt(items, of, value) {
  let low = 0, high = items.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (of(items[middle]) <= value) low = middle + 1; else high = middle;
  }
  return low - 1;
}

class Replay {
  constructor() {
    this.place = document.getElementById("replay-drawing");
    this.subject = document.getElementById("replay-subject");
    this.status = document.getElementById("replay-status");
    this.slider = document.getElementById("replay-time");
    this.button = document.getElementById("replay-play");
    this.width = "uploadMs";
    this.speed = 1;
    this.playing = false;
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.button.addEventListener("click", () => this.play(!this.playing));
    document.getElementById("replay-previous").addEventListener("click", () => this.step(-1));
    document.getElementById("replay-next").addEventListener("click", () => this.step(1));
    new ResizeObserver(() => { if (this.run && this.place.clientWidth !== this.pixels) this.build(); }).observe(this.place);
  }

  addChoosers(container) {
    const widths = { uploadMs: "time to upload", clientMs: "time at the client", equal: "equal" };
    this.select(container, "width of a stage", widths, this.width, (value) => { this.width = value; this.build(); });
    const speeds = Object.fromEntries(SPEEDS.map((speed) => [speed, speed === 1 ? "as it was" : `${speed} x`]));
    this.select(container, "speed", speeds, this.speed, (value) => { this.speed = Number(value); });
  }

  select(container, name, options, chosen, change) {
    const select = document.createElement("select");
    // Keys that are whole numbers would come first, whatever their order.
    Object.entries(options).sort((a, b) => a[0] - b[0] || 0).forEach(([value, text]) => select.add(new Option(text, value)));
    select.value = chosen;
    select.addEventListener("change", () => change(select.value));
    const label = document.createElement("label");
    label.append(name, select);
    container.append(label);
  }

  load(run, subject) {
    this.play(false);
    this.run = run;
    this.subject.textContent = subject;
    this.slider.max = this.run.end;
    const uploaded = Math.max(0, ...this.run.partitions.map((part) => part.ready));
    this.time = (uploaded || this.run.end) / 2;
    this.build();
  }

  // Draws what stays while time goes on.
  build(width = this.place.clientWidth) {
    const { run } = this;
    this.pixels = Math.max(width, 200);
    this.place.replaceChildren();
    const svg = draw(this.place, "svg", { viewBox: `0 0 ${this.pixels} ${HEIGHT}`, height: HEIGHT, "aria-hidden": "true" });
    this.blocks = this.layOut();
    draw(svg, "text", { x: 0, y: CLIENT_Y - 8 }, "At the client");
    draw(svg, "text", { x: 0, y: SERVER_Y + BLOCK + 16 }, "At the server");
    this.upload = draw(svg, "text", { x: this.pixels, y: SERVER_Y + BLOCK + 16, "text-anchor": "end" });
    this.blocks.forEach(([x, width], stage) => {
      const box = { x, width, height: BLOCK, stroke: COLORS.edge, "stroke-width": 0.75 };
      this.label(draw(svg, "rect", { ...box, y: CLIENT_Y, fill: COLORS.client }), stage);
      const fill = run.held.includes(stage) ? COLORS.usable[0] : run.pinned[stage] ? COLORS.pinned : COLORS.empty;
      this.label(draw(svg, "rect", { ...box, y: SERVER_Y, fill }), stage);
    });
    this.parts = run.partitions.map((partition, number) => partition.parts.map(([stage, begin, end]) => {
      const [x, width] = this.blocks[stage];
      const piece = { x: x + width * begin + 0.4, width: Math.max(width * (end - begin) - 0.8, 0.6), class: "part" };
      const drawn = this.label(draw(svg, "rect", piece), stage, ` (partition ${number + 1})`);
      return drawn;
    }));
    this.numbers(svg);
    // A light edge sets the path off from whatever it crosses.
    this.halo = draw(svg, "path", { fill: "none", stroke: COLORS.halo, "stroke-width": 8, "stroke-linejoin": "round" });
    this.ahead = draw(svg, "path", { class: "ahead", fill: "none", stroke: COLORS.ahead, "stroke-width": 3, "stroke-linejoin": "round" });
    this.done = draw(svg, "path", { class: "done", fill: "none", stroke: COLORS.path, "stroke-width": 4, "stroke-linejoin": "round" });
    this.dots = [0, 1].map(() => draw(svg, "circle", { r: 6, fill: COLORS.path, stroke: "#fff", "stroke-width": 1.5 }));
    this.names(svg);
    this.strip(svg);
    this.go(this.time);
  }

  label(drawn, stage, more = "") {
    draw(drawn, "title", {}, this.run.stages[stage] + more);
    return drawn;
  }

  // Where each stage is: [x, width]. The smallest have a few pixels, so that they can be seen.
  layOut() {
    const { run } = this;
    const sizes = run.stages.map((_, stage) => (this.width === "equal" ? 1 : run[this.width][stage]));
    const count = sizes.length, gap = Math.min(2, this.pixels / count / 6);
    const room = this.pixels - gap * (count - 1) - 1;
    const least = Math.min(10, room / count / 2);
    const total = sizes.reduce((sum, size) => sum + size, 0) || 1;
    let x = 0.5;
    return sizes.map((size) => {
      const width = least + (room - least * count) * (size / total || 0);
      const block = [x, width];
      x += width + gap;
      return block;
    });
  }

  // Names of the stages, between the rows, where there is room for them.
  names(svg) {
    this.blocks.forEach(([x, width], stage) => {
      const name = this.run.stages[stage];
      if (width > name.length * 7 + 6) draw(svg, "text", { class: "name", x: x + width / 2, y: CLIENT_Y + 24, "text-anchor": "middle" }, name);
    });
  }

  // Numbers of the partitions, in the largest part of each.
  numbers(svg) {
    this.marks = this.parts.map((rects, number) => {
      const widths = rects.map((rect) => Number(rect.getAttribute("width")));
      const at = widths.indexOf(Math.max(...widths));
      const width = at < 0 ? 0 : widths[at];
      if (width < 8 * String(number + 1).length + 4) return null;
      const x = Number(rects[at].getAttribute("x")) + width / 2;
      return draw(svg, "text", { x, y: SERVER_Y + BLOCK / 2 + 4, "text-anchor": "middle", "pointer-events": "none" }, number + 1);
    });
  }

  // Latency over the whole run, with marks where partitions become usable; a click goes there.
  strip(svg) {
    const { run } = this;
    const x = (seconds) => (seconds / (run.end || 1)) * (this.pixels - 1) + 0.5;
    const most = Math.max(...run.queries.map(([begin, end]) => end - begin)) || 1;
    const y = (seconds) => STRIP_Y + 8 + (STRIP - 8) * (1 - seconds / most);
    const line = run.queries.map(([begin, end], at) => `${at ? "L" : "M"}${x(begin).toFixed(1)} ${y(end - begin).toFixed(1)}H${x(end).toFixed(1)}`);
    draw(svg, "text", { x: 0, y: STRIP_Y }, "Latency; marks: partitions become usable");
    const ground = draw(svg, "rect", { class: "strip", x: 0, y: STRIP_Y + 4, width: this.pixels, height: STRIP, fill: "#f5f7f9" });
    run.partitions.forEach((part) => draw(svg, "path", { d: `M${x(part.ready)} ${STRIP_Y + STRIP + 4}v7`, stroke: COLORS.usable[0], "stroke-width": 2 }));
    draw(svg, "path", { class: "latency", d: line.join(""), fill: "none", stroke: COLORS.latency, "stroke-width": 1.5 });
    const end = draw(svg, "text", { x: this.pixels, y: STRIP_Y + STRIP + 22, "text-anchor": "end" }, `${run.end.toFixed(1)} s`);
    end.setAttribute("pointer-events", "none");
    draw(svg, "text", { x: 0, y: STRIP_Y + STRIP + 22 }, "0 s");
    this.cursor = draw(svg, "path", { stroke: COLORS.path, "stroke-width": 2 });
    this.stripX = x;
    [ground, svg].forEach((place) => place.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      if (event.clientY - box.top > STRIP_Y) {
        event.stopPropagation();
        this.play(false);
        this.go(((event.clientX - box.left) / box.width) * run.end);
      }
    }));
  }

  // Shows the run as it was at a time.
  go(seconds) {
    const { run } = this;
    this.time = Math.min(Math.max(seconds, 0), run.end);
    this.slider.value = this.time;
    const usable = this.showParts();
    const at = lastAt(run.queries, (query) => query[0], this.time);
    this.showPath(at);
    this.cursor.setAttribute("d", `M${this.stripX(this.time)} ${STRIP_Y + 4}v${STRIP}`);
    this.tell(at, usable);
  }

  // Fills the server's stages as far as they have arrived; how many partitions queries may use.
  showParts() {
    let usable = 0, under = "";
    this.run.partitions.forEach((part, number) => {
      const arrived = this.time >= part.end ? 1 : this.time <= part.start ? 0 : (this.time - part.start) / (part.end - part.start);
      const ready = this.time >= part.ready;
      usable += ready ? 1 : 0;
      if (arrived > 0 && !ready) under = arrived < 1 ? `partition ${number + 1}: ${Math.floor(arrived * 100)} % arrived` : `partition ${number + 1}: being loaded`;
      const height = (BLOCK - 1.5) * arrived;
      this.parts[number].forEach((rect) => {
        rect.setAttribute("height", height);
        rect.setAttribute("y", SERVER_Y + 0.75 + (BLOCK - 1.5) - height);
        rect.setAttribute("fill", ready ? COLORS.usable[number % 2] : COLORS.arriving);
      });
      if (this.marks[number]) {
        this.marks[number].style.display = arrived > 0 ? "" : "none";
        this.marks[number].style.fill = ready ? "#ffffff" : COLORS.ink;
      }
    });
    this.upload.textContent = under;
    return usable;
  }

  // The moves of a query: [begin, end, points, points of the other side], in ms since it started.
  moves(query) {
    const [, , number, durations] = query;
    const route = this.run.routes[number];
    const client = CLIENT_Y + BLOCK - 9, server = SERVER_Y + 9;
    const moves = [];
    let now = 0;
    const move = (duration, points, others) => { moves.push([now, now + duration, points, others]); now += duration; };
    route.forEach(([where, first, last, fromServer, toServer], at) => {
      const left = this.blocks[first][0], right = this.blocks[last][0] + this.blocks[last][1];
      const [up, compute, down] = durations[at];
      const above = [[left, client], [right, client]], below = [[left, server], [right, server]];
      if (where === 0) {
        move(compute, above);
      } else if (where === 1) {
        if (!fromServer) move(up, [[left, client], [left, server]]);
        move(compute, below);
        if (!toServer) move(down, [[right, server], [right, client]]);
      } else {
        const from = fromServer ? below[0] : above[0], to = toServer ? below[1] : above[1];
        move(compute, [from, ...above, to], [from, ...below, to]);
      }
    });
    return moves;
  }

  showPath(at) {
    const query = this.run.queries[at];
    if (!query) {
      [this.halo, this.ahead, this.done].forEach((path) => path.setAttribute("d", ""));
      this.dots.forEach((dot) => { dot.style.display = "none"; });
      return;
    }
    const moves = this.moves(query);
    const total = moves.length ? moves[moves.length - 1][1] : 0;
    // What a query took beside its segments is spread over them.
    const now = Math.min((this.time - query[0]) / Math.max(query[1] - query[0], 1e-9), 1) * total;
    let ahead = "", done = "", places = [];
    for (const [begin, end, ...lines] of moves) {
      const share = now >= end ? 1 : now <= begin ? 0 : (now - begin) / (end - begin);
      lines.filter(Boolean).forEach((points) => {
        ahead += Replay.pathOf(points);
        const [reached, place] = Replay.upTo(points, share);
        if (share > 0) done += Replay.pathOf(reached);
        if (share > 0 && share < 1) places.push(place);
      });
    }
    this.halo.setAttribute("d", ahead);
    this.ahead.setAttribute("d", ahead);
    this.done.setAttribute("d", done);
    this.dots.forEach((dot, number) => {
      const place = places[number];
      dot.style.display = place ? "" : "none";
      if (place) { dot.setAttribute("cx", place[0]); dot.setAttribute("cy", place[1]); }
    });
  }

  static pathOf(points) {
    return points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  }

  // The first part of a line, by its length, and where it ends.
  static upTo(points, share) {
    const lengths = points.slice(1).map(([x, y], at) => Math.hypot(x - points[at][0], y - points[at][1]));
    let left = share * lengths.reduce((sum, length) => sum + length, 0);
    const reached = [points[0]];
    for (let at = 0; at < lengths.length; at += 1) {
      const part = lengths[at] ? Math.min(left / lengths[at], 1) : 1;
      const [from, to] = [points[at], points[at + 1]];
      reached.push([from[0] + (to[0] - from[0]) * part, from[1] + (to[1] - from[1]) * part]);
      left -= lengths[at];
      if (left <= 0) break;
    }
    return [reached, reached[reached.length - 1]];
  }

  tell(at, usable) {
    const { run } = this;
    const query = run.queries[at];
    const under = query && this.time <= query[1];
    let what = "No query has started yet.";
    if (query) {
      const ms = (query[1] - query[0]) * 1e3;
      const took = `${ms >= 10 ? ms.toFixed(0) : Number(ms.toPrecision(2))} ms`;
      what = `Query ${at * run.every + 1} of ${run.total} ${under ? "is under way, and takes" : "is answered; it took"} ${took}: ${this.route(query)}.`;
    }
    if (run.every > 1) what += ` (Of ${run.every} queries, one is shown.)`;
    const uploaded = run.partitions.filter((part) => this.time >= part.ready).reduce((sum, part) => sum + part.megabytes, 0);
    const total = run.partitions.reduce((sum, part) => sum + part.megabytes, 0);
    const weights = run.partitions.length
      ? `Usable at the server: ${usable} of ${run.partitions.length} partitions, ${uploaded.toFixed(1)} of ${total.toFixed(1)} MB.`
      : "Nothing is uploaded in this run."
        + (run.held.length ? ` The server had ${run.held.length} of ${run.stages.length} stages before.` : "");
    const lines = [`At ${this.time.toFixed(2)} s`, what, weights].map((text) => {
      const line = document.createElement("p");
      line.textContent = text;
      return line;
    });
    lines[0].style.fontWeight = 600;
    this.status.replaceChildren(...lines);
    this.slider.setAttribute("aria-valuetext", `${this.time.toFixed(2)} seconds`);
  }

  route(query) {
    const names = this.run.stages;
    return this.run.routes[query[2]].map(([where, first, last]) => {
      const stages = first === last ? names[first] : `${names[first]} to ${names[last]}`;
      return `${stages} at ${["the client", "the server", "both"][where]}`;
    }).join(", ");
  }

  // Goes to the start of the query after the one under way, or before it.
  step(by) {
    const { queries } = this.run;
    this.play(false);
    const at = lastAt(queries, (query) => query[0], this.time);
    this.go(queries[Math.min(Math.max(at + by, 0), queries.length - 1)][0]);
  }

  play(on) {
    this.playing = on;
    this.button.textContent = on ? "Pause" : "Play";
    // What changes many times a second is not read out.
    this.status.setAttribute("aria-live", on ? "off" : "polite");
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    if (!on) return;
    if (this.time >= this.run.end) this.go(0);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) this.playQueries();
    else this.playFrames();
  }

  playFrames() {
    let before = performance.now();
    const next = (now) => {
      this.go(this.time + ((now - before) / 1e3) * this.speed);
      before = now;
      if (this.time >= this.run.end) this.play(false);
      else this.frame = requestAnimationFrame(next);
    };
    this.frame = requestAnimationFrame(next);
  }

  // Without motion: a picture for each query, one a second.
  playQueries() {
    const { queries } = this.run;
    const at = lastAt(queries, (query) => query[0], this.time) + 1;
    this.go(at < queries.length ? queries[at][0] : this.run.end);
    if (this.time >= this.run.end) this.play(false);
    else this.timer = setTimeout(() => this.playQueries(), 1000);
  }
}
