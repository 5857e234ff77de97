// A slide in the making: where the page looks goes to the server, what is painted comes back; settings; saving.

import { button, count, duration, element, notice, post } from "./api.js";
import { inputOf, slider } from "./form.js";

const LOOK_EVERY = 150;  // ms, while moving

export class Live {
  constructor(stage, picture, changed, sceneChanged) {
    this.stage = stage;
    this.picture = picture;
    this.changed = changed;  // (parts or undefined): tiles look different now
    this.sceneChanged = sceneChanged;
    this.session = null;
    this.generation = picture.generation;
    element("painting").hidden = false;
    this.controls();
    this.listen();
    stage.left.addHandler("viewport-change", () => this.soon());
    stage.left.addHandler("resize", () => this.soon());
    addEventListener("pagehide", () => this.stream.close());
  }

  listen() {
    this.stream = new EventSource("api/events");
    this.on("hello", ({ session }) => { this.session = session; this.look(); });
    this.on("tiles", ({ parts }) => this.changed(parts));
    this.on("scene", (scene) => this.sceneChanged(scene));
    this.on("status", (status) => this.status(status));
    this.stream.addEventListener("error", () => {
      this.session = null;
      this.chip("failed", "no connection");
    });
  }

  on(name, act) {
    this.stream.addEventListener(name, (event) => act(JSON.parse(event.data)));
  }

  soon() {
    if (this.timer) return;
    this.timer = setTimeout(() => { this.timer = null; this.look(); }, LOOK_EVERY);
  }

  look() {
    if (!this.session || !this.stage.left.world.getItemCount()) return;
    const bounds = this.stage.left.viewport.getBounds();
    const scale = this.picture.levels[0][0];
    const whole = (value) => Math.round(value * scale);
    post("api/look", {
      session: this.session, x: whole(bounds.x), y: whole(bounds.y),
      width: whole(bounds.width), height: whole(bounds.height),
    }).catch(() => {});  // the stream says it when the server is gone
  }

  chip(kind, text) {
    const chip = element("state");
    chip.hidden = false;
    chip.className = `chip ${kind}`;
    chip.textContent = text;
  }

  status(status) {
    const all = status.windows > 0 && status.painted === status.windows;
    if (status.generation !== this.generation) {
      this.generation = status.generation;
      this.changed();
    }
    if (all && !this.all) this.changed();  // nothing stays a preview for want of one message
    this.all = all;
    element("progress-bar").style.width = `${status.windows ? (100 * status.painted) / status.windows : 0}%`;
    this.words(status, all);
    this.seed.show(status.seed);
    this.steps.show(status.steps);
    for (const [name, input] of Object.entries(this.conditions)) input.show(status.conditions[name]);
    this.current = status;
    this.saving(status.save);
  }

  words(status, all) {
    const text = element("progress-text");
    const share = status.windows ? Math.floor((100 * status.painted) / status.windows) : 0;
    if (status.state === "failed") {
      this.chip("failed", "stopped");
      text.textContent = status.problem;
    } else if (status.state === "opening" || status.state === "reading") {
      this.chip("preview", "preview");
      text.textContent = status.state === "opening" ? "Loading the model…" : "Reading the changed mask…";
    } else if (status.too_large) {
      this.chip("preview", "preview");
      text.textContent = "Zoom in to paint: this is more than can be painted in good time.";
    } else if (!status.looking) {
      this.chip("preview", "preview");
    } else if (status.windows === 0) {
      this.chip("painted", "painted");
      text.textContent = "Nothing to paint here.";
    } else if (all) {
      this.chip("painted", "painted");
      text.textContent = `All ${count(status.windows)} windows in view are painted.`;
    } else {
      this.chip("painting", status.painted ? `preview · ${share} % painted` : "preview");
      const left = status.windows_per_second ? (status.windows - status.painted) / status.windows_per_second : null;
      const wait = left === null ? "" : `, about ${duration(left)} left`;
      text.textContent = `${count(status.painted)} of ${count(status.windows)} windows in view${wait}`;
    }
  }

  controls() {
    const { seed, steps, conditions } = this.picture.form;
    const dice = button("⟳", () => this.choose({ seed: Math.floor(Math.random() * 1e6) }), "Another seed");
    dice.id = "dice";
    this.seed = inputOf("seed", seed, (value) => this.choose({ seed: value }), dice);
    this.steps = slider("steps", steps, (value) => this.choose({ steps: value }));
    this.conditions = Object.fromEntries(Object.entries(conditions).map(([name, field]) =>
      [name, inputOf(`condition-${name}`, field, (value) => this.choose({ conditions: { [name]: value } }))]));
    const inputs = [this.seed, ...Object.values(this.conditions), this.steps];
    element("form").replaceChildren(...inputs.map((input) => input.row));
    element("save").addEventListener("click", () => post("api/save", {}).catch((error) => notice(error.message)));
    element("stop-saving").addEventListener("click", () => post("api/save/stop", {}).catch((error) => notice(error.message)));
  }

  choose(change) {
    document.activeElement?.blur();
    post("api/settings", change).catch((error) => notice(error.message));
  }

  saving(save) {
    element("saving").hidden = !save;
    if (!save) return;
    const running = save.state === "running";
    element("save").disabled = running;
    element("stop-saving").hidden = !running;
    const painted = save.windows ? save.painted / save.windows : 0;
    const share = save.state === "done" ? 1 : 0.9 * painted + 0.1 * (save.rows / save.height);
    element("saving-bar").style.width = `${100 * share}%`;
    element("saving-text").textContent = running
      ? `Saving ${save.name}: ${count(save.painted)} of ${count(save.windows)} windows`
      : save.message;
    if (this.savingState === "running" && !running) notice(save.message, save.state === "done");
    this.savingState = save.state;
  }
}
