// Two views in step: side by side, or one over the other under a curtain.

import { choose, element } from "./api.js";
import { makeViewer, pictureSource } from "./pictures.js";

const MODES = ["off", "side", "curtain"];

export class Compare {
  constructor(stage, choices) {
    this.stage = stage;
    this.choices = choices;
    this.mode = "off";
    this.leader = stage.left;
    element("compare").hidden = choices.length === 0;
    for (const one of element("compare").querySelectorAll("button")) {
      one.addEventListener("click", () => this.show(one.dataset.compare));
    }
    const choice = element("compare-with");
    choice.append(...choices.map((one) => new Option(one.label, one.id)));
    choice.addEventListener("change", () => this.fill());
    element("left").addEventListener("pointerenter", () => { this.leader = stage.left; });
    element("right").addEventListener("pointerenter", () => { this.leader = this.right; });
    stage.left.addHandler("viewport-change", () => this.follow(stage.left));
    stage.left.addHandler("resize", () => setTimeout(() => this.follow(stage.left)));
    this.dragging();
  }

  next() {
    if (this.choices.length) this.show(MODES[(MODES.indexOf(this.mode) + 1) % MODES.length]);
  }

  show(mode) {
    this.mode = mode;
    const root = element("stage");
    root.classList.toggle("side", mode === "side");
    root.classList.toggle("curtain", mode === "curtain");
    choose(element("compare"), element("compare").querySelector(`[data-compare=${mode}]`));
    const on = mode !== "off";
    for (const id of ["right", "divider", "left-name", "right-name"]) element(id).hidden = !on;
    element("compare-with").hidden = !on || this.choices.length < 2;
    this.leader = this.stage.left;
    if (on && !this.right) this.open();
    setTimeout(() => this.follow(this.stage.left));  // once both have their sizes
  }

  open() {
    this.right = makeViewer(element("right"), { showNavigator: false });
    this.right.addHandler("viewport-change", () => this.follow(this.right));
    this.right.addHandler("open", () => this.follow(this.stage.left));
    this.right.world.addHandler("add-item", () => this.follow(this.stage.left));
    this.stage.onView(this.right);
    this.fill();
  }

  fill() {
    const chosen = this.choices.find((one) => one.id === element("compare-with").value) ?? this.choices[0];
    this.right.world.removeAll();
    this.source = chosen.source();
    this.overlay = chosen.overlay;
    this.stage.lay(this.right, this.source, chosen, 1, () => this.follow(this.stage.left));
    element("left-name").textContent = this.stage.first.name;
    element("right-name").textContent = chosen.label;
  }

  follow(from) {
    if (this.mode === "off" || !this.right?.world.getItemCount() || from !== this.leader) return;
    const to = from === this.right ? this.stage.left : this.right;
    to.viewport.zoomTo(from.viewport.getZoom(true), null, true);
    to.viewport.panTo(from.viewport.getCenter(true), true);
  }

  dragging() {
    const divider = element("divider"), root = element("stage");
    const place = (share) => root.style.setProperty("--curtain", `${100 * Math.min(0.98, Math.max(0.02, share))}%`);
    let share = 0.5;
    divider.addEventListener("pointerdown", (event) => {
      if (this.mode !== "curtain") return;
      divider.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    divider.addEventListener("pointermove", (event) => {
      if (!divider.hasPointerCapture(event.pointerId)) return;
      share = (event.clientX - root.getBoundingClientRect().left) / root.clientWidth;
      place(share);
    });
    divider.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
      if (!step) return;
      share += step;
      place(share);
      event.stopPropagation();
    });
  }
}

// A picture of the scene as a source of tiles.
export function sourceOf(picture, token, kind) {
  return pictureSource({
    levels: picture.levels,
    url: (level, x, y) => `tiles/${picture.id}/${level}/${x}_${y}.${kind}?v=${token}`,
  });
}
