// Nuclei over the slide: drawing, opacity, legend with counts and a switch for each class.

import { choose, count, element } from "./api.js";
import { pictureSource, refresh } from "./pictures.js";

const MODES = ["off", "outline", "fill"];

export class Overlays {
  constructor(stage, overlays, mode) {
    this.stage = stage;
    this.mode = mode;
    this.opacity = 0.8;
    this.set(overlays);
    this.current = this.overlays.at(-1);  // the one that was asked for, before the mask that is painted
    element("nuclei").hidden = false;
    const choice = element("overlay-choice");
    choice.hidden = this.overlays.length < 2;
    choice.append(...this.overlays.map((one) => new Option(one.name, one.id)));
    choice.value = this.current.id;
    choice.addEventListener("change", () => this.take(choice.value));
    for (const one of element("modes").children) one.addEventListener("click", () => this.draw(one.dataset.mode));
    element("opacity").addEventListener("input", () => this.fade(element("opacity").value / 100));
    element("show-all").addEventListener("click", () => this.switchAll(true));
    element("show-none").addEventListener("click", () => this.switchAll(false));
    this.legend();
    this.fade(this.opacity);
    this.add();
  }

  set(overlays) {
    const shown = new Map((this.overlays ?? []).map((one) => [one.id, one.shown]));
    this.overlays = overlays.map((one) => ({
      ...one, shown: shown.get(one.id) ?? new Set(one.classes.map((entry) => entry.index)),
    }));
  }

  // A changed mask: new counts, new pixels.
  update(overlays) {
    const before = this.current;
    this.set(overlays);
    this.current = this.overlays.find((one) => one.id === before.id) ?? this.overlays[0];
    this.legend();
    if (String(before.levels[0]) === String(this.current.levels[0])) this.redraw();
    else this.add();
  }

  take(id) {
    this.current = this.overlays.find((one) => one.id === id);
    this.legend();
    this.add();
  }

  source(mode) {
    return pictureSource({
      levels: this.current.levels,
      transparent: true,
      url: (level, x, y) => {
        const shown = [...this.current.shown].sort((a, b) => a - b).join(",");
        const version = `${this.stage.token}.${this.current.revision}`;
        const drawing = mode ?? (this.mode === "fill" ? "fill" : "outline");
        return `overlays/${this.current.id}/${level}/${x}_${y}.png?mode=${drawing}&show=${shown}&v=${version}`;
      },
    });
  }

  add() {
    if (this.item) this.stage.left.world.removeItem(this.item);
    this.item = null;
    this.own = this.source();
    this.stage.lay(this.stage.left, this.own, this.current, this.visible(), (item) => { this.item = item; });
  }

  visible() {
    return this.mode === "off" ? 0 : this.opacity;
  }

  redraw() {
    refresh(this.stage.left, this.own);
    this.stage.redrawMask();
  }

  draw(mode) {
    const before = this.mode;
    this.mode = mode;
    choose(element("modes"), element("modes").querySelector(`[data-mode=${mode}]`));
    this.item?.setOpacity(this.visible());
    if (mode !== "off" && mode !== before) this.redraw();
  }

  next() {
    this.draw(MODES[(MODES.indexOf(this.mode) + 1) % MODES.length]);
  }

  fade(opacity) {
    this.opacity = opacity;
    element("opacity").value = opacity * 100;
    element("opacity-value").textContent = `${Math.round(opacity * 100)} %`;
    this.item?.setOpacity(this.visible());
  }

  switchAll(on) {
    this.current.shown = new Set(on ? this.current.classes.map((entry) => entry.index) : []);
    this.legend();
    this.redraw();
  }

  legend() {
    const rows = this.current.classes.map((entry) => {
      const row = document.createElement("li"), label = document.createElement("label");
      const box = document.createElement("input"), swatch = document.createElement("i");
      const name = document.createElement("span"), number = document.createElement("b");
      box.type = "checkbox";
      box.checked = this.current.shown.has(entry.index);
      box.dataset.index = entry.index;
      box.addEventListener("change", () => {
        if (box.checked) this.current.shown.add(entry.index);
        else this.current.shown.delete(entry.index);
        this.redraw();
      });
      swatch.style.setProperty("--colour", entry.colour);
      name.textContent = entry.name;
      number.textContent = count(entry.count);
      label.append(box, swatch, name, number);
      row.append(label);
      return row;
    });
    element("legend").replaceChildren(...rows);
    const total = this.current.classes.reduce((sum, entry) => sum + entry.count, 0);
    element("total").textContent = `${count(total)} nuclei`;
    choose(element("modes"), element("modes").querySelector(`[data-mode=${this.mode}]`));
  }
}
