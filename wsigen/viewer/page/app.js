// The page: one viewer, or two in step, and the panels around.

import { element, get, notice, table, count } from "./api.js";
import { Compare, sourceOf } from "./compare.js";
import { Inspect } from "./inspect.js";
import { Live } from "./live.js";
import { Measure } from "./measure.js";
import { Overlays } from "./overlay.js";
import { makeViewer, refresh } from "./pictures.js";
import { screenshot } from "./screenshot.js";

class Stage {
  constructor(scene) {
    this.scene = scene;
    this.token = scene.token;
    this.first = scene.pictures[0];
    this.viewers = [];
    this.handlers = [];
    this.left = makeViewer(element("left"), {
      showNavigator: true, navigatorPosition: "BOTTOM_LEFT", navigatorAutoFade: false, navigatorSizeRatio: 0.16,
      navigatorMaintainSizeRatio: true,
    });
    this.onView(this.left);
    this.source = sourceOf(this.first, this.token, scene.tiles);
    this.lay(this.left, this.source, this.first, 1);
  }

  // Call for each viewer there is and will be; or, given a viewer, tell those who wait for one.
  onView(what) {
    if (typeof what === "function") {
      this.handlers.push(what);
      this.viewers.forEach((one) => what(one));
    } else {
      this.viewers.push(what);
      this.handlers.forEach((one) => one(what));
    }
  }

  // Lay a source where its picture belongs: the first one is one unit wide.
  lay(viewer, source, { place, levels }, opacity, done = () => {}) {
    const width = this.first.levels[0][0];
    viewer.addTiledImage({
      tileSource: source, x: place.x / width, y: place.y / width, width: (levels[0][0] * place.scale) / width, opacity,
      success: (event) => done(event.item),
    });
  }

  redrawMask() {
    if (this.compare?.right && this.compare.overlay) refresh(this.compare.right, this.compare.source);
  }

  changed(parts) {
    refresh(this.left, this.source, parts);
  }
}

function facts(picture) {
  const rows = [["size", `${count(picture.levels[0][0])} × ${count(picture.levels[0][1])} px`]];
  if (picture.mpp) rows.push(["scale", `${Number(picture.mpp.toPrecision(4))} µm/px`]);
  if (picture.objective) rows.push(["objective", `${picture.objective}×`]);
  rows.push(...Object.entries(picture.facts));
  if (picture.device) rows.push(["paints on", picture.device]);
  element("facts").replaceChildren(table(rows));
}

function keys(stage, measure, overlays, compare, inspect) {
  const pan = (x, y) => {
    const bounds = stage.left.viewport.getBounds();
    stage.left.viewport.panBy(new OpenSeadragon.Point(x * bounds.width * 0.2, y * bounds.height * 0.2));
  };
  const zoom = (factor) => stage.left.viewport.zoomBy(factor);
  const act = {
    ArrowLeft: () => pan(-1, 0), ArrowRight: () => pan(1, 0), ArrowUp: () => pan(0, -1), ArrowDown: () => pan(0, 1),
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5),
    0: () => stage.left.viewport.goHome(),
    1: () => measure.show(5), 2: () => measure.show(10), 3: () => measure.show(20), 4: () => measure.show(40),
    o: () => overlays?.next(), c: () => compare.next(), p: () => screenshot(stage, measure, compare),
    f: fullScreen, m: panel, "?": () => element("help").showModal(), Escape: () => inspect?.close(),
  };
  addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox";
    if (typing || event.ctrlKey || event.metaKey || event.altKey || element("help").open) return;
    const chosen = act[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!chosen) return;
    compare.leader = stage.left;
    chosen();
    event.preventDefault();
  });
}

function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen().catch(() => notice("The browser refuses full screen."));
}

function panel() {
  const hidden = document.body.classList.toggle("no-panel");
  element("toggle-panel").setAttribute("aria-pressed", String(!hidden));
}

async function start() {
  const scene = await get("api/scene");
  const stage = new Stage(scene), first = stage.first;
  document.title = `${first.name} · wsigen`;
  element("name").textContent = first.name;
  element("synthetic").hidden = !first.synthetic;
  facts(first);
  const measure = new Measure(stage.left, first);
  const live = first.kind === "live";
  const overlays = scene.overlays.length
    ? new Overlays(stage, scene.overlays, live && scene.overlays.length === 1 ? "off" : "outline") : null;
  const choices = scene.pictures.slice(1).map((one) => ({
    ...one, label: one.name, source: () => sourceOf(one, stage.token, scene.tiles),
  }));
  if (overlays) {
    const mask = () => overlays.current;
    choices.push({
      id: "overlay", label: "mask", overlay: true, source: () => overlays.source("fill"),
      get place() { return mask().place; }, get levels() { return mask().levels; },
    });
  }
  const compare = new Compare(stage, choices);
  stage.compare = compare;
  const inspect = overlays ? new Inspect(stage, measure, overlays) : null;
  keys(stage, measure, overlays, compare, inspect);
  element("fit").addEventListener("click", () => stage.left.viewport.goHome());
  element("full").addEventListener("click", fullScreen);
  element("toggle-panel").addEventListener("click", panel);
  element("show-help").addEventListener("click", () => element("help").showModal());
  element("screenshot").addEventListener("click", () => screenshot(stage, measure, compare));
  if (live) {
    stage.live = new Live(stage, first, (parts) => stage.changed(parts), (now) => {
      const [width, height] = now.pictures[0].levels[0];
      if (width !== first.levels[0][0] || height !== first.levels[0][1]) location.reload();
      inspect?.close();
      overlays?.update(now.overlays);
      notice("The mask has changed: what depends on the change is painted again.", true);
    });
  }
  window.wsigen = { stage, measure, overlays, compare, inspect };  // for the console
}

start().catch((error) => notice(`The viewer could not start: ${error.message}`));
